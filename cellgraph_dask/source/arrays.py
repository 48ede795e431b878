"""One-dimensional arrays of a matrix, read in slices on the calling thread.

What differs from source to source stays behind `StoredArray.read`: `chunked` has the arrays of zarr
and HDF5; those in memory, and the raw files of a spooled matrix, are here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import read_at

Span = tuple[int, int]

STEP = 1 << 16  # values read at once where chunks are smaller, or where there are none


class StoredArray(ABC):
    """A one-dimensional array of a source.

    Attributes
    ----------
    name : str
        Path inside the source, as errors name it.
    size : int
        Number of values.
    dtype : numpy.dtype
        Of the values as `read` gives them: native byte order.
    chunk_size : int
        Values in a chunk, the smallest part that can be decoded (inside a shard: its inner chunk).
    """

    name: str
    size: int
    dtype: np.dtype[Any]
    chunk_size: int = STEP

    @property
    def work_bytes(self) -> int:
        """Upper bound on the working memory of `read` on one thread, not counting `out`."""
        return 0

    @property
    def step(self) -> int:
        """Most values in a span: a chunk, or several small ones."""
        return self.chunk_size * max(1, STEP // self.chunk_size)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.step)

    @abstractmethod
    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`.

        Returns
        -------
        list of (int, int)
            Spans of values whose chunk is not in the store; they are read as zeros.

        Raises
        ------
        DamagedGraphError
            If values cannot be read or decoded; the message names the chunk.
        """

    def chunk_at(self, at: int) -> Array:
        """Return the values of the chunk that holds value `at`."""
        first = at // self.chunk_size * self.chunk_size
        values = np.empty(min(self.chunk_size, self.size - first), self.dtype)
        self.read(first, first + values.size, values)
        return values

    def value_at(self, at: int) -> int:
        """Return an integer, unchecked."""
        value = np.empty(1, self.dtype)
        self.read(at, at + 1, value)
        return int(value[0])

    def key_of(self, at: int) -> str:
        """Return what the store calls the chunk (or shard) that holds value `at`."""
        return str(at // self.chunk_size)

    def files(self) -> Iterator[Path]:
        """Yield the files that it is in, in the same order each time; none if it is in no file."""
        yield from ()


def cut_spans(start: int, stop: int, size: int) -> Iterator[Span]:
    """Cut ``[start, stop)`` at multiples of a size."""
    while start < stop:
        end = min(stop, (start // size + 1) * size)
        yield start, end
        start = end


class MemoryArray(StoredArray):
    """A stored array that is in memory."""

    def __init__(self, name: str, values: Array) -> None:
        self.name = name
        self.size = int(values.size)
        self.dtype = values.dtype.newbyteorder("=")
        self._values = values

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Copy the values ``[start, stop)`` to `out`."""
        out[:] = self._values[start:stop]
        return []


def read_file(path: str | Path, out: Array, offset: int) -> None:
    """Fill `out` from a file at an offset in bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        read_at(fd, out, offset)
    finally:
        os.close(fd)


class RawArray(StoredArray):
    """An array of a spooled matrix.

    Parameters
    ----------
    name, size, dtype
        See `StoredArray`; of weights whose parts have several dtypes, the one that holds them all.
    folder
        Where the files are.
    after
        Bytes of each entry that come first in a part, and make it an array of weights.
    """

    def __init__(
        self, name: str, size: int, dtype: np.dtype[Any], folder: Path, after: int = 0
    ) -> None:
        self.name = name
        self.size = size
        self.dtype = dtype
        self._folder = folder
        self._after = after

    def __reduce__(self) -> Any:
        # Without the table, which has a line for each part.
        return RawArray, (self.name, self.size, self.dtype, self._folder, self._after)

    @cached_property
    def _table(self) -> tuple[Array, list[np.dtype[Any]]]:
        """Where each part starts in the array, and after the last; dtypes in the parts."""
        if self.name.endswith("indptr"):
            return np.array([0, self.size]), [self.dtype]
        with np.load(self._folder / "table.npz") as table:
            weights = [np.dtype(str(dtype)) for dtype in table["weights"]]
            return table["starts"], weights if self._after else [self.dtype] * len(weights)

    @property
    def work_bytes(self) -> int:
        """See `StoredArray`."""
        return 8 * STEP

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        starts, dtypes = self._table
        k = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            first, last = int(starts[k]), int(starts[k + 1])
            end = min(stop, last)
            if start < end:
                target, dtype = out[: end - start], dtypes[k]
                stored = target
                if dtype != self.dtype:
                    stored = buffers.take("raw values", target.size, dtype)
                offset = (last - first) * self._after + (start - first) * dtype.itemsize
                self._read_part(k, stored, offset)
                if stored is not target:
                    target[:] = stored
                out = out[end - start :]
            start, k = end, k + 1
        return []

    def _read_part(self, k: int, out: Array, offset: int) -> None:
        is_indptr = self.name.endswith("indptr")
        path = self._folder / ("indptr" if is_indptr else f"part-{k:06d}")
        try:
            read_file(path, out, offset)
        except (OSError, EOFError) as error:
            raise DamagedGraphError(
                f"{self.name} cannot be read from the temporary file {path}: {error}. Export "
                "again, and leave the scratch folder alone meanwhile."
            ) from error

    def files(self) -> Iterator[Path]:
        """Yield the files."""
        yield from sorted(self._folder.iterdir())


class EvenIndptr(StoredArray):
    """The `indptr` of a matrix whose entries nobody has counted: as many in each row."""

    def __init__(self, n_rows: int, n_entries: int) -> None:
        self.name = "indptr"
        self.size = n_rows + 1
        self.dtype = np.dtype(np.int64)
        self._n_entries = n_entries

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Write where the rows ``[start, stop)`` would begin to `out`."""
        whole, rest = divmod(self._n_entries, max(self.size - 1, 1))
        rows = np.arange(start, stop, dtype=np.int64)
        out[:] = rows * whole + np.minimum(rows, rest)
        return []
