"""Writing the edge files from many threads at once.

*Pieces* of edges are merged in parallel, but the place of one is known only when all before it have
been counted: `EdgeFiles.place` waits for that. Plain files are then written at their offset, in any
order. Gzip files are one member each (browsers read no second one), made as pigz makes it: raw
deflate *parts* of a fixed number of edges, each ending in a sync flush and the last one finished,
between one header and one checksum that is combined from theirs. Parts are cut by edge number, so
their bytes do not depend on who writes them, or when.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from ..edge_pairs.format import file_name
from ..edge_pairs.gzip_member import PART_EDGES, DeflatePart, deflate_edges, join_parts
from ..machine.buffers import Array
from ..machine.files import begin_writeback, read_at, write_at
from ..stages.job import EdgeSink
from .places import Filling, Places, cut_at_parts

_WRITEBACK_BYTES = 1 << 23  # that the system is asked to write to disk at once


NotePart = Callable[[str, int, DeflatePart], None]


class EdgeFiles(Places):
    """The edge files of one export while they are written; a `Delivery` and its `EdgeSink`.

    They are written to `folder` under their final names, a file for each of the `columns`, which
    are the dtypes of the files. What an interrupted export has left there
    is resumed: `parts` are its deflate parts, by side and number. For each deflate part that is
    written `note` is called with side, number and part.
    """

    kind = "files"
    scratch_bytes = 0

    def __init__(
        self, folder: Path, columns: Mapping[str, np.dtype[Any]], compression: int | None,
        parts: Mapping[str, Mapping[int, DeflatePart]] | None = None,
        note: NotePart = lambda _side, _number, _part: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sink: EdgeSink = self

        def open_file(side: str) -> _PlainFile | _GzipFile:
            path = folder / file_name(side, compression)
            if compression is None:
                return _PlainFile(path, columns[side])
            known = dict(parts[side]) if parts else {}
            return _GzipFile(path, columns[side], compression, known, partial(note, side))

        with ThreadPoolExecutor(len(columns)) as pool:  # known parts are inflated
            self._files = list(pool.map(open_file, columns))

    def read(self, position: int, *columns: Array) -> None:
        """Read back edges that were written at a position; see `EdgeSink`."""
        for file, column in zip(self._files, columns, strict=True):
            file.read(position, column)

    def write(self, position: int, *columns: Array) -> None:
        """Write edges at a position."""
        for file, column in zip(self._files, columns, strict=True):
            file.write(position, column)

    def finish(self, counts: Sequence[int]) -> int:
        """Complete the files, make them durable, and return their size together.

        `counts` holds the edges of each piece; all have been placed.
        """
        n_edges = sum(counts)
        assert n_edges == self._next_position
        with ThreadPoolExecutor(
            len(self._files)
        ) as pool:  # it is compression and waiting for the disk
            return sum(pool.map(lambda file: file.finish(n_edges), self._files))

    def close(self) -> None:
        """Close the files, finished or not."""
        for file in self._files:
            file.close()


def writer_bytes(
    columns: Mapping[str, np.dtype[Any]], compression: int | None, threads: int, n: int
) -> int:
    """Return the most bytes that `EdgeFiles` needs while threads write pieces of `n` edges."""
    sizes = [dtype.itemsize for dtype in columns.values()]
    narrow = n * min(sizes) * threads if min(sizes) < 4 else 0
    if compression is None:
        return narrow
    # Parts not yet full, two to a thread and file; and what each thread compresses: input, output,
    # the state of deflate.
    parts = PART_EDGES * (2 * sum(sizes) + 2 * max(sizes))
    return narrow + threads * (parts + 2**20)


class _PlainFile:
    """A file of bare integers."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)

    def write(self, position: int, values: Array) -> None:
        start = position * self._dtype.itemsize
        stop = write_at(self._fd, values.astype(self._dtype, copy=False), start)
        # Of the blocks that end here; what other threads still write there can wait for fsync.
        first, last = start // _WRITEBACK_BYTES, stop // _WRITEBACK_BYTES
        if first < last:
            begin_writeback(self._fd, first * _WRITEBACK_BYTES, last * _WRITEBACK_BYTES)

    def read(self, position: int, out: Array) -> None:
        stored = out if out.dtype == self._dtype else np.empty(out.size, self._dtype)
        read_at(self._fd, stored, position * self._dtype.itemsize)
        if stored is not out:
            out[:] = stored

    def finish(self, n_edges: int) -> int:
        os.fsync(self._fd)
        return n_edges * self._dtype.itemsize

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _GzipFile:
    """A file of one gzip member. Parts wait in a spool beside it until all are there."""

    def __init__(
        self, path: Path, dtype: np.dtype[Any], compression: int, parts: dict[int, DeflatePart],
        note: Callable[[int, DeflatePart], None],
    ) -> None:  # fmt: skip
        self._dtype = dtype
        self._level = compression
        self._parts = parts
        self._note = note
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        self._spool_path = path.with_name(path.name + ".spool")
        self._spool = os.open(self._spool_path, os.O_CREAT | os.O_RDWR, 0o600)
        self._spool_end = max((part.offset + part.n_bytes for part in parts.values()), default=0)
        self._lock = threading.Lock()
        self._filling = Filling(PART_EDGES, dtype)
        self._drop_damaged()

    def write(self, position: int, values: Array) -> None:
        values = values.astype(self._dtype, copy=False)
        for part, full in self._filling.add(position, values, self._parts):
            self._compress(part, full, last=False)

    def read(self, position: int, out: Array) -> None:
        for part, first, at, n in cut_at_parts(position, out.size, PART_EDGES):
            if part not in self._parts:
                raise EOFError(f"part {part} is not there")
            out[at : at + n] = self._inflate(self._parts[part])[first : first + n]

    def _drop_damaged(self) -> None:
        """Forget the parts of an interrupted export that do not inflate to their input."""
        for number, part in list(self._parts.items()):
            try:
                self._inflate(part)
            except (EOFError, ValueError):
                del self._parts[number]

    def _inflate(self, part: DeflatePart) -> Array:
        """Return the values of a part that an interrupted export has left."""
        encoded = np.empty(part.n_bytes, np.uint8)
        read_at(self._spool, encoded, part.offset)
        try:
            raw = zlib_ng.decompressobj(-15).decompress(encoded.data, part.n_raw)
        except zlib_ng.error as error:  # type: ignore[misc]
            raise ValueError(f"a part does not inflate: {error}") from error
        if len(raw) != part.n_raw or zlib_ng.crc32(raw) != part.crc:
            raise ValueError("a part is damaged")
        return np.frombuffer(raw, self._dtype)

    def _compress(self, part: int, values: Array, *, last: bool) -> None:
        encoded, crc = deflate_edges(values, self._level, last=last)
        with self._lock:
            offset = self._spool_end
            self._spool_end += len(encoded)
        write_at(self._spool, encoded, offset)
        self._parts[part] = DeflatePart(offset, len(encoded), crc, values.nbytes)
        if not last:  # the last one is made when all edges are there
            self._note(part, self._parts[part])

    def finish(self, n_edges: int) -> int:
        last, rest = divmod(n_edges, PART_EDGES)
        self._compress(last, self._filling.rest(last, rest), last=True)
        parts = ((self._spool, self._parts[k]) for k in range(last + 1))
        end = join_parts(self._fd, parts, n_edges * self._dtype.itemsize)
        os.ftruncate(self._fd, end)
        os.fsync(self._fd)
        os.close(self._spool)
        self._spool = -1
        self._spool_path.unlink()
        return end

    def close(self) -> None:
        for fd in (self._fd, self._spool):
            if fd >= 0:
                os.close(fd)
        self._fd = self._spool = -1
