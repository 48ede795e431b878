"""Reading an export's edges in slabs: plain files anywhere, gzip files from their beginning.

Plain files are read at any place by any thread. A gzip member can only be read from its beginning,
so a thread for each file unpacks the next part while another thread looks at this one. A check that
has to jump about unpacks both files to plain ones in its scratch folder first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidExportError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled
from ..machine.files import named_disk_errors, opened, read_at, write_at
from ..machine.remote import AnyPath, RemotePath, local_path
from ..machine.temporary import clear_dead, temporary_folder
from .format import (
    CELLS_FILE,
    FOLDER,
    IDENTITY,
    MANIFEST,
    Manifest,
    check_length,
    named_read_errors,
    read_manifest,
)
from .generation import EMBEDDINGS
from .gzip_member import inflate_member
from .parquet import GRAPH, is_parquet, read_graph_table
from .provenance import PROVENANCE


class Slab(NamedTuple):
    """Consecutive edges."""

    start: int  # number of the first one
    src: Array
    dst: Array
    weights: Array | None = None  # float64, if the edges have some


MOST_COLUMNS = 3

SLAB_EDGES = 1 << 17  # edges looked at in one go; both sides of them fit a core's cache


def slabs_bytes() -> int:
    """Return the most bytes that `stream_slabs` holds: parts of 4 MiB, coming and in use."""
    return MOST_COLUMNS * 6 * 2**22


class PlainEdges:
    """The plain files of an export's edges, open; any thread may read at any place.

    An InvalidExportError says that a file is missing or not as long as the manifest tells.
    """

    def __init__(self, paths: list[Path], manifest: Manifest) -> None:
        self.dtype = manifest.dtype
        self.n_edges = manifest.n_edges
        self._fds: list[int] = []
        self._dtypes = list(manifest.columns.values())
        self._starts: Array | None = None
        self._shift = 0
        try:
            for path, dtype in zip(paths, self._dtypes, strict=True):
                with named_read_errors(path):
                    self._fds.append(os.open(path, os.O_RDONLY))
                n_bytes = manifest.n_edges * dtype.itemsize
                check_length(path, os.fstat(self._fds[-1]).st_size, n_bytes)
        except BaseException:
            self.close()
            raise

    def read(self, side: int, start: int, stop: int, name: str) -> Array:
        """Return sources (0), destinations (1) or weights (2) of the edges ``[start, stop)``.

        The array is this thread's buffer of that name.
        """
        out = buffers.take(name, stop - start, self._dtypes[side])
        read_at(self._fds[side], out, start * out.itemsize)
        return out

    def slabs(self, start: int, stop: int) -> Iterator[Slab]:
        """Yield the edges ``[start, stop)`` in slabs; each is good until the next."""
        for at in range(start, stop, SLAB_EDGES):
            end = min(at + SLAB_EDGES, stop)
            names = ("slab src", "slab dst", "slab weights")[: len(self._fds)]
            yield Slab(at, *(self.read(k, at, end, name) for k, name in enumerate(names)))

    def know(self, starts: Array, shift: int) -> None:
        """Set where the edges of every ``2**shift`` sources begin, which narrows `position`."""
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
    return PlainEdges([out_dir / manifest.path(side) for side in manifest.columns], manifest)


def stream_slabs(out_dir: Path, manifest: Manifest, *, ahead: bool) -> Iterator[Slab]:
    """Yield all edges of an export in slabs, in order, compressed or not; see `read_edges`.

    `ahead` has a thread for each file unpack the next part while one is looked at.
    """
    dtypes, n_edges = list(manifest.columns.values()), manifest.n_edges
    sides = [
        read_edges(out_dir / manifest.path(side), manifest.compression, n_edges * dtype.itemsize)
        for side, dtype in manifest.columns.items()
    ]
    pending = [b""] * len(sides)
    position = 0
    # All sides are read to their very end, where length and checksum are judged.
    for parts in _in_step(sides, ahead=ahead):
        pending = [rest + (part or b"") for rest, part in zip(pending, parts, strict=True)]
        n = min(len(rest) // d.itemsize for rest, d in zip(pending, dtypes, strict=True))
        columns = [np.frombuffer(rest, d, n) for rest, d in zip(pending, dtypes, strict=True)]
        for at in range(0, n, SLAB_EDGES):
            yield Slab(position + at, *(column[at : at + SLAB_EDGES] for column in columns))
        position += n
        pending = [rest[n * d.itemsize :] for rest, d in zip(pending, dtypes, strict=True)]


def _in_step(sides: list[Generator[bytes]], *, ahead: bool) -> Iterator[list[bytes | None]]:
    """Yield the next part of each side, None after its end, until all have ended.

    `ahead` has a thread for each side make the part after that meanwhile.
    """
    ended = [None] * len(sides)
    with ThreadPoolExecutor(len(sides)) as pool:
        coming: list[Future[bytes | None]] = []
        try:
            while True:
                parts = [part.result() for part in coming] or [next(side, None) for side in sides]
                if parts == ended:
                    return
                if ahead:
                    coming = [pool.submit(next, side, None) for side in sides]
                yield parts
        finally:
            wait(coming)
            for side in sides:
                side.close()


def unpack(out_dir: Path, manifest: Manifest, folder: Path, *, ahead: bool) -> PlainEdges:
    """Unpack the edges of an export into plain files in `folder`, and open those."""
    paths = [folder / f"{side}.bin" for side in manifest.columns]
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with ExitStack() as stack:
        files = [stack.enter_context(opened(path, flags, 0o600)) for path in paths]
        for position, *columns in stream_slabs(out_dir, manifest, ahead=ahead):
            for file, column in zip(files, columns, strict=False):
                assert column is not None
                write_at(file, np.ascontiguousarray(column), position * column.itemsize)
    return PlainEdges(paths, manifest)


def read_edges(path: AnyPath, compression: int | None, n_bytes: int) -> Generator[bytes]:
    """Yield the decompressed bytes of an edge file, `n_bytes` in parts of at most 4 MiB.

    An InvalidExportError says that it is missing, shorter, longer, or not one whole gzip member
    with a right checksum.
    """
    n = 0
    with named_read_errors(path), path.open("rb") as file:
        plain = iter(lambda: file.read(2**22), b"")
        for part in inflate_member(file, path) if compression else plain:
            n += len(part)
            if n > n_bytes:
                break
            yield part
    check_length(path, n, n_bytes)


@compiled(int)
def first_bad_edge(src: Array, dst: Array, last_src: int, last_dst: int, n_cells: int) -> int:
    """Return the first edge that is out of order or of no cell, or -1.

    An edge must be ``src < dst < n_cells`` and above its predecessor; the first one's is
    ``(last_src, last_dst)``, or none if that is negative. Cells are compared as unsigned.
    """
    if src.size == 0:
        return -1
    n = np.uint64(n_cells)
    s0 = np.uint64(src[0])
    d0 = np.uint64(dst[0])
    if s0 >= d0 or d0 >= n:
        return 0
    if last_src >= 0:
        last = np.uint64(last_src)
        if s0 < last or (s0 == last and d0 <= np.uint64(last_dst)):
            return 0
    bad: Any = False
    for k in range(1, src.size):  # no way out of the loop, so that it becomes vector code
        bad |= (src[k] >= dst[k]) | (np.uint64(dst[k]) >= n)
        bad |= (src[k] < src[k - 1]) | ((src[k] == src[k - 1]) & (dst[k] <= dst[k - 1]))
    if not bad:
        return -1
    k = 1
    while (
        src[k] < dst[k]
        and np.uint64(dst[k]) < n
        and (src[k] > src[k - 1] or (src[k] == src[k - 1] and dst[k] > dst[k - 1]))
    ):
        k += 1
    return k


_SPARE_BYTES = 1 << 20
_NAME_BYTES = 1 << 10  # of a cell, on average; names that are longer are cut
_MOST_MANIFEST = 1 << 30  # bytes, of which each file takes some hundred


@contextmanager
def downloaded(origin: RemotePath, scratch_dir: str | Path | None = None) -> Iterator[Path]:
    """Yield a folder with the files of a remote export as they are, and remove it afterwards.

    Files that are not there are left out, and much longer ones than the manifest tells are cut. The
    folder is made in `scratch_dir`, by default the system's folder for temporary files.
    """
    parent = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    clear_dead(parent)
    with temporary_folder(parent) as folder:
        with named_disk_errors(parent):
            for name, most in _files(origin):
                _copy(origin / name, folder / name, most)
            with suppress(OSError):  # of storage that does not list; the texts tell as much
                if (origin / EMBEDDINGS).is_dir():
                    (folder / EMBEDDINGS).mkdir()
        yield folder


def _files(origin: RemotePath) -> list[tuple[str, int]]:
    """Return the files of an export, and the most bytes of each that are worth a look."""
    texts = [(name, _SPARE_BYTES) for name in (MANIFEST, IDENTITY)]
    try:
        manifest = read_manifest(origin)
    except InvalidExportError:  # whoever looks into the folder will find out
        with suppress(OSError, InvalidExportError):
            if is_parquet(origin):
                return _files_of_table(origin)
        return texts
    edges = [
        (manifest.path(side), _most_stored(manifest.n_edges * dtype.itemsize))
        for side, dtype in manifest.columns.items()
    ]
    cells = (manifest.cells_path, _NAME_BYTES * manifest.n_cells + _SPARE_BYTES)
    return [*texts, *edges, (f"{FOLDER}/{PROVENANCE}", _SPARE_BYTES), cells]


def _files_of_table(origin: RemotePath) -> list[tuple[str, int]]:
    """Return the files of a folder of Parquet files, as those of an export."""
    files: list[tuple[str, int]] = [(GRAPH, _MOST_MANIFEST)]
    with suppress(InvalidExportError):
        files += [(file.name, file.n_bytes + 1) for file in read_graph_table(origin).all_files]
    return files


def _most_stored(n_bytes: int) -> int:
    """Return the most bytes of a file; what does not compress gains 5 for each 16 kB or more."""
    return n_bytes + n_bytes // 1000 + _SPARE_BYTES


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
        except PermissionError as error:  # or absent, where this user may not list
            if target.name not in (IDENTITY, PROVENANCE) and not CELLS_FILE.match(target.name):
                raise InvalidExportError(f"{source} cannot be read: {error.strerror}.") from error
            target.unlink()
        except OSError as error:
            if error.filename != str(source):  # of the disk, then
                raise
            raise InvalidExportError(f"{source} cannot be read: {error.strerror}.") from error
