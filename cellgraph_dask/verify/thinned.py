"""The proof of a thinned graph: its edges are exactly the strong ones of the matrix.

::

    comparison ──► list ──► ends, rank ──► mark ──► select ──► edges
                   of all   K-th of each   pairs    N-th of    one by one
                   pairs    cell                    all

The comparison gives every pair with its weight, in order; those below the smallest weight are not
listed. A pair is marked if one of its cells keeps it among its strongest (see `ranking`). The N-th
strongest of all is found digit by digit of the weights' bits. What is left must be the edges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..machine.buffers import Array
from ..runtime.progress import Progress
from ..runtime.stage import Key, Stage, Summary
from ..runtime.threads import Threads
from ..source.matrix import Block
from .comparison import prove_by_comparison
from .difference import Difference, EdgeCheck
from .kept import Kept
from .limited import Limited
from .pair_list import STRETCH_PAIRS, PairList, Stretch
from .proof import ProofPlan
from .ranking import ENTRY_BYTES, Ranking

_STRETCH_BYTES = 256 * STRETCH_PAIRS  # that a task takes
_CELL_BYTES = 16  # of the weakest neighbor of a cell
_LEAST_CELLS = 1 << 16  # whose weakest neighbors are held at once
_MOST_RANKED = 1 << 21  # neighbors that a task holds; more would not be faster
_DIGIT_BITS = 16


def _top(n_cells: int, kept: Kept) -> int:
    """Return how many neighbors a cell keeps at most; 0 if it keeps all."""
    return kept.top_k if kept.top_k is not None and kept.top_k < n_cells - 1 else 0


def thinned_bytes(n_cells: int, kept: Kept) -> int:
    """Return the bytes that will do to find what is kept of pairs that are listed."""
    ranked = 2 * ENTRY_BYTES * (_top(n_cells, kept) + 1)
    return max(_STRETCH_BYTES + _LEAST_CELLS * _CELL_BYTES, ranked)


def prove_thinned(
    limited: Limited, check: EdgeCheck, blocks: list[Block], folder: Path, plan: ProofPlan,
    progress: Progress, kept: Kept,
) -> list[str]:  # fmt: skip
    """Compare edges, whose order has been checked, with what is kept; return what is wrong.

    Temporary files go to `folder`. A MemoryLimitError says that the limit is too small.
    """
    with closing(PairList(folder)) as pairs:
        wrong = prove_by_comparison(
            check, blocks, folder, plan, Threads(plan.threads, progress), "weights", kept.rule,
            partial(_list, check, kept, pairs),
        )  # fmt: skip
        if wrong:
            return wrong
        pairs.stretches.sort()
        proof = _Thinned(limited, check, pairs, folder, plan.threads, progress, kept)
        if proof.top:
            proof.mark()
        cut = None if kept.max_edges is None else proof.cut(kept.max_edges)
        return proof.compare(cut)


def _list(
    check: EdgeCheck, kept: Kept, pairs: PairList, first: int, numbers: Array, weights: Array |
    None, start: int, stop: int,
) -> str | None:  # fmt: skip
    """List pairs that are strong enough, in stretches; or say which weight cannot be."""
    assert weights is not None
    for at in range(0, max(numbers.size, 1), STRETCH_PAIRS):
        lot, its_weights = (column[at : at + STRETCH_PAIRS] for column in (numbers, weights))
        wrong = np.flatnonzero(~((its_weights > 0) & np.isfinite(its_weights)))
        if wrong.size:
            cells = check.pair(first, int(lot[wrong[0]]))
            return _no_weight(check, kept, cells, float(its_weights[wrong[0]]))
        after, end = at + STRETCH_PAIRS, stop
        if after < numbers.size:
            end = check.edges.position(*check.pair(first, int(numbers[after])))
        strong = its_weights >= float(kept.min_weight or 0)
        lowest = int(lot[0]) if lot.size else 0
        pairs.add(first, lowest, lot[strong], its_weights[strong], start, end)
        start = end
    return None


def _no_weight(check: EdgeCheck, kept: Kept, cells: tuple[int, int], weight: float) -> str:
    if np.isnan(weight) and kept.rule is None:
        return (
            f"{check.source.key} has different weights in the two directions of cells {cells}; the "
            "export was made without a rule, so there should be one weight by which it is thinned."
        )
    return (
        f"the weight of cells {cells} in {check.source.key} comes to {weight!r}; only positive "
        "numbers tell which edges are the strongest."
    )


class _Cut(NamedTuple):
    """The weakest pairs of those that are kept."""

    weight: float
    left: dict[Stretch, int]  # how many pairs with this weight are kept of each stretch


@dataclass(frozen=True)
class _Thinned:
    """A proof once all pairs are listed."""

    limited: Limited
    check: EdgeCheck
    pairs: PairList
    folder: Path
    threads: int
    progress: Progress
    kept: Kept
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def n_cells(self) -> int:
        """Cells of the graph."""
        return self.check.source.n_cells

    @property
    def top(self) -> int:
        """Neighbors that a cell keeps at most; 0 if it keeps all."""
        return _top(self.n_cells, self.kept)

    def over_pairs(
        self, name: str, function: Callable[[Stretch], Summary], threads: int = 0
    ) -> list[Summary]:
        """Run a stage over all stretches, on as many threads as fit."""
        stretches = self.pairs.stretches
        threads = threads or min(self.threads, self.limited.available() // _STRETCH_BYTES)
        return self._run(name, function, stretches, [s.n for s in stretches], threads)

    def _run(
        self, name: str, function: Callable[[Key], Summary], keys: Sequence[Key], sizes: list[int],
        threads: int,
    ) -> list[Summary]:  # fmt: skip
        executor = Threads(max(1, threads), self.progress)
        return executor.run(Stage(name, function, keys, sizes, "edges"))

    def strength(self, weights: Array) -> Array:
        """Return what is larger for stronger edges."""
        return -weights if self.kept.strongest == "smallest" else weights

    def read(self, stretch: Stretch) -> tuple[Array, Array, Array]:
        """Return both cells of pairs (int64), and how strong these are."""
        numbers, weights = self.pairs.read(stretch)
        src = numbers >> self.check.bits
        dst = numbers - (src << self.check.bits)
        src += stretch.first << self.check.shift
        return src, dst, self.strength(weights)

    def marks(self, stretch: Stretch) -> Array:
        """Return which pairs of a stretch are kept by a cell."""
        return self.pairs.marks(stretch) if self.top else np.ones(stretch.n, np.bool_)

    def mark(self) -> None:
        """Mark the pairs that are among the strongest of either cell."""
        stretches = self.pairs.stretches
        ranking = Ranking(self.folder, self.n_cells, self.top)
        table, each = ranking.table_bytes(len(stretches)), thinned_bytes(self.n_cells, self.kept)
        available = self.limited.available() - table
        threads = min(self.threads, available // each)
        if threads < 1:
            raise self.limited.too_small(table + each)
        most = max(2 * (self.top + 1), min(available // threads // ENTRY_BYTES, _MOST_RANKED))
        room = available - threads * max(each, most * ENTRY_BYTES)
        room = max(0, min(room, 2 * 16 * self.pairs.n_pairs))
        with closing(ranking):
            ranking.open(most, room)
            keys, sizes = list(enumerate(stretches)), [stretch.n for stretch in stretches]
            self._run("ends", partial(self._leave, ranking), keys, sizes, threads)
            counts = [2 * self.pairs.n_pairs // len(ranking.partitions)] * len(ranking.partitions)
            self._run("rank", ranking.rank, ranking.partitions, counts, threads)
            ranking.ranked()
            self.pairs.mark_none()
            available = self.limited.available() - threads * _STRETCH_BYTES
            n = max(_LEAST_CELLS, available // _CELL_BYTES)
            for first in range(0, self.n_cells, n):
                weakest = ranking.weakest(first, min(first + n, self.n_cells))
                self.over_pairs("mark", partial(self._mark, first, *weakest), threads)

    def _leave(self, ranking: Ranking, key: tuple[int, Stretch]) -> None:
        """Leave both ends of the pairs of a stretch."""
        number, stretch = key
        src, dst, strengths = self.read(stretch)
        # The smaller neighbors of a cell first, then the larger ones.
        ends = np.concatenate([dst, src]), np.concatenate([src, dst])
        ranking.leave(number, *ends, np.concatenate([strengths, strengths]))

    def _mark(self, first: int, weakest: Array, neighbors: Array, stretch: Stretch) -> None:
        """Mark the pairs of a stretch that cells from the `first` on keep."""
        src, dst, strengths = self.read(stretch)
        marks = self.marks(stretch)
        for cells, others in ((src, dst), (dst, src)):
            inside = np.flatnonzero((cells >= first) & (cells < first + weakest.size))
            cell, strength = cells[inside] - first, strengths[inside]
            is_equal = strength == weakest[cell]
            is_equal &= others[inside] <= neighbors[cell]
            marks[inside] |= (strength > weakest[cell]) | is_equal
        self.pairs.mark(stretch, marks)

    def cut(self, most: int) -> _Cut | None:
        """Return the weakest of the strongest marked pairs; None if there are no more than that."""
        if sum(self.over_pairs("select", lambda stretch: int(self.marks(stretch).sum()))) <= most:
            return None
        known, left = 0, most
        for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
            counts = np.zeros(1 << _DIGIT_BITS, np.int64)
            self.over_pairs("select", partial(self._count_digits, counts, known, shift))
            is_rising = self.kept.strongest == "smallest"
            upto = np.cumsum(counts if is_rising else counts[::-1])
            at = int(np.searchsorted(upto, left))
            left -= int(upto[at - 1]) if at else 0
            known = known << _DIGIT_BITS | (at if is_rising else counts.size - 1 - at)
        weight = float(np.array([known], np.uint64).view(np.float64)[0])
        equal = self.over_pairs("select", lambda s: int(self._equal(s, weight).sum()))
        kept = {}
        for stretch, n in zip(self.pairs.stretches, equal, strict=True):
            kept[stretch] = min(n, left)
            left -= kept[stretch]
        return _Cut(weight, kept)

    def _count_digits(self, counts: Array, known: int, shift: int, stretch: Stretch) -> None:
        """Count the digits at `shift` of weights whose higher digits are known."""
        bits = self.pairs.read(stretch)[1][self.marks(stretch)].view(np.uint64) >> np.uint64(shift)
        digits = bits[bits >> np.uint64(_DIGIT_BITS) == np.uint64(known)] & np.uint64(0xFFFF)
        found = np.bincount(digits.astype(np.int64), minlength=counts.size)
        with self.lock:
            counts += found

    def _equal(self, stretch: Stretch, weight: float) -> Array:
        """Return which marked pairs have this weight."""
        found: Array = self.marks(stretch) & (self.pairs.read(stretch)[1] == weight)
        return found

    def compare(self, cut: _Cut | None) -> list[str]:
        """Compare the edges with what is kept of the pairs."""
        found = self.over_pairs("compare", partial(self._compare, cut))
        return [text for text in found if text]

    def _compare(self, cut: _Cut | None, stretch: Stretch) -> str | None:
        numbers, weights = self.pairs.read(stretch)
        marks = kept = self.marks(stretch)
        if cut is not None:
            kept = marks & (self.strength(weights) >= self.strength(np.array(cut.weight)))
            equal = np.flatnonzero(self._equal(stretch, cut.weight))
            kept[equal[cut.left[stretch] :]] = False
        place = stretch.start, stretch.stop
        found = self.check.differ(stretch.first, numbers[kept], weights[kept], *place)
        if found is None:
            return None
        cell = found.src - (stretch.first << self.check.shift)
        number = (cell << self.check.bits) + found.dst
        at = int(np.searchsorted(numbers, number))
        is_listed = at < numbers.size and numbers[at] == number
        if not is_listed:
            return self._told(found, None, is_marked=False)
        return self._told(found, float(weights[at]), is_marked=bool(marks[at]))

    def _told(self, found: Difference, weight: float | None, *, is_marked: bool) -> str:
        """Say what differs, and why a pair should be there or not."""
        kept = f", which is kept (weight {weight!r}; {self.kept.words})"
        if is_marked:
            why = f"its weight {weight!r} is not one of the {self.kept.max_edges} strongest of all"
        elif weight is not None:
            top = self.kept.top_k
            why = f"its weight {weight!r} is not one of the {top} strongest of either cell"
        elif self.kept.min_weight is not None:
            why = f"the matrix has no weight of at least {self.kept.min_weight} for these cells"
        else:
            why = ""
        return self.check.told(found, kept, why)
