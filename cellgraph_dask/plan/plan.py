"""From a matrix and the user's options to a plan that can be carried out. Nothing is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DiskSpaceError, ResumeError
from ..machine import html
from ..machine.files import free_bytes, nearest
from ..machine.memory import format_bytes, limit_bytes, parse_bytes, resident_bytes, round_reserved
from ..machine.report import Report
from ..runtime.cluster import inspect_workers
from ..runtime.threads import default_threads
from ..source.blocks import cut_blocks, looks_symmetric
from ..source.matrix import Block, Source
from ..stages.job import Job, Method, Tuning, partition_shift
from ..stages.keep import has_whole_rows, merges_whole_rows, thinning_scratch
from ..stages.pipeline import warm_up
from ..stages.runs import Scratch
from ..stages.split import count_bands
from .options import Options
from .tuning import Budget, adopt, projected_bytes, tune

log = logging.getLogger(__name__)

_USUAL_NEIGHBORS = 100  # entries a cell on average; more are warned of
_FEW_NEIGHBORS = 50  # up to here a graph may hold most of all pairs


class Prepared(NamedTuple):
    """A plan with all that its execution needs."""

    plan: ExportPlan
    job: Job  # what every task needs to know; its scratch folder is not named yet
    blocks: list[Block]  # the stored entries


def prepare(
    source: Source, folder: Path, options: Options, *, scratch_dir: Path | None = None,
    upload_bytes: int = 0, method: Method | None = None, tuning: Tuning | None = None,
    resumed: ExportPlan | None = None,
) -> Prepared:  # fmt: skip
    """Plan an export, with all that its execution needs.

    `folder` is on the disk of the output, `scratch_dir` (by default that of the options, else
    `folder`) on that of temporary files; uploading takes `upload_bytes` of memory. By default,
    `method` and `tuning` are what suits matrix and limit; those of a `resumed` run are its own.
    A limit that is too small is a `MemoryLimitError`, and a `ResumeError` for a resumed run.
    """
    product = options.product
    product.check(source.n_cells)
    if resumed is not None:
        method, tuning = resumed.method, resumed.tuning
    elif product.is_strict and (method is None or product.refuses_zeros):
        method = "symmetric"
    elif method is None:
        method = "symmetric" if looks_symmetric(source) else "general"
    shift = tuning.shift if tuning is not None else partition_shift(source.n_cells)
    job = Job(
        source, Scratch(""), shift, method, product.rule, product.weights, product.both,
        product.refuses_zeros, product.refuses_diagonal, product.thinning, product.weight_dtype,
    )  # fmt: skip
    budget, n_workers = _budget(job, options, upload_bytes)
    if resumed is not None:
        tuning = adopt(job, resumed.tuning, budget)
        if tuning is None:
            least = replace(resumed.tuning, threads=budget.fewest_threads)
            needed = projected_bytes(job, least, budget)
            raise ResumeError(
                f"the run that was interrupted in {options.out_dir} was planned for more memory: "
                f"resuming it takes {format_bytes(needed)}, but the limit is "
                f"{format_bytes(budget.limit)}. Allow {-(-needed // 10**6)}MB with "
                "`memory_limit`, or start over without `resume=True`."
            )
    elif tuning is None:
        tuning = tune(job, budget)
        job = replace(job, shift=tuning.shift)
    blocks = cut_blocks(source, tuning.block_entries, tuning.block_rows)
    scratch = Path(scratch_dir or options.scratch_dir or folder)
    scratch_free = free_bytes(scratch) + source.spooled_bytes
    disks = Disks(scratch_free, free_bytes(folder), _device(scratch) == _device(folder))
    plan = make_plan(job, tuning, budget, len(blocks), disks, n_workers)
    return Prepared(plan, job, blocks)


def _budget(job: Job, options: Options, upload_bytes: int) -> tuple[Budget, int]:
    """Return the budget of this process or of each worker, and the number of workers.

    It is measured once the compiled loops are loaded.
    """
    client, product = options.client, options.product
    if client is None:
        _load(job, product.preload)
        reserved = round_reserved(resident_bytes() + upload_bytes)
        threads = options.threads or default_threads()
        limit = limit_bytes(options.memory_limit)
        return Budget(limit, reserved, threads, True, product), 0
    allowed = None if options.memory_limit is None else parse_bytes(options.memory_limit)
    workers = inspect_workers(client, partial(_load, job, product.preload), allowed)
    reserved = round_reserved(workers.reserved)
    threads = workers.threads_per_worker
    budget = Budget(workers.memory_limit, reserved, threads, False, product)
    return budget, workers.n_workers


def _load(job: Job, preload: tuple[Callable[[], None], ...]) -> None:
    """Load all that an export needs, so that its memory is in the reserve."""
    warm_up(job)
    for load in preload:
        load()


class Disks(NamedTuple):
    """The disks of an export."""

    scratch_free: int  # bytes
    output_free: int
    are_same: bool


def _device(folder: Path) -> int:
    return nearest(folder).stat().st_dev


def check_disk(plan: ExportPlan, out_dir: Path, scratch_dir: Path) -> None:
    """Log the plan's warnings, and refuse what cannot fit even if all edges are stored twice."""
    for warning in plan.warnings:
        log.warning("%s", warning)
    is_plain = plan.compression is None and plan.options.get("format") != "parquet"
    least = plan.output_bytes // 2 if is_plain else 0
    scratch = plan.scratch_bytes - (0 if plan.compression is None else plan.output_bytes)
    if scratch and _device(scratch_dir) == _device(out_dir):
        scratch += least  # the runs are there until the edge files are complete
    if scratch > plan.scratch_free_bytes:
        raise DiskSpaceError(
            f"the scratch disk has {format_bytes(plan.scratch_free_bytes)} free, but "
            f"{format_bytes(scratch)} may be needed in {scratch_dir}. Free some space, or name "
            "another disk with `scratch_dir`."
        )
    if least > plan.output_free_bytes:
        raise DiskSpaceError(
            f"the output disk has {format_bytes(plan.output_free_bytes)} free, but at least "
            f"{format_bytes(least)} are needed in {out_dir}. Free some space, or choose another "
            "folder."
        )


