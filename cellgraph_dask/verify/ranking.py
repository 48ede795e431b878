"""The weakest neighbor that each cell keeps, if it keeps so many.

Both ends of each pair go to the partition of their cell, where the neighbors of a cell are sorted,
the strongest first, and equally strong ones by their number. A partition with too many of them is
gone through in ranges of cells; of a single cell, only the strongest are held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..machine.buffers import Array
from ..machine.files import read_at, write_at
from .pair_file import PAIR_BITS, PairFile, cell_bits
from .proof import PART

ENTRY_BYTES = 128  # of a neighbor that is ranked
LEAST_SHIFT = 8  # of partitions, and bits of as many as there are at most
_PARTITION_BITS = 9


class Ranking:
    """Ends of pairs, and then a threshold for each cell, in temporary files.

    At most so many ends are held by a task; these are at least ``2 * (top + 1)``.
    """

    def __init__(self, folder: Path, n_cells: int, top: int) -> None:
        self._folder, self._n_cells, self._top = folder, n_cells, top
        self._bits = cell_bits(n_cells)
        self._shift = min(max(LEAST_SHIFT, self._bits - _PARTITION_BITS), PAIR_BITS - self._bits)
        self.partitions = range(-(-n_cells >> self._shift))
        self._paths = [folder / name for name in ("weakest", "weakest-neighbors")]
        self._fds: list[int] = []
        self._ends: PairFile | None = None
        self._most = 0

    def table_bytes(self, n_lots: int) -> int:
        """Return the bytes that it takes to note where the partitions of all lots are."""
        return n_lots * (8 * len(self.partitions) + 400)

    def open(self, most: int, room: int) -> None:
        """Make the files; `room` bytes of ends may stay in memory."""
        self._most = most
        self._ends = PairFile(self._folder / "ends", len(self.partitions), room)
        for path in self._paths:
            self._fds.append(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def leave(self, number: int, cells: Array, neighbors: Array, strengths: Array) -> None:
        """Leave a lot of ends; those of a cell come in the order of its neighbors, lot by lot."""
        # Of 16 bits, numbers are sorted by their digits, which is quick.
        partitions = (cells >> self._shift).astype(np.min_scalar_type(len(self.partitions)))
        order = np.argsort(partitions, kind="stable")
        counts = np.bincount(partitions, minlength=len(self.partitions))
        starts = np.concatenate([[0], np.cumsum(counts)])
        keys = ((cells & ((1 << self._shift) - 1)) << self._bits) | neighbors
        assert self._ends is not None
        self._ends.append(number, starts, keys[order], strengths[order])

    def rank(self, partition: int) -> None:
        """Find the thresholds of a partition's cells, once all ends are there."""
        n_cells = min(1 << self._shift, self._n_cells - (partition << self._shift))
        self._rank(partition, 0, n_cells)

    def _rank(self, partition: int, low: int, high: int) -> None:
        held = self._strongest(partition, low, high)
        if held is None:
            middle = (low + high) // 2
            self._rank(partition, low, middle)
            self._rank(partition, middle, high)
            return
        keys, strengths = held
        counts = np.bincount((keys >> self._bits) - low, minlength=high - low)
        full = np.flatnonzero(counts > self._top)
        at = np.cumsum(counts)[full] - 2  # the last one is there to tell that there are more
        weakest, neighbors = np.full(high - low, -np.inf), np.zeros(high - low, np.int64)
        weakest[full], neighbors[full] = strengths[at], keys[at] & ((1 << self._bits) - 1)
        for fd, column in zip(self._fds, (weakest, neighbors), strict=True):
            write_at(fd, column, ((partition << self._shift) + low) * column.itemsize)

    def _strongest(self, partition: int, low: int, high: int) -> tuple[Array, Array] | None:
        """Return the strongest ends of cells, and one more of each, in order; None if too many."""
        held: list[tuple[Array, Array]] = [(np.empty(0, np.int64), np.empty(0))]
        n = 0
        for part in self._parts(partition, low, high):
            held.append(part)
            n += part[0].size
            if n > self._most:
                held = [self._sorted(held)]
                n = held[0][0].size
                if n > self._most // 2 and high - low > 1:
                    return None
        return self._sorted(held)

    def _parts(self, partition: int, low: int, high: int) -> Iterator[tuple[Array, Array]]:
        assert self._ends is not None
        for lot in self._ends.lots(partition, partition + 1):
            last = int(lot.starts[partition + 1])
            for start in range(int(lot.starts[partition]), last, PART):
                n = min(PART, last - start)
                keys, strengths = np.empty(n, np.int64), np.empty(n)
                self._ends.read(lot, start, keys, strengths)
                inside = (keys >= low << self._bits) & (keys < high << self._bits)
                yield keys[inside], strengths[inside]

    def _sorted(self, held: list[tuple[Array, Array]]) -> tuple[Array, Array]:
        """Sort ends by cell, strength and neighbor, and leave out what no cell keeps."""
        keys, strengths = (np.concatenate(column) for column in zip(*held, strict=True))
        held.clear()
        cells = (keys >> self._bits).astype(np.min_scalar_type((1 << self._shift) - 1))
        order = np.lexsort((-strengths, cells))  # equally strong ones stay as they came
        keys, strengths = keys[order], strengths[order]
        cells = cells[order]
        begins = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))[: cells.size]
        places = np.arange(keys.size) - np.repeat(begins, np.diff(begins, append=keys.size))
        kept = places <= self._top
        return keys[kept], strengths[kept]

    def ranked(self) -> None:
        """Let go of the ends."""
        if self._ends is not None:
            self._ends.close()
            self._ends = None

    def weakest(self, first: int, last: int) -> tuple[Array, Array]:
        """Return strength and number of the weakest neighbor that the cells ``[first, last)`` keep.

        A cell that keeps all has minus infinity.
        """
        columns = np.empty(last - first), np.empty(last - first, np.int64)
        for fd, column in zip(self._fds, columns, strict=True):
            read_at(fd, column, first * column.itemsize)
        return columns

    def close(self) -> None:
        """Remove the files."""
        self.ranked()
        for fd, path in zip(self._fds, self._paths, strict=False):
            os.close(fd)
            path.unlink()
