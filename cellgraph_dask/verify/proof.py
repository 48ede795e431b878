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

    block of rows ──► its entries as keys, by partition of their smaller cell, in memory or on disk
    partition     ──► all its keys, sorted: without repeats, they must be its edges, one by one

A partition with more keys than memory is gone through in ranges of keys, halved as often as it
takes.

**Signed.** Where weights are negative, entries may cancel each other. Then keys carry the weights;
those of equal pairs are added up, and what is not zero must be the edges. Integers are added up
exactly. Float weights are added in float64, in stored order, one direction after the other, as
``C + C.T`` is defined for the export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from ..edge_pairs.reader import SLAB_EDGES
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from ..source.matrix import Block, Source
from . import loops
from .pair_file import key_dtype, proof_shift, weight_dtype

_MASK = 2**64 - 1
# Blocks and pieces are small, so that more pairs can stay in memory; of very large graphs not so
# small that there would be too many.
_MOST_BLOCK, _USUAL_BLOCK, _LEAST_BLOCK = 1 << 22, 1 << 21, 1 << 16
_MOST_BLOCKS = 512

PART = 1 << 15  # keys that are looked through at once where a partition has too many

Kind = Literal["sums", "comparison", "signed", "weights"]
WEIGHTED: tuple[Kind, ...] = ("signed", "weights")  # proofs to which weights matter


@dataclass(frozen=True)
class ProofPlan:
    """Sizes that keep a proof within its memory."""

    block_entries: int  # most stored entries and rows in a block
    block_rows: int
    piece_entries: int  # most entries that are sorted at once
    threads: int
    room: int = 0  # bytes of entries that may stay in memory
    short_keys: bool = True  # if there can be: it takes more partitions, and room for their places

    def shift(self, source: Source) -> int:
        """Return the shift of partitions."""
        return proof_shift(source.n_cells, short=self.short_keys)

    def item_bytes(self, source: Source, kind: Kind) -> int:
        """Return the bytes in which an entry waits: a key, and where they are added up a weight."""
        is_weighted = kind in WEIGHTED
        key = key_dtype(source.n_cells, self.shift(source), is_weighted=is_weighted).itemsize
        return key + is_weighted * weight_dtype(source).itemsize

    def table_bytes(self, source: Source) -> int:
        """Return the bytes that it takes to note where the partitions of all blocks are."""
        n_blocks = source.n_entries // self.block_entries + source.n_cells // self.block_rows + 2
        return 8 * n_blocks * ((source.n_cells >> self.shift(source)) + 41)


# Bytes an entry, where weights matter, of the order, its sort, and both columns in order; and of
# both sums of a pair, and what it takes to combine them.
_SORTING: dict[Kind, int] = {"signed": 40, "weights": 40 + 6 * 8}


def proof_bytes(source: Source, plan: ProofPlan, kind: Kind = "comparison") -> int:
    """Return the most bytes that a proof with these sizes needs, entries that wait apart."""
    block = source.block_bytes(plan.block_entries, plan.block_rows, signed=kind in WEIGHTED)
    if kind == "sums":
        return plan.threads * (block + 4 * loops.TILE)
    item = plan.item_bytes(source, kind)
    block += plan.block_entries * item + 32 * ((source.n_cells >> plan.shift(source)) + 1)
    # Entries as they are read, gathered, and as pairs. To sort with weights takes the order, the
    # work space of its sort, and both columns in order.
    per_entry = 2 * item + 8 + _SORTING.get(kind, 0)
    # Edges are held as stored, as pairs, and one side as it becomes part of them.
    piece = plan.piece_entries * per_entry + SLAB_EDGES * 48 + PART * 64
    return plan.threads * max(block, piece) + plan.table_bytes(source)


def smallest_proof_bytes(source: Source, kind: Kind) -> int:
    """Return the bytes that will do for a proof, and for those that it may come to."""
    smallest = ProofPlan(_LEAST_BLOCK, _LEAST_BLOCK, _LEAST_BLOCK, 1, short_keys=False)
    kinds: list[Kind] = [kind]
    if kind == "sums":
        kinds.append("comparison")
    if kind in ("sums", "comparison") and source.data.dtype.kind not in "bu":
        kinds.append("signed")
    return max(proof_bytes(source, smallest, kind) for kind in kinds)


def plan_proof(
    source: Source, available: int, threads: int, kind: Kind = "comparison"
) -> ProofPlan | None:
    """Return the largest sizes that fit, or None; rather fewer threads than tiny blocks."""
    chunk = source.chunk_size
    even = source.n_entries // (4 * threads)
    usual = min(_MOST_BLOCK, max(_USUAL_BLOCK, source.n_entries // _MOST_BLOCKS))
    most = max(_LEAST_BLOCK, min(usual, even))
    least = chunk * (_LEAST_BLOCK // chunk) if chunk < _LEAST_BLOCK else _LEAST_BLOCK
    for n_threads in range(threads, 0, -1):
        block = chunk * max(1, most // chunk)
        while block >= least:
            piece = min(usual, max(_LEAST_BLOCK, block))
            plan = ProofPlan(block, max(block // 8, _LEAST_BLOCK), piece, n_threads)
            plan = replace(plan, short_keys=4 * plan.table_bytes(source) <= available)
            left = available - proof_bytes(source, plan, kind)
            if left >= 0:
                most_room = plan.item_bytes(source, kind) * source.n_entries
                return replace(plan, room=0 if kind == "sums" else min(left, most_room))
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
    source: Source, blocks: Sequence[Block], seeds: Array, edge_sum: tuple[int, int],
    executor: Executor,
) -> bool:  # fmt: skip
    """Return whether upper entries, mirrored lower entries and edges have one sum of hashes.

    The matrix must have at most 2³² cells; `seeds` are four random uint64 values. A negative weight
    raises `NegativeWeightError`.
    """
    sizes = [block.stop - block.start for block in blocks]
    task = partial(_hash_block, source, seeds)
    stage = Stage("matrix", task, blocks, sizes, "entries", ahead=source.begin_reading)
    sums = executor.run(stage)
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