@dataclass(frozen=True)
class ExportPlan(Report):
    """What an export will do and need.

    Attributes
    ----------
    source, key : str
        The store and the matrix in it.
    n_cells, n_entries : int
        Cells, and stored entries.
    method : {"symmetric", "general", "summed", "signed"}
        What is tried first. "symmetric": one pass without temporary files, for a matrix that looks
        symmetric; if it turns out not to be, "general" follows. "general": split and merge.
        "summed": the same, for a thinned graph whose matrix stores pairs several times. "signed":
        the same for a matrix with negative weights.
    threads, n_workers : int
        Threads that work at once in one process; worker processes of a cluster, if any.
    n_blocks, n_partitions : int
        Blocks of stored entries; ranges of edge sources.
    tuning : Tuning
        How the work is cut.
    index_dtype : str
        Dtype of the edge files.
    compression : int or None
        Level of gzip.
    options : dict
        All options that decide the bytes of the files.
    memory_limit_bytes, reserved_memory_bytes, projected_memory_bytes : int
        What is allowed; what interpreter and libraries hold; the upper bound for this plan.
    scratch_bytes, output_bytes : int
        Most temporary and final bytes on disk.
    scratch_free_bytes, output_free_bytes : int
        Free bytes on the disks of both.
    warnings : tuple of str
        What the user should know before starting.
    """

    _title = "Export plan"

    source: str
    key: str
    n_cells: int
    n_entries: int
    method: Method
    threads: int
    n_workers: int
    n_blocks: int
    n_partitions: int
    tuning: Tuning
    index_dtype: str
    compression: int | None
    options: dict[str, Any]
    memory_limit_bytes: int
    reserved_memory_bytes: int
    projected_memory_bytes: int
    scratch_bytes: int
    output_bytes: int
    scratch_free_bytes: int
    output_free_bytes: int
    warnings: tuple[str, ...]

    def _picture(self) -> str:
        """Draw the memory: of the limit, what is reserved, and what is projected above that."""
        limit, reserved = self.memory_limit_bytes, self.reserved_memory_bytes
        text = (
            f"Memory: {format_bytes(reserved)} reserved, "
            f"{format_bytes(self.projected_memory_bytes)} projected, {format_bytes(limit)} allowed"
        )
        parts = [(reserved, html.ORANGE), (self.projected_memory_bytes - reserved, html.BLUE)]
        return html.bar(parts, limit, text) + html.listed([text])


