"""First stage: each block of stored entries becomes a run of edges, ordered by partition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import NegativeWeightError
from ..machine import buffers
from ..source.matrix import Block
from . import loops
from .job import Job
from .runs import Written
from .split_runs import BAND_BITS, SplitRuns, count_bands


class SplitSummary(NamedTuple):
    """What a split block leaves behind: counts, never entries.

    Attributes
    ----------
    contributions : ndarray
        Upper and lower entries in each partition; int64, shape ``(n_partitions,)``.
    n_bytes, crc : int
        Size and checksum of the run.
    """

    contributions: np.ndarray[tuple[int], np.dtype[np.int64]]
    n_bytes: int
    crc: int


def split_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that `split` needs for a block of that size on one thread."""
    read = job.source.block_bytes(n_entries, n_rows, signed=job.signed)
    tables = 8 * 4 * (job.n_partitions + 1) * (count_bands(n_rows) + 1)
    return read + n_entries * job.entry_bytes + 4 * n_rows + tables


def split(runs: SplitRuns, block: Block) -> SplitSummary:
    """Read a block, check it, and write its edges and transpose contributions as a run.

    Raises
    ------
    NegativeWeightError
        If the job is not signed and a weight is negative.
    DamagedGraphError
        If the block breaks a rule.
    """
    job = runs.job
    entries = job.source.read_block(block, signed=job.signed)
    if entries.has_negative and not job.signed:
        raise NegativeWeightError
    n_rows = block.last_row - block.first_row
    in_row = buffers.take("split rows", n_rows, np.uint32)
    upper_counts = np.zeros(job.n_partitions, np.int64)
    lower_counts = np.zeros((job.n_partitions, runs.n_bands), np.int64)
    place = (block.first_row, job.shift, BAND_BITS)
    loops.count_contributions(
        entries.indices, entries.indptr, *place, in_row, upper_counts, lower_counts
    )
    upper_starts = np.concatenate(([0], np.cumsum(upper_counts)))
    lower_starts = np.concatenate(([0], np.cumsum(lower_counts)))
    n_upper, n_lower = int(upper_starts[-1]), int(lower_starts[-1])
    next_lower = lower_starts[:-1].reshape(lower_counts.shape).copy()
    upper = {"dst": buffers.take("split upper dst", n_upper, job.cell_dtype)}
    lower = {
        name: buffers.take(f"split lower {name}", n_lower, np.uint16) for name in ("src", "row")
    }
    if entries.weights is None:
        loops.split_block(
            entries.indices, entries.indptr, *place, next_lower,
            upper["dst"], lower["src"], lower["row"],
        )  # fmt: skip
    else:
        weights = buffers.take("split weights", n_upper + n_lower, job.weight_dtype)
        upper["weight"], lower["weight"] = np.split(weights, [n_upper])
        loops.split_signed_block(
            entries.indices, entries.weights, entries.indptr, *place, next_lower,
            upper["dst"], upper["weight"], lower["src"], lower["row"], lower["weight"],
        )  # fmt: skip
    written = runs.write(block, [upper, lower, {"n": in_row}], upper_starts, lower_starts)
    return SplitSummary(upper_counts + lower_counts.sum(axis=1), *written)


def split_holds(runs: SplitRuns, kept: tuple[Block, SplitSummary]) -> bool:
    """Tell whether the run of a block is still what the summary says."""
    block, summary = kept
    return runs.holds(block.number, Written(summary.n_bytes, summary.crc))
