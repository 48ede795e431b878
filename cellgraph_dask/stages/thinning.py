"""Which edges of a graph are kept: the strong ones.

Thinning works on the weights of pairs, after the rule, so the result is symmetric::

    rows, both directions ──► rank ──► weigh ──► select ──► thin ──► edge files
    of the matrix, or of       K-th     keys     the N-th
    scratch (`rows`)           of each  of all   of all
                               row

Each of *rank*, *weigh* and *thin* streams all rows, as the method for symmetric graphs does. An
edge is among the K strongest of either end if it is as strong as the K-th strongest of that end; so
of other rows, only their K-th has to be known, in memory 8 or 12 bytes a cell. The N strongest of
all are found digit by digit from the keys that *weigh* has left in scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.components import Components, Forests
from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import ResumableExecutor, Stage
from ..source.matrix import Block
from . import thinning_loops as loops
from .job import EdgeSink, Job, NotSymmetricError, deliver, read_kept
from .keep import Keep, first_of, key_dtype, ranks, write_ranks
from .runs import RunReader, Scratch, Written, holds, write_run
from .stream import prove_symmetry, read_edges

_SLAB = 1 << 18  # keys looked at in one go
_GROUPS = 32  # tasks that look at all keys together


@dataclass(frozen=True)
class Thinned:
    """What thinning has done.

    Attributes
    ----------
    n_dropped : int
        Edges that are left out.
    n_became_isolated : int
        Cells that had edges before, and have none any more.
    before, after : Components or None
        Connected components before and after, an isolated cell being one; None where they were not
        counted: on a cluster, in a run that was resumed, and where memory does not suffice.
    """

    n_dropped: int
    n_became_isolated: int
    before: Components | None
    after: Components | None


class PassSummary(NamedTuple):
    """What a block leaves behind in a pass before the last; see `StreamSummary`."""

    first_row: int
    last_row: int
    imbalance: tuple[int, int]
    largest: int
    first: int
    last: int
    first_edge: tuple[int, int] | None
    last_edge: tuple[int, int] | None
    n: int  # keys in its run
    n_bytes: int  # of its run
    crc: int


class ThinSummary(NamedTuple):
    """What a thinned block leaves behind; see `StreamSummary`.

    Its degrees are those of the edges that are kept.
    """

    first_row: int
    last_row: int
    position: int
    n_edges: int
    crc: int
    imbalance: tuple[int, int]
    largest: int
    first: int
    last: int
    first_edge: tuple[int, int] | None
    last_edge: tuple[int, int] | None
    n_rows: int  # rows with edges that are kept
    n_before: int  # entries before, and
    n_rows_before: int  # … rows with some, and
    first_before: int  # … those in the first row,
    last_before: int  # … in the last row
    strongest: float  # largest weight before


@dataclass(frozen=True)
class _Rows:
    """The rows of a symmetric graph, and what is to be done with them; picklable, without tally."""

    job: Job  # of the product; its source is the matrix that has the rows
    seeds: tuple[int, ...]
    keep: Keep
    proved: bool  # whether the rows are known to be those of a symmetric matrix
    tally: Callable[[Array, Array], None] | None = None  # gets each edge before thinning, and
    tally_kept: Callable[[Array, Array], None] | None = None  # … each that is kept

    def read(self, block: Block) -> tuple[list[Array], dict[str, Any]]:
        """Return a block's entries, and what the proof of symmetry needs of them."""
        job = replace(self.job, both=True, weights=True)
        seeds = np.array(self.seeds, np.uint64)
        columns, imbalance, degrees = read_edges(job, seeds, block, proved=self.proved)
        src, dst, _ = columns
        if self.tally is not None:
            self.tally(src, dst)
        ends = [(int(src[k]), int(dst[k])) for k in (0, -1)] if src.size else [None, None]
        return columns, {
            "first_row": block.first_row, "last_row": block.last_row - 1, "imbalance": imbalance,
            "largest": int(degrees[0]), "first": int(degrees[1]), "last": int(degrees[2]),
            "first_edge": ends[0], "last_edge": ends[1],
        }  # fmt: skip


