"""What the split leaves: one run a block, in half the bytes of plain edges.

Temporary files pass through the disk twice, so what need not be written is not::

    upper dst | [weight] || lower src | lower row | [weight] || upper entries of each row

The *upper* entries of a block lie in row order, so their number in each row tells their sources.
Those of the *lower* ones that belong to a partition have rising destinations, which are rows of the
block: they are cut once more into *bands* of 2¹⁶ rows, so that 16 bits tell the row inside its band
and the table of starts tells the band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine import buffers
from ..source.matrix import Block
from . import loops
from .job import Job
from .runs import RunReader, Written, holds, write_run

Array = NDArray[Any]

UPPER, LOWER, ROWS = 0, 1, 2  # the sections of a run
BAND_BITS = 16
_SLAB = 1 << 18  # entries looked at in one go where a partition is read in parts


def count_bands(n_rows: int) -> int:
    """Return how many bands the rows of a block make; at least one."""
    return max(1, -(-n_rows >> BAND_BITS))


@dataclass(frozen=True)
class SplitRuns:
    """All runs of the split; small enough to go with every task.

    Attributes
    ----------
    job : Job
        The export.
    first_rows : ndarray
        First row of each block; int64, shape ``(n_blocks,)``.
    n_bands : int
        Bands of each partition in every run.
    """

    job: Job
    first_rows: Array
    n_bands: int

    @classmethod
    def of(cls, job: Job, blocks: Sequence[Block]) -> SplitRuns:
        """Return the runs that these blocks will leave."""
        rows = max((block.last_row - block.first_row for block in blocks), default=0)
        firsts = np.array([block.first_row for block in blocks], np.int64)
        return cls(job, firsts, count_bands(rows))

    def __len__(self) -> int:
        return int(self.first_rows.size)

    @property
    def columns(self) -> list[dict[str, np.dtype[Any]]]:
        """Columns of the three sections."""
        weight = {"weight": self.job.weight_dtype} if self.job.signed else {}
        narrow = np.dtype(np.uint16)
        return [
            {"dst": self.job.cell_dtype} | weight,
            {"src": narrow, "row": narrow} | weight,
            {"n": np.dtype(np.uint32)},
        ]

    def write(
        self, block: Block, sections: Sequence[dict[str, Array]], upper: Array, lower: Array
    ) -> Written:
        """Write the run of a block; return its size and checksum.

        Parameters
        ----------
        block
            The block.
        sections
            The columns of the three sections.
        upper, lower
            Where each partition, and each of its bands, starts: ``n_partitions + 1`` and
            ``n_partitions * n_bands + 1`` int64.
        """
        borders = np.arange(self.job.n_partitions + 1) << self.job.shift
        rows = np.clip(borders - block.first_row, 0, block.last_row - block.first_row)
        path = self.job.scratch.run("split", block.number)
        return write_run(path, list(zip(sections, (upper, lower, rows), strict=True)))

    def holds(self, block: int, written: Written) -> bool:
        """Tell whether the run of a block is there as it was written."""
        return holds(self.job.scratch.run("split", block), written)

    def open(self, block: int) -> RunReader:
        """Open the run of a block."""
        n = self.job.n_partitions
        tables = (n + 1, n * self.n_bands + 1, n + 1)
        return RunReader(
            self.job.scratch.run("split", block), list(zip(self.columns, tables, strict=True))
        )

    def slabs(self, partition: int) -> Iterator[tuple[int, dict[str, Array]]]:
        """Go through the entries of one partition in parts of bounded size, unpacked.

        Yields
        ------
        section : int
            Upper parts come first, then the lower ones; in either, run after run.
        columns : dict of ndarray
            src (uint16, inside the partition), dst, weight if there are any. Good until the next.
        """
        for section in (UPPER, LOWER):
            for b in range(len(self)):
                with self.open(b) as run:
                    unpacked = self._upper_slabs if section == UPPER else self._lower_slabs
                    for columns in unpacked(run, b, partition):
                        yield section, columns

    def _upper_slabs(self, run: RunReader, b: int, partition: int) -> Iterator[dict[str, Array]]:
        begin, end = (int(p) for p in run.starts(UPPER, partition, partition + 1))
        first, last = (int(p) for p in run.starts(ROWS, partition, partition + 1))
        in_row = np.empty(last - first, np.uint32)
        run.read(ROWS, "n", first, in_row)
        ends = np.concatenate(([begin], begin + np.cumsum(in_row, dtype=np.int64)))
        source = max(0, int(self.first_rows[b]) - (partition << self.job.shift))
        for at in range(begin, end, _SLAB):
            stop = min(at + _SLAB, end)
            columns = self._read(run, UPPER, at, stop)
            n = np.diff(np.clip(ends, at, stop))
            columns["src"] = np.repeat(np.arange(source, source + n.size, dtype=np.uint16), n)
            yield columns

    def _lower_slabs(self, run: RunReader, b: int, partition: int) -> Iterator[dict[str, Array]]:
        first = partition * self.n_bands
        starts = run.starts(LOWER, first, first + self.n_bands)
        for band in range(self.n_bands):
            base = int(self.first_rows[b]) + (band << BAND_BITS)
            for at in range(int(starts[band]), int(starts[band + 1]), _SLAB):
                columns = self._read(run, LOWER, at, min(at + _SLAB, int(starts[band + 1])))
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


@dataclass(frozen=True)
class Packed:
    """The entries of consecutive partitions from all runs, run after run, as they were packed.

    Attributes
    ----------
    first_rows : ndarray
        First row of each run; int64, shape ``(n_runs,)``.
    upper : dict of ndarray
        dst and, if there are any, weight.
    upper_starts : ndarray
        Where each partition of each run starts in `upper`; int64, ``(n_runs, n_partitions + 1)``.
    in_row : ndarray
        Upper entries of each row; uint32.
    row_starts : ndarray
        Where each partition of each run starts in `in_row`; like `upper_starts`.
    lower : dict of ndarray
        src (inside the partition), row (inside the band) and, if there are any, weight.
    lower_starts : ndarray
        Where each band starts in `lower`; int64, ``(n_runs, n_partitions * n_bands + 1)``.
    bases : ndarray
        First row of each band; int64, ``(n_runs, n_bands)``.
    """

    first_rows: Array
    upper: dict[str, Array]
    upper_starts: Array
    in_row: Array
    row_starts: Array
    lower: dict[str, Array]
    lower_starts: Array
    bases: Array


def gather(runs: SplitRuns, first: int, last: int) -> Packed:
    """Read the partitions ``[first, last)`` from all runs; good until this thread's next piece."""
    n_partitions = last - first
    spans = {UPPER: (first, last), LOWER: (first * runs.n_bands, last * runs.n_bands)}
    spans[ROWS] = spans[UPPER]
    starts = {
        section: np.empty((len(runs), b - a + 1), np.int64) for section, (a, b) in spans.items()
    }
    for b in range(len(runs)):
        with runs.open(b) as run:
            for section, (from_, to) in spans.items():
                starts[section][b] = run.starts(section, from_, to)
    begins, places = {}, {}
    for section, table in starts.items():
        begins[section] = table[:, 0].copy()
        ends = np.cumsum(table[:, -1] - table[:, 0])
        places[section] = np.concatenate(([0], ends))
        table += (places[section][:-1] - begins[section])[:, None]
    sections = _room(runs, [int(places[section][-1]) for section in (UPPER, LOWER, ROWS)])
    for b in range(len(runs)):
        with runs.open(b) as run:
            for section, columns in enumerate(sections):
                begin, end = (int(p) for p in places[section][b : b + 2])
                if begin < end:
                    for name, column in columns.items():
                        run.read(section, name, int(begins[section][b]), column[begin:end])
    assert starts[ROWS].shape[1] == n_partitions + 1
    bands = np.arange(runs.n_bands, dtype=np.int64) << BAND_BITS
    return Packed(
        runs.first_rows, sections[UPPER], starts[UPPER], sections[ROWS]["n"], starts[ROWS],
        sections[LOWER], starts[LOWER], runs.first_rows[:, None] + bands,
    )  # fmt: skip


