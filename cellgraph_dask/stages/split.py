"""First stage: each block of stored entries becomes a run of edges, ordered by partition.

A run holds its edges in half the bytes of plain ones, as temporary files pass through the disk
twice::

    upper dst | [weight] || lower src | lower row | [weight] || upper entries of each row

The *upper* entries of a block lie in row order, so their number in each row tells their sources.
Those of the *lower* ones that belong to a partition have rising destinations, which are rows of the
block: they are cut once more into *bands* of 2¹⁶ rows, so that 16 bits tell the row inside its band
and the table of starts tells the band.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..source.matrix import Block
from . import loops, weighted_loops
from .job import Job
from .rules import check_diagonal, check_weights
from .runs import RunReader, Written, holds, write_run

UPPER, LOWER, ROWS = 0, 1, 2  # the sections of a run
BAND_BITS = 16
_PAUSE = 4  # after removing a run, as many times what that took
_MOST_OPEN = 128  # runs; systems allow a process some 1,000 files
SLAB = 1 << 16  # entries looked at in one go where a partition is read in parts


def count_bands(n_rows: int) -> int:
    """Return how many bands the rows of a block make; at least one."""
    return max(1, -(-n_rows >> BAND_BITS))


@dataclass(frozen=True, eq=False)
class SplitRuns:
    """All runs of the split; small enough to go with every task."""

    job: Job
    first_rows: Array  # of the blocks; int64
    n_bands: int  # of each partition, in every run
    kept: dict[int, RunReader] | None = None  # runs that stay open, in the process that made this

    @classmethod
    def of(cls, job: Job, blocks: Sequence[Block]) -> SplitRuns:
        """Return the runs that these blocks will leave."""
        rows = max((block.last_row - block.first_row for block in blocks), default=0)
        firsts = np.array([block.first_row for block in blocks], np.int64)
        return cls(job, firsts, count_bands(rows), {})

    def __len__(self) -> int:
        return int(self.first_rows.size)

    @cached_property
    def columns(self) -> list[dict[str, np.dtype[Any]]]:
        """Columns of the three sections."""
        weight = {"weight": self.job.weight_dtype} if self.job.weighs else {}
        narrow = np.dtype(np.uint16)
        return [
            {"dst": self.job.cell_dtype} | weight,
            {"src": narrow, "row": narrow} | weight,
            {"n": np.dtype(np.uint32)},
        ]

    def write(
        self, block: Block, sections: Sequence[dict[str, Array]], upper: Array, lower: Array
    ) -> Written:
        """Write the columns of the three sections as the run of a block.

        `upper` and `lower` tell where each partition, and each of its bands, starts:
        ``n_partitions + 1`` and ``n_partitions * n_bands + 1`` int64.
        """
        borders = np.arange(self.job.n_partitions + 1) << self.job.shift
        rows = np.clip(borders - block.first_row, 0, block.last_row - block.first_row)
        path = self.job.scratch.run("split", block.number)
        return write_run(path, list(zip(sections, (upper, lower, rows), strict=True)), len(self))

    def holds(self, block: int, written: Written) -> bool:
        """Whether the run of a block is there as it was written."""
        return holds(self.job.scratch.run("split", block), written)

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Remove all runs during a ``with``, and with pauses.

        Some disks take long to discard what a file held, and read nothing meanwhile.
        """
        is_over = threading.Event()

        def remove() -> None:
            with suppress(OSError):  # which is told when the folder goes
                for block in range(len(self)):
                    began = time.perf_counter()
                    self.job.scratch.run("split", block).unlink(missing_ok=True)
                    is_over.wait(_PAUSE * (time.perf_counter() - began))

        with ThreadPoolExecutor(1, thread_name_prefix="cellgraph-remove") as pool:
            pool.submit(remove)
            try:
                yield
            finally:
                is_over.set()

    def open(self, block: int) -> RunReader:
        """Return the run of a block, which is closed when it is not needed any more."""
        kept = {} if self.kept is None else self.kept
        run = kept.get(block)
        if run is None:
            n = self.job.n_partitions
            tables = (n + 1, n * self.n_bands + 1, n + 1)
            layout = list(zip(self.columns, tables, strict=True))
            run = RunReader(self.job.scratch.run("split", block), layout)
            if len(kept) < _MOST_OPEN:
                run = kept.setdefault(block, run)  # another thread may have been faster
        return run

    def close(self) -> None:
        """Close the runs, but for those that a task is still reading."""
        if self.kept is not None:
            self.kept.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitRuns, (self.job, self.first_rows, self.n_bands)  # workers keep nothing open

    def slabs(self, partition: int) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield the entries of one partition, unpacked, in parts of bounded size: section, columns.

        Upper parts come first, then the lower ones; in either, run after run. Columns are src
        (uint16, inside the partition), dst, and weight if there are any; good until the next.
        """
        for section in (UPPER, LOWER):
            for b in range(len(self)):
                unpacked = self._upper_slabs if section == UPPER else self._lower_slabs
                for columns in unpacked(self.open(b), b, partition):
                    yield section, columns

    def _upper_slabs(self, run: RunReader, b: int, partition: int) -> Iterator[dict[str, Array]]:
        begin, end = (int(p) for p in run.starts(UPPER, partition, partition + 1))
        first, last = (int(p) for p in run.starts(ROWS, partition, partition + 1))
        in_row = np.empty(last - first, np.uint32)
        run.read(ROWS, "n", first, in_row)
        ends = np.concatenate(([begin], begin + np.cumsum(in_row, dtype=np.int64)))
        source = max(0, int(self.first_rows[b]) - (partition << self.job.shift))
        for at in range(begin, end, SLAB):
            stop = min(at + SLAB, end)
            columns = self._read(run, UPPER, at, stop)
            n = np.diff(np.clip(ends, at, stop))
            columns["src"] = np.repeat(np.arange(source, source + n.size, dtype=np.uint16), n)
            yield columns

    def _lower_slabs(self, run: RunReader, b: int, partition: int) -> Iterator[dict[str, Array]]:
        first = partition * self.n_bands
        starts = run.starts(LOWER, first, first + self.n_bands)
        for band in range(self.n_bands):
            base = int(self.first_rows[b]) + (band << BAND_BITS)
            for at in range(int(starts[band]), int(starts[band + 1]), SLAB):
                columns = self._read(run, LOWER, at, min(at + SLAB, int(starts[band + 1])))
                dst = buffers.take("slab lower dst", columns["row"].size, self.job.cell_dtype)
                dst[:] = columns.pop("row")
                dst += np.array(base).astype(dst.dtype)
                yield columns | {"dst": dst}

    def _read(self, run: RunReader, section: int, begin: int, end: int) -> dict[str, Array]:
        columns = {}
        for name, dtype in self.columns[section].items():
            columns[name] = buffers.take(f"slab {name}", end - begin, dtype)
            run.read(section, name, begin, columns[name])
        return columns


class SplitSummary(NamedTuple):
    """What a split block leaves behind: counts, never entries."""

    contributions: Array  # upper and lower entries in each partition; int64
    n_bytes: int  # of the run
    crc: int


def split_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that `split` needs for a block of that size on one thread."""
    read = job.source.block_bytes(n_entries, n_rows, signed=job.weighs)
    tables = 8 * 4 * (job.n_partitions + 1) * (count_bands(n_rows) + 1)
    return read + (1 + job.both) * n_entries * job.entry_bytes + 4 * n_rows + tables