def make_plan(
    job: Job, tuning: Tuning, budget: Budget, n_blocks: int, disks: Disks, n_workers: int = 0
) -> ExportPlan:
    """Return the plan with all figures of an export."""
    source, product = job.source, budget.product
    compression = product.options.get("compression")
    # Of a matrix that is not symmetric, every entry may be an edge of its own.
    n_edges = source.n_entries * (1 + job.both)
    if job.method == "symmetric":
        n_edges = source.n_entries if job.both else source.n_entries // 2
    scratch = source.spool_bytes + run_bytes(job, tuning, n_blocks)
    if job.thinning:
        scratch += thinning_scratch(job, n_edges)
        n_edges = min(n_edges, (job.thinning.max_edges or n_edges) * job.n_directions)
    output = product.output_bytes(source.n_cells, n_edges)
    scratch += product.scratch_bytes(job, n_edges, on_cluster=n_workers > 0)
    return ExportPlan(
        source=source.path,
        key=source.key,
        n_cells=source.n_cells,
        n_entries=source.n_entries,
        method=job.method,
        threads=tuning.threads,
        n_workers=n_workers,
        n_blocks=n_blocks,
        n_partitions=job.n_partitions,
        tuning=tuning,
        index_dtype=product.index_dtype(source.n_cells).name,
        compression=compression,
        options=product.options,
        memory_limit_bytes=budget.limit,
        reserved_memory_bytes=budget.reserved,
        projected_memory_bytes=projected_bytes(job, tuning, budget),
        scratch_bytes=scratch,
        output_bytes=output,
        scratch_free_bytes=disks.scratch_free,
        output_free_bytes=disks.output_free,
        warnings=(
            *source.notes,
            *product.warnings(source.n_cells, n_edges),
            *_warnings(source, scratch, output, disks),
        ),
    )


def run_bytes(job: Job, tuning: Tuning, n_blocks: int) -> int:
    """Return the most bytes of all runs together."""
    if job.method == "symmetric":
        return 0
    n_cells, n_entries = job.source.n_cells, job.source.n_entries
    weights = job.weight_dtype.itemsize if job.weighs else 0
    merged = merges_whole_rows(job, tuning) if job.thinning else job.both
    n_bytes = n_entries * (1 + merged) * (max(4, job.cell_dtype.itemsize) + weights)
    if job.thinning:  # the rows that are made of them, and how many entries each has
        left = n_entries * (1 + has_whole_rows(job, tuning))
        n_bytes += left * (job.cell_dtype.itemsize + 8) + 12 * n_cells
    n_bytes += 4 * (n_cells + n_blocks)  # upper entries of each row
    n_bytes += 8 * n_blocks * (job.n_partitions * (2 + count_bands(tuning.block_rows)) + 6)
    if not tuning.count_degrees and not job.thinning:
        n_bytes += 2 * n_entries + 4 * n_cells
        n_bytes += 16 * job.n_partitions * (n_entries // tuning.piece_entries + 1)
    return n_bytes


def _warnings(source: Source, scratch: int, output: int, disks: Disks) -> Iterator[str]:
    mean, pairs = source.n_entries / max(source.n_cells, 1), max(source.n_cells, 1) ** 2
    if mean > _USUAL_NEIGHBORS or (mean > _FEW_NEIGHBORS and source.n_entries > pairs / 2):
        yield (
            f"This graph is very dense: {mean:,.0f} stored entries a cell on average, "
            f"or {source.n_entries / pairs:.2g} of all pairs. Neighbor graphs have 10 to 100; a "
            "viewer may not draw so many edges. Is it the right matrix?"
        )
    if scratch > disks.scratch_free or (disks.are_same and scratch + output > disks.output_free):
        free = min(disks.scratch_free, disks.output_free)
        yield (
            f"Up to {format_bytes(scratch)} of temporary and {format_bytes(output)} of edge files "
            f"may not fit the {format_bytes(free)} that are free."
        )
