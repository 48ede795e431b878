"""What an export will do: blocks, partitions, memory, disk. Nothing is written here.

The memory limit is shared out once: what is reserved, then an equal share for every thread. From
its share a thread gets the largest block it can split and the largest piece it can merge.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..delivery.edge_files import writer_bytes
from ..edge_pairs.format import VIEWER_LIMIT, index_dtype, viewer_bytes
from ..errors import MemoryLimitError
from ..machine.memory import format_bytes
from ..source.matrix import Block, Source
from ..stages.degrees import COUNTER_BYTES
from ..stages.job import Job, Way
from ..stages.merge import merge_bytes
from ..stages.split import split_bytes
from ..stages.split_runs import count_bands
from ..stages.stream import stream_bytes

# For what no formula counts: thread stacks, the interpreter's own growth, the allocator's slack.
SLACK_BYTES = 36 * 2**20
_ROUND_BYTES = 8 * 2**20  # reserved memory is rounded up, so that plans repeat

# Larger blocks and pieces gain nothing; smaller ones only cost tasks.
_MOST_BLOCK_ENTRIES = 1 << 22
_MOST_STREAM_ENTRIES = 1 << 20  # without temporary files small blocks do: they stay in the caches
_LEAST_BLOCK_ENTRIES = 1 << 16
_MOST_PIECE_ENTRIES = 1 << 24
_LEAST_PIECE_ENTRIES = 1 << 19
_PARTITIONS = 1024  # about as many partitions as there should be, and
_MOST_SHIFT = 16  # … the most sources in one, so that a source fits 16 bits
_LEAST_SHIFT = 8
_MOST_PIECE_SOURCES = 1 << 20
_COUNTERS_SHARE = 1 / 8  # of the limit, for counting the degrees of all cells in memory


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do and need.

    Attributes
    ----------
    source, key : str
        The store and the matrix in it.
    n_cells, n_entries : int
        Cells, and stored entries.
    way : {"symmetric", "general", "signed"}
        What is tried first. "symmetric": one pass without temporary files, for a matrix that looks
        symmetric; if it turns out not to be, the general way follows. "general": split and merge.
        "signed": the same for a matrix with negative weights.
    threads, n_workers : int
        Threads that work at once in one process; worker processes of a cluster, if any.
    n_blocks, n_partitions : int
        Blocks of stored entries; ranges of edge sources.
    index_dtype : str
        Dtype of the edge files.
    compression : int or None
        Level of gzip.
    memory_limit_bytes, reserved_memory_bytes, projected_memory_bytes : int
        What is allowed; what interpreter and libraries hold; the upper bound for this plan.
    scratch_bytes, output_bytes : int
        Most temporary and final bytes on disk.
    scratch_free_bytes, output_free_bytes : int
        Free bytes on the disks of both.
    warnings : tuple of str
        What the user should know before starting.
    """

    source: str
    key: str
    n_cells: int
    n_entries: int
    way: Way
    threads: int
    n_workers: int
    n_blocks: int
    n_partitions: int
    index_dtype: str
    compression: int | None
    memory_limit_bytes: int
    reserved_memory_bytes: int
    projected_memory_bytes: int
    scratch_bytes: int
    output_bytes: int
    scratch_free_bytes: int
    output_free_bytes: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class Tuning:
    """Sizes that follow from the memory limit, or are set by hand in tests.

    Attributes
    ----------
    block_entries, block_rows : int
        Most stored entries and rows in a block.
    piece_entries : int
        Most contributions merged by one task.
    shift : int
        A partition is ``2**shift`` sources.
    threads : int
        Threads that work at once.
    count_degrees : bool
        Whether they share a counter for each cell in memory.
    """

    block_entries: int
    block_rows: int
    piece_entries: int
    shift: int
    threads: int
    count_degrees: bool = False

    @property
    def piece_partitions(self) -> int:
        """Most partitions in a piece."""
        return max(1, _MOST_PIECE_SOURCES >> self.shift)


def partition_shift(n_cells: int) -> int:
    """Return the shift that gives about a thousand partitions of at most 2¹⁶ sources."""
    wanted = math.ceil(math.log2(max(1, n_cells) / _PARTITIONS)) if n_cells > _PARTITIONS else 0
    return min(_MOST_SHIFT, max(_LEAST_SHIFT, wanted))


