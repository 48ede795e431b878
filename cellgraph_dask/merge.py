"""Second stage: gather partitions from all runs, merge them, and write their edges in place.

A *piece* is what one task merges: consecutive partitions, as many as fit; or, where one partition
alone is too large (a hub with millions of neighbours), a range of its edges. Pieces in order are
the sorted edge list. The place of a piece in the output is known once all pieces before it have
been merged; until then its thread waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import kernels, workspace
from .job import Job
from .scratch import RunReader, write_run

Array = NDArray[Any]

UPPER, LOWER = 0, 1
_SLAB = 1 << 18  # entries looked at in one go where a partition is read in parts


class EdgeSink(Protocol):
    """Where edges go, in pieces that may arrive from many threads."""

    def place(self, index: int, n_edges: int) -> int:
        """Return the position of a piece's first edge, as soon as it is known."""

    def write(self, position: int, src: Array, dst: Array) -> None:
        """Write edges at a position."""


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
    n_edges : int
        Edges written.
    n_bytes : int
        Size of the degree run.
    """

    n_edges: int
    n_bytes: int


def merge_bytes(job: Job, n_contributions: int) -> int:
    """Return the most bytes that `merge` needs for a piece of that size on one thread."""
    cell = job.cell_dtype.itemsize
    per_entry = job.entry_bytes + cell + 2 * cell  # read, grouped (later: degrees), merged
    if job.signed:
        per_entry += 7 * 8  # keys, order, both once more, weights sorted and in two parts
    width = 1 << job.shift
    slab = _SLAB * (job.entry_bytes + 16)
    return n_contributions * per_entry + 8 * 4 * width + slab + 6 * 8 * job.n_partitions


def slice_table_bytes(n_blocks: int, n_partitions: int) -> int:
    """Return the bytes of the table of a piece's slices: runs × its partitions, both sections."""
    return 2 * 8 * n_blocks * (n_partitions + 1)


def merge(job: Job, n_blocks: int, sink: EdgeSink, piece: Piece) -> MergeSummary:
    """Merge a piece and write its edges to the sink, and its degrees as a run.

    Parameters
    ----------
    job
        The export.
    n_blocks
        Number of runs that `split` has left.
    sink
        Takes the edges.
    piece
        What to merge.
    """
    gather = _gather_partitions if piece.low is None else _gather_range
    # One buffer for both sections: their shares change from piece to piece, their sum does not.
    room = {
        name: workspace.take(f"merge {name}", piece.n_contributions, dtype)
        for name, dtype in job.section_layout.items()
    }
    (upper, upper_slices), (lower, lower_slices) = gather(job, n_blocks, piece, room)
    n = upper["dst"].size + lower["dst"].size
    out_src = workspace.take("merged src", n, job.cell_dtype)
    out_dst = workspace.take("merged dst", n, job.cell_dtype)
    if job.signed:
        n_edges = _merge_signed(
            job, piece, upper, upper_slices, lower, lower_slices, out_src, out_dst
        )
    else:
        n_edges = _merge(job, piece, upper, upper_slices, lower, lower_slices, out_src, out_dst)
    src, dst = out_src[:n_edges], out_dst[:n_edges]
    sink.write(sink.place(piece.number, n_edges), src, dst)
    return MergeSummary(n_edges, _write_degrees(job, piece, src, dst))


def _merge(
    job: Job,
    piece: Piece,
    upper: dict[str, Array],
    upper_slices: Array,
    lower: dict[str, Array],
    lower_slices: Array,
    out_src: Array,
    out_dst: Array,
) -> int:
    width = 1 << job.shift
    n_upper = int(np.diff(upper_slices, axis=1).sum(axis=0).max(initial=0))
    n_lower = int(np.diff(lower_slices, axis=1).sum(axis=0).max(initial=0))
    grouped = workspace.take("grouped", n_upper + n_lower, job.cell_dtype)
    n: int = kernels.merge_partitions(
        piece.first, job.shift,
        upper["src"], upper["dst"], upper_slices,
        lower["src"], lower["dst"], lower_slices,
        workspace.take("upper ends", width + 1, np.int64),
        workspace.take("lower ends", width + 1, np.int64),
        grouped[:n_upper], grouped[n_upper:], out_src, out_dst,
    )  # fmt: skip
    return n


