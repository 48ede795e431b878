"""What a graph is like: degrees, isolated cells and connected components, within given memory.

Degrees take a counter of four bytes for each cell and thread. Components are found with a forest
(union-find) of four bytes a cell and thread, the forests being joined in the end. From 2³² cells on
it is eight bytes. What does not fit is done in several passes (degrees) or left out (components).
"""

from __future__ import annotations

import math
import queue
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np

from ..edge_pairs.reader import Slab
from ..machine.buffers import Array
from . import loops

_SLICE = 1 << 20  # cells summed up in one go
_SAMPLE = 1024
_FIRST_SETTLING = 1 << 21  # edges after which settled cells are first looked for


def cell_dtype(n_cells: int) -> np.dtype[Any]:
    """Return the dtype in which cells are kept."""
    return np.dtype(np.uint32 if n_cells <= 2**32 else np.uint64)


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


@dataclass(frozen=True)
class Components:
    """The connected components of a graph, isolated cells among them."""

    sizes: dict[int, int]  # for each number of cells, the components of so many

    @property
    def n_components(self) -> int:
        """Number of components."""
        return sum(self.sizes.values())

    @property
    def largest(self) -> int:
        """Cells in the largest; 0 without cells."""
        return max(self.sizes, default=0)


class Forests:
    """Finds connected components; so many threads join trees at once, and others wait."""

    def __init__(self, n_cells: int, n_forests: int) -> None:
        self._free: queue.SimpleQueue[_Forest] = queue.SimpleQueue()
        self._all = [_Forest(n_cells) for _ in range(n_forests)]
        for forest in self._all:
            self._free.put(forest)

    def add(self, slab: Slab) -> None:
        """Take edges into account."""
        forest = self._free.get()
        forest.add(slab.src, slab.dst)
        self._free.put(forest)

    def components(self) -> Components:
        """Join the forests to one and count its trees. They are of no use afterwards."""
        first, *others = self._all
        self._all = []
        n_cells = first.parent.size
        for other in others:
            for start in range(0, n_cells, _SLICE):
                parents = other.parent[start : start + _SLICE]
                cells = np.arange(start, start + parents.size, dtype=parents.dtype)
                loops.unite(parents, cells, first.parent, first.settled)
        loops.flatten(first.parent)
        sizes = others[0].parent if others else np.empty_like(first.parent)
        loops.count_children(first.parent, sizes)
        found: Counter[int] = Counter()
        for start in range(0, n_cells, _SLICE):
            part = sizes[start : start + _SLICE]
            _tally(part[part > 0], found)
        return Components(dict(found))


def forest_bytes(n_cells: int, n_forests: int) -> int:
    """Return the bytes of so many forests; one needs room for a second in the end."""
    return (
        n_forests * (n_cells // 8 + 1) + max(n_forests, 2) * n_cells * cell_dtype(n_cells).itemsize
    )


class _Forest:
    """A tree for each component that one thread has seen."""

    def __init__(self, n_cells: int) -> None:
        self.parent: Array = np.arange(n_cells, dtype=cell_dtype(n_cells))
        self.settled: Array = np.zeros(n_cells // 8 + 1, np.uint8)
        self._seen = 0
        self._next_settling = _FIRST_SETTLING
        self._rng = np.random.default_rng(0)

    def add(self, src: Array, dst: Array) -> None:
        loops.unite(src, dst, self.parent, self.settled)
        self._seen += src.size
        if self._seen >= self._next_settling:
            self._next_settling = self._seen + max(self._seen, _FIRST_SETTLING)
            self._settle()

    def _settle(self) -> None:
        """Mark the cells of what looks like the largest tree; edges inside it need no more care."""
        loops.flatten(self.parent)
        sample = self.parent[self._rng.integers(0, self.parent.size, _SAMPLE)]
        roots, counts = np.unique(sample, return_counts=True)
        loops.settle(self.parent, int(roots[counts.argmax()]), self.settled)
