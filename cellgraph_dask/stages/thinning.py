"""Which edges of a graph are kept: the strong ones.

Thinning works on the weights of pairs, after the rule, so the result is symmetric::

    rows, both directions ──► rank ──► weigh ──► select ──► thin ──► edge files
    of the matrix, or of       K-th     keys     the N-th
    scratch (`rows`)           of each  of all   of all
                               row

Each of *rank*, *weigh* and *thin* streams all rows, as the method for symmetric graphs does. Rows
that go to scratch are ranked on their way, while they are merged; and where cells are counted in
memory, scratch gets each edge once only. An edge is among the K strongest of either end if it is as
strong as the K-th strongest of that end; so of other rows, only their K-th has to be known, in
memory 9 or 13 bytes a cell. The N strongest of all are found digit by digit from the keys that
*weigh* has left in scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.components import Components, Forests
from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import ResumableExecutor, Stage
from ..source.matrix import Block
from .degrees import EndCounters
from .job import EdgeSink, Job, NotSymmetricError, deliver, read_kept
from .keep import Keep, forget_ranks, keep_of, taken
from .ranking import Rows, complete_ranks, rank_rows, ranks_hold
from .rows import RowSink
from .runs import RunReader, Written, holds, write_run
from .stream import Ends, prove_symmetry, read_edges, with_ends
from .strongest import Edge, Keys, PieceKeys, last_of_strongest, read_keys


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


class Pieces(NamedTuple):
    """Pieces of rows in scratch."""

    sink: RowSink
    sizes: Sequence[int]  # entries of each


class Ranked(NamedTuple):
    """What is left where rows were ranked."""

    sample: Forests | None  # of the edges that are kept, and
    ranges: Sequence[Rows]  # … the ranges, in order


class PassSummary(NamedTuple):
    """What a block leaves behind in a pass before the last."""

    ends: Ends
    n: int  # keys in its run
    n_bytes: int  # of its run
    crc: int


class ThinSummary(NamedTuple):
    """What a thinned block leaves behind; see `StreamSummary`.

    The degrees in `ends` are those of the edges that are kept.
    """

    ends: Ends
    position: int
    n_edges: int
    crc: int
    n_rows: int  # rows with edges that are kept
    n_before: int  # entries before, and
    n_rows_before: int  # … rows with some, and
    first_before: int  # … those in the first row,
    last_before: int  # … in the last row
    strongest: float  # largest weight before


class _Rows(NamedTuple):
    """The rows of a symmetric graph, what to do with them; picklable, but for forests."""

    job: Job  # of the product; its source is the matrix that has the rows
    seeds: tuple[int, ...]
    keep: Keep
    proved: bool  # whether the rows are known to be those of a symmetric matrix
    before: Forests | None = None  # of all edges, and
    after: Forests | None = None  # … of those that are kept
    ends: EndCounters | None = None
    whole: bool = True  # or each edge is in one row only

    def read(self, block: Block) -> tuple[list[Array], Ends, int]:
        """Return a block's entries, what proves the symmetry, and how many rows have entries."""
        job = replace(self.job, both=True, weights=True)
        seeds = np.array(self.seeds, np.uint64)
        columns, imbalance, degrees = read_edges(job, seeds, block, proved=self.proved)
        return columns, Ends.of(block, imbalance, degrees, *columns[:2]), int(degrees[3])

    @property
    def chooses(self) -> bool:
        """Whether not all entries of the rows are to be weighed."""
        return self.whole or self.keep.ranked or bool(self.keep.thinning.min_weight)

    def mark(self, columns: Sequence[Array]) -> tuple[list[Array], Array]:
        """Return edges with keys for weights, and marks of those that are kept."""
        src, dst, _ = columns
        kept = buffers.take("kept", src.size, np.uint8)
        kept[:] = 1
        if self.before is not None:
            if self.whole:
                self.before.add_rows(src, dst, kept)
            else:
                self.before.add(src, dst)
        edges = self.keep.mark(columns, kept)
        if self.ends is not None:
            self.ends.add(src, dst, kept)
        return edges, kept


