"""The proof for matrices with negative weights, where entries may cancel each other.

Then it is not enough that an entry is stored. All entries go to disk with their weights, as pairs
by partition of their smaller cell. Then each partition is gone through in ranges of pairs that fit
memory, halved as often as it takes: the range's entries are sorted, the weights of each pair are
added up, and what is not zero must be the edges of that range, one after the other.

Whole numbers are added up exactly. Float weights are added in float64, in stored order, one
direction after the other, as `C + C.T` is defined for the export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs.reader import SLAB_EDGES, PlainEdges
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from ..source.matrix import Block, Source
from . import loops
from .pair_file import PairFile
from .proof import ProofPlan, missing, proof_shift, unfounded
from .statistics import cell_dtype


def prove_signed(
    source: Source,
    blocks: Sequence[Block],
    edges: PlainEdges,
    folder: Path,
    plan: ProofPlan,
    executor: Executor,
) -> list[str]:
    """Compare the edges with the nonzero sums of entries; return what is wrong.

    The parameters are those of `proof.prove_by_comparison`.
    """
    shift = proof_shift(source.n_cells)
    n_partitions = max(1, -(-source.n_cells >> shift))
    is_float = source.stored_weight_dtype.kind == "f"
    columns = {
        "small": np.dtype(np.uint16),
        "large": cell_dtype(source.n_cells),
        "weight": np.dtype(np.float64 if is_float else np.int64),
    }
    sides: list[PairFile] = []
    try:
        for name in ("upper", "lower"):
            path = folder / f"signed {name}"
            sides.append(PairFile(path, columns, n_partitions, plan.room // 2))
        sums = _Sums(source, edges, sides, plan.piece_edges, shift)
        sizes = [block.stop - block.start for block in blocks]
        executor.run(Stage("matrix", sums.leave, blocks, sizes, "entries"))
        sizes = [int(n) for n in sides[0].counts + sides[1].counts]
        found = executor.run(Stage("compare", sums.compare, range(n_partitions), sizes, "entries"))
        return [text for text in found if text]
    finally:
        for side in sides:
            side.close()


@dataclass(frozen=True)
class _Sums:
    """What the tasks share."""

    source: Source
    edges: PlainEdges
    sides: list[PairFile]
    most: int
    shift: int

    @property
    def _bits(self) -> int:
        """Bits of the larger cell in a key; the smaller cell's place is above them."""
        return max(1, (self.source.n_cells - 1).bit_length())

    def leave(self, block: Block) -> None:
        """Write a block's entries to the files of pairs."""
        indices, indptr, weights = self.source.read_block(block, weights=True)
        assert weights is not None
        for below, side in enumerate(self.sides):
            starts = np.zeros(side.counts.size + 1, np.int64)
            loops.count_side(indices, indptr, block.first_row, self.shift, below, starts[1:])
            np.cumsum(starts, out=starts)
            n = int(starts[-1])
            small = buffers.take("small", n, np.uint16)
            large = buffers.take("large", n, cell_dtype(self.source.n_cells))
            weight = buffers.take("weight", n, weights.dtype)
            loops.gather_weighted(
                indices, weights, indptr, block.first_row, self.shift, starts[:-1].copy(),
                small, large, weight, below,
            )  # fmt: skip
            side.append(block.number, starts, {"small": small, "large": large, "weight": weight})

    def compare(self, partition: int) -> str | None:
        """Compare a partition's sums with its edges."""
        return self._compare(partition, 0, 1 << (self.shift + self._bits))

    def _compare(self, partition: int, low: int, high: int) -> str | None:
        """Compare the pairs with keys in ``[low, high)``."""
        taken = self._select(partition, low, high)
        if taken is None and high - low > 1:
            middle = (low + high) // 2
            return self._compare(partition, low, middle) or self._compare(partition, middle, high)
        keys = self._kept_single(partition, low) if taken is None else self._kept(*taken)
        start = self.edges.position(*self._cells(partition, low))
        stop = self.edges.position(*self._cells(partition, high))
        at = 0
        base = partition << self.shift
        for number in range(start, stop, SLAB_EDGES):
            end = min(number + SLAB_EDGES, stop)
            src = self.edges.read(0, number, end, "slab src").astype(np.int64)
            dst = self.edges.read(1, number, end, "slab dst").astype(np.int64)
            found = ((src - base) << self._bits) | dst
            expected = keys[at : at + found.size]
            same = found[: expected.size] == expected
            first = int(same.argmin()) if not same.all() else expected.size
            if first < found.size:
                if first < expected.size and expected[first] < found[first]:
                    return self._missing(partition, int(expected[first]))
                return unfounded(self.edges, number + first)
            at += found.size
        return self._missing(partition, int(keys[at])) if at < keys.size else None

    def _missing(self, partition: int, key: int) -> str:
        return missing(self.source, self.edges, *self._cells(partition, key))

    def _cells(self, partition: int, key: int) -> tuple[int, int]:
        """Return the pair of a key."""
        cell = key >> self._bits
        return (partition << self.shift) + cell, key - (cell << self._bits)

    def _lots(self, partition: int, low: int, high: int) -> Iterator[tuple[Array, Array, int]]:
        """Yield keys in ``[low, high)`` with weights and side, in stored order, slab by slab."""
        for below, side in enumerate(self.sides):
            for number, _, starts in side.lots(partition, partition + 1):
                for at in range(int(starts[0]), int(starts[-1]), self.most):
                    n = min(self.most, int(starts[-1]) - at)
                    small = buffers.take("pair small", n, np.uint16)
                    large = buffers.take("pair large", n, cell_dtype(self.source.n_cells))
                    kind = np.float64 if self._is_float else np.int64
                    weight = buffers.take("pair weight", n, kind)
                    columns = {"small": small, "large": large, "weight": weight}
                    for name, values in columns.items():
                        side.read(number, name, at, values)
                    keys = (small.astype(np.int64) << self._bits) | large.astype(np.int64)
                    inside = (keys >= low) & (keys < high)
                    yield keys[inside], weight[inside], below

    @property
    def _is_float(self) -> bool:
        return self.source.stored_weight_dtype.kind == "f"

    def _select(self, partition: int, low: int, high: int) -> tuple[Array, Array, Array] | None:
        """Return keys, sides and weights in a range; None if they are too many."""
        lots = []
        n = 0
        for keys, weights, below in self._lots(partition, low, high):
            n += keys.size
            if n > self.most:
                return None
            lots.append((keys, np.full(keys.size, below, np.uint8), weights))
        if not lots:
            kind = np.float64 if self._is_float else np.int64
            return np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, kind)
        keys, sides, weights = (np.concatenate(column) for column in zip(*lots, strict=True))
        order = np.argsort(keys, kind="stable")
        return keys[order], sides[order], weights[order]

    def _kept(self, keys: Array, sides: Array, weights: Array) -> Array:
        """Return the keys, sorted, whose weights do not add up to zero."""
        kept = np.empty(keys.size, np.int64)
        if self._is_float:
            n = loops.add_up_floats(keys, sides, weights, kept)
        else:
            n = loops.add_up_integers(keys, weights, kept)
        return kept[:n]

    def _kept_single(self, partition: int, key: int) -> Array:
        """Do the same for one pair that is stored too often to be held."""
        sums: list[Any] = [0, 0]
        for _, weights, below in self._lots(partition, key, key + 1):
            for weight in weights.tolist():
                sums[below] += weight
        return np.array([key] if sums[0] + sums[1] != 0 else [], np.int64)
