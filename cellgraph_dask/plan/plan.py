"""From a matrix and the user's options to a plan that can be carried out. Nothing is written."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edge_pairs.format import VIEWER_LIMIT, index_dtype, viewer_bytes
from ..errors import DiskSpaceError, ResumeError
from ..machine.files import free_bytes
from ..machine.memory import (
    format_bytes,
    limit_bytes,
    no_collection,
    parse_bytes,
    resident_bytes,
    round_reserved,
)
from ..runtime.cluster import Workers, inspect_workers
from ..runtime.threads import default_threads
from ..source.blocks import cut_blocks, looks_symmetric
from ..source.matrix import Block, Source
from ..stages.job import Job, Tuning, Way, partition_shift
from ..stages.pipeline import warm_up
from ..stages.runs import Scratch
from ..stages.split import count_bands
from .tuning import adopt, projected_bytes, tune

if TYPE_CHECKING:
    from distributed import Client

    from ..export.record import RunRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A plan with all that its execution needs.

    Attributes
    ----------
    plan : ExportPlan
        What will be done.
    job : Job
        What every task needs to know; its scratch folder is not named yet.
    tuning : Tuning
        How the work is cut.
    blocks : list of Block
        The stored entries in blocks.
    workers : Workers or None
        Those of the cluster, if there is one.
    """

    plan: ExportPlan
    job: Job
    tuning: Tuning
    blocks: list[Block]
    workers: Workers | None


def prepare(
    source: Source,
    out_dir: Path,
    *,
    compression: int | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    client: Client | None = None,
    way: Way | None = None,
    tuning: Tuning | None = None,
    record: RunRecord | None = None,
    upload_bytes: int = 0,
) -> Prepared:
    """Plan an export, with all that its execution needs.

    Parameters
    ----------
    source
        The matrix.
    out_dir
        A folder on the disk of the output.
    compression, memory_limit, threads, scratch_dir, client
        As for `export.plan_export`.
    way, tuning
        How the edges are found, and how the work is cut; by default what suits matrix and limit.
    record
        The interrupted run to go on with, cut as it was.
    upload_bytes
        Memory that uploading takes.

    Raises
    ------
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    ClusterError
        If the workers of the cluster cannot do it.
    ResumeError
        If the interrupted run was planned for more memory.
    DamagedGraphError
        If `indptr` breaks a rule.
    """
    if compression is not None and not 1 <= compression <= 9:
        raise ValueError(f"compression must be None or 1 to 9, not {compression}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if record is not None:
        way = record.way
    if way is None:
        way = "symmetric" if looks_symmetric(source) else "general"
    workers = None
    if client is None:
        limit = limit_bytes(memory_limit)
        threads = threads or default_threads()
        with no_collection():
            warm_up(source, way)
        reserved = round_reserved(resident_bytes() + upload_bytes)
    else:
        allowed = None if memory_limit is None else parse_bytes(memory_limit)
        workers = inspect_workers(client, partial(warm_up, source, way), allowed)
        limit, threads = workers.memory_limit, workers.threads_per_worker
        reserved = round_reserved(workers.reserved)
    if record is not None:
        tuning = record.tuning(threads)
    shift = tuning.shift if tuning else partition_shift(source.n_cells)
    job = Job(source, Scratch(""), shift, way)
    if record is not None and tuning is not None:
        adopted = adopt(
            job,
            tuning,
            limit=limit,
            reserved=reserved,
            compression=compression,
            fewer=workers is None,
        )
        if adopted is None:
            least = replace(tuning, threads=1) if workers is None else tuning
            needed = projected_bytes(job, least, reserved, compression)
            raise ResumeError(
                f"the run that was interrupted in {record.out_dir} was planned for more memory: "
                f"going on takes {format_bytes(needed)}, but the limit is {format_bytes(limit)}. "
                f"Allow {-(-needed // 10**6)}MB with --memory-limit, or start over without "
                "--resume."
            )
        tuning = adopted
    elif tuning is None:
        tuning = tune(
            job,
            limit=limit,
            reserved=reserved,
            threads=threads,
            compression=compression,
            fewer=workers is None,
        )
    blocks = cut_blocks(source, tuning.block_entries, tuning.block_rows)
    scratch_folder = Path(scratch_dir) if scratch_dir is not None else out_dir
    plan = make_plan(
        job,
        tuning,
        len(blocks),
        compression=compression,
        limit=limit,
        reserved=reserved,
        scratch_free=free_bytes(scratch_folder) + source.spooled_bytes,
        output_free=free_bytes(out_dir),
        same_disk=_device(scratch_folder) == _device(out_dir),
        n_workers=workers.n_workers if workers is not None else 0,
    )
    return Prepared(plan, job, tuning, blocks, workers)


def _device(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def check_disk(plan: ExportPlan, out_dir: Path, scratch_dir: str | Path | None) -> None:
    """Tell the plan's warnings, and refuse what cannot fit even if all edges are stored twice.

    Raises
    ------
    DiskSpaceError
        If a disk has too little room.
    """
    for warning in plan.warnings:
        log.warning("%s", warning)
    scratch_folder = Path(scratch_dir) if scratch_dir is not None else out_dir
    least = plan.output_bytes // 2 if plan.compression is None else 0
    scratch = plan.scratch_bytes - (0 if plan.compression is None else plan.output_bytes)
    if scratch and _device(scratch_folder) == _device(out_dir):
        scratch += least  # the runs are there until the edge files are complete
    if scratch > plan.scratch_free_bytes:
        raise DiskSpaceError(
            f"the scratch disk has {format_bytes(plan.scratch_free_bytes)} free, but "
            f"{format_bytes(scratch)} may be needed in {scratch_folder}. Free some space, or name "
            "another disk with --scratch-dir."
        )
    if least > plan.output_free_bytes:
        raise DiskSpaceError(
            f"the output disk has {format_bytes(plan.output_free_bytes)} free, but at least "
            f"{format_bytes(least)} are needed in {out_dir}. Free some space, or choose another "
            "folder."
        )


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