def _rank(rows: _Rows, sample: Forests | None, block: Block) -> PassSummary:
    """Find the weakest edge that each row of a block would keep; see `rank_rows`."""
    columns, ends, _ = rows.read(block)
    edges, marks = rows.mark(columns)
    written = rank_rows(rows.keep, _rows_of(block), edges, marks, sample)
    return PassSummary(ends, 0, *written)


def _rows_of(block: Block) -> Rows:
    return Rows(block.number, block.first_row, block.last_row)


def _weigh(rows: _Rows, block: Block) -> PassSummary:
    """Leave the keys of a block's edges."""
    columns, ends, _ = rows.read(block)
    edges, kept = rows.mark(columns)
    if rows.chooses:
        edges = taken(block, edges, kept, both=False).edges
    keys = edges[2]
    written = write_run(
        rows.keep.scratch.run("weigh", block.number), [({"key": keys}, np.array([keys.size]))]
    )
    return PassSummary(ends, keys.size, *written)


def _rank_holds(keep: Keep, kept: tuple[Block, PassSummary]) -> bool:
    """Whether what a block has left is still there."""
    block, summary = kept
    return ranks_hold(keep, _rows_of(block), Written(summary.n_bytes, summary.crc))


def _weigh_holds(keep: Keep, kept: tuple[Block, PassSummary]) -> bool:
    """Whether the keys of a block are still there."""
    block, summary = kept
    return holds(keep.scratch.run("weigh", block.number), Written(summary.n_bytes, summary.crc))


class _WeighedKeys(NamedTuple):
    """What the blocks have left in that pass; see `Keys`."""

    rows: _Rows
    blocks: Sequence[Block]
    sizes: Sequence[int]

    def read(self, number: int) -> Iterator[Array]:
        keep = self.rows.keep
        layout: list[tuple[dict[str, np.dtype[Any]], int]] = [({"key": keep.keys}, 1)]
        with RunReader(keep.scratch.run("weigh", number), layout) as run:
            yield from read_keys(keep, run, "key", self.sizes[number])

    def find(self, key: int, nth: int, number: int) -> Edge:
        rows, block = self.rows, self.blocks[number]
        src, dst, keys = taken(block, *rows.mark(rows.read(block)[0]), both=False).edges
        at = int(np.flatnonzero(keys == rows.keep.keys.type(key))[nth - 1])
        return int(src[at]), int(dst[at])


def _thin(rows: _Rows, sink: EdgeSink, block: Block) -> ThinSummary:
    """Write the edges of a block that are kept to the output."""
    columns, before, n_rows_before = rows.read(block)
    n_before, strongest = columns[0].size, float(columns[2].max(initial=0))
    marked, kept = rows.mark(columns)
    # Of the strongest of all, few are in a large tree, whose rows would be passed over.
    by_rows = rows.whole and rows.keep.cut is None
    if rows.after is not None and by_rows:
        rows.after.add_rows(marked[0], marked[1], kept)
    left = taken(block, marked, kept, both=rows.job.both)
    src, dst, keys = left.edges
    if rows.after is not None and not by_rows:
        rows.after.add(src, dst)
    edges = [src, dst, rows.keep.weights_of(keys)]
    delivered = deliver(rows.job, sink, block.number, edges)
    after = before._replace(largest=left.most, first=left.first, last=left.last)
    return ThinSummary(
        after, *delivered, left.n_rows, n_before, n_rows_before, before.first, before.last,
        strongest,
    )  # fmt: skip


def _thin_holds(rows: _Rows, sink: EdgeSink, kept: tuple[Block, ThinSummary]) -> bool:
    """Whether the edges that a thinned block has written are still there."""
    block, summary = kept
    job = rows.job
    if read_kept(job, sink, summary.position, summary.n_edges, summary.crc) is None:
        return False
    if rows.ends is not None:  # what it counts is in memory only
        rows.mark(rows.read(block)[0])
    return True


class Result(NamedTuple):
    """What is left of a graph."""

    counts: list[int]  # edges of each block, as they were delivered
    max_neighbors: int
    thinned: Thinned


