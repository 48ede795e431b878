"""The K-th strongest edge of each row, found while rows pass by.

What a range of rows comes to is left in a run: of its first and its last row, which may go on in
other ranges, what may be kept; of the others the weakest edge that is. From all runs together
`write_ranks` makes the table that thinning looks edges up in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..edge_pairs.components import Forests, forest_bytes
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import opened, write_at
from . import thinning_loops as loops
from .job import Job, Tuning
from .keep import Keep, key_dtype
from .pieces import Piece
from .runs import RunReader, Written, holds, write_run


class Rows(NamedTuple):
    """The rows ``[first, stop)``, of which the first and the last may go on in other ranges."""

    number: int  # of the range
    first: int
    stop: int


def rank_rows(
    keep: Keep, rows: Rows, edges: Sequence[Array], marks: Array, sample: Forests | None
) -> Written:
    """Find the weakest edge that each row would keep, and leave a run of them.

    `edges` are sources, destinations and keys, sorted; those without `marks` are never kept.
    `sample` gets some of those that are.
    """
    src, dst, keys = edges
    if keep.thinning.min_weight:
        keys *= marks  # weaker than any other
    k = keep.thinning.top_k
    assert k is not None
    first, last = rows.first, rows.stop - 1
    a = int(np.searchsorted(src, src.dtype.type(first), side="right"))
    b = max(int(np.searchsorted(src, src.dtype.type(last))), a)
    n_rows = max(last - first - 1, 0)
    row_key = buffers.take("rank keys", n_rows, keep.keys)
    row_cell = buffers.take("rank cells", n_rows, keep.cells)
    row_key[:], row_cell[:] = 0, 0
    work = buffers.take("row keys", keys.size, keep.keys)
    table = np.empty((loops.TABLE_ROWS, loops.FEW), keep.keys)
    begins, at, out = np.empty(loops.TABLE_ROWS, np.int64), a, (row_key, row_cell)
    while at < b:
        at, n = loops.tabulate(src, dst, keys, at, b, k, first + 1, work, *out, table, begins)
        table[:n].sort()
        loops.note_weakest(src, dst, keys, k, first + 1, *out, table[:n], begins)
    sections: list[tuple[dict[str, Array], Array]] = [
        ({"key": row_key, "cell": row_cell}, np.array([n_rows]))
    ]
    for part in (slice(0, a), slice(b, src.size)):
        places = np.empty(min(k + 1, keys[part].size), np.int64)  # one more: that there are more
        if places.size:
            loops.strongest_of(keys[part], places.size, work, places)
        kept = {"key": keys[part][places], "cell": dst[part][places]}
        sections.append((kept, np.array([places.size])))
    if sample is not None:
        most = loops.SOME * n_rows + 1
        ends = [buffers.take(f"sampled {end}", most, keep.cells) for end in ("src", "dst")]
        inside = src[a:b], dst[a:b], keys[a:b]
        n = loops.sample_kept(*inside, first + 1, row_key, row_cell, *ends)
        sample.sample_rows(*(cells[:n] for cells in ends))
    return write_run(keep.scratch.run("rank", rows.number), sections)


def rank_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that ranking so many entries and rows takes, if they are ranked."""
    if job.thinning.top_k is None:
        return 0
    key, cell = key_dtype(job).itemsize, job.cell_dtype.itemsize
    table = loops.TABLE_ROWS * (loops.FEW * key + 8)
    top = 64 * min(job.thinning.top_k, n_entries)
    row = key + cell + 2 * loops.SOME * cell
    return n_entries * (key + 1) + n_rows * row + table + top


@dataclass(frozen=True)
class RankRuns:
    """Ranks the rows of pieces that are merged; a `DegreeSink`, picklable without a sample."""

    known: Keep
    sample: Forests | None = None
    kind = "ranks"

    def add(self, job: Job, piece: Piece, *edges: Array) -> Written:
        """Leave the run of a piece's rows."""
        known, (src, dst, weights) = self.known, edges
        narrow = buffers.take("rank weights", weights.size, f"f{known.keys.itemsize}")
        narrow[:] = weights
        marks = buffers.take("kept", weights.size, np.uint8)
        marks[:] = 1
        with_keys = known.mark([src, dst, narrow], marks)
        return rank_rows(known, rows_of(job, piece), with_keys, marks, self.sample)

    def keep(self, job: Job, piece: Piece, _src: Array, _dst: Array, written: Written) -> bool:
        """Whether the run of a piece is still there."""
        return holds(job.scratch.run("rank", piece.number), written)


def sample_of(job: Job, tuning: Tuning) -> Forests | None:
    """Return what takes a sample while pieces are ranked; None if components are not counted."""
    return Forests(job.source.n_cells, 1) if _takes_sample(job, tuning) else None


def sample_bytes(job: Job, tuning: Tuning) -> int:
    """Return the bytes of that."""
    return forest_bytes(job.source.n_cells, 1) if _takes_sample(job, tuning) else 0


def _takes_sample(job: Job, tuning: Tuning) -> bool:
    return tuning.count_components and job.thinning.top_k is not None


def rows_of(job: Job, piece: Piece) -> Rows:
    """Return the rows of a piece."""
    base, stop = piece.first << job.shift, piece.last << job.shift
    if piece.low is None or piece.high is None:
        return Rows(piece.number, base, min(stop, job.source.n_cells))
    last = piece.high[0] + (piece.high[1] > 0)
    return Rows(piece.number, base + piece.low[0], base + last)


def write_ranks(keep: Keep, ranges: Sequence[Rows]) -> None:
    """Write the weakest edge that each row would keep: first all keys, then all cells.

    Zeros stand for rows that would keep all.
    """
    k = keep.thinning.top_k
    assert k is not None
    row_key, row_cell = np.zeros(keep.n_cells, keep.keys), np.zeros(keep.n_cells, keep.cells)
    at, keys, cells = -1, row_key[:0], row_cell[:0]  # a row that may go on, and what it may keep
    layout = [({"key": keep.keys, "cell": keep.cells}, 1)] * 3
    for number, first, stop in ranges:
        last = stop - 1
        with RunReader(keep.scratch.run("rank", number), layout) as run:
            if last - first > 1:
                run.read(0, "key", 0, row_key[first + 1 : last])
                run.read(0, "cell", 0, row_cell[first + 1 : last])
            for section, row in enumerate((first, last), 1):
                n = int(run.starts(section, 0, 0)[0])
                if row != at:
                    _note_weakest(row_key, row_cell, at, keys, cells, k)
                    at, keys, cells = row, row_key[:0], row_cell[:0]
                more = np.empty(n, keep.keys), np.empty(n, keep.cells)
                run.read(section, "key", 0, more[0])
                run.read(section, "cell", 0, more[1])
                keys, cells = np.append(keys, more[0]), np.append(cells, more[1])
                order = np.lexsort((cells, np.invert(keys)))[: k + 1]
                keys, cells = keys[order], cells[order]
    _note_weakest(row_key, row_cell, at, keys, cells, k)
    path = keep.scratch.run("ranks", 0)
    with opened(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600) as fd:
        write_at(fd, row_cell, write_at(fd, row_key, 0))


def _note_weakest(
    row_key: Array, row_cell: Array, row: int, keys: Array, cells: Array, k: int
) -> None:
    if keys.size > k:
        row_key[row], row_cell[row] = keys[k - 1], cells[k - 1]
