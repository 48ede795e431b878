"""The largest degree of a cell, which the manifest tells.

A cell's degree is the number of edges it is the source of plus the number it is the destination of,
unless edges come in both directions. The second kind lies scattered over all pieces. Where the
memory limit leaves room, threads share one counter a cell. Where it does not, or on a cluster, each
piece leaves a run of what has to be counted, ordered by partition, and a stage of its own counts a
range of cells at a time.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled
from . import loops
from .job import Job
from .pieces import Piece
from .runs import RunReader, Written, holds, write_run

_SLAB = 1 << 18  # destinations looked at in one go
_RANGE_CELLS = 1 << 22  # most cells counted by one task: 32 MB
COUNTER_BYTES = 4  # of one cell in `DegreeCounters` or `EndCounters`
_HAD = 1 << 31  # in the counter of a cell that had edges


def _destinations(job: Job, dst: Array) -> Array:
    """Return the destinations that count: none where each edge has either end as its source."""
    return dst[:0] if job.both else dst


class DegreeCounters:
    """Counters of all cells in memory, shared by threads."""

    kind = "counters"

    def __init__(self, n_cells: int) -> None:
        self._counts = np.zeros(n_cells, np.uint32)
        self._lock = threading.Lock()

    def add(self, job: Job, _piece: Piece, *edges: Array) -> Written:
        """Count the edges of a piece; no temporary file is made."""
        src, dst = edges[:2]
        with self._lock:
            for cells in (src, _destinations(job, dst)):  # both at once take half as long again
                loops.count_values(cells, 0, self._counts)
        return Written(0, 0)

    def keep(self, job: Job, piece: Piece, src: Array, dst: Array, _written: Written) -> bool:
        """Count the edges of a piece of an earlier run."""
        self.add(job, piece, src, dst)
        return True

    def largest(self) -> int:
        """Return the largest degree."""
        return int(self._counts.max(initial=0))


class EndCounters:
    """Counts the edges that each cell keeps, and notes which cells had any; shared by threads.

    It is for fewer than 2³¹ cells, whose edges come from one of their ends only.
    """

    def __init__(self, n_cells: int) -> None:
        self._counts = np.zeros(n_cells, np.uint32)
        self._lock = threading.Lock()

    def add(self, src: Array, dst: Array, kept: Array) -> None:
        """Take edges into account, of which those with marks are kept."""
        with self._lock:
            for cells in (src, dst):
                count_ends(cells, kept, self._counts)

    def summarize(self) -> tuple[int, int]:
        """Return the largest degree, and how many cells have edges no more."""
        largest = n_isolated = 0
        for start in range(0, self._counts.size, _SLAB):
            counts = self._counts[start : start + _SLAB]
            largest = max(largest, int((counts & (_HAD - 1)).max()))
            n_isolated += int(np.count_nonzero(counts == _HAD))
        return largest, n_isolated


class DegreeRuns:
    """Leaves a run for each piece; picklable."""

    kind = "runs"

    def keep(self, job: Job, piece: Piece, _src: Array, _dst: Array, written: Written) -> bool:
        """Whether the run of a piece is still there."""
        return holds(job.scratch.run("degrees", piece.number), written)

    def add(self, job: Job, piece: Piece, *edges: Array) -> Written:
        """Write the destinations of a piece by partition, and its edges for each source."""
        src, dst = edges[:2]
        dst = _destinations(job, dst)
        counts = np.zeros(job.n_partitions, np.int64)
        loops.count_values(dst, job.shift, counts)
        starts = np.concatenate(([0], np.cumsum(counts)))
        local = buffers.take("grouped", dst.size, np.uint16)  # the grouped entries are done with
        bucket_destinations(dst, job.shift, starts[:-1].copy(), local)
        width = 1 << job.shift
        n_sources = width * (piece.last - piece.first)
        per_source = buffers.take("edges per source", n_sources, np.uint32)
        per_source[:] = 0
        loops.count_edges_per_source(src, piece.first << job.shift, per_source)
        source_starts = np.clip(
            np.arange(job.n_partitions + 1) - piece.first, 0, piece.last - piece.first
        )
        return write_run(
            job.scratch.run("degrees", piece.number),
            [({"dst": local}, starts), ({"n": per_source}, source_starts * width)],
        )


class NoDegrees:
    """Counts nothing, where the edges are looked at again."""

    kind = "no degrees"

    def add(self, _job: Job, _piece: Piece, *_: Array) -> Written:
        """Do nothing."""
        return Written(0, 0)

    def keep(self, _job: Job, _piece: Piece, _src: Array, _dst: Array, _written: Written) -> bool:
        """Do nothing."""
        return True


class DegreeSink(Protocol):
    """Takes note of whole rows, or of the edges of each cell, besides what is delivered."""

    @property
    def kind(self) -> str:
        """What it does with them, for the journal."""

    def add(self, job: Job, piece: Piece, /, *edges: Array) -> Written:
        """Take note of a piece that was just merged: sources, destinations, perhaps weights."""

    def keep(self, job: Job, piece: Piece, src: Array, dst: Array, written: Written, /) -> bool:
        """Do so for a piece of an earlier run; whether what it has left is still there."""


_LAYOUT: list[dict[str, np.dtype[Any]]] = [{"dst": np.dtype(np.uint16)}, {"n": np.dtype(np.uint32)}]


class CellRange(NamedTuple):
    """The partitions ``[first, last)`` whose degrees one task counts."""

    number: int
    first: int
    last: int


def cut_cells(job: Job, piece_entries: int) -> list[CellRange]:
    """Cut the partitions into ranges whose counters need no more room than a piece."""
    cells = min(_RANGE_CELLS, piece_entries)
    step = max(1, cells >> job.shift)
    firsts = range(0, job.n_partitions, step)
    return [
        CellRange(k, first, min(first + step, job.n_partitions)) for k, first in enumerate(firsts)
    ]


def largest_degree(job: Job, n_pieces: int, cells: CellRange) -> int:
    """Return the largest degree among a range of cells, from the runs of all pieces."""
    width = 1 << job.shift
    degrees = buffers.take("degrees", width * (cells.last - cells.first), np.int64)
    degrees[:] = 0
    layout = [(columns, job.n_partitions + 1) for columns in _LAYOUT]
    for piece in range(n_pieces):
        with RunReader(job.scratch.run("degrees", piece), layout) as run:
            starts = run.starts(0, cells.first, cells.last)
            for f in range(cells.last - cells.first):
                of_partition = degrees[f * width : (f + 1) * width]
                for at in range(int(starts[f]), int(starts[f + 1]), _SLAB):
                    local = buffers.take(
                        "destinations", min(_SLAB, int(starts[f + 1]) - at), np.uint16
                    )
                    run.read(0, "dst", at, local)
                    loops.count_values(local, 0, of_partition)
            per_source = run.starts(1, cells.first, cells.last)
            n = int(per_source[-1] - per_source[0])
            if n:
                counts = buffers.take("counts", n, np.uint32)
                run.read(1, "n", int(per_source[0]), counts)
                # Partitions before or after the piece's own have no counts in its run.
                has_counts = np.flatnonzero(np.diff(per_source))
                begin = int(has_counts[0]) * width
                degrees[begin : begin + n] += counts
    return int(degrees.max(initial=0))


@compiled()
def count_ends(cells: Array, kept: Array, counts: Array) -> None:
    """Note which cells are ends of edges, and count those of edges with marks."""
    for k in range(cells.size):
        cell = np.int64(cells[k])
        counts[cell] = (np.int64(counts[cell]) | _HAD) + np.int64(kept[k])


@compiled()
def bucket_destinations(dst: Array, shift: int, next_slot: Array, local: Array) -> None:
    """Write each destination's place inside its partition (uint16), ordered by partition."""
    mask = (1 << shift) - 1
    for k in range(dst.size):
        d = np.int64(dst[k])
        p = next_slot[d >> shift]
        next_slot[d >> shift] = p + 1
        local[p] = d & mask