def thin(
    job: Job, rows: Job, blocks: list[Block], seeds: tuple[int, ...], executor: ResumableExecutor,
    sink: EdgeSink, kind: str, keep_sizes: Callable[[dict[int, ThinSummary]], None],
    stop: Callable[[], None], pieces: Pieces | None, ranked: Ranked | None, *, count_components:
    bool,
) -> Result:  # fmt: skip
    """Deliver the edges that the job's thinning keeps; `rows` reads them, in blocks, by rows.

    Where `pieces` are given, they hold these rows, and each edge is in that of its source only;
    where these were `ranked` when they were made, that is not done again. A NotSymmetricError says
    that whole rows are not those of a symmetric matrix.
    """
    n_cells, whole = job.source.n_cells, pieces is None
    keep = keep_of(job, rows)
    of_product = replace(rows, both=job.both, weights=job.weights)
    passes = _Passes(of_product, blocks, seeds, executor, whole, proved=rows is not job)
    before, after = (_Tally(n_cells, executor, count_components) for _ in range(2))
    if job.thinning.top_k is not None:
        keep = _with_ranks(keep, passes, before, ranked)
    if not whole:
        before.settle()
    if job.thinning.max_edges is not None:
        keep = _with_cut(keep, passes, before, pieces)
    else:
        after.begin_like(before)
    ends = None if whole else EndCounters(n_cells)
    last = passes.rows(keep, before.taking(), after.taking(), ends)
    task, holds_ = partial(_thin, last, sink), partial(_thin_holds, last, sink)
    summary = with_ends(ThinSummary)
    kind = f"{kind} {passes.directions}"
    stage = Stage(
        "thin", task, blocks, passes.sizes, "entries", summary, holds_, kind,
        ahead=rows.source.begin_reading,
    )  # fmt: skip
    try:
        thinned = executor.run(stage, keep=keep_sizes, stop=stop)
    finally:
        forget_ranks()
    largest = prove_symmetry([summary.ends for summary in thinned])
    if largest is None:
        raise NotSymmetricError
    _check_left(job, thinned)
    n_before = sum(summary.n_before for summary in thinned) // (1 + whole)
    n_edges = sum(summary.n_edges for summary in thinned) // job.n_directions
    largest, isolated = (largest, _n_isolated(thinned)) if ends is None else ends.summarize()
    told = Thinned(n_before - n_edges, isolated, before.count(), after.count())
    return Result([summary.n_edges for summary in thinned], largest, told)


def _with_ranks(keep: Keep, passes: _Passes, before: _Tally, ranked: Ranked | None) -> Keep:
    """Have the K-th strongest edge of each row found, if merging has not."""
    if ranked is None:
        ranked = Ranked(before.sampling(), [_rows_of(block) for block in passes.blocks])
        passes.run(
            "rank", partial(_rank, passes.rows(keep), ranked.sample), partial(_rank_holds, keep)
        )
    else:
        before.begin_with(ranked.sample)
    complete_ranks(keep, ranked.ranges)
    return keep._replace(ranked=True)


def _with_cut(keep: Keep, passes: _Passes, before: _Tally, pieces: Pieces | None) -> Keep:
    """Find the last of the strongest edges of all that the ranks would keep."""
    keys: Keys
    if pieces is None or passes.rows(keep).chooses:
        weigh = partial(_weigh, passes.rows(keep, before.taking()))
        summaries = passes.run("weigh", weigh, partial(_weigh_holds, keep))
        before.count()
        sizes: Sequence[int] = [summary.n for summary in summaries]
        keys = _WeighedKeys(passes.rows(keep), passes.blocks, sizes)
    else:
        sizes = pieces.sizes
        keys = PieceKeys(keep, *pieces)
    return keep._replace(cut=last_of_strongest(keep, keys, sizes, passes.executor.executor))


def _n_isolated(thinned: Sequence[ThinSummary]) -> int:
    """Return the rows that had entries before, and have none any more."""
    had = ((s.ends, s.n_rows_before, s.first_before, s.last_before) for s in thinned)
    have = ((s.ends, s.n_rows, s.ends.first, s.ends.last) for s in thinned)
    return _rows_with_entries(had) - _rows_with_entries(have)


