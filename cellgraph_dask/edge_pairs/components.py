"""Connected components, found with forests (union-find), on several threads.

A forest takes four bytes a cell, from 2³² cells on eight; each thread has one, and they are joined
in the end. Where edges come by rows, in both directions, one forest does: a few edges of each row,
taken first, put most cells into one large tree, whose rows are then passed over [1]_.

.. [1] M. Sutton, T. Ben-Nun, A. Barak, "Optimizing Parallel Graph Connectivity Computation via
   Subgraph Sampling", IPDPS 2018, doi:10.1109/IPDPS.2018.00012
"""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..machine.buffers import Array
from ..machine.compiled import compiled

_SLICE = 1 << 20  # cells looked at in one go
_SAMPLE = 1024
_FIRST_SETTLING = 1 << 21  # edges after which the largest tree is first looked for
_GIANT = 1 / 16  # a tree with that share of all cells is expected to become the largest component


def cell_dtype(n_cells: int) -> np.dtype[Any]:
    """Return the dtype in which cells are kept."""
    return np.dtype(np.uint32 if n_cells <= 2**32 else np.uint64)


@compiled(int)
def _root(parent: Array, cell: Any) -> Any:
    """Return the root of a cell, halving the path to it."""
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = np.int64(parent[cell])
    return cell


@compiled(int)
def _join(parent: Array, one: Any, other: Any) -> Any:
    """Join the trees of two cells; return whether there were two."""
    a = _root(parent, one)
    b = _root(parent, other)
    if a != b:
        parent[max(a, b)] = min(a, b)
    parent[one] = min(a, b)
    return a != b


@compiled(int)
def unite(src: Array, dst: Array, parent: Array, settled: Array) -> int:
    """Join the trees of the two cells of each edge; return how many were joined.

    Edges of which the source is larger are passed over: they are there in the other direction too.

    `parent` is for each cell one of the same component, never a later one; a root is its own.
    `settled` has a bit (of uint8) for each cell, set only for cells of one and the same component.
    These bits stay in a near cache when `parent` does not, and soon answer for most edges.
    """
    joined = 0
    for k in range(src.size):
        s = np.int64(src[k])
        d = np.int64(dst[k])
        if s > d:
            continue
        if (settled[s >> 3] >> (s & 7)) & (settled[d >> 3] >> (d & 7)) & 1:
            continue
        joined += _join(parent, s, d)
    return joined


@compiled()
def unite_rows(src: Array, dst: Array, kept: Array, parent: Array, giant: int) -> None:
    """Join the trees of the two cells of each edge with a mark, which all come both ways.

    Of a cell in the tree of the cell `giant`, edges are passed over, also of one that gets there:
    the other ends are in the same tree when their turn comes, or have all their edges looked at.
    So it must be the same cell for all edges, as soon as it is one and no longer -1.
    """
    top = _root(parent, giant) if giant >= 0 else np.int64(-1)
    for k in range(src.size):
        s = np.int64(src[k])
        if parent[s] != top and kept[k] and _join(parent, s, np.int64(dst[k])) and giant >= 0:
            top = _root(parent, giant)


@compiled(int)
def flatten(parent: Array) -> int:
    """Make every cell a child of its root; return the number of roots."""
    n_roots = 0
    for cell in range(parent.size):
        parent[cell] = parent[parent[cell]]
        n_roots += parent[cell] == cell
    return n_roots


@compiled()
def settle(parent: Array, top: int, settled: Array) -> None:
    """Set the bits of the children of a root, and clear all others; `parent` must be flat."""
    for byte in range(settled.size):
        bits: Any = 0
        for cell in range(8 * byte, min(8 * byte + 8, parent.size)):
            bits |= np.int64(parent[cell] == top) << (cell & 7)
        settled[byte] = bits


@compiled()
def count_children(parent: Array, sizes: Array) -> None:
    """Write for each root how many cells are its children or itself, and 0 for other cells.

    `parent` must be flat; `sizes` may hold anything before.
    """
    sizes[:] = 0
    for cell in range(parent.size):
        sizes[parent[cell]] += 1


@dataclass(frozen=True)
class Components:
    """The connected components of a graph, isolated cells among them.

    Attributes
    ----------
    n_components : int
        How many there are.
    largest : int
        Cells in the largest.
    """

    n_components: int
    largest: int

    @classmethod
    def of(cls, sizes: Mapping[int, int]) -> Components:
        """Return what components of these numbers of cells come to."""
        return cls(sum(sizes.values()), max(sizes, default=0))


