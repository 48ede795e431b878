"""The proof by comparison, with weights or without: see `proof` for the method.

Tasks over blocks leave entries as keys, by partition. Tasks over *pieces*, partitions next to each
other, sort the keys and compare them with the edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.reader import PlainEdges
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from ..source.matrix import Block, Source
from . import loops
from .pair_file import KeyForm, PairFile
from .proof import MOST_PARTITIONS, PART, Kind, ProofPlan


def prove_by_comparison(
    source: Source,
    blocks: Sequence[Block],
    edges: PlainEdges,
    folder: Path,
    plan: ProofPlan,
    executor: Executor,
    kind: Kind = "comparison",
) -> list[str]:
    """Compare edges and entries, both ways; return what is wrong.

    Parameters
    ----------
    source, blocks
        The matrix.
    edges
        The edges, whose order has been checked.
    folder
        Where entries go that do not stay in memory.
    plan
        Sizes.
    executor
        What runs the tasks.
    kind
        "signed" if weights are to be added up, else "comparison".

    Raises
    ------
    NegativeWeightError
        If a weight is negative and `kind` is "comparison".
    DamagedGraphError
        If the matrix breaks a rule.
    """
    form = KeyForm.of(source, is_weighted=kind == "signed")
    n_partitions = max(1, -(-source.n_cells >> form.shift))
    file = PairFile(folder / kind, form.columns, n_partitions, plan.room)
    with closing(file):
        compare = _Comparison(source, edges, file, form, plan.piece_entries)
        sizes = [block.stop - block.start for block in blocks]
        executor.run(Stage("matrix", compare.leave, blocks, sizes, "entries"))
        buffers.release()  # where this very thread has run the tasks
        pieces = _cut_pieces(edges, file.counts, form.shift, plan.piece_entries)
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


def _cut_pieces(edges: PlainEdges, counts: Array, shift: int, most: int) -> list[_Piece]:
    """Group partitions while their entries are not too many."""
    starts = [edges.position(f << shift) for f in range(counts.size)] + [edges.n_edges]
    pieces = []
    first = n_entries = 0
    for f in range(counts.size):
        if f > first and (n_entries + counts[f] > most or f - first == MOST_PARTITIONS):
            pieces.append(_Piece(first, f, starts[first], starts[f]))
            first, n_entries = f, 0
        n_entries += int(counts[f])
    pieces.append(_Piece(first, counts.size, starts[first], starts[-1]))
    return pieces


@dataclass(frozen=True)
class _Comparison:
    """What the tasks of a comparison share."""

    source: Source
    edges: PlainEdges
    file: PairFile
    form: KeyForm
    most: int

    def leave(self, block: Block) -> None:
        """Leave a block's entries as keys, by partition."""
        form = self.form
        indices, indptr, weights = self.source.read_block(block, weights=form.is_weighted)
        starts = np.zeros(self.file.counts.size + 1, np.int64)
        loops.count_pairs(indices, indptr, block.first_row, form.shift, starts[1:])
        np.cumsum(starts, out=starts)
        columns = form.take("entry", int(starts[-1]))
        if weights is None:
            weights = columns["weight"]
        loops.place_pairs(
            indices, indptr, weights, block.first_row, form.shift, form.bits, starts[:-1].copy(),
            columns["low"], columns["high"], columns["weight"],
        )  # fmt: skip
        self.file.append(block.number, starts, columns)

    def piece(self, piece: _Piece) -> str | None:
        """Compare the entries of a piece with its edges; return the first difference."""
        n = int(self.file.counts[piece.first : piece.last].sum())
        if n > self.most:
            assert piece.last == piece.first + 1
            return self._range(piece.first, 0, 1 << (self.form.shift + self.form.bits))
        columns = self.form.take("read", n)
        keys, weights = self._take(n)
        slices = self._read(piece, columns)
        ends = np.empty(piece.last - piece.first + 1, np.int64)
        loops.join_keys(
            columns["low"], columns["high"], columns["weight"], slices, keys, weights, ends
        )
        ends = self._sort(keys, weights, ends)
        return self._differ(piece, keys, ends)

    def _take(self, n: int) -> tuple[Array, Array]:
        """Return this thread's work space for `n` keys to sort, and for weights if there are."""
        form = self.form
        keys = buffers.take("keys", n, form.key_dtype)
        return keys, buffers.take("key weights", n * form.is_weighted, form.weight_dtype)

    def _read(self, piece: _Piece, columns: dict[str, Array]) -> Array:
        """Read all entries of a piece, lot after lot; return where each partition starts in each.

        Returns
        -------
        ndarray
            ``(n_lots, n_partitions + 1)`` int64.
        """
        lots = self.file.lots(piece.first, piece.last)
        slices = np.empty((len(lots), piece.last - piece.first + 1), np.int64)
        at = 0
        for k, lot in enumerate(lots):
            start, stop = int(lot.starts[piece.first]), int(lot.starts[piece.last])
            n = stop - start
            self.file.read(lot, start, stop, {c: v[at : at + n] for c, v in columns.items()})
            slices[k] = lot.starts[piece.first : piece.last + 1] - start + at
            at += n
        return slices

    def _sort(self, keys: Array, weights: Array, ends: Array) -> Array:
        """Sort the keys of each partition; keep each once, or if its weights have a sum.

        Parameters
        ----------
        keys, weights
            Changed in place; what is kept moves to the front.
        ends
            Where each partition starts, and where the last one ends.

        Returns
        -------
        ndarray
            Where each partition ends now.
        """
        add_up = loops.add_up_floats if weights.dtype.kind == "f" else loops.add_up_integers
        kept = []
        n = 0
        for a, b in pairwise(ends.tolist()):
            part = keys[a:b]
            if self.form.is_weighted:
                order = np.argsort(part, kind="stable")
                n += add_up(part[order], weights[a:b][order], keys[n:])
            else:
                part.sort()
                n += loops.drop_repeats(part, keys[n:])
            kept.append(n)
        return np.array(kept, np.int64)

    def _range(self, partition: int, low: int, high: int) -> str | None:
        """Compare the pairs of a partition with keys in ``[low, high)``, if need be in halves."""
        taken = self._select(partition, low, high)
        if taken is None and high - low > 1:
            middle = (low + high) // 2
            return self._range(partition, low, middle) or self._range(partition, middle, high)
        if taken is None:
            keys = np.array([low] if self._is_nonzero(partition, low) else [], self.form.key_dtype)
            ends = np.array([keys.size])
        else:
            keys, weights = taken
            ends = self._sort(keys, weights, np.array([0, keys.size]))
        start = self.edges.position(*self.form.pair(partition, low))
        stop = self.edges.position(*self.form.pair(partition, high))
        return self._differ(_Piece(partition, partition + 1, start, stop), keys, ends)

    def _select(self, partition: int, low: int, high: int) -> tuple[Array, Array] | None:
        """Return keys, in stored order, and weights of pairs in a range; None if too many."""
        keys, weights = self._take(self.most)
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
        side = int(self.form.is_weighted)
        for lot in self.file.lots(partition, partition + 1):
            last = int(lot.starts[partition + 1])
            for start in range(int(lot.starts[partition]), last, PART):
                stop = min(start + PART, last)
                columns = self.form.take("part", stop - start)
                self.file.read(lot, start, stop, columns)
                keys = columns["low"].astype(np.int64)
                if columns["high"].size:
                    keys |= columns["high"].astype(np.int64) << 32
                inside = (keys >= low << side) & (keys < high << side)
                yield keys[inside], columns["weight"][inside] if side else columns["weight"]

    def _is_nonzero(self, partition: int, key: int) -> bool:
        """Add up one pair that is stored too often to be held."""
        if not self.form.is_weighted:
            return True
        sums: list[Any] = [0, 0]
        for keys, weights in self._parts(partition, key, key + 1):
            for side, weight in zip((keys & 1).tolist(), weights.tolist(), strict=True):
                sums[side] += weight
        return bool(sums[0] + sums[1] != 0)

    def _differ(self, piece: _Piece, keys: Array, ends: Array) -> str | None:
        """Return the first difference between the sorted keys of a piece and its edges."""
        form = self.form
        cursor = np.zeros(2, np.int64)
        wanted: tuple[int, int] | None = None
        for number, src, dst in self.edges.slabs(piece.start, piece.stop):
            different = loops.first_difference(
                keys, ends, piece.first, form.shift, form.bits, src, dst, cursor
            )
            if different >= 0:
                wanted = self._next(piece.first, keys, ends, cursor)
                edge = int(src[different]), int(dst[different])
                if wanted is None or edge < wanted:
                    return _unfounded(self.edges, number + different)
                return _missing(self.source, self.edges, *wanted)
        wanted = self._next(piece.first, keys, ends, cursor)
        return None if wanted is None else _missing(self.source, self.edges, *wanted)

    def _next(self, first: int, keys: Array, ends: Array, cursor: Array) -> tuple[int, int] | None:
        """Return the pair of the next key, if there is one."""
        at = int(cursor[0])
        if at == ends[-1]:
            return None
        partition = first + int(np.searchsorted(ends, at, "right"))
        return self.form.pair(partition, int(keys[at]))


def _missing(source: Source, edges: PlainEdges, small: int, large: int) -> str:
    """Say that the matrix has a nonzero without edge."""
    row, column = (small, large) if source.has_entry(small, large) else (large, small)
    if source.layout == "csc":
        row, column = column, row
    number = edges.position(small, large)
    return (
        f"{source.key} has a nonzero in row {row}, column {column}, but there is no edge "
        f"({small}, {large}); it would be edge {number} (byte {number * edges.dtype.itemsize})."
    )


def _unfounded(edges: PlainEdges, number: int) -> str:
    """Say that an edge has no nonzero in the matrix."""
    return (
        f"edge {number} (byte {number * edges.dtype.itemsize}) is {edges.edge(number)}, but the "
        "matrix has no nonzero for these cells."
    )