def round_reserved(resident: int) -> int:
    """Round resident bytes up, so that the same plan comes out of every start."""
    return -(-resident // _ROUND_BYTES) * _ROUND_BYTES


def tune(
    job: Job,
    *,
    limit: int,
    reserved: int,
    threads: int,
    compression: int | None,
    fewer: bool = True,
) -> Tuning:
    """Choose sizes so that the projected memory stays within the limit.

    Where the limit does not feed all threads, `fewer` are taken, if that is ours to choose: the
    threads of a cluster's workers are not.

    Raises
    ------
    MemoryLimitError
        If not even one thread can work; the message names the smallest limit that would do.
    """
    fewest = 1 if fewer else threads
    in_memory = fewer and _has_room_for_counters(job, limit)
    for n_threads in range(threads, fewest - 1, -1):
        tuning = _tune(job, limit, reserved, n_threads, compression, in_memory)
        if tuning is not None:
            return tuning
    least = smallest_limit(job, reserved, compression, fewest)
    who = "one thread needs" if fewest == 1 else f"{fewest} threads need"
    large = job.source.chunk_size > _MOST_BLOCK_ENTRIES
    smaller = " Or write the matrix again with smaller chunks." if large else ""
    raise MemoryLimitError(
        f"the memory limit of {format_bytes(limit)} is too small: {format_bytes(reserved)} are "
        f"taken by Python and its libraries, and {who} "
        f"{format_bytes(least - reserved)} for chunks of {job.source.chunk_size:,} entries. The "
        f"smallest limit that will do is {-(-least // 10**6)}MB (--memory-limit).{smaller}"
    )


def adopt(
    job: Job,
    tuning: Tuning,
    *,
    limit: int,
    reserved: int,
    compression: int | None,
    fewer: bool = True,
) -> Tuning | None:
    """Return the sizes of an earlier plan for as many threads as the limit feeds now, or None."""
    in_memory = fewer and _has_room_for_counters(job, limit)
    for n_threads in range(tuning.threads, 0 if fewer else tuning.threads - 1, -1):
        adopted = replace(tuning, threads=n_threads, count_degrees=in_memory)
        if projected_bytes(job, adopted, reserved, compression) <= limit:
            return adopted
    return None


def _has_room_for_counters(job: Job, limit: int) -> bool:
    """Tell whether threads may share a counter for each cell."""
    return COUNTER_BYTES * job.source.n_cells <= limit * _COUNTERS_SHARE


def projected_bytes(job: Job, tuning: Tuning, reserved: int, compression: int | None) -> int:
    """Return the most resident bytes that an export with these sizes can come to."""
    block = _block_bytes(job, tuning.block_entries, tuning.block_rows)
    piece = 0
    if job.way != "symmetric":
        n_partitions = min(tuning.piece_partitions, job.n_partitions)
        piece = merge_bytes(job, tuning.piece_entries, n_partitions << job.shift)
    return reserved + _fixed_bytes(job, tuning, compression) + tuning.threads * max(block, piece)


def smallest_limit(job: Job, reserved: int, compression: int | None, threads: int = 1) -> int:
    """Return the smallest limit in bytes that so many threads can work with."""
    tuning = Tuning(
        _LEAST_BLOCK_ENTRIES, _LEAST_BLOCK_ENTRIES, _LEAST_PIECE_ENTRIES, job.shift, threads
    )
    return projected_bytes(job, tuning, reserved, compression)


def _block_bytes(job: Job, n_entries: int, n_rows: int) -> int:
    needs = stream_bytes if job.way == "symmetric" else split_bytes
    return needs(job, n_entries, n_rows)


def _fixed_bytes(job: Job, tuning: Tuning, compression: int | None) -> int:
    n_blocks = job.source.n_entries // tuning.block_entries + job.source.n_cells // max(
        1, tuning.block_rows
    )
    if job.way == "symmetric":
        tables = 1000 * n_blocks
    else:
        # What the tasks of the split return; of a piece the starts in all runs, twice at times.
        n_partitions = min(tuning.piece_partitions, job.n_partitions)
        starts = 2 * (n_partitions + 1) + n_partitions * count_bands(tuning.block_rows) + 1
        tables = 8 * job.n_partitions * (n_blocks + 1) + 2 * 8 * n_blocks * starts * tuning.threads
        if tuning.count_degrees:
            tables += COUNTER_BYTES * job.source.n_cells
    dtype = index_dtype(job.source.n_cells)
    most = max(tuning.piece_entries, tuning.block_entries)
    writer = writer_bytes(dtype, compression, tuning.threads, most)
    return SLACK_BYTES + tables + writer