def _merge_signed(
    job: Job,
    piece: Piece,
    upper: dict[str, Array],
    upper_slices: Array,
    lower: dict[str, Array],
    lower_slices: Array,
    out_src: Array,
    out_dst: Array,
) -> int:
    dst_bits = max(1, int(job.source.n_cells - 1).bit_length())
    sorted_lists = []
    for columns, slices in ((upper, upper_slices), (lower, lower_slices)):
        keys = np.empty(columns["dst"].size, np.int64)
        for f in range(slices.shape[1] - 1):
            for begin, end in zip(slices[:, f], slices[:, f + 1], strict=True):
                part = keys[begin:end]
                part[:] = columns["src"][begin:end]
                part += f << job.shift
                part <<= dst_bits
                part |= columns["dst"][begin:end].astype(np.int64)
        order = np.argsort(keys, kind="stable")  # stable: repeats are summed in stored order
        weights = columns["weight"][order]
        if weights.dtype.kind == "f":
            high, low = np.zeros(weights.size), weights
        else:
            high = (weights >> 32).astype(np.float64)
            low = (weights & 0xFFFFFFFF).astype(np.float64)
        sorted_lists += [keys[order], high, low]
    first_source = piece.first << job.shift
    n: int = kernels.merge_signed(*sorted_lists, first_source, dst_bits, out_src, out_dst)
    return n


Entries = tuple[dict[str, Array], Array]  # columns, and where each run's partitions start in them


def _gather_partitions(
    job: Job, n_blocks: int, piece: Piece, room: dict[str, Array]
) -> list[Entries]:
    """Read the entries of whole partitions from all runs, one run after the other.

    Parameters
    ----------
    job, n_blocks, piece
        As for `merge`.
    room
        Columns to read into: the upper entries first, then the lower ones.

    Returns
    -------
    list
        For the upper and the lower section its columns, and ``(n_blocks, n_partitions + 1)``
        int64: where each partition of each run starts in them.
    """
    slices = np.empty((2, n_blocks, piece.last - piece.first + 1), np.int64)
    for b in range(n_blocks):
        with _open_run(job, b) as run:
            for section in (UPPER, LOWER):
                slices[section, b] = run.starts(section, piece.first, piece.last)
    begins = slices[:, :, 0].copy()
    ends = np.cumsum(slices[:, :, -1] - begins, axis=1)
    slices += (np.pad(ends[:, :-1], ((0, 0), (1, 0))) - begins)[:, :, None]
    n_upper, n_lower = (int(n) for n in ends[:, -1])
    parts = [
        {name: column[:n_upper] for name, column in room.items()},
        {name: column[n_upper : n_upper + n_lower] for name, column in room.items()},
    ]
    for b in range(n_blocks):
        with _open_run(job, b) as run:
            for section in (UPPER, LOWER):
                first, last = slices[section, b, [0, -1]]
                if first < last:
                    for name, column in parts[section].items():
                        run.read(section, name, int(begins[section, b]), column[first:last])
    return list(zip(parts, slices, strict=True))


def _gather_range(job: Job, n_blocks: int, piece: Piece, room: dict[str, Array]) -> list[Entries]:
    """Do the same for a piece that is a part of one partition."""
    assert piece.low is not None
    assert piece.high is not None
    found: list[Entries] = []
    n = 0
    for section in (UPPER, LOWER):
        begin_section = n
        for run, begin, end in _slabs(job, n_blocks, piece.first, section):
            slab = _read_slab(job, run, section, begin, end)
            places = workspace.take("kept", end - begin, np.int64)
            n_kept = kernels.select_range(slab["src"], slab["dst"], *piece.low, *piece.high, places)
            for name, column in slab.items():
                room[name][n : n + n_kept] = column[places[:n_kept]]
            n += n_kept
        columns = {name: column[begin_section:n] for name, column in room.items()}
        found.append((columns, np.array([[0, n - begin_section]])))
    return found


def _slabs(
    job: Job, n_blocks: int, partition: int, section: int
) -> Iterator[tuple[RunReader, int, int]]:
    """Go through one partition of a section, in parts of bounded size, run by run."""
    for b in range(n_blocks):
        with _open_run(job, b) as run:
            begin, end = (int(p) for p in run.starts(section, partition, partition + 1))
            for at in range(begin, end, _SLAB):
                yield run, at, min(at + _SLAB, end)


