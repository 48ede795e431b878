"""Second stage: gather partitions from all runs, merge them, and write their edges in place.

One task merges one piece (see `pieces`). The place of a piece in the output is known once all
pieces before it have been merged; until then its thread waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from . import loops, weighted_loops
from .degrees import DegreeSink
from .job import EdgeSink, Job, SummedError, deliver, read_kept
from .pieces import Piece
from .rules import CODES, check_edges
from .runs import Written
from .split import BAND_BITS, LOWER, ROWS, SLAB, UPPER, SplitRuns


class MergeSummary(NamedTuple):
    """What a merged piece leaves behind."""

    position: int  # of its edges in the sink
    n_edges: int
    crc: int  # of their sources, destinations, and weights if they have some
    n_bytes: int  # of the temporary file that a degree sink has left
    degrees_crc: int


def merge_bytes(job: Job, n_contributions: int, n_sources: int) -> int:
    """Return the most bytes that `merge` needs for a piece of that size on one thread."""
    per_entry = 3 * job.cell_dtype.itemsize  # grouped (later: degrees), merged src and dst
    if job.rule is not None:
        per_entry += job.weight_dtype.itemsize + 2 * 8  # grouped, keys to sort by, merged weights
    elif job.weighs:
        per_entry += 7 * 8  # keys, order, both once more, weights sorted and in two parts
        per_entry += 2 * 8  # … and what the keys are made of
    gathered = gather_bytes(job, n_contributions, n_sources)
    degrees = 4 * n_sources + 6 * 8 * job.n_partitions
    return n_contributions * per_entry + (8 * 4 << job.shift) + gathered + degrees


def merge(
    runs: SplitRuns, sink: EdgeSink, degrees: DegreeSink, piece: Piece, *, upper: bool = False
) -> MergeSummary:
    """Merge a piece of all runs, write its edges to the sink, and have its degrees counted.

    Of edges in both directions, only the `upper` entries may be wanted in the sink.
    """
    job = runs.job
    merged = _merge_pair(runs, piece) if piece.is_pair else _merge_piece(runs, piece)
    if job.rule is not None:
        check_edges(job.source, *merged)
    noted = degrees.add(job, piece, *merged)
    if upper:
        n = weighted_loops.keep_entries(*merged[1:], 0, *merged)
        merged = [column[:n] for column in merged]
    return MergeSummary(*deliver(job, sink, piece.number, merged), *noted)


def _merge_piece(runs: SplitRuns, piece: Piece) -> list[Array]:
    job = runs.job
    if piece.low is None or piece.high is None:
        packed = gather(runs, piece.first, piece.last)
    else:
        packed = gather_range(runs, piece.first, piece.low, piece.high, piece.n_contributions)
    n = packed.upper["dst"].size + packed.lower["src"].size
    out_src = buffers.take("merged src", n, job.cell_dtype)
    out_dst = buffers.take("merged dst", n, job.cell_dtype)
    out = [out_src, out_dst]
    if job.rule is not None:
        out.append(buffers.take("merged weights", n, job.merged_dtype))
    merge_packed = _merge_signed if job.rule is None and job.weighs else _merge
    n_edges = merge_packed(job, piece.first, packed, *out)
    return [column[:n_edges] for column in out]


def _merge_pair(runs: SplitRuns, piece: Piece) -> list[Array]:
    """Return the one edge of a piece, or none if its weights come to zero."""
    job = runs.job
    assert piece.low is not None
    place, destination = piece.low
    source = (piece.first << job.shift) + place
    weight: Any = 1
    if job.weighs:
        sums = _sums_of_pair(runs, piece.first, place, destination)
        if job.rule is None:
            weight = sum(sums)
        else:
            ordered = sums if source < destination else reversed(sums)
            weight = weighted_loops.combine.function(CODES.index(job.rule), *ordered)
    n = int(weight != 0)
    columns = [np.full(n, cell, job.cell_dtype) for cell in (source, destination)]
    if job.rule is not None:
        columns.append(np.full(n, weight, job.merged_dtype))
        if n and job.merged_dtype == np.float32 and columns[2][0] != weight:
            raise SummedError
    return columns


def _sums_of_pair(runs: SplitRuns, partition: int, source: int, destination: int) -> list[Any]:
    """Return the sums of a pair's weights, upper and lower, each added up in stored order."""
    sums: list[Any] = [0, 0]
    for section, slab in runs.slabs(partition):
        places = buffers.take("kept", slab["src"].size, np.int64)
        pair = (source, destination, source, destination + 1)
        n = loops.select_range(slab["src"], slab["dst"], *pair, places)
        weights = slab["weight"][places[:n]]
        if weights.dtype.kind == "f":
            with_sum = np.append(float(sums[section]), weights)
            sums[section] = np.add.accumulate(with_sum, dtype=np.float64)[-1]
        else:  # exactly, whatever their number
            high, low = int((weights >> 32).sum()), int((weights & 0xFFFFFFFF).sum())
            sums[section] += (high << 32) + low
    return sums


