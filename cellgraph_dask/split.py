"""First stage: each block of stored entries becomes a run of edges, ordered by partition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import kernels, workspace
from .errors import NegativeWeightError
from .job import Job
from .scratch import write_run
from .source import Block


class SplitSummary(NamedTuple):
    """What a split block leaves behind: counts, never entries.

    Attributes
    ----------
    contributions : ndarray
        Upper and lower entries in each partition; int64, shape ``(n_partitions,)``.
    n_bytes : int
        Size of the run.
    """

    contributions: np.ndarray[tuple[int], np.dtype[np.int64]]
    n_bytes: int


def split_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that `split` needs for a block of that size on one thread."""
    read = job.source.block_bytes(n_entries, n_rows, signed=job.signed)
    return read + n_entries * job.entry_bytes + 6 * 8 * (job.n_partitions + 1)


def split(job: Job, block: Block) -> SplitSummary:
    """Read a block, check it, and write its edges and transpose contributions as a run.

    Raises
    ------
    NegativeWeightError
        If the job is not signed and a weight is negative.
    DamagedGraphError
        If the block breaks a rule.
    """
    entries = job.source.read_block(block, signed=job.signed)
    if entries.has_negative and not job.signed:
        raise NegativeWeightError
    first_row, shift = block.first_row, job.shift
    upper_counts = np.zeros(job.n_partitions, np.int64)
    lower_counts = np.zeros(job.n_partitions, np.int64)
    kernels.count_contributions(
        entries.indices, entries.indptr, first_row, shift, upper_counts, lower_counts
    )
    upper_starts = np.concatenate(([0], np.cumsum(upper_counts)))
    lower_starts = np.concatenate(([0], np.cumsum(lower_counts)))
    n_upper, n_lower = int(upper_starts[-1]), int(lower_starts[-1])
    # One buffer for both: how many entries are upper changes from block to block, their sum not.
    both = {
        name: workspace.take(f"split {name}", n_upper + n_lower, dtype)
        for name, dtype in job.section_layout.items()
    }
    upper = {name: column[:n_upper] for name, column in both.items()}
    lower = {name: column[n_upper:] for name, column in both.items()}
    if entries.weights is None:
        kernels.split_block(
            entries.indices, entries.indptr, first_row, shift, lower_starts[:-1].copy(),
            upper["src"], upper["dst"], lower["src"], lower["dst"],
        )  # fmt: skip
    else:
        kernels.split_signed_block(
            entries.indices, entries.weights, entries.indptr, first_row, shift,
            lower_starts[:-1].copy(), upper["src"], upper["dst"], upper["weight"],
            lower["src"], lower["dst"], lower["weight"],
        )  # fmt: skip
    n_bytes = write_run(
        job.scratch.run("split", block.number), [(upper, upper_starts), (lower, lower_starts)]
    )
    return SplitSummary(upper_counts + lower_counts, n_bytes)