def _room(runs: SplitRuns, sizes: list[int]) -> list[dict[str, Array]]:
    """Return columns to read into.

    Upper and lower entries share one buffer: their shares change from piece to piece, their sum
    does not.
    """
    n_upper, n_lower, n_rows = sizes
    cell = runs.job.cell_dtype
    room = buffers.take("merge entries", cell.itemsize * n_upper + 4 * n_lower, np.uint8)
    lower, middle = room[cell.itemsize * n_upper :], 2 * n_lower
    sections: list[dict[str, Array]] = [
        {"dst": room[: cell.itemsize * n_upper].view(cell)},
        {"src": lower[:middle].view(np.uint16), "row": lower[middle:].view(np.uint16)},
        {"n": buffers.take("merge rows", n_rows, np.uint32)},
    ]
    if runs.job.signed:
        weights = buffers.take("merge weights", n_upper + n_lower, runs.job.weight_dtype)
        sections[UPPER]["weight"], sections[LOWER]["weight"] = np.split(weights, [n_upper])
    return sections


def gather_range(
    runs: SplitRuns, partition: int, low: tuple[int, int], high: tuple[int, int], capacity: int
) -> Packed:
    """Do the same for the edges ``[low, high)`` of one partition, at most `capacity` of them."""
    cell = runs.job.cell_dtype
    layout = {"src": np.dtype(np.uint16), "dst": cell}
    if runs.job.signed:
        layout["weight"] = runs.job.weight_dtype
    room = {name: buffers.take(f"range {name}", capacity, dtype) for name, dtype in layout.items()}
    n = [0, 0]
    for section, slab in runs.slabs(partition):
        places = buffers.take("kept", slab["src"].size, np.int64)
        n_kept = loops.select_range(slab["src"], slab["dst"], *low, *high, places)
        at = sum(n)
        for name, column in room.items():
            column[at : at + n_kept] = slab[name][places[:n_kept]]
        n[section] += n_kept
    upper = {name: column[: n[UPPER]] for name, column in room.items()}
    lower = {name: column[n[UPPER] : sum(n)] for name, column in room.items()}
    width = 1 << runs.job.shift
    in_row = np.bincount(upper.pop("src"), minlength=width).astype(np.uint32)
    lower["row"] = lower.pop("dst")  # not packed: the one band starts at row 0
    return Packed(
        np.array([partition << runs.job.shift]), upper, np.array([[0, n[UPPER]]]),
        in_row, np.array([[0, width]]), lower, np.array([[0, n[LOWER]]]),
        np.zeros((1, 1), np.int64),
    )  # fmt: skip


def gather_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that gathering so many entries and rows needs on one thread."""
    slab = _SLAB * (job.entry_bytes + 2 + 2 * 8 + job.cell_dtype.itemsize)
    return n_entries * job.entry_bytes + 4 * n_rows + slab + (8 + 8 + 4 + 8 << job.shift)
