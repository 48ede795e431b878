"""The proof by comparison, with weights or without: see `proof` for the method.

Tasks over blocks leave entries as keys, by partition. Tasks over *pieces*, partitions next to each
other, sort the keys and compare them with the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from ..source.matrix import Block, Source
from . import loops
from .difference import EdgeCheck
from .pair_file import PAIR_BITS, PairFile, key_dtype, weight_dtype
from .proof import PART, WEIGHTED, Kind, ProofPlan

Judge = Callable[[int, Array, Array | None, int, int], str | None]


def prove_by_comparison(
    check: EdgeCheck, blocks: Sequence[Block], folder: Path, plan: ProofPlan, executor: Executor,
    kind: Kind, rule: str | None = None, judge: Judge | None = None,
) -> list[str]:  # fmt: skip
    """Compare edges, whose order has been checked, and entries; return what is wrong.

    Entries that do not stay in memory go to `folder`. Weights are added up if `kind` is "signed";
    if it is "weights", they are combined by the `rule` and compared too; else a negative one raises
    `NegativeWeightError`. `judge` gets all pairs and their edges instead of the check.
    """
    n_partitions = max(1, -(-check.source.n_cells >> check.shift))
    with closing(PairFile(folder / kind, n_partitions, plan.room)) as file:
        compare = _Comparison(check, file, kind, rule, plan.piece_entries, judge or check.judge)
        sizes = [block.stop - block.start for block in blocks]
        executor.run(Stage("matrix", compare.leave, blocks, sizes, "entries"))
        buffers.release()  # where this very thread has run the tasks
        pieces = compare.pieces()
        sizes = [piece.stop - piece.start for piece in pieces]
        found = executor.run(Stage("compare", compare.piece, pieces, sizes, "edges"))
        buffers.release()
    return [text for text in found if text]


class _Piece(NamedTuple):
    """Partitions ``[first, last)``, and their edges ``[start, stop)``."""

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Comparison:
    """What the tasks of a comparison share.

    At `most` so many keys are sorted at once. Then a pair is a number, as in `EdgeCheck`.
    """

    check: EdgeCheck
    file: PairFile
    kind: Kind
    rule: str | None
    most: int
    judge: Judge

    @property
    def source(self) -> Source:
        """The matrix."""
        return self.check.source

    @property
    def shift(self) -> int:
        """A partition is ``2**shift`` cells."""
        return self.check.shift

    @property
    def bits(self) -> int:
        """Bits of a key for the larger cell."""
        return self.check.bits

    @property
    def is_weighted(self) -> bool:
        """Whether weights are read and kept."""
        return self.kind in WEIGHTED

    def leave(self, block: Block) -> None:
        """Leave a block's entries as keys, by partition."""
        indices, indptr, weights = self.source.read_block(block, weights=self.is_weighted)
        starts = np.zeros(self.file.counts.size + 1, np.int64)
        loops.count_pairs(indices, indptr, block.first_row, self.shift, starts[1:])
        np.cumsum(starts, out=starts)
        keys, kept = self._take("entry", int(starts[-1]))
        loops.place_pairs(
            indices, indptr, kept if weights is None else weights, block.first_row,
            self.shift, self.bits, starts[:-1].copy(), keys, kept,
        )  # fmt: skip
        self.file.append(block.number, starts, keys, kept)

    def pieces(self) -> list[_Piece]:
        """Group partitions while they have not too many entries, and pairs fit their numbers."""
        counts = self.file.counts
        starts = [self.check.edges.position(f << self.shift) for f in range(counts.size)]
        starts.append(self.check.edges.n_edges)
        most = 1 << (PAIR_BITS - self.shift - self.bits)
        pieces = []
        first = n_entries = 0
        for f, n in enumerate(counts.tolist()):
            if f > first and (n_entries + n > self.most or f - first == most):
                pieces.append(_Piece(first, f, starts[first], starts[f]))
                first, n_entries = f, 0
            n_entries += n
        pieces.append(_Piece(first, counts.size, starts[first], starts[-1]))
        return pieces

    def piece(self, piece: _Piece) -> str | None:
        """Compare the entries of a piece with its edges; return the first difference."""
        counts = self.file.counts[piece.first : piece.last]
        starts = np.concatenate([[0], np.cumsum(counts)])
        n = int(starts[-1])
        if n > self.most:
            assert piece.last == piece.first + 1
            return self._range(piece.first, 0, 1 << (self.shift + self.bits))
        gathered = self._take("piece", n)
        ends = [starts[:-1].copy() for _ in gathered]
        for lot in self.file.lots(piece.first, piece.last):
            lot_starts = lot.starts[piece.first : piece.last + 1]
            stored = self._take("lot", int(lot_starts[-1] - lot_starts[0]))
            self.file.read(lot, int(lot_starts[0]), *stored)
            for values, places, out in zip(stored, ends, gathered, strict=True):
                if out.size:
                    loops.gather(values, lot_starts, places, out)
        return self.judge(piece.first, *self._sort(*gathered, starts), piece.start, piece.stop)

    def _take(self, name: str, n: int) -> tuple[Array, Array]:
        """Return this thread's work space for `n` keys, and for weights if there are."""
        key = key_dtype(self.source.n_cells, self.shift, is_weighted=self.is_weighted)
        weight = weight_dtype(self.source, combined=self.kind == "weights")
        n_weights = n if self.is_weighted else 0
        return buffers.take(f"{name} keys", n, key), buffers.take(
            f"{name} weights", n_weights, weight
        )

    def _sort(self, keys: Array, weights: Array, starts: Array) -> tuple[Array, Array | None]:
        """Return the pairs of partitions, in order, and their weights, if these are compared.

        With weights, pairs that come to zero are left out. The keys of each partition, which begin
        where `starts` says, are sorted in place.
        """
        pairs = buffers.take("pairs", keys.size, np.int64)
        combined = buffers.take("pair weights", keys.size * (self.kind == "weights"), np.float64)
        n = 0
        for f, (start, stop) in enumerate(pairwise(starts.tolist())):
            lot, its_weights = keys[start:stop], weights[start:stop]
            if not self.is_weighted:
                lot.sort()
            elif lot.size:
                order = np.argsort(lot, kind="stable")
                found = self._add_up(lot[order], its_weights[order], pairs[n:], combined[n:])
                found |= f << (self.shift + self.bits)
                n += found.size
        if not self.is_weighted:
            n = loops.distinct(keys, starts, self.shift + self.bits, pairs)
        return pairs[:n], combined[:n] if self.kind == "weights" else None

    def _add_up(self, keys: Array, weights: Array, pairs: Array, combined: Array) -> Array:
        """Write the pairs of sorted keys that do not come to zero, and what they come to."""
        if self.kind == "signed":
            add_up = loops.add_up_floats if weights.dtype.kind == "f" else loops.add_up_integers
            return pairs[: add_up(keys, weights, pairs)]
        sums = np.empty((2, keys.size))
        n = loops.sum_pairs(keys, weights, pairs, *sums)
        values = combine(self.rule, *sums[:, :n])
        kept = values != 0
        n_kept = int(kept.sum())
        pairs[:n_kept], combined[:n_kept] = pairs[:n][kept], values[kept]
        return pairs[:n_kept]

    def _range(self, partition: int, low: int, high: int) -> str | None:
        """Compare the pairs of a partition with keys in ``[low, high)``, if need be in halves."""
        taken = self._select(partition, low, high)
        if taken is None and high - low > 1:
            middle = (low + high) // 2
            return self._range(partition, low, middle) or self._range(partition, middle, high)
        if taken is not None:
            pairs, weights = self._sort(*taken, np.array([0, taken[0].size]))
        else:
            value = self._value(partition, low)
            pairs = np.array([low] if value else [], np.int64)
            weights = np.full(pairs.size, value) if self.kind == "weights" else None
        start, stop = (
            self.check.edges.position(*self.check.pair(partition, key)) for key in (low, high)
        )
        return self.judge(partition, pairs, weights, start, stop)

    def _select(self, partition: int, low: int, high: int) -> tuple[Array, Array] | None:
        """Return keys, in stored order, and weights of pairs in a range; None if too many."""
        keys, weights = self._take("piece", self.most)
        n = 0
        for found, more in self._parts(partition, low, high):
            if n + found.size > self.most:
                return None
            keys[n : n + found.size] = found
            weights[n : n + more.size] = more
            n += found.size
        return keys[:n], weights[:n]

    def _parts(self, partition: int, low: int, high: int) -> Iterator[tuple[Array, Array]]:
        """Yield keys and weights of pairs in a range, in stored order, some at a time."""
        side = int(self.is_weighted)
        for lot in self.file.lots(partition, partition + 1):
            last = int(lot.starts[partition + 1])
            for start in range(int(lot.starts[partition]), last, PART):
                keys, weights = self._take("part", min(PART, last - start))
                self.file.read(lot, start, keys, weights)
                inside = (keys >= low << side) & (keys < high << side)
                yield keys[inside], weights[inside] if side else weights

    def _value(self, partition: int, key: int) -> Any:
        """Return what one pair comes to that is stored too often to be held; 0 if it is no edge."""
        if not self.is_weighted:
            return 1
        sums: list[Any] = [0, 0]
        for keys, weights in self._parts(partition, key, key + 1):
            for side, weight in zip((keys & 1).tolist(), weights.tolist(), strict=True):
                sums[side] += weight
        if self.kind == "signed":
            return sums[0] + sums[1]
        return combine(self.rule, *(np.array([float(total)]) for total in sums))[0]


def combine(rule: str | None, upper: Array, lower: Array) -> Array:
    """Return the weights of pairs from those of their directions (float64), by a rule.

    Without a rule both must be the same; NaN stands for those that are not.
    """
    if rule is None:
        return np.where(upper == lower, upper, np.nan)
    if rule == "ones":
        return np.where(upper + lower != 0, 1.0, 0.0)
    if rule == "max":
        return np.maximum(upper, lower)
    if rule == "min":
        return np.minimum(upper, lower)
    total: Array = upper + lower
    if rule == "fuzzy":
        total -= upper * lower
    if rule == "mean":
        total *= 0.5
    return total
