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
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_WRITEBACK_BYTES = 1 << 23  # that the system is asked to write to disk at once


class StoppedError(Exception):
    """Another task has failed, so the one that waited has to end."""


NotePart = Callable[[str, int, DeflatePart], None]


class EdgeFiles:
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
        self.sink: EdgeSink = self
        self._changed = threading.Condition()
        self._next_index = 0
        self._next_position = 0
        self._kept: dict[int, int] = {}
        self._stopped = False

        def open_file(side: str) -> _PlainFile | _GzipFile:
            path = folder / file_name(side, compression)
            if compression is None:
                return _PlainFile(path, columns[side])
            known = dict(parts[side]) if parts else {}
            return _GzipFile(path, columns[side], compression, known, partial(note, side))

        with ThreadPoolExecutor(len(columns)) as pool:  # known parts are inflated
            self._files = list(pool.map(open_file, columns))

    def keep(self, sizes: dict[int, int]) -> None:
        """Set the number of edges of each piece that will not come, as it is written already."""
        with self._changed:
            self._kept = dict(sizes)
            self._pass_kept()

    def _pass_kept(self) -> None:
        while self._next_index in self._kept:
            self._next_position += self._kept.pop(self._next_index)
            self._next_index += 1

    def place(self, index: int, n_edges: int) -> int:
        """Return the position of piece `index`, waiting until all pieces before it were placed."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next_index >= index)
            if self._stopped:
                raise StoppedError
            position = self._next_position
            self._next_index += 1
            self._next_position += n_edges
            self._pass_kept()
            self._changed.notify_all()
            return position

    def stop(self) -> None:
        """End the waiting of all tasks; they raise `StoppedError`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

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


def _cut_at_parts(position: int, n_edges: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut edges at the borders of deflate parts.

    Yields number of the part, where in it the edges begin, where in the edges, and how many.
    """
    at = 0
    while at < n_edges:
        part, first = divmod(position + at, PART_EDGES)
        n = min(PART_EDGES - first, n_edges - at)
        yield part, first, at, n
        at += n


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
        self._filling: dict[int, tuple[Array, int]] = {}
        self._drop_damaged()

    def write(self, position: int, values: Array) -> None:
        values = values.astype(self._dtype, copy=False)
        for part, first, at, n in _cut_at_parts(position, values.size):
            if part in self._parts:  # an interrupted export has got that far
                continue
            inside = values[at : at + n]
            full = inside if n == PART_EDGES else self._fill(part, first, inside)
            if full is not None:
                self._compress(part, full, last=False)

    def read(self, position: int, out: Array) -> None:
        for part, first, at, n in _cut_at_parts(position, out.size):
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

    def _fill(self, part: int, first: int, values: Array) -> Array | None:
        """Put values into a part that several pieces share; return it when it is complete."""
        with self._lock:
            buffer, filled = self._filling.get(part) or (np.empty(PART_EDGES, self._dtype), 0)
            buffer[first : first + values.size] = values
            filled += values.size
            if filled < PART_EDGES:
                self._filling[part] = buffer, filled
                return None
            self._filling.pop(part, None)
            return buffer

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
        buffer = self._filling.pop(last)[0] if rest else np.empty(0, self._dtype)
        self._compress(last, buffer[:rest], last=True)
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
