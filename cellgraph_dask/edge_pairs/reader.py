"""Reading an export's edges to check them: stretches of plain files, or two gzip streams at once.

Plain files are read at any place by any thread. A gzip member can only be read from its beginning,
so there one thread unpacks each file and a third looks at what comes out. A check that has to jump
about unpacks both files to plain ones in its scratch folder first.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidExportError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import named_disk_errors, read_at, write_at
from ..machine.remote import RemotePath
from .format import (
    IDENTITY,
    MANIFEST,
    SIDES,
    AnyPath,
    Manifest,
    check_readable,
    index_dtype,
    read_manifest,
)
from .gzip_member import _parts

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


def read_edges(path: AnyPath, compression: int | None, n_bytes: int) -> Generator[bytes]:
    """Yield the decompressed bytes of an edge file in parts of at most 4 MiB.

    Parameters
    ----------
    path
        The file.
    compression
        As in the manifest.
    n_bytes
        How many there must be.

    Raises
    ------
    InvalidExportError
        If the file is missing, shorter, longer, or not one whole gzip member with a right checksum.
    """
    try:
        with path.open("rb") as file:
            n = 0
            for part in _parts(file, path) if compression else iter(lambda: file.read(2**22), b""):
                n += len(part)
                if n > n_bytes:
                    break
                yield part
    except OSError as error:
        raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error
    if n != n_bytes:
        more = "more than" if n > n_bytes else f"{n} instead of"
        raise InvalidExportError(f"{path} holds {more} {n_bytes} bytes of edges.")


def iter_edges(out_dir: AnyPath, manifest: Manifest) -> Iterator[tuple[Any, Any]]:
    """Yield the edges of an export as pairs of equally long arrays, in order.

    Raises
    ------
    InvalidExportError
        As for `read_edges`.
    """
    dtype = index_dtype(manifest.n_cells)
    n_bytes = manifest.n_edges * dtype.itemsize
    for side in SIDES:
        check_readable(out_dir / manifest.path(side), out_dir)
    readers = [
        read_edges(out_dir / manifest.path(side), manifest.compression, n_bytes) for side in SIDES
    ]
    pending = [b"", b""]
    while True:
        # Both sides are read to their very end, where length and checksum are judged.
        parts = [next(reader, None) for reader in readers]
        if parts == [None, None]:
            return
        pending = [rest + (part or b"") for rest, part in zip(pending, parts, strict=True)]
        n = min(map(len, pending)) // dtype.itemsize * dtype.itemsize
        yield tuple(np.frombuffer(rest[:n], dtype) for rest in pending)  # type: ignore[misc]
        pending = [rest[n:] for rest in pending]


_SPARE_BYTES = 1 << 20


@contextmanager
def downloaded(origin: RemotePath, scratch_dir: str | Path | None = None) -> Iterator[Path]:
    """Give a folder with the files of a remote export as they are, and remove it afterwards.

    Files that are not there are left out, and ones that are much longer than their export is cut.

    Parameters
    ----------
    origin
        The export.
    scratch_dir
        Where to make the folder; by default the system's folder for temporary files.

    Raises
    ------
    InvalidExportError
        If something that is there cannot be read.
    OutputError, DiskSpaceError
        If the folder cannot be written.
    """
    parent = Path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    with named_disk_errors(parent):
        folder = Path(tempfile.mkdtemp(prefix="cellgraph-dask-", dir=parent))
    try:
        with named_disk_errors(parent):
            for name, most in _files(origin):
                _copy(origin / name, folder / name, most)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(origin: RemotePath) -> list[tuple[str, int]]:
    """Return the files of an export, and the most bytes of each that are worth a look."""
    texts = [(name, _SPARE_BYTES) for name in (MANIFEST, IDENTITY)]
    try:
        manifest = read_manifest(origin)
    except InvalidExportError:  # whoever looks into the folder will find out
        return texts
    n_bytes = manifest.n_edges * index_dtype(manifest.n_cells).itemsize
    # What does not compress becomes longer by 5 bytes for each 16 kB or more.
    most = n_bytes + n_bytes // 1000 + _SPARE_BYTES
    return [*texts, *((manifest.path(side), most) for side in SIDES)]


def _copy(source: RemotePath, target: Path, most: int) -> None:
    """Copy a file, if it is there."""
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as copy:
        try:
            with source.open() as file:
                while most > 0 and (part := file.read(min(most, 1 << 22))):
                    copy.write(part)
                    most -= len(part)
        except FileNotFoundError:
            target.unlink()
        except OSError as error:
            if error.filename != str(source):  # of the disk, then
                raise
            raise InvalidExportError(f"{source} cannot be read: {error.strerror}.") from error
