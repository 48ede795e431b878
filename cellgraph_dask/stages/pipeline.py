"""The stages of an export in their order, whatever executes their tasks.

::

    symmetric   stream ─────────────────────────► edge files
    general     split ──► merge ─┬──────────────► edge files
                                 └─► degrees, if they are not counted in memory
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import NotSymmetricError
from ..plan.tuning import Tuning
from ..runtime.stage import Stages
from ..runtime.threads import Executor
from ..source.matrix import Block
from .degrees import DegreeCounters, DegreeRuns, cut_cells, largest_degree
from .job import Job
from .merge import EdgeSink, MergeSummary, cut_pieces, merge, merge_holds
from .split import SplitSummary, split, split_holds
from .split_runs import SplitRuns
from .stream import StreamSummary, prove_symmetry, stream, stream_holds


class Delivery(Protocol):
    """Makes the edge files.

    Attributes
    ----------
    sink : EdgeSink
        Takes the edges from the tasks.
    kind : str
        Where it puts them.
    scratch_bytes : int
        Bytes of the temporary files that it has made.
    """

    sink: EdgeSink
    kind: str
    scratch_bytes: int

    def keep(self, sizes: dict[int, int]) -> None:
        """Count on pieces, by number their edges, that an interrupted run has delivered."""

    def finish(self, counts: Sequence[int]) -> int:
        """Complete the edge files, given the edges of each piece; return their bytes."""

    def stop(self) -> None:
        """End the waiting of tasks."""


class Outcome(NamedTuple):
    """What all stages together have done.

    Attributes
    ----------
    n_edges, max_neighbors : int
        Edges written, and the largest degree.
    scratch_bytes, output_bytes : int
        Bytes of runs and of the edge files.
    """

    n_edges: int
    max_neighbors: int
    scratch_bytes: int
    output_bytes: int


def run_stages(
    job: Job,
    blocks: list[Block],
    tuning: Tuning,
    seeds: tuple[int, int],
    stages: Stages,
    delivery: Delivery,
) -> Outcome:
    """Find all edges of a matrix the job's way and deliver them.

    Parameters
    ----------
    job, blocks, tuning
        The export, and how it is cut.
    seeds
        Of the hash that proves symmetry.
    stages
        Runs the stages.
    delivery
        Makes the edge files.

    Raises
    ------
    NegativeWeightError, NotSymmetricError
        If the way does not suit the matrix.
    """
    if job.way == "symmetric":
        return _run_symmetric(job, blocks, seeds, stages, delivery)
    return _run_general(job, blocks, tuning, stages, delivery)


def _run_symmetric(
    job: Job, blocks: list[Block], seeds: tuple[int, int], stages: Stages, delivery: Delivery
) -> Outcome:
    summaries = stages.run(
        "stream",
        partial(stream, job, np.array(seeds, np.uint64), delivery.sink),
        blocks,
        summary=StreamSummary,
        holds=partial(stream_holds, job, delivery.sink),
        variant=delivery.kind,
        keep=lambda kept: delivery.keep({k: summary.n_edges for k, summary in kept.items()}),
        sizes=[block.stop - block.start for block in blocks],
        unit="entries",
        stop=delivery.stop,
    )
    largest = prove_symmetry(summaries)
    if largest is None:
        raise NotSymmetricError
    counts = [summary.n_edges for summary in summaries]
    output_bytes = delivery.finish(counts)
    return Outcome(sum(counts), largest, delivery.scratch_bytes, output_bytes)


def _run_general(
    job: Job, blocks: list[Block], tuning: Tuning, stages: Stages, delivery: Delivery
) -> Outcome:
    runs = SplitRuns.of(job, blocks)
    left = stages.run(
        "split",
        partial(split, runs),
        blocks,
        summary=SplitSummary,
        holds=partial(split_holds, runs),
        sizes=[block.stop - block.start for block in blocks],
        unit="entries",
    )
    contributions = np.zeros(job.n_partitions, np.int64)
    for run in left:
        contributions += run.contributions
    pieces = cut_pieces(runs, contributions, tuning.piece_entries, tuning.piece_partitions)
    degrees = DegreeCounters(job.source.n_cells) if tuning.count_degrees else DegreeRuns()
    merged = stages.run(
        "merge",
        partial(merge, runs, delivery.sink, degrees),
        pieces,
        summary=MergeSummary,
        holds=partial(merge_holds, job, delivery.sink, degrees),
        variant=f"{delivery.kind} {degrees.kind}",
        keep=lambda kept: delivery.keep({k: summary.n_edges for k, summary in kept.items()}),
        sizes=[piece.n_contributions for piece in pieces],
        unit="entries",
        stop=delivery.stop,
    )
    output_bytes = delivery.finish([piece.n_edges for piece in merged])
    if isinstance(degrees, DegreeCounters):
        largest = degrees.largest()
    else:
        largest = _count_degrees(job, len(pieces), tuning, stages.executor)
    scratch_bytes = sum(run.n_bytes for run in left) + sum(piece.n_bytes for piece in merged)
    scratch_bytes += delivery.scratch_bytes
    return Outcome(sum(piece.n_edges for piece in merged), largest, scratch_bytes, output_bytes)


def _count_degrees(job: Job, n_pieces: int, tuning: Tuning, executor: Executor) -> int:
    ranges = cut_cells(job, tuning.piece_entries)
    degrees = executor.run(
        "degrees",
        partial(largest_degree, job, n_pieces),
        ranges,
        sizes=[(cells.last - cells.first) << job.shift for cells in ranges],
        unit="cells",
    )
    return max(degrees, default=0)
