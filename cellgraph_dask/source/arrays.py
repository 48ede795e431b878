"""One-dimensional arrays as every store gives them, and the two kinds that need no decoding.

A *stored array* is read in slices, on the calling thread, straight into the caller's memory. What
differs from store to store, chunks, codecs, files or none, stays behind `read`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import read_at

Span = tuple[int, int]

_STEP = 1 << 16  # values read at once where there are no chunks


class StoredArray(Protocol):
    """A one-dimensional array in a store.

    Attributes
    ----------
    name : str
        Path inside the store, as errors name it.
    size : int
        Number of values.
    dtype : numpy.dtype
        Of the values as `read` gives them: native byte order.
    chunk_size : int
        Values in a chunk, the smallest part that can be decoded; no span is longer.
    """

    name: str
    size: int
    dtype: np.dtype[Any]
    chunk_size: int

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs to read from this array besides what it reads into."""

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`.

        Returns
        -------
        list of (int, int)
            Spans of values that are not in the store; they are read as zeros.

        Raises
        ------
        DamagedGraphError
            If values cannot be read or decoded; the message names where.
        """

    def key_of(self, at: int) -> str:
        """Return what the store calls the chunk that holds value `at`."""


def cut_spans(start: int, stop: int, chunk_size: int) -> Iterator[Span]:
    """Cut ``[start, stop)`` at multiples of a chunk size."""
    while start < stop:
        end = min(stop, (start // chunk_size + 1) * chunk_size)
        yield start, end
        start = end


class MemoryArray:
    """A stored array that is in memory; see `StoredArray`."""

    work_bytes = 0

    def __init__(self, name: str, values: Array) -> None:
        self.name = name
        self.size = int(values.size)
        self.dtype = values.dtype.newbyteorder("=")
        self.chunk_size = _STEP
        self._values = values

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` into steps."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Copy the values ``[start, stop)`` to `out`."""
        out[:] = self._values[start:stop]
        return []

    def key_of(self, at: int) -> str:
        """Return the number of the step that value `at` is in."""
        return str(at // self.chunk_size)


class RawArray:
    """A stored array that lies in files as it is in memory; see `StoredArray`.

    Parameters
    ----------
    name
        As errors name it.
    dtypes
        Of the values in each file.
    starts
        Where each piece starts in the array, and the array's size.
    offsets
        Where each piece starts in its file; -1 if it was never written, and is all zeros.
    paths
        The files: one for all pieces, or one for each.
    chunk_size
        Values in one of the chunks that the pieces were made of, to name them by.
    """

    def __init__(
        self,
        name: str,
        dtypes: Sequence[np.dtype[Any]],
        starts: Array,
        offsets: Array,
        paths: Sequence[Path],
        chunk_size: int = _STEP,
    ) -> None:
        self.name = name
        self.size = int(starts[-1])
        self._dtypes = dtypes
        self.dtype = np.result_type(*{dtype.newbyteorder("=") for dtype in dtypes})
        self.chunk_size = _STEP
        self.work_bytes = 0 if len(set(dtypes)) == 1 else 8 * _STEP
        self._key_size = chunk_size
        self._paths = paths
        self._starts, self._offsets = starts, offsets
        if len(paths) == 1:
            self._join()

    def _join(self) -> None:
        """Make one piece of those that follow each other in the file."""
        lengths = np.diff(self._starts) * self.dtype.itemsize
        here, after = self._offsets[:-1], self._offsets[1:]
        absent = (here == -1) & (after == -1)
        goes_on = absent | ((here >= 0) & (after == here + lengths[:-1]))
        first = np.concatenate(([True], ~goes_on))[: self._offsets.size]
        self._offsets = self._offsets[first]
        self._starts = np.concatenate((self._starts[:-1][first], self._starts[-1:]))

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` into steps."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        piece = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[piece + 1]))
            if start < end:
                target = out[: end - start]
                offset = int(self._offsets[piece])
                if offset < 0:
                    target[:] = 0
                    absent.append((start, end))
                else:
                    self._read_piece(piece, start - int(self._starts[piece]), start, target)
                out = out[end - start :]
            start = end
            piece += 1
        return absent

    def _read_piece(self, piece: int, skip: int, at: int, target: Array) -> None:
        """Read values of one piece, after its first ones."""
        one = piece if len(self._paths) > 1 else 0
        path, dtype = self._paths[one], self._dtypes[one]
        stored = target
        if dtype.newbyteorder("=") != self.dtype:
            stored = buffers.take("raw values", target.size, dtype)
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                read_at(fd, stored, int(self._offsets[piece]) + skip * dtype.itemsize)
            finally:
                os.close(fd)
        except (OSError, EOFError) as error:
            raise DamagedGraphError(
                f"chunk {self.key_of(at)} of {self.name} cannot be read from {path}: {error}. Copy "
                "the file again from where it came, or write it again."
            ) from error
        if stored is not target:
            target[:] = stored
        elif not dtype.isnative:
            target.byteswap(inplace=True)

    def key_of(self, at: int) -> str:
        """Return the number of the chunk that value `at` is in."""
        return str(at // self._key_size)


class EvenIndptr:
    """The `indptr` of a matrix whose entries nobody has counted: as many in each row."""

    work_bytes = 0

    def __init__(self, n_rows: int, n_entries: int) -> None:
        self.name = "indptr"
        self.size = n_rows + 1
        self.dtype = np.dtype(np.int64)
        self.chunk_size = _STEP
        self._n_entries = n_entries

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` into steps."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Write where the rows ``[start, stop)`` would begin to `out`."""
        n_rows = max(self.size - 1, 1)
        whole, rest = divmod(self._n_entries, n_rows)
        rows = np.arange(start, stop, dtype=np.int64)
        out[:] = rows * whole + np.minimum(rows, rest)
        return []

    def key_of(self, at: int) -> str:
        """Return the row."""
        return str(at)