def _tune(
    job: Job, limit: int, reserved: int, threads: int, compression: int | None, count_degrees: bool
) -> Tuning | None:
    """Return the largest sizes that fit, or None."""

    def fits(block: int, piece: int) -> Tuning | None:
        tuning = Tuning(block, _rows(block), piece, job.shift, threads, count_degrees)
        return tuning if projected_bytes(job, tuning, reserved, compression) <= limit else None

    # Small graphs are cut into enough blocks and pieces for all threads.
    even = job.source.n_entries // (4 * threads)
    most = _MOST_STREAM_ENTRIES if job.way == "symmetric" else _MOST_BLOCK_ENTRIES
    wanted = min(max(even, _LEAST_BLOCK_ENTRIES), most)
    blocks = _block_sizes(job.source.chunk_size, wanted)
    block = next((size for size in reversed(blocks) if fits(size, _LEAST_PIECE_ENTRIES)), None)
    if block is None:
        return None
    piece = min(_MOST_PIECE_ENTRIES, max(even, _LEAST_PIECE_ENTRIES))
    while not (tuning := fits(block, piece)):
        piece = max(piece * 7 // 8, _LEAST_PIECE_ENTRIES)
    return tuning


def _rows(n_entries: int) -> int:
    """Return the most rows for blocks of that size: plenty, unless most cells are isolated."""
    return max(n_entries // 8, _LEAST_BLOCK_ENTRIES)


def _block_sizes(chunk: int, wanted: int) -> list[int]:
    """Return block sizes from small to large: parts of a large chunk, then whole chunks."""
    size = chunk
    while size > _LEAST_BLOCK_ENTRIES:
        size = -(-size // 2)
    sizes = []
    while size < chunk:
        sizes.append(size)
        size *= 2
    # Chunks smaller than the smallest block count in groups.
    step = chunk * max(1, _LEAST_BLOCK_ENTRIES // chunk)
    return sizes + [n * step for n in range(1, max(1, wanted // step) + 1)]


def cut_blocks(source: Source, block_entries: int, block_rows: int) -> list[Block]:
    """Cut the stored entries into blocks, reading `indptr` once in slices.

    Blocks end at multiples of `block_entries`, so on chunk borders where that is a multiple of the
    chunk; and sooner where they would span more than `block_rows` rows.

    Raises
    ------
    DamagedGraphError
        If `indptr` breaks a rule.
    """
    blocks: list[Block] = []
    start, first_row = 0, 0

    def add(stop: int, last_row: int) -> None:
        if stop > start:
            blocks.append(Block(len(blocks), start, stop, first_row, last_row))

    for row, indptr in source.scan_indptr():
        last_row = row + indptr.size - 1
        while True:
            next_entry = (start // block_entries + 1) * block_entries
            # The row that the next cut falls into, if it is in this slice.
            entry_row = row + int(indptr.searchsorted(next_entry, side="right")) - 1
            if min(entry_row, last_row) - first_row > block_rows:
                cut_row = first_row + block_rows
                stop = int(indptr[cut_row - row])
                add(stop, cut_row)
                start, first_row = stop, cut_row
            elif next_entry < int(indptr[-1]):
                add(next_entry, entry_row + 1)
                start, first_row = next_entry, entry_row
            else:
                break
    add(source.n_entries, source.n_cells)
    return blocks


def make_plan(
    job: Job,
    tuning: Tuning,
    n_blocks: int,
    *,
    compression: int | None,
    limit: int,
    reserved: int,
    scratch_free: int,
    output_free: int,
    same_disk: bool,
    n_workers: int = 0,
) -> ExportPlan:
    """Put the figures of an export together."""
    source = job.source
    dtype = index_dtype(source.n_cells)
    n_entries = source.n_entries
    output = 2 * n_entries * dtype.itemsize
    weights = job.weight_dtype.itemsize if job.signed else 0
    scratch = n_entries * (max(4, job.cell_dtype.itemsize) + weights)
    scratch += 4 * (source.n_cells + n_blocks)  # upper entries of each row
    bands = count_bands(tuning.block_rows)
    scratch += 8 * n_blocks * (job.n_partitions * (2 + bands) + 3)
    if not tuning.count_degrees:
        scratch += (
            2 * n_entries
            + 4 * source.n_cells
            + 16 * job.n_partitions * (n_entries // tuning.piece_entries + 1)
        )
    if job.way == "symmetric":
        output //= 2
        scratch = 0
    scratch += source.spool_bytes
    if n_workers:  # parts before they become edge files
        scratch += 2 * n_entries * job.cell_dtype.itemsize
    if compression is not None:
        scratch += output  # the spool of compressed parts
    warnings = [*source.notes]
    if viewer_bytes(source.n_cells, n_entries // 2) > VIEWER_LIMIT:
        warnings.append(
            f"With about {n_entries // 2:,} edges or more this graph needs over 512 MiB in the "
            "viewer of cellucid 0.9.1 to 0.9.4, which will refuse it. The viewer of 0.0.9 has no "
            "such limit."
        )
    if scratch > scratch_free or (same_disk and scratch + output > output_free):
        warnings.append(
            f"Up to {format_bytes(scratch)} of temporary and {format_bytes(output)} of edge files "
            f"may not fit the {format_bytes(min(scratch_free, output_free))} that are free."
        )
    return ExportPlan(
        source=source.path,
        key=source.key,
        n_cells=source.n_cells,
        n_entries=n_entries,
        way=job.way,
        threads=tuning.threads,
        n_workers=n_workers,
        n_blocks=n_blocks,
        n_partitions=job.n_partitions,
        index_dtype=dtype.name,
        compression=compression,
        memory_limit_bytes=limit,
        reserved_memory_bytes=reserved,
        projected_memory_bytes=projected_bytes(job, tuning, reserved, compression),
        scratch_bytes=scratch,
        output_bytes=output,
        scratch_free_bytes=scratch_free,
        output_free_bytes=output_free,
        warnings=tuple(warnings),
    )