def _rank(rows: _Rows, block: Block) -> PassSummary:
    """Find the weakest edge that each row of a block would keep.

    The first and the last row may go on in other blocks; of these, what may be kept is left.
    """
    columns, proof = rows.read(block)
    keep, k = rows.keep, rows.keep.thinning.top_k
    assert k is not None
    (src, dst, _), keys = keep.apply(columns, both=True)
    first, last = block.first_row, block.last_row - 1
    a = int(np.searchsorted(src, src.dtype.type(first), side="right"))
    b = max(int(np.searchsorted(src, src.dtype.type(last))), a)
    n_rows = max(last - first - 1, 0)
    row_key = buffers.take("rank keys", n_rows, keep.keys)
    row_cell = buffers.take("rank cells", n_rows, keep.cells)
    row_key[:], row_cell[:] = 0, 0
    work = buffers.take("row keys", max(keys.size, loops.FEW), keep.keys)
    loops.weakest_kept(src, dst, keys, a, b, k, first + 1, work, row_key, row_cell)
    sections: list[tuple[dict[str, Array], Array]] = [
        ({"key": row_key, "cell": row_cell}, np.array([n_rows]))
    ]
    for part in (slice(0, a), slice(b, src.size)):
        places = np.empty(min(k + 1, keys[part].size), np.int64)  # one more: that there are more
        if places.size:
            loops.strongest_of(keys[part], places.size, work, places)
        ends = {"key": keys[part][places], "cell": dst[part][places]}
        sections.append((ends, np.array([places.size])))
    written = write_run(keep.scratch.run("rank", block.number), sections)
    return PassSummary(**proof, n=0, n_bytes=written.n_bytes, crc=written.crc)


def _weigh(rows: _Rows, block: Block) -> PassSummary:
    """Leave the keys of a block's edges."""
    columns, proof = rows.read(block)
    _, keys = rows.keep.apply(columns, both=False)
    written = write_run(
        rows.keep.scratch.run("weigh", block.number), [({"key": keys}, np.array([keys.size]))]
    )
    return PassSummary(**proof, n=keys.size, n_bytes=written.n_bytes, crc=written.crc)


def _pass_holds(scratch: Scratch, name: str, kept: tuple[Block, PassSummary]) -> bool:
    """Whether what a block has left in a pass is still there."""
    block, summary = kept
    return holds(scratch.run(name, block.number), Written(summary.n_bytes, summary.crc))


def _thin(rows: _Rows, sink: EdgeSink, block: Block) -> ThinSummary:
    """Write the edges of a block that are kept to the output."""
    columns, proof = rows.read(block)
    before, after = np.zeros(3, np.int64), np.zeros(3, np.int64)
    n_before, n_rows_before = columns[0].size, _count_rows(columns[0], block, before)
    strongest = float(columns[2].max(initial=0))
    edges, keys = rows.keep.apply(columns, both=True)
    if rows.tally_kept is not None:
        rows.tally_kept(*edges[:2])
    n_rows = _count_rows(edges[0], block, after)
    if not rows.job.both:
        edges = first_of(edges, loops.keep_heavy(*edges, keys, np.zeros(1), 0))
    position, n_edges, crc = deliver(rows.job, sink, block.number, edges)
    proof |= dict(zip(("largest", "first", "last"), after.tolist(), strict=True))
    return ThinSummary(
        **proof, position=position, n_edges=n_edges, crc=crc, n_rows=n_rows,
        n_before=n_before, n_rows_before=n_rows_before, first_before=int(before[1]),
        last_before=int(before[2]), strongest=strongest,
    )  # fmt: skip


def _count_rows(src: Array, block: Block, ends: Array) -> int:
    """Return the rows of a block that have entries; `ends`: see `loops.count_rows`."""
    n_rows: int = loops.count_rows(src, ends)
    if src.size and src[0] != block.first_row:
        ends[1] = 0
    if src.size and src[-1] != block.last_row - 1:
        ends[2] = 0
    return n_rows


def _thin_holds(rows: _Rows, sink: EdgeSink, kept: tuple[Block, ThinSummary]) -> bool:
    """Whether the edges that a thinned block has written are still there."""
    _, summary = kept
    job = rows.job
    return read_kept(job, sink, summary.position, summary.n_edges, summary.crc) is not None


class Result(NamedTuple):
    """What is left of a graph."""

    counts: list[int]  # edges of each block, as they were delivered
    max_neighbors: int
    thinned: Thinned


