"""The stages of an export in their order, whatever executes their tasks.

::

    symmetric   stream ─────────────────────────► edge files
    general     split ──► merge ─┬──────────────► edge files
                                 └─► degrees, if they are not counted in memory
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from .degrees import DegreeCounters, DegreeRuns, cut_cells, largest_degree
from .errors import NotSymmetricError
from .execute import Executor
from .job import Job
from .merge import EdgeSink, cut_pieces, merge
from .plan import Tuning
from .source import Block
from .split import split
from .split_runs import SplitRuns
from .stream import prove_symmetry, stream


class Delivery(Protocol):
    """Makes the edge files.

    Attributes
    ----------
    sink : EdgeSink
        Takes the edges from the tasks.
    """

    sink: EdgeSink

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
    job: Job, blocks: list[Block], tuning: Tuning, executor: Executor, delivery: Delivery
) -> Outcome:
    """Find all edges of a matrix the job's way and deliver them.

    Raises
    ------
    NegativeWeightError, NotSymmetricError
        If the way does not suit the matrix.
    """
    run = _run_symmetric if job.way == "symmetric" else _run_general
    return run(job, blocks, tuning, executor, delivery)


def _run_symmetric(
    job: Job, blocks: list[Block], _tuning: Tuning, executor: Executor, delivery: Delivery
) -> Outcome:
    seeds = np.frombuffer(os.urandom(16), np.uint64)
    summaries = executor.run(
        "stream",
        partial(stream, job, seeds, delivery.sink),
        blocks,
        sizes=[block.stop - block.start for block in blocks],
        unit="entries",
        stop=delivery.stop,
    )
    largest = prove_symmetry(summaries)
    if largest is None:
        raise NotSymmetricError
    counts = [summary.n_edges for summary in summaries]
    return Outcome(sum(counts), largest, 0, delivery.finish(counts))


def _run_general(
    job: Job, blocks: list[Block], tuning: Tuning, executor: Executor, delivery: Delivery
) -> Outcome:
    runs = SplitRuns.of(job, blocks)
    left = executor.run(
        "split",
        partial(split, runs),
        blocks,
        sizes=[block.stop - block.start for block in blocks],
        unit="entries",
    )
    contributions = np.zeros(job.n_partitions, np.int64)
    for run in left:
        contributions += run.contributions
    pieces = cut_pieces(runs, contributions, tuning.piece_entries, tuning.piece_partitions)
    degrees = DegreeCounters(job.source.n_cells) if tuning.count_degrees else DegreeRuns()
    merged = executor.run(
        "merge",
        partial(merge, runs, delivery.sink, degrees),
        pieces,
        sizes=[piece.n_contributions for piece in pieces],
        unit="entries",
        stop=delivery.stop,
    )
    output_bytes = delivery.finish([piece.n_edges for piece in merged])
    if isinstance(degrees, DegreeCounters):
        largest = degrees.largest()
    else:
        largest = _count_degrees(job, len(pieces), tuning, executor)
    scratch_bytes = sum(run.n_bytes for run in left) + sum(piece.n_bytes for piece in merged)
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