def merge_holds(
    job: Job, sink: EdgeSink, degrees: DegreeSink, kept: tuple[Piece, MergeSummary]
) -> bool:
    """Whether all that a merged piece has written is still there; counts its degrees."""
    piece, summary = kept
    edges = read_kept(job, sink, summary.position, summary.n_edges, summary.crc)
    written = Written(summary.n_bytes, summary.degrees_crc)
    return edges is not None and degrees.keep(job, piece, edges[0], edges[1], written)


def _merge(job: Job, first: int, packed: Packed, *out: Array) -> int:
    width = 1 << job.shift
    # The longest partition's upper entries, and the longest one's lower ones.
    n_upper = int(np.diff(packed.upper_starts, axis=1).sum(axis=0).max(initial=0))
    per_band = np.diff(packed.lower_starts, axis=1).sum(axis=0)
    n_bands = packed.bases.shape[1]
    n_lower = int(per_band.reshape(-1, n_bands).sum(axis=1).max(initial=0))
    grouped = buffers.take("grouped", n_upper + n_lower, job.cell_dtype)
    ends = [buffers.take(f"{side} ends", width + 1, np.int64) for side in ("upper", "lower")]
    place = (first, job.shift, packed.first_rows, packed.in_row, packed.row_starts)
    n: int
    if job.rule is None:
        n = loops.merge_partitions(
            *place, packed.upper["dst"], packed.upper_starts,
            packed.lower["src"], packed.lower["row"], packed.lower_starts, packed.bases,
            *ends, grouped[:n_upper], grouped[n_upper:], *out,
        )  # fmt: skip
        return n
    kept = buffers.take("grouped weights", n_upper + n_lower, job.weight_dtype)
    keys = buffers.take("row keys", n_upper, np.int64)
    n, is_exact = weighted_loops.merge_weighted(
        *place, packed.upper["dst"], packed.upper["weight"], packed.upper_starts,
        packed.lower["src"], packed.lower["row"], packed.lower["weight"], packed.lower_starts,
        packed.bases, *ends, grouped[:n_upper], kept[:n_upper], grouped[n_upper:], kept[n_upper:],
        keys, CODES.index(job.rule), *out,
    )  # fmt: skip
    if not is_exact and job.merged_dtype == np.float32:
        raise SummedError
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
        is_float = weight.dtype.kind == "f"
        halves = (
            (np.zeros(weight.size), weight) if is_float else (weight >> 32, weight & 0xFFFFFFFF)
        )
        sorted_lists += [keys[order], *halves]
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


class Packed(NamedTuple):
    """The entries of consecutive partitions from all runs, run after run, as they were packed.

    The tables of starts, and all first rows, are int64.
    """

    first_rows: Array  # of each run; (n_runs,)
    upper: dict[str, Array]  # dst and, if there are any, weight
    upper_starts: Array  # of each partition in `upper`; (n_runs, n_partitions + 1)
    in_row: Array  # upper entries of each row; uint32
    row_starts: Array  # of each partition in `in_row`; (n_runs, n_partitions + 1)
    lower: dict[str, Array]  # src in the partition, row in the band, weight if there are any
    lower_starts: Array  # of each band in `lower`; (n_runs, n_partitions * n_bands + 1)
    bases: Array  # first row of each band; (n_runs, n_bands)