def _check_left(job: Job, thinned: Sequence[ThinSummary]) -> None:
    """Refuse a threshold that leaves nothing."""
    strongest = max((summary.strongest for summary in thinned), default=0.0)
    if strongest and not any(summary.n_edges for summary in thinned):
        least = job.thinning.min_weight or 0
        raise SourceError(
            f"no edge of {job.source.key} has a weight of at least {least:.6g}; the "
            f"largest is {strongest:.6g}. Choose a smaller `min_weight`."
        )


def _rows_with_entries(blocks: Iterable[tuple[Ends, int, int, int]]) -> int:
    """Return how many rows have entries; a row may be in several blocks.

    Of each block: its rows, those with entries, and entries of the first and the last row.
    """
    total, row, has_entries = 0, -1, False
    for ends, n_rows, first, last in blocks:
        total += n_rows
        if ends.first_row != row:
            has_entries = False
        total -= has_entries and first > 0
        has_entries = last > 0 or (has_entries and ends.first_row == ends.last_row)
        row = ends.last_row
    return total


class _Tally:
    """Counts the connected components of rows that come once, where memory and executor allow."""

    def __init__(self, n_cells: int, executor: ResumableExecutor, wanted: bool) -> None:
        self._n_cells, self._executor, self._n_kept = n_cells, executor, executor.n_kept
        self._wanted = wanted
        self._forests: Forests | None = None
        self._counted: Components | None = None

    def sampling(self) -> Forests | None:
        """Return what takes some edges ahead of a pass; None if they are not wanted."""
        if self._wanted:
            self._forests = Forests(self._n_cells, 1)
        return self._forests

    def begin_with(self, sample: Forests | None) -> None:
        """Begin with such edges."""
        self._forests = sample

    def settle(self) -> None:
        """Have edges inside the largest tree passed over from now on; they come one by one."""
        if self._forests is not None:
            self._forests.settle()

    def begin_like(self, other: _Tally) -> None:
        """Begin with the sample of another graph, if there is one: these edges are in both."""
        if other._forests is not None:
            self._forests = other._forests.copy()

    def taking(self) -> Forests | None:
        """Return what takes the rows of a pass; None if they are not wanted, or were counted."""
        if self._wanted:
            self._n_kept = self._executor.n_kept
            self._forests = self._forests or Forests(self._n_cells, 1)
        return self._forests

    def count(self) -> Components | None:
        """Count, and take no more; None if tasks of an interrupted run were not done again."""
        if self._forests is not None and self._executor.n_kept == self._n_kept:
            self._counted = self._forests.components()
        self._forests, self._wanted = None, False
        return self._counted


@dataclass(eq=False)
class _Passes:
    """The passes over all rows."""

    job: Job
    blocks: list[Block]
    seeds: tuple[int, ...]
    executor: ResumableExecutor
    whole: bool  # or each edge is in one row only
    proved: bool  # whether a pass has shown that the matrix is symmetric

    @property
    def directions(self) -> str:
        """In how many directions the rows have each edge, for the journal."""
        return "both directions" if self.whole else "one direction"

    @property
    def sizes(self) -> list[int]:
        """What each block counts for."""
        return [block.stop - block.start for block in self.blocks]

    def rows(
        self, keep: Keep, before: Forests | None = None, after: Forests | None = None,
        ends: EndCounters | None = None,
    ) -> _Rows:  # fmt: skip
        """Return what reads the rows."""
        counting = (before, after, ends, self.whole)
        return _Rows(self.job, self.seeds, keep, self.proved, *counting)

    def run(
        self, name: str, task: Callable[[Block], PassSummary], holds_: Callable[..., bool]
    ) -> list[PassSummary]:
        """Run a pass; the rows must be those of a symmetric matrix."""
        summary = with_ends(PassSummary)
        stage = Stage(
            name, task, self.blocks, self.sizes, "entries", summary, holds_, self.directions,
            ahead=self.job.source.begin_reading,
        )  # fmt: skip
        summaries = self.executor.run(stage)
        if prove_symmetry([summary.ends for summary in summaries]) is None:
            raise NotSymmetricError
        self.proved = True
        return summaries
