"""The stages of an export in their order, whatever executes their tasks.

::

    symmetric   stream ─────────────────────────► edge files
    general     split ──► merge ─┬──────────────► edge files
                                 └─► degrees, if they are not counted in memory
    thinned     [split ──► merge, rank ──► rows] ──► rank, weigh ──► thin ──► edge files
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from ..machine.buffers import Array
from ..runtime.stage import Executor, ResumableExecutor, Stage, do_nothing
from ..source.blocks import cut_blocks
from ..source.matrix import Block
from . import keep, loops, symmetry_loops, weighted_loops
from .degrees import (
    DegreeCounters,
    DegreeRuns,
    DegreeSink,
    NoDegrees,
    bucket_destinations,
    cut_cells,
    largest_degree,
)
from .job import EdgeSink, Job, NotSymmetricError, Tuning
from .merge import MergeSummary, merge, merge_holds
from .pieces import Piece, cut_pieces
from .ranking import RankRuns, Rows, rows_of, sample_of
from .rows import described, row_sink, rows_job, source_of_rows
from .split import SplitRuns, SplitSummary, split, split_holds
from .stream import (
    StreamSummary,
    prove_symmetry,
    stream,
    stream_holds,
    with_ends,
)
from .thinning import Pieces, Ranked, Thinned, ThinSummary, thin


class Delivery(Protocol):
    """Makes the edge files."""

    sink: EdgeSink  # takes the edges from the tasks
    kind: str  # where it puts them
    scratch_bytes: int  # of the temporary files that it has made

    def keep(self, sizes: dict[int, int]) -> None:
        """Count on pieces, by number their edges, that an interrupted run has delivered."""

    def finish(self, counts: Sequence[int]) -> int:
        """Complete the edge files, given the edges of each piece; return their bytes."""

    def stop(self) -> None:
        """End the waiting of tasks."""


class Outcome(NamedTuple):
    """What all stages together have done."""

    n_edges: int  # undirected
    max_neighbors: int
    scratch_bytes: int  # of runs
    output_bytes: int  # of the edge files
    thinned: Thinned | None = None  # what thinning has done, if edges were to be left out


def run_stages(
    job: Job, blocks: list[Block], tuning: Tuning, seeds: tuple[int, ...], executor:
    ResumableExecutor, delivery: Delivery,
) -> Outcome:  # fmt: skip
    """Find all edges of a matrix by the job's method and deliver them.

    The seeds are of the hash that proves symmetry. A NegativeWeightError or NotSymmetricError says
    that the method does not suit the matrix.
    """
    if job.thinning:
        return _run_thinned(job, blocks, tuning, seeds, executor, delivery)
    if job.method == "symmetric":
        return _run_symmetric(job, blocks, seeds, executor, delivery)
    return _run_general(job, blocks, tuning, executor, delivery)


def _keep(
    delivery: Delivery, kept: Mapping[int, StreamSummary | MergeSummary | ThinSummary]
) -> None:
    """Tell a delivery of the edges that an interrupted run has written."""
    delivery.keep({number: summary.n_edges for number, summary in kept.items()})


def _run_symmetric(
    job: Job, blocks: list[Block], seeds: tuple[int, ...], executor: ResumableExecutor, delivery:
    Delivery,
) -> Outcome:  # fmt: skip
    task = partial(stream, job, np.array(seeds, np.uint64), delivery.sink)
    sizes = [block.stop - block.start for block in blocks]
    holds = partial(stream_holds, job, delivery.sink)
    summary = with_ends(StreamSummary)
    stage = Stage(
        "stream", task, blocks, sizes, "entries", summary, holds, delivery.kind,
        ahead=job.source.begin_reading,
    )  # fmt: skip
    summaries = executor.run(stage, keep=partial(_keep, delivery), stop=delivery.stop)
    largest = prove_symmetry([summary.ends for summary in summaries])
    if largest is None:
        raise NotSymmetricError
    counts = [summary.n_edges for summary in summaries]
    output_bytes = delivery.finish(counts)
    n_edges = sum(counts) // job.n_directions
    return Outcome(n_edges, largest, delivery.scratch_bytes, output_bytes)


class _Merged(NamedTuple):
    """What split and merge have left."""

    runs: SplitRuns
    pieces: list[MergeSummary]
    ranges: list[Rows]  # of the pieces
    scratch_bytes: int


def _merge_all(
    job: Job, blocks: list[Block], tuning: Tuning, executor: ResumableExecutor, sink: EdgeSink,
    degrees: DegreeSink, kind: str, keep: Callable[[dict[int, MergeSummary]], None] = do_nothing,
    stop: Callable[[], None] = do_nothing, *, upper: bool = False, spend: bool = False,
) -> _Merged:  # fmt: skip
    """Split a matrix into runs, and merge them into a sink of that kind; see `merge`.

    If the runs will not be needed any more, the journal is told to `spend` them. An interrupted run
    that had come so far does without them, if all pieces are still there.
    """
    runs = SplitRuns.of(job, blocks)
    sizes = [block.stop - block.start for block in blocks]
    task, holds = partial(split, runs), partial(split_holds, runs)
    directions = "both directions" if job.both else "one direction"
    stage = Stage(
        "split", task, blocks, sizes, "entries", SplitSummary, holds, directions,
        ahead=job.source.begin_reading,
    )  # fmt: skip

    def merging_of(pieces: list[Piece]) -> Stage[Piece, MergeSummary]:
        wanted = "upper entries" if upper else directions
        return Stage(
            "merge", partial(merge, runs, sink, degrees, upper=upper), pieces,
            [piece.n_contributions for piece in pieces], "entries", MergeSummary,
            partial(merge_holds, job, sink, degrees), f"{kind} {degrees.kind} {wanted}",
        )  # fmt: skip

    spent = executor.spent(stage)
    merging = merging_of([Piece.of(values) for values in spent[1]] if spent else [])
    kept = executor.kept(merging) if spent else None
    if spent and kept is not None and len(kept) == len(merging.keys):
        left = spent[0]
        executor.n_kept += len(left)
    else:
        left, kept = executor.run(stage), None
        total = np.zeros(job.n_partitions, np.int64)
        for run in left:
            total += run.contributions
        pieces = cut_pieces(runs, total, tuning.piece_entries, tuning.piece_partitions)
        merging = merging_of(pieces)
    with closing(runs):
        merged = executor.run(merging, keep=keep, stop=stop, kept=kept)
    if spend:
        executor.spend(stage, merging.keys)
    scratch_bytes = sum(run.n_bytes for run in left) + sum(piece.n_bytes for piece in merged)
    ranges = [rows_of(job, piece) for piece in merging.keys]
    return _Merged(runs, merged, ranges, scratch_bytes)


def _run_general(
    job: Job, blocks: list[Block], tuning: Tuning, executor: ResumableExecutor, delivery: Delivery
) -> Outcome:
    degrees = DegreeCounters(job.source.n_cells) if tuning.count_degrees else DegreeRuns()
    _, merged, _, scratch_bytes = _merge_all(
        job, blocks, tuning, executor, delivery.sink, degrees, delivery.kind,
        partial(_keep, delivery), delivery.stop,
    )  # fmt: skip
    output_bytes = delivery.finish([piece.n_edges for piece in merged])
    if isinstance(degrees, DegreeCounters):
        largest = degrees.largest()
    else:
        largest = _count_degrees(job, len(merged), tuning, executor.executor)
    scratch_bytes += delivery.scratch_bytes
    n_edges = sum(piece.n_edges for piece in merged) // job.n_directions
    return Outcome(n_edges, largest, scratch_bytes, output_bytes)


def _run_thinned(
    job: Job, blocks: list[Block], tuning: Tuning, seeds: tuple[int, ...], executor:
    ResumableExecutor, delivery: Delivery,
) -> Outcome:  # fmt: skip
    rows, scratch_bytes, pieces, ranked = job, 0, None, None
    meanwhile: AbstractContextManager[None] = nullcontext()
    if job.method != "symmetric":
        whole, both = keep.has_whole_rows(job, tuning), keep.merges_whole_rows(job, tuning)
        sink = row_sink(job)
        merging = replace(job, both=both, weights=True, delivered=job.merged_dtype.name)
        sample = sample_of(job, tuning)
        known = keep.keep_of(job, rows_job(job, described(job, sink, 0)))
        ranks = RankRuns(known, sample) if job.thinning.top_k is not None else NoDegrees()
        runs, merged, ranges, scratch_bytes = _merge_all(
            merging, blocks, tuning, executor, sink, ranks, "rows", upper=both and not whole,
            spend=not job.scratch.stays,
        )  # fmt: skip
        if not job.scratch.stays:
            meanwhile = runs.removing()
        sizes = [piece.n_edges for piece in merged]
        rows = rows_job(job, source_of_rows(job, sink, sizes))
        pieces = None if whole else Pieces(sink, sizes)
        ranked = Ranked(sample, ranges) if job.thinning.top_k is not None else None
        blocks = cut_blocks(rows.source, *tuning.thinned)
    with meanwhile:
        counts, largest, thinned = thin(
            job, rows, blocks, seeds, executor, delivery.sink, delivery.kind,
            partial(_keep, delivery), delivery.stop, pieces, ranked,
            count_components=tuning.count_components,
        )  # fmt: skip
    output_bytes = delivery.finish(counts)
    scratch_bytes += delivery.scratch_bytes
    n_edges = sum(counts) // job.n_directions
    return Outcome(n_edges, largest, scratch_bytes, output_bytes, thinned)


def _count_degrees(job: Job, n_pieces: int, tuning: Tuning, executor: Executor) -> int:
    ranges = cut_cells(job, tuning.piece_entries)
    sizes = [(cells.last - cells.first) << job.shift for cells in ranges]
    degrees = executor.run(
        Stage("degrees", partial(largest_degree, job, n_pieces), ranges, sizes, "cells")
    )
    return max(degrees, default=0)


def warm_up(job: Job) -> None:
    """Load (or compile) the loops of an export, so that their memory is in the reserve.

    Which ones depends on the dtypes of the matrix and on how its edges are found.
    """
    source = job.source
    source.warm_up()
    if job.weights and job.delivered != "float64":
        weighted_loops.narrow(np.ones(1), np.ones(1, np.float32))
    indices = np.array([1], dtype=source.row_dtype)
    indptr = np.array([0, 1, 1])
    counts = np.zeros(4, np.int64)
    dst: Array = np.zeros(2, np.uint64 if source.row_dtype.itemsize == 8 else np.uint32)
    out = dst.copy()
    if job.refuse_diagonal:
        read = np.zeros(1, np.float64 if source.data.dtype.kind == "f" else np.int64)
        for weights in (read, np.zeros(1, np.float32)):
            symmetry_loops.first_on_diagonal(indices, weights, indptr[:2], 0)
    if job.thinning:
        keep.warm_up(job)
        cells, weights = np.zeros(0, job.cell_dtype), np.zeros(0, job.merged_dtype)
        weighted_loops.keep_entries(cells, weights, 0, cells, cells, weights)
        rows_job(job, described(job, row_sink(job), 0)).source.warm_up()
    if job.method == "symmetric" or job.thinning:
        _warm_up_streaming(job, indices, indptr)
    if job.method == "symmetric":
        return
    src = np.zeros(2, np.uint16)
    table, rows = np.zeros((3, 1), np.int64), np.zeros(2, np.uint32)
    if job.rule is None:
        loops.count_contributions(indices, indptr, 0, 8, 16, rows, counts, table)
    else:
        weighted_loops.count_entries(indices, indptr, 0, 8, 16, 0, rows, counts, table)
    kept = np.zeros(2, job.weight_dtype)
    if job.weighs:
        read = np.zeros(2, np.float64 if source.data.dtype.kind == "f" else np.int64)
        weighted_loops.split_entries(
            indices, read, indptr, 0, 8, 16, 0, table, dst, kept, src, src, kept.copy()
        )
    else:
        loops.split_block(indices, indptr, 0, 8, 16, table, dst, src, src)
    starts, ends = np.array([[0, 1]]), np.zeros(257, np.int64)
    if job.method == "signed":
        none, parts = counts[:0], kept[:0]
        loops.merge_signed(none, parts, parts, none, parts, parts, 0, 8, out, dst)
    else:
        for row in (src, dst):  # a part of a partition comes unpacked
            place = (0, 8, counts[:1], rows, starts)
            if job.rule is None:
                loops.merge_partitions(
                    *place, dst, starts, src, row, starts, starts[:, :1],
                    ends, ends, dst.copy(), dst, out, dst,
                )  # fmt: skip
            else:
                weighted_loops.merge_weighted(
                    *place, dst, kept, starts, src, row, kept, starts, starts[:, :1], ends, ends,
                    dst.copy(), kept, dst, kept, counts, 0, out, dst, np.zeros(2, job.merged_dtype),
                )  # fmt: skip
    loops.count_destinations_of(src, dst, 0, 8, counts)  # where a partition is read in parts
    loops.select_range(src, dst, 0, 0, 0, 0, counts)
    loops.count_values(dst, 8, counts)
    loops.count_values(src, 0, counts)
    loops.count_edges_per_source(dst, 0, np.zeros(2, np.uint32))
    bucket_destinations(dst[:1], 8, np.zeros(3, np.int64), src)
    loops.count_values(dst, 0, np.zeros(2, np.uint32))


def _warm_up_streaming(job: Job, indices: Array, indptr: Array) -> None:
    out, dst = np.zeros(2, job.cell_dtype), np.zeros(2, job.cell_dtype)
    seeds, sums, counts = np.zeros(3, np.uint64), np.zeros(3, np.uint64), np.zeros(4, np.int64)
    if job.rule is None:
        loops.stream_block(indices, indptr, 0, seeds, out, dst, sums, counts)
        return
    weights = np.ones(2, job.streamed_dtype)
    bits, some = weights.view(f"u{weights.itemsize}"), weights.copy()
    weighted_loops.weigh_block(
        indices, weights, bits, some, indptr, 0, counts[:2], seeds, out, sums
    )
    weighted_loops.look_at_block(indices, indptr, 0, out)
    loops.count_degrees(indices, indptr, 0, 1, counts)
    weighted_loops.place_entries(indices, weights, 0, 0, True, counts, out, dst, some)
