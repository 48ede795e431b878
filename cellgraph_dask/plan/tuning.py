"""Sizes of blocks and pieces that fit a memory limit.

The memory limit is shared out once: what is reserved, then an equal share for every thread. From
its share a thread gets the largest block it can split and the largest piece it can merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, get_args

from ..delivery.products import Product
from ..errors import MemoryLimitError
from ..machine.amounts import counted
from ..machine.files import NEW_FILE_BYTES
from ..machine.memory import SLACK_BYTES, format_bytes
from ..stages.degrees import COUNTER_BYTES
from ..stages.job import LEAST_SHIFT, Job, Method, Tuning, rows_for
from ..stages.keep import components_bytes, merges_whole_rows, ranks_bytes, thinning_bytes
from ..stages.merge import merge_bytes
from ..stages.ranking import rank_bytes, sample_bytes
from ..stages.rows import row_bytes
from ..stages.split import count_bands, split_bytes
from ..stages.stream import MOST_STREAM_ENTRIES, stream_bytes

# Larger blocks and pieces gain nothing; smaller ones only cost tasks.
_MOST_BLOCK_ENTRIES = 1 << 22
_LEAST_BLOCK_ENTRIES = 1 << 16
_MOST_BLOCK_ROWS = 1 << 20  # where rows and not entries decide the number of blocks
_MOST_PIECE_ENTRIES = 1 << 24
_LEAST_PIECE_ENTRIES = 1 << 16
_COUNTERS_SHARE = 1 / 8  # of the limit, for counting the degrees of all cells in memory,
_COMPONENTS_SHARE = 1 / 3  # … or for finding connected components


class Budget(NamedTuple):
    """What an export may take, in one process.

    Fewer threads may work where the limit does not feed them all; but those of a cluster's workers
    are not ours to choose.
    """

    limit: int  # most resident bytes
    reserved: int  # bytes that the interpreter and its libraries hold already
    threads: int  # that should work at once
    may_take_fewer: bool
    product: Product  # whose writing takes memory

    @property
    def fewest_threads(self) -> int:
        """Least threads that may work."""
        return 1 if self.may_take_fewer else self.threads

    def has_room_for_counters(self, job: Job) -> bool:
        """Whether threads may share a counter for each cell: of degrees, or for components."""
        n_bytes, share = COUNTER_BYTES * job.source.n_cells, _COUNTERS_SHARE
        if job.thinning:
            n_bytes, share = components_bytes(job), _COMPONENTS_SHARE
        return self.may_take_fewer and n_bytes <= self.limit * share


def tune(job: Job, budget: Budget) -> Tuning:
    """Choose sizes so that the projected memory stays within the limit.

    Partitions are cut smaller than those of the job where a piece would have no room for two of
    them: one that does not fit a piece is read anew for each part of it. The MemoryLimitError if
    not even the fewest threads can work names the smallest limit that will do.
    """
    tuning = _best(job, budget, partial(_tune, job, budget))
    if tuning is None:
        raise _too_small(job, budget)
    while tuning.shift > LEAST_SHIFT and tuning.piece_entries < 2 * _mean_partition(job, tuning):
        job = replace(job, shift=tuning.shift - 1)
        smaller = _best(job, budget, partial(_tune, job, budget))
        if smaller is None or smaller.threads < tuning.threads:
            break
        tuning = smaller
    return tuning


def _mean_partition(job: Job, tuning: Tuning) -> float:
    """Return the contributions to a partition; none if nothing is merged."""
    if job.method == "symmetric":
        return 0
    n = job.source.n_entries * (1 + _cut(job, tuning).both)
    return min(n, (n << tuning.shift) / max(job.source.n_cells, 1))


def adopt(job: Job, tuning: Tuning, budget: Budget) -> Tuning | None:
    """Return the sizes of an earlier plan for as many threads as the limit feeds now, or None."""

    def fits(in_memory: bool, threads: int) -> Tuning | None:
        adopted = replace(tuning, threads=threads, **_counting(job, in_memory))
        return adopted if projected_bytes(job, adopted, budget) <= budget.limit else None

    return _best(job, budget, fits)


def _best(job: Job, budget: Budget, fits: Callable[[bool, int], Tuning | None]) -> Tuning | None:
    """Return sizes that fit if cells are counted in memory; if there are none, if they are not."""
    tuning = None
    if budget.has_room_for_counters(job):
        tuning = _most_threads(budget, partial(fits, True))
    return tuning if tuning is not None else _most_threads(budget, partial(fits, False))


def _most_threads(budget: Budget, fits: Callable[[int], Tuning | None]) -> Tuning | None:
    """Return the sizes for the most threads that fit, by bisection; None if even the fewest do not.

    What fits with some threads fits with fewer.
    """
    found, too_many, n_threads = None, budget.threads + 1, budget.threads
    while n_threads >= budget.fewest_threads:
        tuning = fits(n_threads)
        if tuning is None:
            too_many = n_threads
        else:
            found = tuning
        low = found.threads if found is not None else budget.fewest_threads - 1
        if too_many - low <= 1:
            break
        n_threads = (low + too_many) // 2
    return found


def _too_small(job: Job, budget: Budget) -> MemoryLimitError:
    needed = max(smallest_limit(replace(job, method=method), budget) for method in _to_come(job))
    least = -(-needed // 10**6) * 10**6
    n_threads = budget.fewest_threads
    who = "one thread needs" if n_threads == 1 else f"{n_threads} threads need"
    large = job.source.chunk_size > _MOST_BLOCK_ENTRIES
    chunks = counted(job.source.chunk_size, "entry")
    smaller = " Or write the matrix again with smaller chunks." if large else ""
    return MemoryLimitError(
        f"the memory limit of {format_bytes(budget.limit)} is too small: "
        f"{format_bytes(budget.reserved)} are taken by Python and its libraries, and {who} "
        f"{format_bytes(least - budget.reserved)} for chunks of {chunks}. "
        f"The smallest limit that will do is {least // 10**6}MB (`memory_limit`).{smaller}",
        needed_bytes=least,
    )


def _to_come(job: Job) -> list[Method]:
    """Return the methods that the job may come to: what does not suit is seen while it runs."""
    methods: list[Method] = list(get_args(Method))
    never = job.rule is not None or job.source.data.dtype.kind in "bu"
    if never and job.method != "signed":
        methods.remove("signed")
    if not job.thinning and job.method != "summed":
        methods.remove("summed")
    return methods[methods.index(job.method) :]


def projected_bytes(job: Job, tuning: Tuning, budget: Budget) -> int:
    """Return the most resident bytes that an export with these sizes can come to."""
    return budget.reserved + _fixed_bytes(job, tuning) + max(_stage_bytes(job, tuning, budget))


def _cut(job: Job, tuning: Tuning) -> Job:
    """Return the job as what comes before thinning has it."""
    if not job.thinning:
        return job
    return replace(job, both=merges_whole_rows(job, tuning), weights=True)


def _stage_bytes(job: Job, tuning: Tuning, budget: Budget) -> Iterator[int]:
    """Yield what each stage takes, which it lets go of before the next."""
    cut, product, n_threads = _cut(job, tuning), budget.product, tuning.threads
    n, n_rows = tuning.block_entries, tuning.block_rows
    if job.method != "symmetric":
        yield n_threads * split_bytes(cut, n, n_rows)
        of_thread = _merging_bytes(cut, tuning)
        n = tuning.piece_entries
        if job.thinning:
            yield n_threads * of_thread + sample_bytes(job, tuning)
            n, n_rows = tuning.thinned
    in_common = 0
    if job.thinning:
        in_common = ranks_bytes(job) + components_bytes(job) * tuning.count_components
    if job.method == "symmetric" or job.thinning:
        of_thread = stream_bytes(cut, n, n_rows)
        if job.thinning:
            of_thread += thinning_bytes(job, n)
        if job.method == "symmetric":  # others were ranked while they were merged
            of_thread += rank_bytes(job, n, n_rows)
    yield in_common + n_threads * of_thread + product.writer_bytes(job, n_threads, n)
    yield product.finishing_bytes(job, n_threads)


def _merging_bytes(job: Job, tuning: Tuning) -> int:
    """Return what merging a piece takes, and ranking its rows and writing them to scratch."""
    n, n_partitions = tuning.piece_entries, min(tuning.piece_partitions, job.n_partitions)
    n_sources = n_partitions << job.shift
    # The starts in all runs, twice at times.
    starts = 2 * (n_partitions + 1) + n_partitions * count_bands(tuning.block_rows) + 1
    n_bytes = merge_bytes(job, n, n_sources) + 2 * 8 * _n_blocks(job, tuning) * starts
    if job.thinning:
        n_bytes += row_bytes(job, n, n_sources) + rank_bytes(job, n, n_sources)
    return n_bytes


def smallest_limit(job: Job, budget: Budget) -> int:
    """Return the smallest limit in bytes that the fewest threads can work with."""
    threads, piece = budget.fewest_threads, _LEAST_PIECE_ENTRIES
    sizes = [_sized(job, n, piece, piece, threads) for n in _blocks(job, threads)]
    return min(projected_bytes(job, tuning, budget) for tuning in sizes)


def _n_blocks(job: Job, tuning: Tuning) -> int:
    source = job.source
    return source.n_entries // tuning.block_entries + source.n_cells // max(1, tuning.block_rows)


def _fixed_bytes(job: Job, tuning: Tuning) -> int:
    """Return what is kept from stage to stage, and what writing a file takes."""
    always = SLACK_BYTES + tuning.threads * NEW_FILE_BYTES
    if job.method == "symmetric":
        return always + 1000 * _n_blocks(job, tuning)
    tables = 8 * job.n_partitions * (_n_blocks(job, tuning) + 1)  # what the split returns
    counters = COUNTER_BYTES * job.source.n_cells if tuning.count_degrees else 0
    return always + tables + counters


def _sized(
    job: Job, block: int, piece: int, thinned: int, threads: int, **counting: bool
) -> Tuning:
    return Tuning(
        block, rows_for(block), piece, job.shift, threads, thinned_entries=thinned, **counting
    )


def _counting(job: Job, in_memory: bool) -> dict[str, bool]:
    """Return what is counted in memory, if anything is; thinning counts degrees on the way."""
    return {
        "count_degrees": in_memory and not job.thinning,
        "count_components": in_memory and bool(job.thinning),
    }


def _tune(job: Job, budget: Budget, in_memory: bool, threads: int) -> Tuning | None:
    """Return the largest sizes that fit, or None."""

    def fits(block: int, piece: int, thinned: int) -> Tuning | None:
        counting = _counting(job, in_memory)
        tuning = _sized(job, block, piece, thinned, threads, **counting)
        return tuning if projected_bytes(job, tuning, budget) <= budget.limit else None

    least = _LEAST_PIECE_ENTRIES
    blocks = _blocks(job, threads)
    block = next((size for size in reversed(blocks) if fits(size, least, least)), None)
    if block is None:
        return None
    thinned = piece = max(_even_share(job, threads), least)
    thinned, piece = min(thinned, MOST_STREAM_ENTRIES), min(piece, _MOST_PIECE_ENTRIES)
    while not fits(block, least, thinned):
        thinned = max(thinned * 7 // 8, least)
    while not (tuning := fits(block, piece, thinned)):
        piece = max(piece * 7 // 8, least)
    n_cells, n_entries = job.source.n_cells, job.source.n_entries
    if n_cells // tuning.block_rows > 4 * (n_entries // block + 16):
        # Most cells are isolated: blocks of rows without entries, each with a run for all pieces.
        wide = replace(tuning, block_rows=max(tuning.block_rows, _MOST_BLOCK_ROWS))
        return wide if projected_bytes(job, wide, budget) <= budget.limit else tuning
    return tuning


def _even_share(job: Job, threads: int) -> int:
    """Return entries that cut a small graph into enough blocks and pieces for all threads."""
    return job.source.n_entries // (4 * threads)


def _blocks(job: Job, threads: int) -> list[int]:
    """Return the sizes of blocks that may be taken, from small to large."""
    most = MOST_STREAM_ENTRIES if job.method == "symmetric" else _MOST_BLOCK_ENTRIES
    wanted = min(max(_even_share(job, threads), _LEAST_BLOCK_ENTRIES), most)
    return _block_sizes(job.source.chunk_size, wanted)


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
