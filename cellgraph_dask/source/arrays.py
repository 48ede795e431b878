"""One-dimensional arrays of a matrix, read in slices on the calling thread.

What differs from source to source stays behind `StoredArray.read`: `chunked` has the arrays of
encoded chunks; those in memory, and those that lie in files as they are in memory, are here.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedGraphError, SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import begin_reading, opened, read_at

Span = tuple[int, int]

STEP = 1 << 16  # values in a chunk where there are none
_SPAN = 1 << 18  # values read at once where chunks are smaller

# What codecs, HDF5 and files raise on damaged bytes.
DECODE_ERRORS: tuple[type[BaseException], ...] = (
    OSError, ValueError, RuntimeError, TypeError, EOFError, MemoryError, OverflowError,
    ZeroDivisionError,
)  # fmt: skip


# What says nothing about the bytes: permissions, a disk or connection, other programs.
_NOT_DAMAGE = frozenset({
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV,
    errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN,
})  # fmt: skip


def check_access(error: BaseException, what: str) -> None:
    """Raise a SourceError if something could not be opened or read, but need not be damaged."""
    if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
        raise SourceError(
            f"{what} cannot be read: {os.strerror(error.errno)}. Look at the permissions of its "
            "file, at its disk, and at programs that have it open; then try again."
        ) from error


class StoredArray(ABC):
    """A one-dimensional array of a source."""

    name: str  # path inside the source, as errors name it
    size: int
    dtype: np.dtype[Any]  # of the values as `read` gives them: native byte order
    chunk_size: int = STEP  # values in the smallest part that can be decoded (not in a shard)
    work_bytes: int = 0  # upper bound on the memory of `read` on one thread, without `out`

    def __getstate__(self) -> dict[str, Any]:
        """Leave out cached properties: tables that each process makes for itself."""
        kind = type(self)
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(kind, name, None), cached_property)
        }

    @property
    def step(self) -> int:
        """Most values in a span: a chunk, or several small ones."""
        return self.chunk_size * max(1, _SPAN // self.chunk_size)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.step)

    @abstractmethod
    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`.

        Spans whose chunk is not in the store are returned; they are read as zeros. A
        DamagedGraphError names a chunk that cannot be read or decoded.
        """

    def begin_reading(self, start: int, stop: int) -> None:  # noqa: B027 (some cannot)
        """Have the system read what these values are in, without waiting; errors come later."""

    def values(self, start: int, stop: int) -> Array:
        """Return the values ``[start, stop)``, unchecked, in new memory; see `read` for errors."""
        values = np.empty(stop - start, self.dtype)
        self.read(start, stop, values)
        return values

    def chunk_at(self, at: int) -> Array:
        """Return the values of the chunk that holds value `at`."""
        first = at // self.chunk_size * self.chunk_size
        return self.values(first, min(first + self.chunk_size, self.size))

    def value_at(self, at: int) -> int:
        """Return an integer, unchecked."""
        return int(self.values(at, at + 1)[0])

    def key_of(self, at: int) -> str:
        """Return what the store calls the chunk (or shard) that holds value `at`."""
        return str(at // self.chunk_size)

    def stamp(self) -> str:
        """Return what changes when it is written again; nothing if no other process can do that."""
        return ""


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


def read_file(path: str | Path, out: Array, offset: int) -> None:
    """Fill `out` from a file at an offset in bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        read_at(fd, out, offset)
    finally:
        os.close(fd)


class RawArray(StoredArray):
    """An array in files as it is in memory, in pieces; a subclass says where each piece is."""

    work_bytes = 8 * _SPAN  # values of another dtype, until they are converted
    where: str | Path  # the file or folder, as errors name it,
    advice: str  # and what the user should do if it cannot be read

    @property
    @abstractmethod
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        """Where pieces start, and the array ends; their offsets in files; their dtypes.

        The offset is -1 if a piece was never written.
        """

    def path_of(self, k: int) -> str | Path:
        """Return the file of a piece."""
        return self.where

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        try:
            starts, offsets, dtypes = self.pieces
            k = int(np.searchsorted(starts, start, side="right")) - 1
            while start < stop:
                end = min(stop, int(starts[k + 1]))
                target, out = out[: end - start], out[end - start :]
                if offsets[k] < 0:
                    target[:] = 0
                    absent.append((start, end))
                else:
                    stored = target
                    if dtypes[k] != self.dtype:
                        stored = buffers.take("raw values", target.size, dtypes[k])
                    skipped = (start - int(starts[k])) * stored.itemsize
                    read_file(self.path_of(k), stored, int(offsets[k]) + skipped)
                    if stored is not target:
                        target[:] = stored
                start, k = end, k + 1
        except DECODE_ERRORS as error:
            check_access(error, f"chunk {self.key_of(start)} of {self.name}")
            raise DamagedGraphError(
                f"chunk {self.key_of(start)} of {self.name} cannot be read from {self.where}: "
                f"{error}. {self.advice}"
            ) from error
        return absent

    def begin_reading(self, start: int, stop: int) -> None:
        """See `StoredArray.begin_reading`."""
        with suppress(*DECODE_ERRORS):
            starts, offsets, dtypes = self.pieces
            for k in range(int(np.searchsorted(starts, start, side="right")) - 1, len(dtypes)):
                first, last = (min(max(int(at), start), stop) for at in starts[k : k + 2])
                if first >= stop:
                    break
                if offsets[k] >= 0:
                    begin = int(offsets[k]) + (first - int(starts[k])) * dtypes[k].itemsize
                    with opened(Path(self.path_of(k)), os.O_RDONLY) as fd:
                        begin_reading(fd, begin, begin + (last - first) * dtypes[k].itemsize)


class SpooledArray(RawArray):
    """An array of a spooled matrix, whose parts each have a file, and maybe a dtype of their own.

    In a part, weights come after the indices, of which each has `after` bytes.
    """

    advice = "Export again, and leave the scratch folder alone meanwhile."

    def __init__(
        self, name: str, size: int, dtype: np.dtype[Any], folder: Path, after: int = 0
    ) -> None:
        self.name = name
        self.size = size
        self.dtype = dtype
        self.where: Path = folder
        self._after = after

    @cached_property
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        """See `RawArray`."""
        if self.name.endswith("indptr"):
            return np.array([0, self.size]), np.zeros(1, np.int64), [self.dtype]
        with np.load(self.where / "table.npz") as table:
            starts, weights = table["starts"], [np.dtype(str(name)) for name in table["weights"]]
        dtypes = weights if self._after else [self.dtype] * len(weights)
        return starts, np.diff(starts) * self._after, dtypes

    def path_of(self, k: int) -> Path:
        """See `RawArray`."""
        return self.where / ("indptr" if self.name.endswith("indptr") else f"part-{k:06d}")
