"""Second stage: gather partitions from all runs, merge them, and write their edges in place.

A *piece* is what one task merges: consecutive partitions, as many as fit; or, where one partition
alone is too large (a hub with millions of neighbours), a range of its edges. Pieces in order are
the sorted edge list. The place of a piece in the output is known once all pieces before it have
been merged; until then its thread waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ..machine import buffers
from . import loops
from .job import Job
from .runs import Written
from .split_runs import Packed, SplitRuns, gather, gather_bytes, gather_range

Array = NDArray[Any]


class EdgeSink(Protocol):
    """Where edges go, in pieces that may arrive from many threads."""

    def place(self, index: int, n_edges: int) -> int:
        """Return the position of a piece's first edge, as soon as it is known."""

    def write(self, position: int, src: Array, dst: Array) -> None:
        """Write edges at a position."""

    def read(self, position: int, src: Array, dst: Array) -> None:
        """Read back edges that were written at a position; OSError or ValueError if not whole."""


class DegreeSink(Protocol):
    """What counts the edges of each cell."""

    def add(self, job: Job, piece: Piece, src: Array, dst: Array) -> Written:
        """Count the edges of a merged piece; return what was written of temporary files for it."""

    def keep(self, job: Job, piece: Piece, src: Array, dst: Array, written: Written) -> bool:
        """Do the same for a piece of an earlier run; False if what it left does not hold."""


class Piece(NamedTuple):
    """A range of edges that one task merges.

    Attributes
    ----------
    number : int
        Number of the piece.
    first, last : int
        Its partitions, ``[first, last)``.
    low, high : tuple of int or None
        If it is a part of one partition: its first edge and the one after its last, as
        ``(source inside the partition, destination)``.
    n_contributions : int
        Upper and lower entries in it, at most.
    """

    number: int
    first: int
    last: int
    low: tuple[int, int] | None
    high: tuple[int, int] | None
    n_contributions: int


class MergeSummary(NamedTuple):
    """What a merged piece leaves behind.

    Attributes
    ----------
    position, n_edges : int
        Where its edges are in the sink, and how many.
    crc : int
        CRC-32 of their sources and then their destinations.
    n_bytes, degrees_crc : int
        Size and checksum of the temporary file for the degrees.
    """

    position: int
    n_edges: int
    crc: int
    n_bytes: int
    degrees_crc: int


def merge_bytes(job: Job, n_contributions: int, n_sources: int) -> int:
    """Return the most bytes that `merge` needs for a piece of that size on one thread."""
    per_entry = 3 * job.cell_dtype.itemsize  # grouped (later: degrees), merged src and dst
    if job.signed:
        per_entry += 7 * 8  # keys, order, both once more, weights sorted and in two parts
        per_entry += 2 * 8  # … and what the keys are made of
    gathered = gather_bytes(job, n_contributions, n_sources)
    degrees = 4 * n_sources + 6 * 8 * job.n_partitions
    return n_contributions * per_entry + (8 * 4 << job.shift) + gathered + degrees


def merge(runs: SplitRuns, sink: EdgeSink, degrees: DegreeSink, piece: Piece) -> MergeSummary:
    """Merge a piece, write its edges to the sink, and have its degrees counted.

    Parameters
    ----------
    runs
        What `split` has left.
    sink
        Takes the edges.
    degrees
        Counts them by cell.
    piece
        What to merge.
    """
    job = runs.job
    if piece.low is None or piece.high is None:
        packed = gather(runs, piece.first, piece.last)
    else:
        packed = gather_range(runs, piece.first, piece.low, piece.high, piece.n_contributions)
    n = packed.upper["dst"].size + packed.lower["src"].size
    out_src = buffers.take("merged src", n, job.cell_dtype)
    out_dst = buffers.take("merged dst", n, job.cell_dtype)
    merge_packed = _merge_signed if job.signed else _merge
    n_edges = merge_packed(job, piece.first, packed, out_src, out_dst)
    src, dst = out_src[:n_edges], out_dst[:n_edges]
    position = sink.place(piece.number, n_edges)
    sink.write(position, src, dst)
    crc = edges_crc(src, dst)
    return MergeSummary(position, n_edges, crc, *degrees.add(job, piece, src, dst))


def edges_crc(src: Array, dst: Array) -> int:
    """Return the CRC-32 of edges: of the bytes of the sources and then of the destinations."""
    if not src.size:
        return 0
    crc: int = zlib_ng.crc32(dst.view(np.uint8).data, zlib_ng.crc32(src.view(np.uint8).data))
    return crc


def read_kept(
    job: Job, sink: EdgeSink, position: int, n_edges: int, crc: int
) -> tuple[Array, Array] | None:
    """Return the edges that an earlier run has left at a position, or None if they do not hold."""
    src = buffers.take("merged src", n_edges, job.cell_dtype)
    dst = buffers.take("merged dst", n_edges, job.cell_dtype)
    try:
        sink.read(position, src, dst)
    except (OSError, EOFError, ValueError):
        return None
    return (src, dst) if edges_crc(src, dst) == crc else None


def merge_holds(
    job: Job, sink: EdgeSink, degrees: DegreeSink, kept: tuple[Piece, MergeSummary]
) -> bool:
    """Tell whether all that a merged piece has left still holds, and count its degrees."""
    piece, summary = kept
    edges = read_kept(job, sink, summary.position, summary.n_edges, summary.crc)
    written = Written(summary.n_bytes, summary.degrees_crc)
    return edges is not None and degrees.keep(job, piece, *edges, written)


