"""Proving that edges are those of their matrix, apart from all that the export did to find them.

Let U be the pairs ``(i, j)``, i < j, for which C[i, j] is stored with a weight that is not zero, L
those for which C[j, i] is, and E the exported edges. Unless a weight is negative, to be shown is
``E = U ∪ L``.

**By sums.** Each of the three is hashed pair by pair with random seeds and summed up, 128 bits
wide. If all three sums agree, then U, L and E hold the same pairs, each as often as the others; and
as no edge is there twice, ``E = U = L``. Otherwise their sums agree with a chance of about 2⁻¹²⁸.
This takes one look at the matrix and one at the edges, in any order, and is tried where the matrix
looks symmetric.

**By comparison**, for any matrix, in two steps::

    block of rows ──► upper entries: looked up among the edges of their rows, which are
      │               consecutive in the files; what is found is marked
      └─────────────► lower entries ──► pairs by partition of their smaller cell, on disk
    partition ──────► its pairs: looked up among its edges, which are consecutive too; marked
                      every edge must now be marked

An entry without its edge is seen when it is looked up, an edge without entry by its missing mark.
Upper entries of rows that are cut by a block's border, or that have too many edges to be held, go
the way of the lower ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..edge_pairs.reader import SLAB_EDGES, PlainEdges
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from ..source.matrix import Block, Source
from . import loops
from .pair_file import Marks, PairFile
from .statistics import cell_dtype

_MASK = 2**64 - 1
_PARTITIONS = 4096  # about as many partitions as there should be, of 2⁸ to 2¹⁶ cells
_MOST_SOURCES = 1 << 18  # cells in a piece
# Blocks and pieces are small, so that more pairs can stay in memory; of very large graphs not so
# small that there would be too many.
_MOST_BLOCK, _USUAL_BLOCK, _LEAST_BLOCK = 1 << 22, 1 << 20, 1 << 16
_MOST_BLOCKS = 512
_MOST_ROWS = 1 << 16  # of a block in a comparison

Kind = Literal["sums", "comparison", "signed"]


@dataclass(frozen=True)
class ProofPlan:
    """Sizes that keep a proof within its memory.

    Attributes
    ----------
    block_entries, block_rows : int
        Most stored entries and rows in a block.
    piece_edges : int
        Most edges, and most pairs, that are compared at once.
    threads : int
        Threads that work at once.
    room : int
        Bytes of pairs that may stay in memory.
    marks_held : bool
        Whether the marks of all edges stay in memory.
    """

    block_entries: int
    block_rows: int
    piece_edges: int
    threads: int
    room: int = 0
    marks_held: bool = False


class _Rows(NamedTuple):
    """A block, and which of its rows are not cut by its borders: ``[begin, end)``."""

    block: Block
    begin: int
    end: int


class _Piece(NamedTuple):
    """Partitions ``[first, last)``, and their edges ``[start, stop)``."""

    first: int
    last: int
    start: int
    stop: int


def proof_shift(n_cells: int) -> int:
    """Return the shift of partitions: each is ``2**shift`` cells, at most 2¹⁶."""
    return min(16, max(8, math.ceil(math.log2(max(2, n_cells / _PARTITIONS)))))


def proof_bytes(source: Source, plan: ProofPlan, kind: Kind = "comparison") -> int:
    """Return the most bytes that a proof with these sizes needs, pairs and marks apart."""
    signed = kind == "signed"
    block = source.block_bytes(plan.block_entries, plan.block_rows, signed=signed)
    if kind == "sums":
        return plan.threads * (block + 4 * loops.TILE)
    cell = cell_dtype(source.n_cells).itemsize
    shift = proof_shift(source.n_cells)
    n_partitions = (source.n_cells >> shift) + 1
    n_blocks = source.n_entries // plan.block_entries + source.n_cells // plan.block_rows + 2
    block += plan.block_entries * (2 + cell + 8 * signed) + 17 * plan.block_rows
    block += 48 * n_partitions + plan.piece_edges * (cell + 2) + SLAB_EDGES * cell
    piece = plan.piece_edges * (2 + cell + cell + 2) + 24 * _MOST_SOURCES + SLAB_EDGES * cell
    piece += 16 * n_blocks * ((_MOST_SOURCES >> shift) + 2)
    if signed:  # keys, weights and sides, sorted and not
        piece += plan.piece_edges * 80
    return plan.threads * max(block, piece) + 2 * 8 * n_blocks * (n_partitions + 40)


def plan_proof(
    source: Source, n_edges: int, available: int, threads: int, kind: Kind = "comparison"
) -> ProofPlan | None:
    """Return the largest sizes that fit, or None; rather fewer threads than tiny blocks."""
    chunk = source.chunk_size
    even = source.n_entries // (4 * threads)
    usual = min(_MOST_BLOCK, max(_USUAL_BLOCK, source.n_entries // _MOST_BLOCKS))
    most = max(_LEAST_BLOCK, min(usual, even))
    if kind == "comparison":  # blocks that end with chunks rather than with the most rows
        mean = source.n_entries / max(source.n_cells, 1)
        most = max(_LEAST_BLOCK, min(most, int(0.9 * _MOST_ROWS * mean)))
    least = chunk * (_LEAST_BLOCK // chunk) if chunk < _LEAST_BLOCK else _LEAST_BLOCK
    for n_threads in range(threads, 0, -1):
        block = chunk * max(1, most // chunk)
        while block >= least:
            piece = min(usual, max(_LEAST_BLOCK, block))
            rows = _MOST_ROWS - 1 if kind == "comparison" else max(block // 8, _LEAST_BLOCK)
            plan = ProofPlan(block, rows, piece, n_threads)
            left = available - proof_bytes(source, plan, kind)
            if left >= 0:
                marks_held = kind == "comparison" and n_edges // 8 + 8 <= left // 4
                left -= (n_edges // 8 + 8) * marks_held
                most_pairs = (26 if kind == "signed" else 4) * source.n_entries
                return replace(plan, room=min(left, most_pairs), marks_held=marks_held)
            # By whole chunks as long as there are several, then by parts of one.
            n_chunks = block // chunk
            block = chunk * -(-n_chunks // 2) if n_chunks > 1 else -(-block // 2)
    return None


def check_cover(source: Source, blocks: Sequence[Block]) -> None:
    """Make sure that blocks hold every stored entry once, in order."""
    ends = [0, *(block.stop for block in blocks)]
    starts = [*(block.start for block in blocks), source.n_entries]
    if starts != ends:
        raise AssertionError("blocks do not cover the matrix")


def prove_by_sums(
    source: Source,
    blocks: Sequence[Block],
    seeds: Array,
    edge_sum: tuple[int, int],
    executor: Executor,
) -> bool:
    """Tell whether upper entries, mirrored lower entries and edges have the same sum of hashes.

    Parameters
    ----------
    source, blocks
        The matrix; fewer than 2³² cells.
    seeds
        Four random uint64 values.
    edge_sum
        The sum over the edges.
    executor
        What runs the tasks.

    Raises
    ------
    NegativeWeightError
        If a weight is negative.
    DamagedGraphError
        If the matrix breaks a rule.
    """
    sizes = [block.stop - block.start for block in blocks]
    task = partial(_hash_block, source, seeds)
    sums = executor.run(Stage("matrix", task, blocks, sizes, "entries"))
    totals = [sum(column) & _MASK for column in zip(*sums, strict=True)] or [0] * 4
    return tuple(totals[:2]) == tuple(totals[2:]) == edge_sum


def _hash_block(source: Source, seeds: Array, block: Block) -> tuple[int, ...]:
    entries = source.read_block(block)
    sums = np.zeros((2, 2), np.uint64)
    rows = buffers.take("rows", loops.TILE, np.uint32)
    loops.hash_entries(
        entries.indices, entries.indptr, block.first_row, seeds, rows, sums[0], sums[1]
    )
    return tuple(int(half) for half in sums.ravel())


def prove_by_comparison(
    source: Source,
    blocks: Sequence[Block],
    edges: PlainEdges,
    folder: Path,
    plan: ProofPlan,
    executor: Executor,
) -> list[str]:
    """Compare edges and entries, both ways; return what is wrong.

    Parameters
    ----------
    source, blocks
        The matrix.
    edges
        The edges, whose order has been checked.
    folder
        Where pairs and marks go.
    plan
        Sizes.
    executor
        What runs the tasks.

    Raises
    ------
    NegativeWeightError
        If a weight is negative.
    DamagedGraphError
        If the matrix breaks a rule.
    """
    shift = proof_shift(source.n_cells)
    n_partitions = max(1, -(-source.n_cells >> shift))
    small, cell = np.dtype(np.uint16), cell_dtype(source.n_cells)
    with ExitStack() as stack:
        lower = PairFile(
            folder / "lower", {"small": small, "large": small}, n_partitions, plan.room
        )
        stack.callback(lower.close)
        upper = PairFile(folder / "upper", {"small": small, "large": cell}, n_partitions)
        stack.callback(upper.close)
        marks = Marks(folder / "marks", edges.n_edges, held=plan.marks_held)
        stack.callback(marks.close)
        compare = _Comparison(source, edges, lower, upper, marks, plan.piece_edges, shift)
        rows = _whole_rows(blocks)
        sizes = [key.block.stop - key.block.start for key in rows]
        found = executor.run(Stage("matrix", compare.rows, rows, sizes, "entries"))
        problems = [text for text in found if text]
        if problems:
            return problems
        pieces = _cut_pieces(edges, lower.counts + upper.counts, shift, plan.piece_edges)
        sizes = [piece.stop - piece.start for piece in pieces]
        found = executor.run(Stage("compare", compare.piece, pieces, sizes, "edges"))
        return [text for text in found if text]


def _whole_rows(blocks: Sequence[Block]) -> list[_Rows]:
    """Find the rows of each block that no other block has entries of."""
    keys = []
    for k, block in enumerate(blocks):
        begin, end = 0, block.last_row - block.first_row
        if k and blocks[k - 1].last_row > block.first_row:
            begin = 1
        if k + 1 < len(blocks) and blocks[k + 1].first_row < block.last_row:
            end -= 1
        keys.append(_Rows(block, begin, max(begin, end)))
    return keys


def _cut_pieces(edges: PlainEdges, counts: Array, shift: int, most: int) -> list[_Piece]:
    """Group partitions while neither their edges nor their pairs are too many."""
    starts = [edges.position(f << shift) for f in range(counts.size)] + [edges.n_edges]
    pieces = []
    first = n_pairs = 0
    for f in range(counts.size):
        if f > first and (
            n_pairs + counts[f] > most
            or starts[f + 1] - starts[first] > most
            or (f + 1 - first) << shift > _MOST_SOURCES
        ):
            pieces.append(_Piece(first, f, starts[first], starts[f]))
            first, n_pairs = f, 0
        n_pairs += int(counts[f])
    pieces.append(_Piece(first, counts.size, starts[first], starts[-1]))
    return pieces


@dataclass(frozen=True)
class _Comparison:
    """What the tasks of a comparison share."""

    source: Source
    edges: PlainEdges
    lower: PairFile
    upper: PairFile
    marks: Marks
    most: int
    shift: int

    def rows(self, key: _Rows) -> str | None:
        """Mark the edges of a block's upper entries, and leave the others as pairs."""
        block = key.block
        entries = self.source.read_block(block)
        n_rows = block.last_row - block.first_row
        matched = buffers.take("matched rows", n_rows, np.uint8)
        matched[:] = 0
        first = self.edges.position(block.first_row + key.begin)
        last = self.edges.position(block.first_row + key.end)
        ends = self._ends(block.first_row, n_rows, first, last)
        row = key.begin
        while row < key.end:
            stop = int(np.searchsorted(ends[: key.end + 1], ends[row] + self.most, "right")) - 1
            if stop == row:  # too many edges to hold: its entries go the other way
                row += 1
                continue
            a, b = int(ends[row]), int(ends[stop])
            dst = self.edges.read(1, a, b, "edge dst")
            seen = buffers.take("seen", b - a, np.uint8)
            seen[:] = 0
            bad = loops.mark_rows(
                entries.indices, entries.indptr, block.first_row, row, stop, ends, dst, a, seen
            )
            if bad >= 0:
                at = int(np.searchsorted(entries.indptr, bad, "right")) - 1 + block.first_row
                return missing(self.source, self.edges, at, int(entries.indices[bad]))
            self.marks.add(a, seen)
            matched[row:stop] = 1
            row = stop
        self._leave(block, entries.indices, entries.indptr, matched)
        return None

    def _ends(self, first_cell: int, n: int, start: int, stop: int) -> Array:
        """Return where the edges of each of `n` sources end, among the edges ``[start, stop)``."""
        ends = buffers.take("edge ends", n + 1, np.int64)
        ends[:] = 0
        ends[0] = start
        for at in range(start, stop, SLAB_EDGES):
            src = self.edges.read(0, at, min(at + SLAB_EDGES, stop), "slab src")
            loops.index_sources(src, first_cell, ends)
        return np.cumsum(ends, out=ends)

    def _leave(self, block: Block, indices: Array, indptr: Array, matched: Array) -> None:
        """Write the entries of a block that have not been matched to the files of pairs."""
        if indptr.size - 1 > _MOST_ROWS:
            raise AssertionError("the larger cells do not fit 16 bits")
        sides = (self.lower, self.upper)
        starts = [np.zeros(side.counts.size + 1, np.int64) for side in sides]
        loops.count_loose(
            indices, indptr, block.first_row, matched, self.shift, starts[0][1:], starts[1][1:]
        )
        columns = []
        arguments: list[Array] = []
        for name, side, begins in zip(("lower", "upper"), sides, starts, strict=True):
            np.cumsum(begins, out=begins)
            taken = {
                column: buffers.take(f"{name} {column}", int(begins[-1]), dtype)
                for column, dtype in side.columns.items()
            }
            columns.append(taken)
            arguments += [begins[:-1].copy(), taken["small"], taken["large"]]
        loops.gather_loose(indices, indptr, block.first_row, matched, self.shift, *arguments)
        for side, begins, taken, base in zip(
            sides, starts, columns, (block.first_row, 0), strict=True
        ):
            if begins[-1]:
                side.append(block.number, begins, taken, base=base)

    def piece(self, piece: _Piece) -> str | None:
        """Mark the edges of a piece that pairs stand for; all must then be marked."""
        n_pairs = sum(
            int(side.counts[piece.first : piece.last].sum()) for side in (self.lower, self.upper)
        )
        fits = piece.stop - piece.start <= self.most
        if fits and n_pairs <= self.most:
            return self._compare(piece, piece.start, piece.stop, streamed=False)
        for start in range(piece.start, max(piece.stop, piece.start + 1), self.most):
            stop = min(start + self.most, piece.stop)
            problem = self._compare(piece, start, stop, streamed=True)
            if problem:
                return problem
        return None

    def _compare(self, piece: _Piece, start: int, stop: int, *, streamed: bool) -> str | None:
        """Compare some edges of a piece with its pairs, which are held or, streamed, go by."""
        bounds = np.array(
            [
                *(
                    (piece.first << self.shift, 0)
                    if start == piece.start
                    else self.edges.edge(start)
                ),
                *((piece.last << self.shift, 0) if stop == piece.stop else self.edges.edge(stop)),
            ]
        )
        first_cell, last_cell = int(bounds[0]), int(bounds[2])
        ends = self._ends(first_cell, last_cell - first_cell + 1, start, stop)
        ends -= start
        cursor = buffers.take("cursor", ends.size, np.int64)
        cursor[:] = ends
        dst = self.edges.read(1, start, stop, "edge dst")
        seen = buffers.take("seen", stop - start, np.uint8)
        self.marks.get(start, seen)
        place = np.zeros(2, np.int64)
        for side in (self.lower, self.upper):
            for pairs in self._pairs(side, piece, streamed=streamed):
                if loops.mark_pairs(
                    *pairs, piece.first, self.shift, bounds, ends, cursor, dst, seen, place
                ) >= 0:  # fmt: skip
                    return missing(self.source, self.edges, int(place[0]), int(place[1]))
        unseen = loops.first_unseen(seen)
        return unfounded(self.edges, start + unseen) if unseen >= 0 else None

    def _pairs(
        self, side: PairFile, piece: _Piece, *, streamed: bool
    ) -> Iterator[tuple[Array, ...]]:
        """Yield the pairs of a piece, in parts if it is one partition that has too many.

        Each time these are smaller and larger cells, and bases, distances and slices of the lots.
        """
        if side is self.lower:
            values, bases, apart, slices = side.held(piece.first, piece.last)
            yield values, values, bases, apart, slices
        if not streamed:
            columns, bases, slices = side.gather(piece.first, piece.last)
            yield columns["small"], columns["large"], bases, np.zeros_like(bases), slices
            return
        none = np.zeros(1, np.int64)
        for number, base, starts in side.lots(piece.first, piece.last):
            if side.in_memory(number):
                continue
            for at in range(int(starts[0]), int(starts[-1]), self.most):
                n = min(self.most, int(starts[-1]) - at)
                small, large = (
                    buffers.take(f"pair {name}", n, dtype) for name, dtype in side.columns.items()
                )
                side.read(number, "small", at, small)
                side.read(number, "large", at, large)
                yield small, large, np.array([base]), none, np.array([[0, n]])


def missing(source: Source, edges: PlainEdges, small: int, large: int) -> str:
    """Say that the matrix has a nonzero without edge."""
    row, column = (small, large) if source.has_entry(small, large) else (large, small)
    if source.layout == "csc":
        row, column = column, row
    number = edges.position(small, large)
    return (
        f"{source.key} has a nonzero in row {row}, column {column}, but there is no edge "
        f"({small}, {large}); it would be edge {number} (byte {number * edges.dtype.itemsize})."
    )


def unfounded(edges: PlainEdges, number: int) -> str:
    """Say that an edge has no nonzero in the matrix."""
    return (
        f"edge {number} (byte {number * edges.dtype.itemsize}) is {edges.edge(number)}, but the "
        "matrix has no nonzero for these cells."
    )
