"""How many neighbors cells have, within given memory.

Degrees take a counter of four bytes for each cell and thread, from 2³² cells on eight. What does
not fit is done in several passes.
"""

from __future__ import annotations

import math
import queue
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np

from ..edge_pairs.components import cell_dtype
from ..edge_pairs.reader import Slab
from ..machine.buffers import Array
from . import loops

_SLICE = 1 << 20  # cells summed up in one go
_MOST_RANGES = 24


@dataclass(frozen=True)
class Degrees:
    """How many neighbors cells have: for each degree the number of cells with it."""

    counts: dict[int, int]

    @property
    def largest(self) -> int:
        """The largest degree; 0 without cells."""
        return max(self.counts, default=0)

    @property
    def isolated(self) -> int:
        """Number of cells without neighbors."""
        return self.counts.get(0, 0)

    def quantiles(self, *shares: float) -> tuple[int, ...]:
        """Return the smallest degree that so large a share of the cells does not pass, for each."""
        degrees = sorted(self.counts)
        if not degrees:
            return (0,) * len(shares)
        upto = list(accumulate(self.counts[degree] for degree in degrees))
        wanted = [math.ceil(Fraction(share) * upto[-1]) for share in shares]
        return tuple(degrees[bisect_left(upto, n)] for n in wanted)

    def histogram(self) -> tuple[tuple[int, int], ...]:
        """Return ranges of degrees, each as its smallest degree and the number of cells in it.

        They are of one width; the last one takes the largest hundredth too, however large.
        """
        least, high = self.quantiles(0, 0.99)
        width = (high - least) // _MOST_RANGES + 1
        cells = [0] * ((high - least) // width + 1)
        for degree, n in self.counts.items():
            cells[min((degree - least) // width, len(cells) - 1)] += n
        return tuple((least + width * k, n) for k, n in enumerate(cells))


class DegreeCounts:
    """Counts the ends of edges at cells ``[first, last)``, on several threads at once."""

    def __init__(self, first: int, last: int, n_cells: int, threads: int) -> None:
        self._first = first
        self._all = [np.zeros(last - first, cell_dtype(n_cells)) for _ in range(threads)]
        self._free: queue.SimpleQueue[Array] = queue.SimpleQueue()
        for counts in self._all:
            self._free.put(counts)

    def add(self, slab: Slab) -> None:
        """Count the ends of edges."""
        counts = self._free.get()
        for cells in (slab.src, slab.dst):
            loops.count_ends(cells, self._first, counts)
        self._free.put(counts)

    def add_up(self, into: Counter[int]) -> None:
        """Count the cells by degree."""
        for start in range(0, self._all[0].size, _SLICE):
            parts = [counts[start : start + _SLICE] for counts in self._all]
            _tally(np.asarray(np.sum(parts, axis=0, dtype=np.int64)), into)


class ListedEnds:
    """Does what `DegreeCounts` does, for few edges among so many cells that none has a counter."""

    def __init__(self, n_cells: int) -> None:
        self._n_cells = n_cells
        self._ends: list[Array] = []

    def add(self, slab: Slab) -> None:
        """Count the ends of edges."""
        self._ends.append(np.concatenate([slab.src, slab.dst]))

    def add_up(self, into: Counter[int]) -> None:
        """Count the cells by degree."""
        ends = np.concatenate([np.empty(0, np.uint64), *self._ends])
        _, degrees = np.unique(ends, return_counts=True)
        _tally(degrees, into)
        into[0] += self._n_cells - degrees.size


def _tally(degrees: Array, into: Counter[int]) -> None:
    found, n = np.unique(degrees, return_counts=True)
    into.update(dict(zip(found.tolist(), n.tolist(), strict=True)))


def are_few(n_cells: int, n_edges: int) -> bool:
    """Return whether a graph has so few edges that counters for its cells would be a waste."""
    return n_cells > max(2**20, 64 * n_edges)


def degree_bytes(n_cells: int, n_edges: int, threads: int) -> tuple[int, int]:
    """Return the bytes that counting degrees takes: for each cell of a pass, and all others."""
    if are_few(n_cells, n_edges):
        return 0, 64 * n_edges
    return threads * cell_dtype(n_cells).itemsize, 0
