"""Delivery across processes: files of pieces in the scratch folder first, the edge files from them.

Where a piece of edges goes is known only when all pieces before it are counted, and on a cluster no
task can wait for another. So each task leaves its *piece* as a file in the scratch folder, and when
all are counted a stage of its own writes the edge files: each task a *stretch* of them, from
whatever pieces it takes. Plain files are written in place; of gzip files each task leaves deflate
*parts*, which are joined to the one member at the end.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from zlib_ng import zlib_ng

from ..edge_pairs import gzip_member
from ..edge_pairs.format import SIDES, WEIGHTS, file_name
from ..edge_pairs.gzip_member import DeflatePart, deflate_edges, join_parts
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import opened, read_at, write_at
from ..runtime.stage import ResumableExecutor, Stage
from ..stages.job import EdgeSink, Job
from ..stages.runs import RunReader, Scratch, Written, holds, write_run

COLUMNS = (*SIDES, WEIGHTS)  # of a piece; the last one only where edges have weights
_STRETCH_PARTS = 4  # deflate parts (so 2²⁰ edges each) that one task writes


@dataclass(frozen=True, eq=False)
class PieceSink:
    """Takes the edges of pieces from tasks anywhere into files of the scratch folder; picklable."""

    scratch: Scratch
    n_checked: ClassVar[int | None] = None

    def place(self, number: int, src: Array) -> int:
        """Return the number of the piece: its place is not known yet."""
        return number

    def write(self, position: int, *columns: Array) -> None:
        """Write the edges of piece `position` to a file of its own."""
        named = dict(zip(COLUMNS, columns, strict=False))
        write_run(self.scratch.run("piece", position), [(named, np.array([columns[0].size]))])

    def read(self, position: int, *columns: Array) -> None:
        """Read the edges of piece `position` back."""
        dtypes = [column.dtype for column in columns]
        with open_piece(self.scratch, position, dtypes) as piece:
            for name, column in zip(COLUMNS, columns, strict=False):
                piece.read(0, name, 0, column)


def open_piece(scratch: Scratch, number: int, dtypes: Sequence[np.dtype[Any]]) -> RunReader:
    """Open the edges of a piece, whose first columns have these dtypes."""
    columns = dict(zip(COLUMNS, dtypes, strict=False))
    return RunReader(scratch.run("piece", number), [(columns, 1)])


class FromPieces:
    """What deliveries have in common that make files of the files of pieces; see `Delivery`."""

    kind = "pieces"
    scratch_bytes = 0

    def __init__(self, sink: PieceSink, executor: ResumableExecutor) -> None:
        self.sink: EdgeSink = sink
        self._executor = executor

    def keep(self, sizes: dict[int, int]) -> None:
        """Do nothing: pieces that an interrupted run has left are found by their names."""

    def stop(self) -> None:
        """Do nothing: no task waits."""

    def close(self) -> None:
        """Do nothing: no file is kept open."""


def pieces_bytes(job: Job, n_edges: int) -> int:
    """Return the bytes of the files of pieces that hold so many edges."""
    return n_edges * sum(dtype.itemsize for dtype in job.edge_dtypes)


def positions_of(counts: Sequence[int]) -> tuple[int, ...]:
    """Return the positions of the first edges of pieces, and the end, given their edges."""
    return (0, *np.cumsum(counts, dtype=np.int64).tolist())


class Stretch(NamedTuple):
    """Consecutive edges of the output, which one task writes.

    They are the deflate parts ``[first, last)``; in plain files, ranges of as many edges.
    """

    number: int
    first: int
    last: int
    n_edges: int


class _Target(NamedTuple):
    """What a task must know to write stretches."""

    scratch: Scratch
    folder: Path
    columns: Mapping[str, np.dtype[Any]]  # of the edge files
    piece_dtypes: Sequence[np.dtype[Any]]
    compression: int | None
    positions: tuple[int, ...] = (0,)  # of each piece's first edge, and the end

    def path(self, side: str) -> Path:
        """Return the path of an edge file."""
        return self.folder / file_name(side, self.compression)

    def deflated(self, side: str, stretch: int) -> Path:
        """Return the path of the file that holds the deflate parts of a stretch."""
        return self.scratch.run(f"deflated-{side}", stretch)


class PieceDelivery(FromPieces):
    """Makes edge files of the files of pieces; a `Delivery`.

    Every worker sees `folder`, where the edge files go, and the job's scratch, where the pieces
    are. `columns` are the dtypes of the edge files.
    """

    def __init__(
        self, folder: Path, job: Job, columns: Mapping[str, np.dtype[Any]],
        compression: int | None, executor: ResumableExecutor,
    ) -> None:  # fmt: skip
        super().__init__(PieceSink(job.scratch), executor)
        self._target = _Target(job.scratch, folder, columns, job.edge_dtypes, compression)

    def finish(self, counts: Sequence[int]) -> int:
        """Write the edge files from the pieces; return their bytes."""
        positions = positions_of(counts)
        target = self._target._replace(positions=positions)
        n_edges, is_plain = positions[-1], target.compression is None
        sizes = {side: n_edges * dtype.itemsize for side, dtype in target.columns.items()}
        for side, n_bytes in sizes.items():
            with target.path(side).open("ab") as file:
                file.truncate(n_bytes if is_plain else 0)
        stretches = cut_stretches(n_edges, target.compression)
        task, holds = partial(write_stretch, target), partial(stretch_holds, target)
        lengths = [stretch.n_edges for stretch in stretches]
        stage = Stage("write", task, stretches, lengths, "edges", StretchSummary, holds)
        written = self._executor.run(stage)
        self.scratch_bytes = n_edges * sum(dtype.itemsize for dtype in target.piece_dtypes)
        if not is_plain:
            self.scratch_bytes += sum(side[0] for stretch in written for side in stretch.written)
        for side, n_bytes in sizes.items():
            with opened(target.path(side), os.O_WRONLY) as fd:
                if not is_plain:
                    join_parts(fd, _deflated_parts(target, side, written), n_bytes)
                os.fsync(fd)
        return sum(target.path(side).stat().st_size for side in sizes)


def _deflated_parts(
    target: _Target, side: str, written: Sequence[StretchSummary]
) -> Iterator[tuple[int, DeflatePart]]:
    """Yield the deflate parts of a file in order, each with the open file that holds it."""
    for number, stretch in enumerate(written):
        with opened(target.deflated(side, number), os.O_RDONLY) as fd:
            for part in stretch.parts[list(target.columns).index(side)]:
                yield fd, DeflatePart(*part)


def cut_stretches(n_edges: int, compression: int | None) -> list[Stretch]:
    """Cut all edges into stretches; gzip files have a last part, even if it holds no edges."""
    size = gzip_member.PART_EDGES
    n_parts = -(-n_edges // size) if compression is None else n_edges // size + 1
    stretches: list[Stretch] = []
    for first in range(0, n_parts, _STRETCH_PARTS):
        last = min(first + _STRETCH_PARTS, n_parts)
        n = min(last * size, n_edges) - first * size
        stretches.append(Stretch(len(stretches), first, last, n))
    return stretches


class StretchSummary(NamedTuple):
    """What a written stretch leaves behind, for all columns.

    The deflate parts (none in plain files); and size and checksum of the stretch in the plain file,
    or of the file that holds the deflate parts.
    """

    parts: list[list[DeflatePart]]
    written: list[Written]


def write_stretch(target: _Target, stretch: Stretch) -> StretchSummary:
    """Write a stretch of the edge files.

    Doing it twice, or twice at once, gives the same bytes in the same places.
    """
    write = _write_plain if target.compression is None else _write_deflated
    sides = [write(target, stretch, side) for side in target.columns]
    return StretchSummary([parts for parts, _ in sides], [written for _, written in sides])


Side = tuple[list[DeflatePart], Written]


def _write_plain(target: _Target, stretch: Stretch, side: str) -> Side:
    n_bytes = crc = 0
    with opened(target.path(side), os.O_WRONLY) as fd:
        for start, stop in _parts(target, stretch):
            values = _read_edges(target, side, start, stop)
            n_bytes += values.nbytes
            crc = zlib_ng.crc32(values.view(np.uint8).data, crc)
            write_at(fd, values, start * values.itemsize)
    return [], Written(n_bytes, crc)


def _write_deflated(target: _Target, stretch: Stretch, side: str) -> Side:
    parts: list[DeflatePart] = []
    encoded: list[bytes] = []
    assert target.compression is not None
    for start, stop in _parts(target, stretch):
        values = _read_edges(target, side, start, stop)
        last = start // gzip_member.PART_EDGES == target.positions[-1] // gzip_member.PART_EDGES
        data, crc = deflate_edges(values, target.compression, last=last)
        parts.append(DeflatePart(sum(map(len, encoded)), len(data), crc, values.nbytes))
        encoded.append(data)
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    path = target.deflated(side, stretch.number)
    return parts, write_run(path, [({"data": joined}, np.array([joined.size]))])


def stretch_holds(target: _Target, kept: tuple[Stretch, StretchSummary]) -> bool:
    """Return whether what a written stretch has left is still there."""
    stretch, summary = kept
    for side, written in zip(target.columns, summary.written, strict=True):
        if target.compression is not None:
            if not holds(target.deflated(side, stretch.number), Written(*written)):
                return False
        elif _plain_crc(target, stretch, side) != written[1]:
            return False
    return True


def _plain_crc(target: _Target, stretch: Stretch, side: str) -> int:
    crc = 0
    with opened(target.path(side), os.O_RDONLY) as fd:
        for start, stop in _parts(target, stretch):
            values = buffers.take("written stretch", stop - start, target.columns[side])
            read_at(fd, values, start * values.itemsize)
            crc = zlib_ng.crc32(values.view(np.uint8).data, crc)
    return crc


def _parts(target: _Target, stretch: Stretch) -> Iterator[tuple[int, int]]:
    """Yield the edges of each deflate part of a stretch (in plain files, as many)."""
    size = gzip_member.PART_EDGES
    for part in range(stretch.first, stretch.last):
        yield part * size, min((part + 1) * size, target.positions[-1])


def _read_edges(target: _Target, side: str, start: int, stop: int) -> Array:
    """Read the edges ``[start, stop)`` of one side, in their final dtype, from their pieces."""
    dtypes = target.piece_dtypes
    out = read_column(target.scratch, target.positions, dtypes, side, start, stop)
    return out.astype(target.columns[side], copy=False)


def read_column(
    scratch: Scratch, positions: Sequence[int], dtypes: Sequence[np.dtype[Any]], column: str,
    start: int, stop: int, *, name: str = "stretch",
) -> Array:  # fmt: skip
    """Read a column of the edges ``[start, stop)`` from pieces whose columns have these dtypes.

    `positions` are those of their first edges, and the end. The values are in this thread's buffer
    of that name and dtype.
    """
    stored = dtypes[COLUMNS.index(column)]
    out = buffers.take(f"{name} {stored}", stop - start, stored)
    number = bisect_right(positions, start) - 1
    at = start
    while at < stop:
        begin, end = positions[number], positions[number + 1]
        if end > at:
            n = min(end, stop) - at
            with open_piece(scratch, number, dtypes) as piece:
                piece.read(0, column, at - begin, out[at - start : at - start + n])
            at += n
        number += 1
    return out