def gather(runs: SplitRuns, first: int, last: int) -> Packed:
    """Read the partitions ``[first, last)`` from all runs; good until this thread's next piece."""
    # Of the upper entries, the lower ones and the rows, in the order of the sections.
    spans = [(first, last), (first * runs.n_bands, last * runs.n_bands), (first, last)]
    starts = [np.empty((len(runs), to - from_ + 1), np.int64) for from_, to in spans]
    for b in range(len(runs)):
        run = runs.open(b)
        for section, span in enumerate(spans):
            table = starts[section][b]
            table[:] = run.starts(section, *span)
            run.begin_reading(section, int(table[0]), int(table[-1]))
    begins = [table[:, 0].copy() for table in starts]
    places = [np.concatenate(([0], np.cumsum(t[:, -1] - t[:, 0]))) for t in starts]
    for table, begin, place in zip(starts, begins, places, strict=True):
        table += (place[:-1] - begin)[:, None]
    sections = _room(runs, [int(place[-1]) for place in places])
    for b in range(len(runs)):
        run = runs.open(b)
        for section, columns in enumerate(sections):
            at, end = (int(p) for p in places[section][b : b + 2])
            if at < end:
                for name, column in columns.items():
                    run.read(section, name, int(begins[section][b]), column[at:end])
    bands = np.arange(runs.n_bands, dtype=np.int64) << BAND_BITS
    return Packed(
        runs.first_rows, sections[UPPER], starts[UPPER], sections[ROWS]["n"], starts[ROWS],
        sections[LOWER], starts[LOWER], runs.first_rows[:, None] + bands,
    )  # fmt: skip


def _room(runs: SplitRuns, sizes: list[int]) -> list[dict[str, Array]]:
    """Return columns to read into.

    Upper and lower entries share one buffer: their shares change from piece to piece, their sum
    does not.
    """
    n_upper, n_lower, n_rows = sizes
    cell = runs.job.cell_dtype
    room = buffers.take("merge entries", cell.itemsize * n_upper + 4 * n_lower, np.uint8)
    lower, middle = room[cell.itemsize * n_upper :], 2 * n_lower
    sections: list[dict[str, Array]] = [
        {"dst": room[: cell.itemsize * n_upper].view(cell)},
        {"src": lower[:middle].view(np.uint16), "row": lower[middle:].view(np.uint16)},
        {"n": buffers.take("merge rows", n_rows, np.uint32)},
    ]
    if runs.job.weighs:
        weights = buffers.take("merge weights", n_upper + n_lower, runs.job.weight_dtype)
        sections[UPPER]["weight"], sections[LOWER]["weight"] = np.split(weights, [n_upper])
    return sections


def gather_range(
    runs: SplitRuns, partition: int, low: tuple[int, int], high: tuple[int, int], capacity: int
) -> Packed:
    """Read the edges ``[low, high)`` of one partition from all runs, at most `capacity` of them."""
    cell = runs.job.cell_dtype
    layout = {"src": np.dtype(np.uint16), "dst": cell}
    if runs.job.weighs:
        layout["weight"] = runs.job.weight_dtype
    room = {name: buffers.take(f"range {name}", capacity, dtype) for name, dtype in layout.items()}
    n = [0, 0]
    for section, slab in runs.slabs(partition):
        places = buffers.take("kept", slab["src"].size, np.int64)
        n_kept = loops.select_range(slab["src"], slab["dst"], *low, *high, places)
        at = sum(n)
        for name, column in room.items():
            column[at : at + n_kept] = slab[name][places[:n_kept]]
        n[section] += n_kept
    upper = {name: column[: n[UPPER]] for name, column in room.items()}
    lower = {name: column[n[UPPER] : sum(n)] for name, column in room.items()}
    width = 1 << runs.job.shift
    in_row = np.bincount(upper.pop("src"), minlength=width).astype(np.uint32)
    lower["row"] = lower.pop("dst")  # not packed: the one band starts at row 0
    return Packed(
        np.array([partition << runs.job.shift]), upper, np.array([[0, n[UPPER]]]),
        in_row, np.array([[0, width]]), lower, np.array([[0, n[LOWER]]]),
        np.zeros((1, 1), np.int64),
    )  # fmt: skip


def gather_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    """Return the most bytes that gathering so many entries and rows needs on one thread."""
    slab = SLAB * (job.entry_bytes + 2 + 2 * 8 + job.cell_dtype.itemsize)
    return n_entries * job.entry_bytes + 4 * n_rows + slab + (8 + 8 + 4 + 8 << job.shift)