def split(runs: SplitRuns, block: Block) -> SplitSummary:
    """Read a block, check it, and write its edges and transpose contributions as a run."""
    job = runs.job
    entries = job.source.read_block(block, weights=job.weighs)
    n_rows = block.last_row - block.first_row
    in_row = buffers.take("split rows", n_rows, np.uint32)
    upper_counts = np.zeros(job.n_partitions, np.int64)
    lower_counts = np.zeros((job.n_partitions, runs.n_bands), np.int64)
    place: tuple[int, ...] = (block.first_row, job.shift, BAND_BITS)
    counts = in_row, upper_counts, lower_counts
    if job.rule is None:
        loops.count_contributions(entries.indices, entries.indptr, *place, *counts)
    else:
        weighted_loops.count_entries(entries.indices, entries.indptr, *place, job.both, *counts)
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
        if job.rule is not None:
            check_weights(job.source, job.rule, block, entries)
        if job.refuse_diagonal:
            check_diagonal(job.source, block, entries)
        weighted_loops.split_entries(
            entries.indices, entries.weights, entries.indptr, *place, job.both, next_lower,
            upper["dst"], upper["weight"], lower["src"], lower["row"], lower["weight"],
        )  # fmt: skip
    written = runs.write(block, [upper, lower, {"n": in_row}], upper_starts, lower_starts)
    return SplitSummary(upper_counts + lower_counts.sum(axis=1), *written)


def split_holds(runs: SplitRuns, kept: tuple[Block, SplitSummary]) -> bool:
    """Whether the run of a block is still what the summary says."""
    block, summary = kept
    return runs.holds(block.number, Written(summary.n_bytes, summary.crc))
