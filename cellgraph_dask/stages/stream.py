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
    # As floats, in the order of rows, keys to sort by, and as they are delivered.
    weights = 0 if job.rule is None else 2 * job.streamed_dtype.itemsize + 8 + 8 * job.weights
    return read + n_entries * (2 * job.cell_dtype.itemsize + weights)


class Streamed(NamedTuple):
    """What a block holds, if nothing speaks against the symmetry of its matrix so far."""

    columns: list[Array]  # sources, destinations and, if the job has a rule, weights (floats)
    imbalance: tuple[int, int]  # the two halves of the sum of hashes
    degrees: Array  # see `loops.stream_block`


def read_edges(
    job: Job, seeds: NDArray[np.uint64], block: Block, *, proved: bool = False
) -> Streamed:
    """Read a block and check it; its edges are good until this thread's next block.

    Where the matrix is `proved` to be symmetric, and `both` directions are wanted, nothing is
    hashed again.
    """
    degrees = np.zeros(4, np.int64)
    if job.rule is None:
        entries = job.source.read_block(block)
        size = block.stop - block.start
        edges = [buffers.take(f"stream {side}", size, job.cell_dtype) for side in ("src", "dst")]
        imbalance = np.zeros(2, np.uint64)
        n, repeats = loops.stream_block(
            entries.indices, entries.indptr, block.first_row, seeds, *edges, imbalance, degrees
        )
        if repeats:
            raise NotSymmetricError
        edges = [column[:n] for column in edges]
    else:
        edges, imbalance = _read_weighted(
            job, seeds, block, degrees, hashed=not (proved and job.both)
        )
    return Streamed(edges, (int(imbalance[0]), int(imbalance[1])), degrees)


def _read_weighted(
    job: Job, seeds: NDArray[np.uint64], block: Block, degrees: Array, *, hashed: bool
) -> tuple[list[Array], Array]:
    """Return a block's edges with weights, and the sums of hashes; see `read_edges`."""
    assert job.rule is not None
    dtype = job.streamed_dtype
    entries = job.source.read_block(block, weights=True, narrow=dtype == np.float32)
    weights = check_weights(job.source, job.rule, block, entries).astype(dtype, copy=False)
    indices, indptr, first = entries.indices, entries.indptr, block.first_row
    src = buffers.take("stream src", weights.size, job.cell_dtype)
    imbalance = np.zeros(3, np.uint64)
    if hashed:
        n_diagonal, unsorted = weighted_loops.weigh_block(
            indices, weights, weights.view(f"u{dtype.itemsize}"), np.array([np.inf], dtype), indptr,
            first, np.array([first + 1, block.last_row - 1]), seeds, src, imbalance,
        )  # fmt: skip
    else:
        n_diagonal, unsorted = weighted_loops.look_at_block(indices, indptr, first, src)
    if job.refuse_diagonal and n_diagonal:
        check_diagonal(job.source, block, entries)
    if imbalance[2] or (job.strict and n_diagonal):  # where stored zeros have been put, too
        raise NotSymmetricError
    loops.count_degrees(indices, indptr, first, n_diagonal, degrees)
    is_narrow = indices.itemsize == job.cell_dtype.itemsize
    if is_narrow and job.both and job.rule in ("max", "min") and not (n_diagonal or unsorted):
        return [src, indices.view(job.cell_dtype), weights], imbalance
    edges = [src, *(buffers.take(f"stream {name}", weights.size, of)
                    for name, of in (("dst", job.cell_dtype), ("weights", dtype)))]  # fmt: skip
    keys = buffers.take("row keys", weights.size, np.int64)
    n, repeats = weighted_loops.place_entries(
        indices, weights, job.both, CODES.index(job.rule), unsorted, keys, *edges
    )
    if repeats:
        raise NotSymmetricError
    edges = [column[:n] for column in edges]
    check_edges(job.source, *edges)
    return edges, imbalance


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
