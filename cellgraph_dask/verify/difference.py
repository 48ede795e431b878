"""The first difference between the pairs that a matrix gives and the edges of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..edge_pairs.reader import PlainEdges
from ..machine.buffers import Array
from ..source.matrix import Source
from .pair_file import cell_bits
from .proof import ProofPlan


class Difference(NamedTuple):
    """A pair without an edge, an edge that is no pair, or an edge with another weight."""

    kind: Literal["missing", "unexpected", "weight"]
    number: int  # of the edge, or of the one that would be there
    src: int
    dst: int
    stored: float = 0.0  # weights, if these differ
    wanted: float = 0.0


@dataclass(frozen=True)
class EdgeCheck:
    """Compares pairs with the edges of an export.

    Pairs are rising numbers: the partition of a pair, ``2**shift`` cells, counted from a first one
    on, and below it `shift` bits of the smaller cell and `bits` for the larger one. Weights of the
    edges have been rounded to the dtype `weights`.
    """

    source: Source
    edges: PlainEdges
    shift: int
    bits: int
    weights: np.dtype[Any] | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        edges: PlainEdges,
        plan: ProofPlan,
        weights: np.dtype[Any] | None = None,
    ) -> EdgeCheck:
        """Return the check of edges with a matrix, in partitions as planned."""
        return cls(source, edges, plan.shift(source), cell_bits(source.n_cells), weights)

    def pair(self, first: int, number: int) -> tuple[int, int]:
        """Return the pair of a number that counts partitions from the `first` on."""
        cell = number >> self.bits
        return (first << self.shift) + cell, number - (cell << self.bits)

    def judge(
        self, first: int, pairs: Array, weights: Array | None, start: int, stop: int
    ) -> str | None:
        """Say how the edges ``[start, stop)`` differ first from these pairs, if they do."""
        found = self.differ(first, pairs, weights, start, stop)
        return None if found is None else self.told(found)

    def differ(
        self, first: int, pairs: Array, weights: Array | None, start: int, stop: int
    ) -> Difference | None:
        """Return the first difference between pairs and the edges ``[start, stop)``."""
        for number, src, dst, stored in self.edges.slabs(start, stop):
            found = src.astype(np.int64)
            found -= first << self.shift
            found <<= self.bits
            found |= dst.astype(np.int64)
            wanted = pairs[number - start :][: found.size]
            different = np.flatnonzero(found[: wanted.size] != wanted)
            at = int(different[0]) if different.size else wanted.size
            if at < wanted.size and wanted[at] < found[at]:
                return self._missing(*self.pair(first, int(wanted[at])))
            if at < found.size:
                return Difference("unexpected", number + at, int(src[at]), int(dst[at]))
            if weights is not None and stored is not None:
                expected = weights[number - start :][: stored.size]
                if self.weights is not None:
                    expected = expected.astype(self.weights).astype(np.float64)
                other = np.flatnonzero(stored.view(np.uint64) != expected.view(np.uint64))
                if other.size:
                    k = int(other[0])
                    cells = int(src[k]), int(dst[k])
                    return Difference(
                        "weight", number + k, *cells, float(stored[k]), float(expected[k])
                    )
        if pairs.size > stop - start:
            return self._missing(*self.pair(first, int(pairs[stop - start])))
        return None

    def _missing(self, small: int, large: int) -> Difference:
        return Difference("missing", self.edges.position(small, large), small, large)

    def told(self, found: Difference, kept: str = "", left_out: str = "") -> str:
        """Say what differs; maybe why a pair should be there, or an edge should not."""
        cells = found.src, found.dst
        if found.kind == "weight":
            edge = f"the weight of edge {found.number}, {cells}, is {found.stored!r}"
            edge += f" (byte {8 * found.number})"
            if np.isnan(found.wanted):
                return f"{edge}, but the matrix differs in its two directions there."
            return f"{edge}, but the matrix gives {found.wanted!r}."
        byte = found.number * self.edges.dtype.itemsize
        if found.kind == "unexpected":
            if left_out:
                return f"edge {found.number} (byte {byte}) is {cells}, but {left_out}."
            return (
                f"edge {found.number} (byte {byte}) is {cells}, but the matrix has no nonzero for "
                "these cells."
            )
        row, column = cells if self.source.has_entry(*cells) else cells[::-1]
        if self.source.layout == "csc":
            row, column = column, row
        return (
            f"{self.source.key} has a nonzero in row {row}, column {column}{kept}, but there is no "
            f"edge {cells}; it would be edge {found.number} (byte {byte})."
        )
