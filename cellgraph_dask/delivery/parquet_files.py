"""Parquet files while the threads of one process find their rows.

The files are those that `parquet` makes. The rows of a file wait in memory, in the buffers of its
row groups, until they are all there; the thread that brings the last of them writes the file. Only
of files with a hub, which have more row groups, full ones wait in the scratch folder. How
many edges there are in all, which the metadata tell, is known at the end; then they are added.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs import parquet_io
from ..edge_pairs.parquet import MOST_ROWS, edges_name, table_columns
from ..edge_pairs.parquet_io import TableReader
from ..errors import InvalidExportError
from ..machine.buffers import Array
from ..machine.files import fsync_folder, named_disk_errors
from ..runtime.stage import ResumableExecutor
from ..stages.job import EdgeSink, Job
from ..stages.runs import RunReader, write_run
from . import parquet
from .parquet import graph_metadata, signed, tell_files
from .parts import COLUMNS, pieces_bytes
from .places import Places, cut_at_parts

_LABEL = "parquet file"  # in the journal
_AT_ONCE = 8  # files that are made durable


def files_bytes(job: Job, threads: int) -> int:
    """Return the most bytes that writing rows needs.

    Each thread writes a file; two others begin or end with rows that only this thread has, but for
    the one that is behind them all.
    """
    columns = table_columns(job.source.n_cells, weighted=job.weights)
    row = sum(dtype.itemsize for dtype in columns.values())
    return (3 * threads - 1) * MOST_ROWS * row + threads * parquet_io.writing_bytes(columns)


def files_scratch(job: Job, n_edges: int) -> int:
    """Return the most bytes of temporary files."""
    has_hubs = job.source.n_cells > MOST_ROWS - parquet.FILE_ROWS
    return pieces_bytes(job, n_edges) if has_hubs else 0


class _Kept(NamedTuple):
    """A file that is written but for its metadata, as the journal has it."""

    stop: int  # of its rows
    n_bytes: int  # without the footer
    n_whole: int  # size and digest with one
    sha256: str


class _Group:
    """A row group that is being filled."""

    def __init__(self, columns: list[Array]) -> None:
        self.columns = columns
        self.filled = 0


@dataclass(eq=False)
class _File:
    """A file of which rows have come."""

    groups: dict[int, _Group] = field(default_factory=dict)
    in_scratch: set[int] = field(default_factory=set)
    settled: int = 0  # rows that are in a buffer or in the scratch folder


class _Ranges:
    """The rows at which files start, found while sources come in order; see `parquet.cut_files`."""

    def __init__(self, stops: dict[int, int]) -> None:
        self.stops = dict(stops)  # by start, as far as they are known
        self._starts = sorted({0, *stops, *stops.values()})
        self._last: Any = -1  # source of the last row

    def take(self, position: int, src: Array | None) -> None:
        """Take the sources of the rows from `position` on; None if they are in files by now."""
        start = self.start_of(max(position - 1, 0))  # it may end here
        if start not in self.stops and start < position == self.start_of(position):
            self.stops[start] = position
        if src is None or not src.size:
            return
        end = position + src.size
        while True:
            stop = self.stops.get(start)
            if stop is None:
                at = (start // parquet.FILE_ROWS + 1) * parquet.FILE_ROWS
                if at >= end:
                    break
                before = src[at - 1 - position] if at > position else self._last
                first = max(at - position, 0)
                stop = position + first + int(np.searchsorted(src[first:], before, side="right"))
                if stop == end:  # the source may go on
                    break
                self.stops[start] = stop
                if self.start_of(stop) != stop:  # or an interrupted run has found it
                    insort(self._starts, stop)
            if stop >= end:
                break
            start = stop
        self._last = src[-1]

    def start_of(self, row: int) -> int:
        """Return the first row of the file that has a row."""
        return self._starts[bisect_right(self._starts, row) - 1]

    def cut(self, position: int, n: int) -> Iterator[tuple[int, int, int]]:
        """Cut rows at the borders of files: yield the file's start, where they begin, how many."""
        end = position + n
        while position < end:
            start = self.start_of(position)
            stop = min(self.stops.get(start, end), end)
            yield start, position, stop - position
            position = stop

    def all(self, n_rows: int) -> list[tuple[int, int]]:
        """Return the rows of all files, given how many there are."""
        starts = [0, *(start for start in self._starts if 0 < start < n_rows)]
        return list(zip(starts, [*starts[1:], n_rows], strict=True))


