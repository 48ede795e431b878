"""What is known of the edges that thinning keeps, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs import components
from ..edge_pairs.components import forest_bytes
from ..machine.buffers import Array
from ..source.arrays import read_file
from ..source.matrix import Block
from . import thinning_loops as loops
from .degrees import COUNTER_BYTES, count_ends
from .job import Job, Tuning
from .runs import Scratch
from .wishes import Thinning

_SAMPLE = 10_000  # keys that tell how levels are cut
_one_reads = Lock()


def key_dtype(job: Job) -> np.dtype[Any]:
    """Return the dtype of keys: that of weights in the rows of the graph, as bits."""
    return np.dtype(f"u{job.streamed_dtype.itemsize}")


class Keep(NamedTuple):
    """What is known of the edges to keep; picklable."""

    thinning: Thinning
    scratch: Scratch
    n_cells: int
    cells: np.dtype[Any]
    keys: np.dtype[Any]
    ranked: bool = False  # whether the weakest of each row is known
    cut: tuple[int, int, int] | None = None  # key and cells of the weakest edge of all

    def mark(self, columns: Sequence[Array], kept: Array) -> list[Array]:
        """Return the edges with keys for weights; the marks of those that go are cleared."""
        src, dst, weights = columns
        if self.thinning.min_weight:
            loops.mark_heavy(weights, np.array([self.thinning.min_weight]), kept)
        keys = self.keys_of(weights.view(self.keys))
        if self.ranked:
            work = [np.empty(loops.AT_ONCE, of) for of in (np.uint16, self.cells, np.uint8)]
            loops.mark_ranked(src, dst, keys, *ranks_of(self), *work, kept)
        if self.cut is not None:
            loops.mark_strongest(src, dst, keys, np.array(self.cut, np.uint64), kept)
        return [src, dst, keys]

    def weights_of(self, keys: Array) -> Array:
        """Return the weights of edges that were kept, instead of their keys."""
        return self.keys_of(keys).view(f"f{self.keys.itemsize}")

    def keys_of(self, bits: Array) -> Array:
        """Return the keys of weights given as bits, or these bits of keys; they are used up."""
        return np.invert(bits, out=bits) if self.thinning.strongest == "smallest" else bits


def keep_of(job: Job, rows: Job) -> Keep:
    """Return what is known at first; `rows` reads whole rows of the job's graph."""
    return Keep(job.thinning, job.scratch, job.source.n_cells, rows.cell_dtype, key_dtype(rows))


class Taken(NamedTuple):
    """Edges that are kept."""

    edges: list[Array]
    n_rows: int  # that have some, of which
    most: int  # … one has the most,
    first: int  # … the block's first row so many, and
    last: int  # … its last row


def taken(block: Block, edges: Sequence[Array], kept: Array, *, both: bool) -> Taken:
    """Return the edges of a block that have marks, in one direction unless in `both`.

    The others are not there any more. Rows are counted as if all were in both directions.
    """
    ends = np.array([0, block.first_row, block.last_row - 1])
    n, n_rows = loops.take_kept(*edges, kept, both, ends)
    return Taken([column[:n] for column in edges], n_rows, *ends.tolist())


def thinning_bytes(job: Job, n_entries: int) -> int:
    """Return the most bytes that a block takes more than streaming it does, besides ranking it."""
    return n_entries + loops.AT_ONCE * (job.cell_dtype.itemsize + 3)


def ranks_bytes(job: Job) -> int:
    """Return the bytes that are kept of all rows together."""
    if job.thinning.top_k is None:
        return 0
    per_cell = key_dtype(job).itemsize + job.cell_dtype.itemsize + 1
    return job.source.n_cells * per_cell + 64 * min(job.thinning.top_k, job.source.n_cells)


def components_bytes(job: Job) -> int:
    """Return the bytes of counting components, before and after in the last pass at once.

    Where a pass looks for the strongest of all, those before are counted then. With them are the
    counters of edges that come from one end only.
    """
    from_one_end = _from_one_end(job)
    all_count = job.thinning.min_weight is None and job.thinning.top_k is None
    is_last = job.thinning.max_edges is None or (from_one_end and all_count)
    n_forests = 2 if is_last else 1
    counters = COUNTER_BYTES * job.source.n_cells if from_one_end else 0
    return forest_bytes(job.source.n_cells, n_forests, of_one_graph=False) + counters


def _from_one_end(job: Job) -> bool:
    """Whether edges may come from one of their ends only, where cells are counted in memory."""
    return not (job.method == "symmetric" or job.both) and job.source.n_cells < 2**31


def has_whole_rows(job: Job, tuning: Tuning) -> bool:
    """Whether thinning is to get each edge from both of its ends, as rows of a matrix."""
    return not (tuning.count_components and _from_one_end(job))


def merges_whole_rows(job: Job, tuning: Tuning) -> bool:
    """Whether each edge is to be merged at both of its ends; rows are ranked then."""
    return job.thinning.top_k is not None or has_whole_rows(job, tuning)


def thinning_scratch(job: Job, n_edges: int) -> int:
    """Return the most bytes of temporary files, of a graph of at most so many edges."""
    n_bytes = 2 * ranks_bytes(job)
    if job.thinning.max_edges is not None:
        n_bytes += n_edges * key_dtype(job).itemsize
    return n_bytes


class Ranks(NamedTuple):
    """The weakest edge that each row would keep, by row."""

    key: Array
    cell: Array
    level: Array  # uint8, of the key
    scale: Array  # of levels, see `thinning_loops.find_levels`


def ranks_path(keep: Keep) -> Path:
    """Return the file of the weakest edges that rows would keep; see `ranking`."""
    return keep.scratch.run("ranks", 0)


def ranks_of(keep: Keep) -> Ranks:
    """Return the ranks that `ranking` has left; threads share them."""
    with _one_reads:
        return _read_ranks(keep)


def forget_ranks() -> None:
    """Let go of them."""
    _read_ranks.cache_clear()


@lru_cache(maxsize=1)
def _read_ranks(keep: Keep) -> Ranks:
    row_key, row_cell = np.empty(keep.n_cells, keep.keys), np.empty(keep.n_cells, keep.cells)
    read_file(ranks_path(keep), row_key, 0)
    read_file(ranks_path(keep), row_cell, row_key.nbytes)
    scale, levels = _scale_of(row_key), np.empty(keep.n_cells, np.uint8)
    loops.find_levels(row_key, scale, levels)
    return Ranks(row_key, row_cell, levels, scale)


def _scale_of(keys: Array) -> Array:
    """Return a scale on which nearly all keys, but for zeros, have levels of their own."""
    some = keys[:: max(keys.size // _SAMPLE, 1)]
    some = np.sort(some[some > 0])
    low, high = (int(some[at * (some.size - 1) // 100]) if some.size else 0 for at in (1, 99))
    shift = 1  # at least, so that keys fit into int64
    while (high >> shift) - (low >> shift) > loops.LEVELS - 3:
        shift += 1
    return np.array([shift, (low >> shift) - 1])


def warm_up(job: Job) -> None:
    """Load (or compile) the loops of thinning."""
    loops.warm_up(job.cell_dtype, key_dtype(job))
    none, marks = np.zeros(0, job.cell_dtype), np.zeros(0, np.uint8)
    count_ends(none, marks, np.zeros(0, np.uint32))
    components.warm_up(job.cell_dtype, components.cell_dtype(job.source.n_cells))
