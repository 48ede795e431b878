"""What an export will do: blocks, partitions, memory, disk. Nothing is written here.

The memory limit is shared out once: what is reserved, then an equal share for every thread. From
its share a thread gets the largest block it can split and the largest piece it can merge.
"""

from __future__ import annotations

from dataclasses import replace

from ..delivery.edge_files import writer_bytes
from ..edge_pairs.format import index_dtype
from ..errors import MemoryLimitError
from ..machine.memory import SLACK_BYTES, format_bytes
from ..stages.degrees import COUNTER_BYTES
from ..stages.job import Job, Tuning
from ..stages.merge import merge_bytes
from ..stages.split import count_bands, split_bytes
from ..stages.stream import stream_bytes

# Larger blocks and pieces gain nothing; smaller ones only cost tasks.
_MOST_BLOCK_ENTRIES = 1 << 22
_MOST_STREAM_ENTRIES = 1 << 20  # without temporary files small blocks do: they stay in the caches
_LEAST_BLOCK_ENTRIES = 1 << 16
_MOST_PIECE_ENTRIES = 1 << 24
_LEAST_PIECE_ENTRIES = 1 << 19
_COUNTERS_SHARE = 1 / 8  # of the limit, for counting the degrees of all cells in memory


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
