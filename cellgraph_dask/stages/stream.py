"""The method for symmetric graphs: one pass, no temporary files.

Where ``C[i, j]`` is stored exactly if ``C[j, i]`` is, and no weight is negative, the upper entries
block after block already are the edges. Each block writes its own to the output, and adds the
hashes of its upper entries to a sum from which it takes those of its mirrored lower ones. A sum of
zero over all blocks proves the symmetry. If it is anything else, or entries are repeated, what was
written is thrown away and the general method is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Summary
from ..source.matrix import Block
from . import loops, weighted_loops
from .job import EdgeSink, Job, NotSymmetricError, deliver, read_kept
from .rules import CODES, check_diagonal, check_edges, check_weights

MOST_STREAM_ENTRIES = 1 << 20  # without temporary files small blocks do: they stay in the caches
_MASK = 2**64 - 1


class Ends(NamedTuple):
    """What the proof of symmetry needs to know of a block."""

    first_row: int
    last_row: int  # inclusive; both may continue in other blocks
    imbalance: tuple[int, int]  # the two halves of the sum of hashes
    largest: int  # entries off the diagonal: most in a row,
    first: int  # … in the first row,
    last: int  # … in the last row
    first_edge: tuple[int, int] | None
    last_edge: tuple[int, int] | None

    @classmethod
    def of(
        cls, block: Block, imbalance: tuple[int, int], degrees: Array, src: Array, dst: Array
    ) -> Ends:
        """Return that of a block with these edges, which are in order."""
        edges = [(int(src[k]), int(dst[k])) for k in (0, -1)] if src.size else [None, None]
        largest, first, last = degrees[:3].tolist()
        return cls(block.first_row, block.last_row - 1, imbalance, largest, first, last, *edges)


class StreamSummary(NamedTuple):
    """What a streamed block leaves behind."""

    ends: Ends
    position: int  # of its upper entries in the sink; all are edges
    n_edges: int
    crc: int  # of their sources, destinations, and weights if they have some


def with_ends(kind: Callable[..., Summary]) -> Callable[..., Summary]:
    """Return what makes a summary, of which `Ends` come first, from its values in a journal."""
    return lambda ends, *values: kind(Ends(*ends), *values)


def stream_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that `stream` needs for a block of that size on one thread."""
    read = job.source.block_bytes(n_entries, n_rows, signed=job.weighs)
    weights = 0 if job.rule is None else 3 * 8  # as float64, merged, and keys to sort by
    return read + n_entries * (2 * job.cell_dtype.itemsize + weights)


class Streamed(NamedTuple):
    """What a block holds, if nothing speaks against the symmetry of its matrix so far."""

    columns: list[Array]  # sources, destinations and, if the job has a rule, weights (float64)
    imbalance: tuple[int, int]  # the two halves of the sum of hashes
    degrees: Array  # entries off the diagonal: most in a row, in the first, in the last; int64


def read_edges(
    job: Job, seeds: NDArray[np.uint64], block: Block, *, proved: bool = False
) -> Streamed:
    """Read a block and check it; its edges are good until this thread's next block.

    Where the matrix is `proved` to be symmetric, and `both` directions are wanted, nothing is
    hashed again.
    """
    entries = job.source.read_block(block, weights=job.rule is not None)
    size = block.stop - block.start
    out = [buffers.take(f"stream {side}", size, job.cell_dtype) for side in ("src", "dst")]
    imbalance = np.zeros(3, np.uint64)
    degrees = np.zeros(4, np.int64)
    if job.rule is None:
        n, repeats = loops.stream_block(
            entries.indices, entries.indptr, block.first_row, seeds, *out, imbalance, degrees
        )
    else:
        out.append(buffers.take("stream weights", size, np.float64))
        weights = check_weights(job.source, job.rule, block, entries)
        if job.refuse_diagonal:
            check_diagonal(job.source, block, entries)
        weights = weights.astype(np.float64, copy=False)
        keys, rule = buffers.take("row keys", size, np.int64), CODES.index(job.rule)
        if proved and job.both:
            n, repeats = weighted_loops.copy_entries(
                entries.indices, weights, entries.indptr, block.first_row, rule, keys, *out, degrees
            )
        else:
            n, repeats = weighted_loops.stream_entries(
                entries.indices, weights, weights.view(np.uint64), np.array([np.inf]),
                entries.indptr, block.first_row,
                np.array([block.first_row + 1, block.last_row - 1]),
                job.both, rule, seeds, keys, *out, imbalance, degrees,
            )  # fmt: skip
    has_diagonal = degrees[3] > 0  # where stored zeros have been put, too
    if repeats or imbalance[2] or (job.strict and has_diagonal):
        raise NotSymmetricError
    edges = [column[:n] for column in out]
    if job.rule is not None:
        check_edges(job.source, *edges)
    return Streamed(edges, (int(imbalance[0]), int(imbalance[1])), degrees)


def stream(job: Job, seeds: NDArray[np.uint64], sink: EdgeSink, block: Block) -> StreamSummary:
    """Read a block, check it, and write its upper entries to the output."""
    edges, imbalance, degrees = read_edges(job, seeds, block)
    delivered = deliver(job, sink, block.number, edges)
    return StreamSummary(Ends.of(block, imbalance, degrees, *edges[:2]), *delivered)


def stream_holds(job: Job, sink: EdgeSink, kept: tuple[Block, StreamSummary]) -> bool:
    """Whether the edges that a streamed block has written are still there."""
    _, summary = kept
    edges = read_kept(job, sink, summary.position, summary.n_edges, summary.crc)
    return edges is not None


def prove_symmetry(blocks: Sequence[Ends]) -> int | None:
    """Return the largest degree if the streamed edges are those of the matrix, else None."""
    if any(sum(block.imbalance[half] for block in blocks) & _MASK for half in (0, 1)):
        return None
    largest, row, degree = 0, -1, 0
    last_edge = (-1, -1)
    for block in blocks:
        if block.first_edge is not None and block.last_edge is not None:
            if tuple(block.first_edge) <= last_edge:  # a row in several blocks, not sorted
                return None
            last_edge = (block.last_edge[0], block.last_edge[1])  # a list in a journal
        # Entries of a row that continues in the next block are counted together.
        degree = block.first + (degree if block.first_row == row else 0)
        largest = max(largest, block.largest, degree)
        if block.last_row != block.first_row:
            degree = block.last
        row = block.last_row
    return largest