def _read_slab(job: Job, run: RunReader, section: int, begin: int, end: int) -> dict[str, Array]:
    slab = {}
    for name, dtype in job.section_layout.items():
        slab[name] = workspace.take(f"slab {name}", end - begin, dtype)
        run.read(section, name, begin, slab[name])
    return slab


def _open_run(job: Job, block: int) -> RunReader:
    layout = job.section_layout
    return RunReader(job.scratch.run("split", block), [layout, layout], job.n_partitions)


def cut_pieces(
    job: Job, n_blocks: int, contributions: Array, capacity: int, max_partitions: int
) -> list[Piece]:
    """Cut all edges into pieces of at most `capacity` contributions.

    Parameters
    ----------
    job
        The export.
    n_blocks
        Number of runs that `split` has left.
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
            for low, high, part in _cut_partition(job, n_blocks, partition, capacity):
                pieces.append(Piece(len(pieces), partition, partition + 1, low, high, part))
            first, n = partition + 1, 0
        else:
            n += size
    add(first, len(contributions), n)
    return pieces


Cut = tuple[tuple[int, int], tuple[int, int], int]


def _cut_partition(job: Job, n_blocks: int, partition: int, capacity: int) -> list[Cut]:
    """Cut an oversized partition between sources, and a source that is too large by destination."""
    per_source = np.zeros(1 << job.shift, np.int64)
    for section in (UPPER, LOWER):
        for run, begin, end in _slabs(job, n_blocks, partition, section):
            kernels.count_values(_read_slab(job, run, section, begin, end)["src"], 0, per_source)
    cuts: list[Cut] = []
    low, n = 0, 0
    for source, size in enumerate(per_source.tolist()):
        if n and n + size > capacity:
            cuts.append(((low, 0), (source, 0), n))
            low, n = source, 0
        if size > capacity:
            cuts += _cut_source(job, n_blocks, partition, source, capacity)
            low, n = source + 1, 0
        else:
            n += size
    if n:
        cuts.append(((low, 0), (per_source.size, 0), n))
    return cuts


def _cut_source(job: Job, n_blocks: int, partition: int, source: int, capacity: int) -> list[Cut]:
    """Cut the edges of one source by destination, in 2¹⁶ bins."""
    n_cells = job.source.n_cells
    shift = max(0, int(n_cells - 1).bit_length() - 16)
    per_bin = np.zeros((n_cells >> shift) + 1, np.int64)
    for section in (UPPER, LOWER):
        for run, begin, end in _slabs(job, n_blocks, partition, section):
            slab = _read_slab(job, run, section, begin, end)
            kernels.count_destinations_of(slab["src"], slab["dst"], source, shift, per_bin)
    cuts: list[Cut] = []
    low, n = 0, 0
    for k, size in enumerate(per_bin.tolist()):
        if n and n + size > capacity:
            cuts.append(((source, low << shift), (source, k << shift), n))
            low, n = k, 0
        n += size
    cuts.append(((source, low << shift), (source + 1, 0), n))
    return cuts


def degree_layout() -> list[dict[str, np.dtype[Any]]]:
    """Columns of a degree run: destinations inside their partition; one count a source."""
    return [{"dst": np.dtype(np.uint16)}, {"n": np.dtype(np.uint32)}]


def _write_degrees(job: Job, piece: Piece, src: Array, dst: Array) -> int:
    """Write what the degrees need: the destinations by partition, and edges for each source."""
    counts = np.zeros(job.n_partitions, np.int64)
    kernels.count_values(dst, job.shift, counts)
    starts = np.concatenate(([0], np.cumsum(counts)))
    local = workspace.take("grouped", dst.size, np.uint16)  # the grouped entries are done with
    kernels.bucket_destinations(dst, job.shift, starts[:-1].copy(), local)
    width = 1 << job.shift
    n_sources = width * (piece.last - piece.first)
    per_source = workspace.take("edges per source", n_sources, np.uint32)
    per_source[:] = 0
    kernels.count_edges_per_source(src, piece.first << job.shift, per_source)
    source_starts = np.clip(
        np.arange(job.n_partitions + 1) - piece.first, 0, piece.last - piece.first
    )
    return write_run(
        job.scratch.run("merge", piece.number),
        [({"dst": local}, starts), ({"n": per_source}, source_starts * width)],
    )
