"""From a matrix and the user's options to a plan that can be carried out. Nothing is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiskSpaceError, ResumeError
from ..export.journal import RunRecord
from ..machine.files import free_bytes
from ..machine.memory import format_bytes, limit_bytes, no_collection, parse_bytes, resident_bytes
from ..runtime.cluster import Workers, inspect_workers
from ..runtime.threads import default_threads
from ..source.matrix import Block, Source
from ..stages.job import Job, Way
from ..stages.runs import Scratch
from ..stages.stream import looks_symmetric
from .tuning import (
    ExportPlan,
    Tuning,
    adopt,
    cut_blocks,
    make_plan,
    partition_shift,
    projected_bytes,
    round_reserved,
    tune,
)

if TYPE_CHECKING:
    from distributed import Client

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
            source.warm_up(way)
        reserved = round_reserved(resident_bytes() + upload_bytes)
    else:
        allowed = None if memory_limit is None else parse_bytes(memory_limit)
        workers = inspect_workers(client, source, way, allowed)
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
