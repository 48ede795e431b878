"""The arrays of a spooled matrix: raw files of the scratch folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import read_at
from .arrays import STEP, Span, StoredArray


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
