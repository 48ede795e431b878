"""The K-th strongest edge of each row, found while rows pass by.

The weakest edge that each row would keep is written to a file of all rows, first their keys, then
their cells; zeros stand for rows that would keep all. Of the first and the last row of a range,
which may go on in other ranges, a run says what may be kept, and `complete_ranks` puts them
together. In that file thinning looks edges up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.components import Forests, forest_bytes
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import opened, read_at, write_at
from . import thinning_loops as loops
from .job import Job, Tuning, edges_crc
from .keep import Keep, key_dtype, ranks_path
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
    crc = _write_rows(keep, first + 1, row_key, row_cell)
    sections = [({"crc": np.array([crc], np.uint32)}, np.array([1]))]  # see `_layout`
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


def _places(keep: Keep, row: int) -> tuple[int, int]:
    """Return where the key and the cell of a row are in the file of all ranks."""
    key, cell = keep.keys.itemsize, keep.cells.itemsize
    return row * key, keep.n_cells * key + row * cell


def _write_rows(keep: Keep, row: int, *columns: Array) -> int:
    """Write keys and cells from a row on to the file of all ranks; return their checksum."""
    with opened(ranks_path(keep), os.O_CREAT | os.O_WRONLY, 0o600) as fd:
        for column, place in zip(columns, _places(keep, row), strict=True):
            write_at(fd, column, place)
    return edges_crc(*columns)


def ranks_hold(keep: Keep, rows: Rows, written: Written) -> bool:
    """Whether what a range has left is still there."""
    path = keep.scratch.run("rank", rows.number)
    if not holds(path, written):
        return False
    expected = np.empty(1, np.uint32)
    with RunReader(path, _layout(keep)) as run:
        run.read(0, "crc", 0, expected)
    columns = [np.empty(max(rows.stop - rows.first - 2, 0), of) for of in (keep.keys, keep.cells)]
    try:
        with opened(ranks_path(keep), os.O_RDONLY) as fd:
            for column, place in zip(columns, _places(keep, rows.first + 1), strict=True):
                read_at(fd, column, place)
    except (OSError, EOFError):
        return False
    return edges_crc(*columns) == int(expected[0])


def _layout(keep: Keep) -> list[tuple[dict[str, np.dtype[Any]], int]]:
    edges = {"key": keep.keys, "cell": keep.cells}
    return [({"crc": np.dtype(np.uint32)}, 1), (edges, 1), (edges, 1)]


def rank_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that ranking so many entries and rows takes, if they are ranked."""
    if job.thinning.top_k is None:
        return 0
    key, cell = key_dtype(job).itemsize, job.cell_dtype.itemsize
    table = loops.TABLE_ROWS * (loops.FEW * key + 8)
    top = 64 * min(job.thinning.top_k, n_entries)
    row = key + cell + 2 * loops.SOME * cell
    return n_entries * (key + 1) + n_rows * row + table + top


@dataclass(frozen=True, eq=False)
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
        """Whether what a piece has left is still there."""
        return ranks_hold(self.known, rows_of(job, piece), written)


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
    first, stop = piece.first << job.shift, piece.last << job.shift
    if piece.low is not None and piece.high is not None:
        stop = first + piece.high[0] + (piece.high[1] > 0)
        first += piece.low[0]
    return Rows(piece.number, first, min(stop, job.source.n_cells))


def complete_ranks(keep: Keep, ranges: Sequence[Rows]) -> None:
    """Write the weakest edges of those rows that are the first or the last of a range."""
    k = keep.thinning.top_k
    assert k is not None
    at, keys, cells = -1, np.empty(0, keep.keys), np.empty(0, keep.cells)  # what a row may keep
    for number, first, stop in ranges:
        if first == stop:
            continue
        with RunReader(keep.scratch.run("rank", number), _layout(keep)) as run:
            for section, row in enumerate((first, stop - 1), 1):
                n = int(run.starts(section, 0, 0)[0])
                if row != at:
                    _note_weakest(keep, at, keys, cells)
                    at, keys, cells = row, keys[:0], cells[:0]
                more = np.empty(n, keep.keys), np.empty(n, keep.cells)
                run.read(section, "key", 0, more[0])
                run.read(section, "cell", 0, more[1])
                keys, cells = np.append(keys, more[0]), np.append(cells, more[1])
                order = np.lexsort((cells, np.invert(keys)))[: k + 1]
                keys, cells = keys[order], cells[order]
    _note_weakest(keep, at, keys, cells)
    with opened(ranks_path(keep), os.O_CREAT | os.O_WRONLY, 0o600) as fd:
        os.ftruncate(fd, _places(keep, keep.n_cells)[1])


def _note_weakest(keep: Keep, row: int, keys: Array, cells: Array) -> None:
    """Write the weakest edge that a row would keep, given the strongest that it has, in order."""
    k = keep.thinning.top_k
    weakest = np.zeros(1, keep.keys), np.zeros(1, keep.cells)
    if k is not None and keys.size > k:
        weakest = keys[k - 1 : k], cells[k - 1 : k]
    if row >= 0:
        _write_rows(keep, row, *weakest)