def _merge(job: Job, first: int, packed: Packed, out_src: Array, out_dst: Array) -> int:
    width = 1 << job.shift
    per_partition = [
        np.diff(starts, axis=1).sum(axis=0).reshape(-1, n_bands).sum(axis=1)
        for starts, n_bands in (
            (packed.upper_starts, 1),
            (packed.lower_starts, packed.bases.shape[1]),
        )
    ]
    n_upper, n_lower = (int(n.max(initial=0)) for n in per_partition)
    grouped = buffers.take("grouped", n_upper + n_lower, job.cell_dtype)
    n: int = loops.merge_partitions(
        first, job.shift, packed.first_rows,
        packed.in_row, packed.row_starts, packed.upper["dst"], packed.upper_starts,
        packed.lower["src"], packed.lower["row"], packed.lower_starts, packed.bases,
        buffers.take("upper ends", width + 1, np.int64),
        buffers.take("lower ends", width + 1, np.int64),
        grouped[:n_upper], grouped[n_upper:], out_src, out_dst,
    )  # fmt: skip
    return n


def _merge_signed(job: Job, first: int, packed: Packed, out_src: Array, out_dst: Array) -> int:
    dst_bits = max(1, int(job.source.n_cells - 1).bit_length())
    first_source = first << job.shift
    sources = _upper_sources(packed, first_source), _lower_sources(packed, job.shift)
    destinations = packed.upper["dst"].astype(np.int64), _lower_destinations(packed)
    weights = packed.upper["weight"], packed.lower["weight"]
    sorted_lists = []
    for src, dst, weight in zip(sources, destinations, weights, strict=True):
        keys = (src << dst_bits) | dst
        order = np.argsort(keys, kind="stable")  # stable: repeats are summed in stored order
        weight = weight[order]
        if weight.dtype.kind == "f":
            high, low = np.zeros(weight.size), weight
        else:
            high = (weight >> 32).astype(np.float64)
            low = (weight & 0xFFFFFFFF).astype(np.float64)
        sorted_lists += [keys[order], high, low]
    n: int = loops.merge_signed(*sorted_lists, first_source, dst_bits, out_src, out_dst)
    return n


def _upper_sources(packed: Packed, first_source: int) -> Array:
    """Return the source of each upper entry, counted from the piece's first."""
    rows = []
    for b, first_row in enumerate(packed.first_rows):
        begin = max(0, int(first_row) - first_source)
        rows.append(np.arange(begin, begin + packed.row_starts[b, -1] - packed.row_starts[b, 0]))
    return np.repeat(np.concatenate(rows), packed.in_row)


def _lower_sources(packed: Packed, shift: int) -> Array:
    n_bands = packed.bases.shape[1]
    partitions = (np.arange(packed.lower_starts.shape[1] - 1) // n_bands) << shift
    lengths = np.diff(packed.lower_starts, axis=1)
    src = np.repeat(np.tile(partitions, lengths.shape[0]), lengths.ravel())
    src += packed.lower["src"]
    return src


def _lower_destinations(packed: Packed) -> Array:
    lengths = np.diff(packed.lower_starts, axis=1)
    n_partitions = lengths.shape[1] // packed.bases.shape[1]
    dst = np.repeat(np.tile(packed.bases, n_partitions).ravel(), lengths.ravel())
    dst += packed.lower["row"].astype(np.int64)
    return dst


def cut_pieces(
    runs: SplitRuns, contributions: Array, capacity: int, max_partitions: int
) -> list[Piece]:
    """Cut all edges into pieces of at most `capacity` contributions.

    Parameters
    ----------
    runs
        What `split` has left.
    contributions
        Upper and lower entries of each partition; int64.
    capacity
        What one task can merge.
    max_partitions
        Most partitions in a piece.
    """
    pieces: list[Piece] = []

    def add(first: int, last: int, n: int) -> None:
        if n:
            pieces.append(Piece(len(pieces), first, last, None, None, n))

    first, n = 0, 0
    for partition, size in enumerate(contributions.tolist()):
        if n + size > capacity or partition - first == max_partitions:
            add(first, partition, n)
            first, n = partition, 0
        if size > capacity:
            for low, high, part in _cut_partition(runs, partition, capacity):
                pieces.append(Piece(len(pieces), partition, partition + 1, low, high, part))
            first, n = partition + 1, 0
        else:
            n += size
    add(first, len(contributions), n)
    return pieces


Cut = tuple[tuple[int, int], tuple[int, int], int]


def _cut_partition(runs: SplitRuns, partition: int, capacity: int) -> list[Cut]:
    """Cut an oversized partition between sources, and a source that is too large by destination."""
    per_source = np.zeros(1 << runs.job.shift, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_values(slab["src"], 0, per_source)
    cuts: list[Cut] = []
    low, n = 0, 0
    for source, size in enumerate(per_source.tolist()):
        if n and n + size > capacity:
            cuts.append(((low, 0), (source, 0), n))
            low, n = source, 0
        if size > capacity:
            cuts += _cut_source(runs, partition, source, capacity)
            low, n = source + 1, 0
        else:
            n += size
    if n:
        cuts.append(((low, 0), (per_source.size, 0), n))
    return cuts


def _cut_source(runs: SplitRuns, partition: int, source: int, capacity: int) -> list[Cut]:
    """Cut the edges of one source by destination, in 2¹⁶ bins."""
    n_cells = runs.job.source.n_cells
    shift = max(0, int(n_cells - 1).bit_length() - 16)
    per_bin = np.zeros((n_cells >> shift) + 1, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_destinations_of(slab["src"], slab["dst"], source, shift, per_bin)
    cuts: list[Cut] = []
    low, n = 0, 0
    for k, size in enumerate(per_bin.tolist()):
        if n and n + size > capacity:
            cuts.append(((source, low << shift), (source, k << shift), n))
            low, n = k, 0
        n += size
    cuts.append(((source, low << shift), (source + 1, 0), n))
    return cuts