def thin(
    job: Job, rows: Job, blocks: list[Block], seeds: tuple[int, ...], executor: ResumableExecutor,
    sink: EdgeSink, kind: str, keep_sizes: Callable[[dict[int, ThinSummary]], None],
    stop: Callable[[], None], *, count_components: bool,
) -> Result:  # fmt: skip
    """Deliver the edges that the job's thinning keeps; `rows` reads them, in blocks, by rows.

    A NotSymmetricError says that these rows are not those of a symmetric matrix.
    """
    n_cells = job.source.n_cells
    keep = Keep(job.thinning, job.scratch, n_cells, rows.cell_dtype, key_dtype(rows))
    of_product = replace(rows, both=job.both, weights=job.weights)
    passes = _Passes(of_product, blocks, seeds, executor, proved=rows is not job)
    forests = _Tallies(n_cells, executor, count_components)
    if job.thinning.top_k is not None:
        passes.run("rank", partial(_rank, passes.rows(keep, forests.before())))
        forests.counted_before()
        write_ranks(keep, blocks)
        keep = replace(keep, ranked=True)
    if job.thinning.max_edges is not None:
        summaries = passes.run("weigh", partial(_weigh, passes.rows(keep, forests.before())))
        forests.counted_before()
        sizes = [summary.n for summary in summaries]
        keep = replace(keep, cut=passes.cut(keep, sizes))
    last = passes.rows(keep, forests.before(), forests.after())
    task, holds_ = partial(_thin, last, sink), partial(_thin_holds, last, sink)
    stage = Stage("thin", task, blocks, passes.sizes, "entries", ThinSummary, holds_, kind)
    try:
        thinned = executor.run(stage, keep=keep_sizes, stop=stop)
    finally:
        ranks.cache_clear()
    largest = prove_symmetry(thinned)
    if largest is None:
        raise NotSymmetricError
    _check_left(job, thinned)
    n_before = sum(summary.n_before for summary in thinned) // 2
    n_edges = sum(summary.n_edges for summary in thinned) // job.n_directions
    before = ((s.first_row, s.last_row, s.n_rows_before, s.first_before, s.last_before)
              for s in thinned)  # fmt: skip
    after = ((s.first_row, s.last_row, s.n_rows, s.first, s.last) for s in thinned)
    isolated = _rows_with_entries(before) - _rows_with_entries(after)
    told = Thinned(n_before - n_edges, isolated, *forests.told())
    return Result([summary.n_edges for summary in thinned], largest, told)


def _check_left(job: Job, thinned: Sequence[ThinSummary]) -> None:
    """Refuse a threshold that leaves nothing."""
    strongest = max((summary.strongest for summary in thinned), default=0.0)
    if strongest and not any(summary.n_edges for summary in thinned):
        least = job.thinning.min_weight or 0
        raise SourceError(
            f"no edge of {job.source.key} has a weight of at least {least:.6g}; the "
            f"largest is {strongest:.6g}. Choose a smaller `min_weight`."
        )


def _rows_with_entries(blocks: Iterable[tuple[int, int, int, int, int]]) -> int:
    """Return how many rows have entries; a row may be in several blocks.

    Of each block: first and last row, rows with entries, and entries of the first and last row.
    """
    total, row, has_entries = 0, -1, False
    for first_row, last_row, n_rows, first, last in blocks:
        total += n_rows
        if first_row != row:
            has_entries = False
        total -= has_entries and first > 0
        has_entries = last > 0 or (has_entries and first_row == last_row)
        row = last_row
    return total


class _Tallies:
    """Counts connected components, before and after, where memory and executor allow."""

    def __init__(self, n_cells: int, executor: ResumableExecutor, wanted: bool) -> None:
        self._n_cells, self._executor = n_cells, executor
        self._wanted = wanted
        self._n_kept = executor.n_kept
        self._before: Forests | None = None
        self._after: Forests | None = None
        self._counted: Components | None = None
        self._is_counted = False

    def before(self) -> Callable[[Array, Array], None] | None:
        """Return what takes the edges of the first pass; nothing in later ones."""
        if not self._wanted or self._is_counted:
            return None
        self._before = Forests(self._n_cells, 1)
        return self._before.add

    def counted_before(self) -> None:
        """Count, after the first pass."""
        if not self._is_counted:
            self._counted = self._told(self._before)
            self._before, self._is_counted = None, True

    def after(self) -> Callable[[Array, Array], None] | None:
        """Return what takes the edges that are kept."""
        if not self._wanted:
            return None
        self._after = Forests(self._n_cells, 1)
        return self._after.add

    def told(self) -> tuple[Components | None, Components | None]:
        """Return the components before and after."""
        self.counted_before()
        return self._counted, self._told(self._after)

    def _told(self, forests: Forests | None) -> Components | None:
        """Count components; None if tasks of an interrupted run were not done again."""
        if forests is None or self._executor.n_kept != self._n_kept:
            return None
        return forests.components()