class Forests:
    """Finds connected components; so many threads join trees at once, and others wait."""

    def __init__(self, n_cells: int, n_forests: int) -> None:
        self._free: queue.SimpleQueue[_Forest] = queue.SimpleQueue()
        self._all = [_Forest(n_cells) for _ in range(n_forests)]
        for forest in self._all:
            self._free.put(forest)

    def add(self, src: Array, dst: Array) -> None:
        """Take edges into account."""
        forest = self._free.get()
        forest.add(src, dst)
        self._free.put(forest)

    def add_rows(self, src: Array, dst: Array, kept: Array) -> None:
        """Take edges with marks into account, which all come both ways; there is one forest."""
        forest = self._free.get()
        forest.add_rows(src, dst, kept)
        self._free.put(forest)

    def sample_rows(self, src: Array, dst: Array) -> None:
        """Take some of the edges ahead of `add_rows`, in any direction; there is one forest.

        Threads do not wait for each other. What two of them write at the same time may be lost, but
        whatever stays as the parent of a cell is an earlier cell of the same component; and
        `add_rows` gets all edges.
        """
        self._all[0].add_rows(src, dst, np.ones(src.size, np.uint8))

    def settle(self) -> None:
        """Have edges inside the largest tree passed over, where they come to `add` from now on."""
        for forest in self._all:
            forest.settle()

    def copy(self) -> Forests:
        """Return others that begin with what these have found."""
        new = Forests(0, 0)
        new._all = [forest.copy() for forest in self._all]
        for forest in new._all:
            new._free.put(forest)
        return new

    def components(self) -> Components:
        """Join the forests to one and count its trees. They are of no use afterwards."""
        return Components.of(self.sizes())

    def sizes(self) -> dict[int, int]:
        """Do so, and return how many trees there are of each number of cells."""
        first, *others = self._all
        self._all = []
        n_cells = first.parent.size
        for other in others:
            for start in range(0, n_cells, _SLICE):
                parents = other.parent[start : start + _SLICE]
                cells = np.arange(start, start + parents.size, dtype=parents.dtype)
                unite(parents, cells, first.parent, first.settled)
        flatten(first.parent)
        sizes = others[0].parent if others else np.empty_like(first.parent)
        count_children(first.parent, sizes)
        found: Counter[int] = Counter()
        for start in range(0, n_cells, _SLICE):
            part = sizes[start : start + _SLICE]
            values, counts = np.unique(part[part > 0], return_counts=True)
            found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        return dict(found)


def forest_bytes(n_cells: int, n_forests: int, *, of_one_graph: bool = True) -> int:
    """Return the bytes of so many forests, and of what counting their trees takes in the end.

    Of those that are joined, one gives its room for that.
    """
    n_arrays = max(n_forests, 2) if of_one_graph else n_forests + 1
    return n_forests * (n_cells // 8 + 1) + n_arrays * n_cells * cell_dtype(n_cells).itemsize


class _Forest:
    """A tree for each component that one thread has seen."""

    def __init__(self, n_cells: int) -> None:
        self.parent: Array = np.arange(n_cells, dtype=cell_dtype(n_cells))
        self.settled: Array = np.zeros(n_cells // 8 + 1, np.uint8)
        self._seen = 0
        self._next_settling = _FIRST_SETTLING
        self._giant = -1
        self._rng = np.random.default_rng(0)

    def copy(self) -> _Forest:
        new = copy(self)
        new.parent, new.settled = self.parent.copy(), self.settled.copy()
        return new

    def add(self, src: Array, dst: Array) -> None:
        unite(src, dst, self.parent, self.settled)
        if self._is_time(src.size):
            self.settle()

    def settle(self) -> None:
        settle(self.parent, self._largest()[0], self.settled)

    def add_rows(self, src: Array, dst: Array, kept: Array) -> None:
        unite_rows(src, dst, kept, self.parent, self._giant)
        if self._giant < 0 and self._is_time(src.size):
            top, share = self._largest()
            if share >= _GIANT:
                self._giant = top

    def _is_time(self, n_edges: int) -> bool:
        """Whether to look for the largest tree, after so many more edges."""
        self._seen += n_edges
        if self._seen < self._next_settling:
            return False
        self._next_settling = self._seen + max(self._seen, _FIRST_SETTLING)
        return True

    def _largest(self) -> tuple[int, float]:
        """Return the root of what looks like the largest tree, and its share of all cells.

        Edges inside of it need no more care.
        """
        flatten(self.parent)
        sample = self.parent[self._rng.integers(0, self.parent.size, _SAMPLE)]
        roots, counts = np.unique(sample, return_counts=True)
        largest = counts.argmax()
        return int(roots[largest]), counts[largest] / _SAMPLE


def warm_up(edge_dtype: DTypeLike, of_cells: DTypeLike) -> None:
    """Load (or compile) the loops, for the dtypes of edges and of forests."""
    edges, none, bits = np.zeros(0, edge_dtype), np.zeros(0, of_cells), np.zeros(0, np.uint8)
    unite(edges, edges, none, bits)
    unite(none, none, none, bits)
    unite_rows(edges, edges, bits, none, -1)
    flatten(none)
    settle(none, 0, bits)
    count_children(none, none)
