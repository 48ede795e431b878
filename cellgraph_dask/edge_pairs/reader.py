"""Reading an export's edges to check them: stretches of plain files, or two gzip streams at once.

Plain files are read at any place by any thread. A gzip member can only be read from its beginning,
so there one thread unpacks each file and a third looks at what comes out. A check that has to jump
about unpacks both files to plain ones in its scratch folder first.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidExportError
from ..machine import buffers
from ..machine.files import read_at, write_at
from .format import SIDES, Manifest, index_dtype, read_edges

Array = NDArray[Any]
Slab = tuple[int, Array, Array]  # number of the first edge, sources, destinations

SLAB_EDGES = 1 << 17  # edges looked at in one go; both sides of them fit a core's cache
_AHEAD = 2  # parts of a gzip file that are unpacked ahead of their use


def stream_bytes() -> int:
    """Return the most bytes that `stream_slabs` holds: parts of 4 MiB, ahead and in use."""
    return 2 * (2 * _AHEAD + 4) * 2**22


class PlainEdges:
    """The two plain edge files, open for reading; any thread may read at any place.

    Parameters
    ----------
    paths
        The files of sources and of destinations.
    dtype
        Dtype of the cells in them.
    n_edges
        How many edges each must hold.

    Raises
    ------
    InvalidExportError
        If a file is missing or of another length.
    """

    def __init__(self, paths: list[Path], dtype: np.dtype[Any], n_edges: int) -> None:
        self.dtype = dtype
        self.n_edges = n_edges
        self._fds: list[int] = []
        self._starts: Array | None = None
        self._shift = 0
        n_bytes = n_edges * dtype.itemsize
        try:
            for path in paths:
                try:
                    self._fds.append(os.open(path, os.O_RDONLY))
                except OSError as error:
                    raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error
                found = os.fstat(self._fds[-1]).st_size
                if found != n_bytes:
                    more = "more than" if found > n_bytes else f"{found} instead of"
                    raise InvalidExportError(f"{path} holds {more} {n_bytes} bytes of edges.")
        except BaseException:
            self.close()
            raise

    def read(self, side: int, start: int, stop: int, name: str) -> Array:
        """Return one side (0 sources, 1 destinations) of the edges ``[start, stop)``.

        The array is this thread's work space of that name.
        """
        out = buffers.take(name, stop - start, self.dtype)
        read_at(self._fds[side], out, start * self.dtype.itemsize)
        return out

    def slabs(self, start: int, stop: int) -> Iterator[Slab]:
        """Yield the edges ``[start, stop)`` in slabs; each is good until the next."""
        for at in range(start, stop, SLAB_EDGES):
            end = min(at + SLAB_EDGES, stop)
            yield at, self.read(0, at, end, "slab src"), self.read(1, at, end, "slab dst")

    def know(self, starts: Array, shift: int) -> None:
        """Take note of where the edges of every ``2**shift`` sources begin, to find others soon."""
        self._starts, self._shift = starts, shift

    def position(self, source: int, destination: int = 0) -> int:
        """Return the number of the first edge that is not before ``(source, destination)``."""
        low, high = 0, self.n_edges
        if self._starts is not None:
            nearest = source >> self._shift
            if nearest + 1 < self._starts.size:
                high = int(self._starts[nearest + 1])
            low = int(self._starts[nearest]) if nearest < self._starts.size else high
            if (nearest << self._shift, 0) == (source, destination):
                return low
        while low < high:
            middle = (low + high) // 2
            if self._cell(0, middle) < source or (
                destination and self.edge(middle) < (source, destination)
            ):
                low = middle + 1
            else:
                high = middle
        return low

    def edge(self, number: int) -> tuple[int, int]:
        """Return source and destination of an edge."""
        return self._cell(0, number), self._cell(1, number)

    def _cell(self, side: int, number: int) -> int:
        item = self.dtype.itemsize
        return int.from_bytes(os.pread(self._fds[side], item, number * item), "little")

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def open_plain(out_dir: Path, manifest: Manifest) -> PlainEdges:
    """Open the edge files of an export without compression."""
    paths = [out_dir / manifest.path(side) for side in SIDES]
    return PlainEdges(paths, index_dtype(manifest.n_cells), manifest.n_edges)


def stream_slabs(out_dir: Path, manifest: Manifest, *, ahead: bool) -> Iterator[Slab]:
    """Yield all edges of an export in slabs, in order.

    Parameters
    ----------
    out_dir, manifest
        The export; compressed or not.
    ahead
        Whether each file is unpacked by a thread of its own.

    Raises
    ------
    InvalidExportError
        As for `edge_pairs.read_edges`.
    """
    dtype = index_dtype(manifest.n_cells)
    n_bytes = manifest.n_edges * dtype.itemsize
    readers = [
        read_edges(out_dir / manifest.path(side), manifest.compression, n_bytes) for side in SIDES
    ]
    sides: list[Any] = [_Ahead(reader) if ahead else reader for reader in readers]
    try:
        pending = [b"", b""]
        position = 0
        while True:
            # Both sides are read to their very end, where length and checksum are judged.
            parts = [next(side, None) for side in sides]
            if parts == [None, None]:
                return
            pending = [rest + (part or b"") for rest, part in zip(pending, parts, strict=True)]
            n = min(map(len, pending)) // dtype.itemsize
            src, dst = (np.frombuffer(rest, dtype, n) for rest in pending)
            for at in range(0, n, SLAB_EDGES):
                yield position + at, src[at : at + SLAB_EDGES], dst[at : at + SLAB_EDGES]
            position += n
            pending = [rest[n * dtype.itemsize :] for rest in pending]
    finally:
        for side in sides:
            side.close()


class _Ahead:
    """An iterator whose values are made by a thread, a few ahead of their use."""

    def __init__(self, values: Generator[bytes]) -> None:
        self._made: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(values,), daemon=True)
        self._thread.start()

    def _make(self, values: Generator[bytes]) -> None:
        end: Any = None
        try:
            for value in values:
                self._made.put(value)
                if self._unwanted.is_set():
                    return
        except BaseException as error:
            end = error
        finally:
            values.close()
        self._made.put(end)

    def __next__(self) -> bytes:
        value = self._made.get()
        if isinstance(value, bytes):
            return value
        self._made.put(value)  # the end, for whoever asks again
        if value is None:
            raise StopIteration
        raise value

    def __iter__(self) -> _Ahead:
        return self

    def close(self) -> None:
        """End the thread."""
        self._unwanted.set()
        while self._thread.is_alive():
            try:
                self._made.get(timeout=0.05)
            except queue.Empty:
                continue


def unpack(out_dir: Path, manifest: Manifest, folder: Path, *, ahead: bool) -> PlainEdges:
    """Unpack the edges of an export into plain files in `folder`, and open those."""
    paths = [folder / f"{side}.bin" for side in SIDES]
    fds = [os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600) for path in paths]
    try:
        item = index_dtype(manifest.n_cells).itemsize
        for position, *sides in stream_slabs(out_dir, manifest, ahead=ahead):
            for fd, values in zip(fds, sides, strict=True):
                write_at(fd, np.ascontiguousarray(values), position * item)
    finally:
        for fd in fds:
            os.close(fd)
    return PlainEdges(paths, index_dtype(manifest.n_cells), manifest.n_edges)