@dataclass
class _Passes:
    """The passes over all rows."""

    job: Job
    blocks: list[Block]
    seeds: tuple[int, ...]
    executor: ResumableExecutor
    proved: bool  # whether a pass has shown that the matrix is symmetric

    @property
    def sizes(self) -> list[int]:
        """What each block counts for."""
        return [block.stop - block.start for block in self.blocks]

    def rows(self, keep: Keep, *tallies: Callable[[Array, Array], None] | None) -> _Rows:
        """Return what reads the rows."""
        return _Rows(self.job, self.seeds, keep, self.proved, *tallies)

    def run(self, name: str, task: Callable[[Block], PassSummary]) -> list[PassSummary]:
        """Run a pass; the rows must be those of a symmetric matrix."""
        holds_ = partial(_pass_holds, self.job.scratch, name)
        stage = Stage(name, task, self.blocks, self.sizes, "entries", PassSummary, holds_)
        summaries = self.executor.run(stage)
        if prove_symmetry(summaries) is None:
            raise NotSymmetricError
        self.proved = True
        return summaries

    def cut(self, keep: Keep, sizes: Sequence[int]) -> tuple[int, int, int] | None:
        """Return key and cells of the last edge to keep; None if all are.

        `sizes` are the edges of each block.
        """
        left = keep.thinning.max_edges
        assert left is not None
        if sum(sizes) <= left:
            return None
        step = -(-len(self.blocks) // _GROUPS)
        groups = [range(a, min(a + step, len(sizes))) for a in range(0, len(sizes), step)]
        weights = [sum(sizes[k] for k in group) for group in groups]
        run, key = self.executor.executor.run, 0
        for shift in range(8 * keep.keys.itemsize - loops.DIGIT_BITS, -1, -loops.DIGIT_BITS):
            task = partial(_count_digits, keep, sizes, key, shift)
            counts = np.sum(run(Stage("select", task, groups, weights, "edges")), axis=0)
            from_here = np.cumsum(counts[::-1])[::-1]  # edges with this digit, or a higher one
            digit = int(np.flatnonzero(from_here >= left)[-1])
            left -= int(from_here[digit] - counts[digit])
            key = key << loops.DIGIT_BITS | digit
        equal = run(Stage("select", partial(_equal, keep, sizes, key), groups, weights, "edges"))
        upto = list(accumulate(n for group in equal for n in group))
        number = next(k for k, n in enumerate(upto) if n >= left)
        nth = left - (upto[number - 1] if number else 0)
        find = partial(_find, self.rows(keep), key, nth)
        (edge,) = run(Stage("select", find, [self.blocks[number]], [1], "blocks"))
        return key, *edge


def _keys_in(keep: Keep, sizes: Sequence[int], number: int) -> Iterator[Array]:
    """Yield the keys that a block has left, some at a time."""
    layout: list[tuple[dict[str, np.dtype[Any]], int]] = [({"key": keep.keys}, 1)]
    with RunReader(keep.scratch.run("weigh", number), layout) as run:
        for a in range(0, sizes[number], _SLAB):
            keys = buffers.take("keys", min(_SLAB, sizes[number] - a), keep.keys)
            run.read(0, "key", a, keys)
            yield keys


def _count_digits(
    keep: Keep, sizes: Sequence[int], prefix: int, shift: int, numbers: range
) -> Array:
    counts = np.zeros(1 << loops.DIGIT_BITS, np.int64)
    for number in numbers:
        for keys in _keys_in(keep, sizes, number):
            loops.count_digits(keys, prefix, shift, counts)
    return counts


def _equal(keep: Keep, sizes: Sequence[int], key: int, numbers: range) -> list[int]:
    wanted = keep.keys.type(key)
    return [
        sum(int(np.count_nonzero(keys == wanted)) for keys in _keys_in(keep, sizes, number))
        for number in numbers
    ]


def _find(rows: _Rows, key: int, nth: int, block: Block) -> tuple[int, int]:
    """Return the `nth` edge of a block that has this key, counted from 1."""
    columns, _ = rows.read(block)
    (src, dst, _), keys = rows.keep.apply(columns, both=False)
    at = int(np.flatnonzero(keys == rows.keep.keys.type(key))[nth - 1])
    return int(src[at]), int(dst[at])