class ParquetFiles(Places):
    """Makes a folder of Parquet files; a `Delivery`, and its `EdgeSink`.

    What an interrupted run has left in `folder` is resumed: files that the journal tells of. After
    `finish`, `read_files` tells of the files.
    """

    kind = "parquet"

    def __init__(
        self, job: Job, folder: Path, executor: ResumableExecutor, *, row_group: int = MOST_ROWS
    ) -> None:
        super().__init__()
        self.sink: EdgeSink = self
        self.scratch_bytes = 0
        self.row_group = row_group
        self._job, self._folder, self._journal = job, folder, executor.journal
        self._columns = table_columns(job.source.n_cells, weighted=job.weights)
        self._files: dict[int, _File] = {}
        self._spare: list[list[Array]] = []
        self._digests: dict[int, Any] = {}
        found = self._journal.found(_LABEL, _Kept).items()
        self._written = {start: kept for start, kept in found if self._is_whole(start, kept)}
        self._ranges = _Ranges({start: kept.stop for start, kept in self._written.items()})

    def _path(self, start: int) -> Path:
        """Return where a file is until its number is known."""
        return self._folder / f"rows-{start}.part"

    def _is_whole(self, start: int, kept: _Kept) -> bool:
        try:
            found = parquet_io.digest_of(self._path(start))
        except OSError:
            return False
        return tuple(found) == (kept.n_whole, kept.sha256)

    def _placed(self, position: int, src: Array | None) -> None:
        self._ranges.take(position, src)

    def write(self, position: int, *columns: Array) -> None:
        """Write rows at a position."""
        with self._changed:
            parts = list(self._ranges.cut(position, columns[0].size))
        for start, at, n in parts:
            inside = [column[at - position : at - position + n] for column in columns]
            self._add(start, at - start, inside)
        if parts and position:  # that a file ends before this row may be known only now
            self._write_if_whole(self._ranges.start_of(position - 1))

    def _add(self, start: int, first: int, columns: Sequence[Array]) -> None:
        """Put rows into a file, in which they begin at `first`."""
        if start in self._written:  # an interrupted export has got that far
            return
        for number, at, done, n in cut_at_parts(first, columns[0].size, self.row_group):
            with self._changed:
                file = self._files.setdefault(start, _File())
                if number not in file.groups:
                    file.groups[number] = _Group(self._buffers())
                group = file.groups[number]
            for buffer, column in zip(group.columns, columns, strict=True):
                buffer[at : at + n] = signed(column[done : done + n], buffer.dtype)
            with self._changed:
                group.filled += n
                is_last = file.settled + n == self._ranges.stops.get(start, -1) - start
                if spilled := group.filled == self.row_group and not is_last:
                    del file.groups[number]
                else:
                    file.settled += n
            if spilled:
                self._spill(start, number, file, group, n)
        self._write_if_whole(start)

    def _buffers(self) -> list[Array]:
        if self._spare:
            return self._spare.pop()
        return [np.empty(self.row_group, dtype) for dtype in self._columns.values()]

    def _spill(self, start: int, number: int, file: _File, group: _Group, n: int) -> None:
        """Put a full row group, which is not the only one, into the scratch folder."""
        path = self._job.scratch.run("row-group", start + number)
        named = dict(zip(COLUMNS, group.columns, strict=False))
        written = write_run(path, [(named, np.array([self.row_group]))])
        with self._changed:
            file.in_scratch.add(number)
            file.settled += n
            self.scratch_bytes += written.n_bytes
            self._spare.append(group.columns)

    def _write_if_whole(self, start: int, stop: int = -1) -> None:
        """Write a file if its rows are all there, and it is known where it stops."""
        with self._changed:
            stop = self._ranges.stops.get(start, stop)
            file = self._files.get(start)
            if file is None or file.settled != stop - start:
                return
            del self._files[start]
        groups = self._groups_of(start, stop - start, file)
        with named_disk_errors(self._folder):
            path, columns = self._path(start), self._columns
            whole, n_bytes, self._digests[start] = parquet_io.write_body(path, columns, 2, groups)
        self._written[start] = kept = _Kept(stop, n_bytes, *whole)
        self._journal.add(_LABEL, start, kept)
        with self._changed:
            self._spare += [group.columns for group in file.groups.values()]

    def _groups_of(self, start: int, n_rows: int, file: _File) -> Iterator[list[Array]]:
        layout: list[tuple[dict[str, np.dtype[Any]], int]] = [
            (dict(zip(COLUMNS, self._columns.values(), strict=False)), 1)
        ]
        for number, first in enumerate(range(0, n_rows, self.row_group)):
            size = min(self.row_group, n_rows - first)
            if number not in file.in_scratch:
                yield [column[:size] for column in file.groups[number].columns]
                continue
            columns = [np.empty(size, dtype) for dtype in self._columns.values()]
            with RunReader(self._job.scratch.run("row-group", start + number), layout) as run:
                for name, column in zip(COLUMNS, columns, strict=False):
                    run.read(0, name, 0, column)
            yield columns

    def read(self, position: int, *columns: Array) -> None:
        """Read back rows that were written at a position; see `EdgeSink`."""
        for start, at, n in self._ranges.cut(position, columns[0].size):
            if start not in self._written:
                raise EOFError(f"the file of row {at} is not there")
            inside = [column[at - position : at - position + n] for column in columns]
            try:
                self._read(start, at - start, inside)
            except InvalidExportError as error:
                raise ValueError(str(error)) from error

    def _read(self, start: int, first: int, columns: Sequence[Array]) -> None:
        n_rows = self._written[start].stop - start
        reader = TableReader(self._path(start), self._columns, n_rows, self.row_group)
        try:
            for number, at, done, n in cut_at_parts(first, columns[0].size, self.row_group):
                for column, stored in zip(columns, reader.read(number), strict=True):
                    column[done : done + n] = stored[at : at + n]
        finally:
            reader.close()

    def finish(self, counts: Sequence[int]) -> int:
        """Complete the files, and return their bytes."""
        n_rows = sum(counts)
        ranges = self._ranges.all(n_rows)
        if not n_rows:
            self._files[0] = _File()
        for start, stop in ranges:
            self._write_if_whole(start, stop)
        self._spare.clear()
        metadata = graph_metadata(self._job, n_rows)

        def complete(start: int) -> parquet_io.Written:
            digest = self._digests.get(start)
            n_bytes, path = self._written[start].n_bytes, self._path(start)
            return parquet_io.finish_table(path, self._columns, metadata, 2, n_bytes, digest)

        with named_disk_errors(self._folder):
            with ThreadPoolExecutor(_AT_ONCE) as pool:  # mostly it is waiting for the disk
                written = list(pool.map(complete, [start for start, _ in ranges]))
            for number, (start, _) in enumerate(ranges):
                self._path(start).replace(self._folder / edges_name(number))
            fsync_folder(self._folder)
            return tell_files(self._folder, [stop - start for start, stop in ranges], written)

    def close(self) -> None:
        """Do nothing: no file is kept open."""
