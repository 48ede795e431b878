"""The public functions that plan an export and do it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .cluster import (
    Cluster,
    Workers,
    active_client,
    check_folders,
    compute_on_workers,
    inspect_workers,
    worker_peak_bytes,
)
from .edge_files import DeflatePart, EdgeFiles
from .edge_pairs import SIDES, Manifest, index_dtype
from .errors import (
    ClusterError,
    DiskSpaceError,
    NegativeWeightError,
    OtherWayError,
    ResumeError,
)
from .execute import Threads, compute_on_threads, default_threads
from .files import free_bytes, make_folders, named_disk_errors
from .job import Job, Way
from .journal import (
    Journal,
    RunRecord,
    any_finished,
    check_same,
    new_id,
    now,
    read_run,
    scratch_name,
    this_process,
)
from .lazy import LazyMatrix
from .memory import (
    default_limit,
    format_bytes,
    no_collection,
    parse_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
)
from .parts import PartDelivery
from .plan import (
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
from .progress import Progress, progress_bars
from .publish import WORK_FOLDER, Output, check_own_folder, read_identity
from .remote import default_options
from .resume import Stages
from .scratch import Scratch
from .source import Block, Source, open_source
from .spool import Compute, estimate, sketch, spool, spool_memory
from .stages import run_stages
from .stream import looks_symmetric
from .upload import RemoteOutput, local_folder, open_output

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes
    ----------
    out_dir : str
        The export's folder.
    n_cells, n_edges, max_neighbors : int
        Cells, undirected edges, the largest degree.
    index_dtype : str
        Dtype of the edge files.
    compression : int or None
        Level of gzip.
    threads : int
        Threads that worked.
    seconds : float
        From start to end.
    memory_limit_bytes, projected_memory_bytes, peak_memory_bytes : int
        Resident memory: allowed, foreseen at most, and measured.
    scratch_bytes, output_bytes : int
        Temporary and final bytes on disk.
    symmetric : bool
        Whether the matrix was proved symmetric, so that one pass without temporary files was all.
    kept_tasks : int
        Tasks of an interrupted run that did not have to be done again.
    """

    out_dir: str
    n_cells: int
    n_edges: int
    max_neighbors: int
    index_dtype: str
    compression: int | None
    threads: int
    seconds: float
    memory_limit_bytes: int
    projected_memory_bytes: int
    peak_memory_bytes: int
    scratch_bytes: int
    output_bytes: int
    symmetric: bool
    kept_tasks: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class _Prepared:
    """A plan with all that its execution needs."""

    plan: ExportPlan
    job: Job
    tuning: Tuning
    blocks: list[Block]
    workers: Workers | None


def plan_export(
    source: Any,
    out_dir: str | Path | None = None,
    *,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    compression: int | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    client: Client | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
) -> ExportPlan:
    """Return what an export would do and need. Nothing is written.

    Parameters
    ----------
    source
        The graph, or where it is: a path or URL of a zarr AnnData store (a folder, or a zip archive
        of one), an ``.h5ad`` or ``.h5mu`` file, a `zarr.Group` or store, an `anndata.AnnData` in
        memory, backed or lazy, a matrix of scipy or PyData sparse, anything that numpy makes a
        two-dimensional array of, or a Dask array of any of these.
    out_dir
        Where the export would go; the working directory's disk is looked at if not given.
    key
        Key of `obsp`, or with slashes a path inside the store.
    neighbors_key
        Name of one of scanpy's neighbour graphs (``uns[neighbors_key]``), instead of `key`.
    storage_options
        For fsspec, if `source` is a URL: endpoint, credentials and the like.
    compression
        Level of gzip, 1 to 9; None for plain files.
    memory_limit
        Most resident memory of this process, such as ``"512MB"``; by default half of what the
        machine or cgroup has.
    threads
        Most threads; by default one for each core this process may use.
    scratch_dir
        Where temporary files would go; by default beside the output.
    client
        A `distributed.Client`: its workers do the work, and the memory limit is that of each
        worker. By default the one that is active, if any; else threads of this process.
    output_storage_options
        For fsspec, if `out_dir` is a URL: endpoint, credentials and the like.

    Returns
    -------
    ExportPlan

    Raises
    ------
    SourceError, DamagedGraphError
        If the store or the matrix cannot be exported.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    """
    output_storage_options = default_options(
        out_dir or "", output_storage_options, source, storage_options
    )
    client = client if client is not None else active_client()
    output = open_output(
        out_dir if out_dir is not None else Path.cwd(),
        force=True,
        scratch_dir=scratch_dir,
        storage_options=output_storage_options,
        on_cluster=client is not None,
    )
    way: Way | None = None
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    if isinstance(opened, LazyMatrix):
        opened, way = estimate(opened, _computing(client, memory_limit, 1)), "general"
    elif client is not None and not opened.place.is_shared:
        opened, way = sketch(opened), "general"
    prepared = _prepare(
        opened,
        output.folder,
        compression=compression,
        memory_limit=memory_limit,
        threads=threads,
        scratch_dir=scratch_dir,
        client=client,
        way=way,
        upload_bytes=output.upload_bytes,
    )
    return prepared.plan


def export_connectivities(
    source: Any,
    out_dir: str | Path,
    *,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    compression: int | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    keep_scratch: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: bool | None = False,
    client: Client | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export a neighbour graph as the edge files of the Cellucid viewer.

    Of ``S = C + C.T`` every nonzero above the diagonal becomes an edge, sorted by source and
    destination. The work is done out of core; readers see an earlier export, or this one complete.

    Parameters
    ----------
    source, key, neighbors_key, storage_options, compression, memory_limit, threads, scratch_dir
        As for `plan_export`.
    out_dir
        Folder of the export, or a URL such as ``s3://bucket/export``. The edge files go to
        ``connectivity/`` in it.
    keep_scratch
        Whether to leave temporary files where they are, whether the export succeeds or fails.
    force
        Whether to replace an export that is there.
    resume
        Whether to go on with a run into `out_dir` that was interrupted: killed, cancelled, or left
        by its cluster. What it has finished is checked and kept; the bytes are the same. If there
        is none, the export starts from the beginning.
    progress
        Whether to show progress bars on standard error; None for "if it is a terminal".
    client, output_storage_options
        As for `plan_export`.

    Returns
    -------
    ExportReport

    Raises
    ------
    SourceError, DamagedGraphError
        If the store or the matrix cannot be exported.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    ClusterError
        If the workers of the cluster cannot do it.
    OutputError, DiskSpaceError
        If the output or scratch folder cannot be written.
    ResumeError
        If the interrupted run was another one, or its source has changed since.

    Examples
    --------
    >>> report = export_connectivities("atlas.zarr", "export", memory_limit="1GB")
    ... # doctest: +SKIP
    >>> report.n_edges  # doctest: +SKIP
    86012345
    """
    output_storage_options = default_options(
        out_dir, output_storage_options, source, storage_options
    )
    return run_export(
        open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options),
        out_dir,
        compression=compression,
        memory_limit=memory_limit,
        threads=threads,
        scratch_dir=scratch_dir,
        keep_scratch=keep_scratch,
        force=force,
        resume=resume,
        progress=progress,
        client=client if client is not None else active_client(),
        output_storage_options=output_storage_options,
    )


def is_interrupted(out_dir: str | Path, scratch_dir: str | Path | None = None) -> bool:
    """Tell whether a run into `out_dir` was interrupted, so that `resume` goes on with it."""
    return read_run(local_folder(out_dir, scratch_dir) / WORK_FOLDER) is not None


def run_export(
    source: Source | LazyMatrix,
    out_dir: str | Path,
    *,
    keep_scratch: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: bool | None = False,
    scratch_dir: str | Path | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ExportReport:
    """Do `export_connectivities` for an open source; tests also give `tuning` and `way`."""
    began = time.perf_counter()
    reset_peak()
    client: Client | None = settings.get("client")
    if client is not None:  # workers may have another working directory
        source = source.absolute()
        scratch_dir = Path(scratch_dir).absolute() if scratch_dir is not None else None
    ready = isinstance(source, Source) and (client is None or source.place.is_shared)
    lasting = isinstance(source, Source) and ready and source.place.is_lasting
    if resume and not lasting:
        log.info("only exports of files and URLs can be gone on with; starting from the beginning")
        resume = False
    record = None
    if resume and isinstance(source, Source):
        folder = local_folder(out_dir, scratch_dir)
        record = _interrupted_run(source, folder, settings.get("compression"), scratch_dir)
        settings["record"] = record
    output = open_output(
        out_dir,
        force=force or (record is not None and record.force),
        resume=record is not None,
        scratch_dir=scratch_dir,
        storage_options=output_storage_options,
        on_cluster=client is not None,
    )
    read_identity(output.out_dir, source.n_cells)
    settings["scratch_dir"] = Path(record.scratch).parent if record else scratch_dir
    settings["upload_bytes"] = output.upload_bytes
    prepared: _Prepared | None = None
    if ready and isinstance(source, Source):
        prepared = _prepare(source, output.folder, **settings)
        if record is None:
            _check_disk(prepared.plan, output.folder, scratch_dir)
    with (
        output,
        progress_bars(progress) as bars,
        _spool_folder(output, scratch_dir, keep_scratch, needed=not ready) as spooled,
    ):
        if prepared is None:
            counted = _spooled(source, spooled, bars, settings)
            prepared = _prepare(counted, output.folder, **settings)
            _check_disk(prepared.plan, output.folder, scratch_dir)
        if resume and read_run(output.work) != record:
            raise ResumeError(f"another run has ended in {out_dir} just now; try again.")
        while True:
            if record is None:
                record = _new_record(prepared, output, scratch_dir, force)
            try:
                with _folders(record, output, keep_scratch, spooled, lasting) as edges:
                    result = _run(prepared, record, output, edges, bars, client)
                    output.publish(result.manifest, edges, bars)
                break
            except OtherWayError as reason:
                # Seen only on the way: some weights are negative, or an entry has no mirror image.
                way: Way = "signed" if isinstance(reason, NegativeWeightError) else "general"
                log.info("starting again the %s way", way)
                settings |= {"way": way, "record": None}
                prepared = _prepare(prepared.job.source, output.folder, **settings)
                _check_disk(prepared.plan, output.folder, scratch_dir)
                record = None
    plan = prepared.plan
    return ExportReport(
        out_dir=str(output.out_dir),
        n_cells=plan.n_cells,
        n_edges=result.manifest.n_edges,
        max_neighbors=result.manifest.max_neighbors,
        index_dtype=plan.index_dtype,
        compression=plan.compression,
        threads=plan.threads,
        seconds=round(time.perf_counter() - began, 3),
        memory_limit_bytes=plan.memory_limit_bytes,
        projected_memory_bytes=plan.projected_memory_bytes,
        peak_memory_bytes=peak_bytes() if client is None else worker_peak_bytes(client),
        scratch_bytes=result.scratch_bytes + prepared.job.source.spool_bytes,
        output_bytes=result.output_bytes,
        symmetric=plan.way == "symmetric",
        kept_tasks=result.kept_tasks,
    )


def _computing(client: Client | None, memory_limit: int | str | None, threads: int) -> Compute:
    """Return what computes a Dask array: the cluster, or threads within the limit."""
    if client is not None:
        return partial(compute_on_workers, client)
    limit = default_limit() if memory_limit is None else parse_bytes(memory_limit)
    return partial(compute_on_threads, n_threads=threads, limit=limit)


def _spooled(
    source: Source | LazyMatrix, folder: Path, bars: Progress, settings: Mapping[str, Any]
) -> Source:
    """Return a source that is counted and that all see, in files of ours."""
    client: Client | None = settings.get("client")
    with named_disk_errors(folder.parent):
        if client is not None:
            check_folders(client, None, [folder])
        if isinstance(source, Source):
            return spool_memory(source, folder)
        threads = settings.get("threads") or default_threads()
        compute = _computing(client, settings.get("memory_limit"), threads)
        return spool(source, folder, compute, bars)


@contextmanager
def _spool_folder(
    output: Output | RemoteOutput, scratch_dir: str | Path | None, keep: bool, *, needed: bool
) -> Iterator[Path]:
    """Give the folder of what has to be spooled, and remove it afterwards."""
    base = output.work if scratch_dir is None else _scratch_base(output.folder, scratch_dir)
    folder = base.absolute() / "spool"
    if not needed:
        yield folder
        return
    made: list[Path] = []
    try:
        with named_disk_errors(base.parent):
            made = make_folders(base)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            for above in (*([base] if base != output.work else []), *made):
                with suppress(OSError):
                    above.rmdir()  # only if it is empty


def _prepare(
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
) -> _Prepared:
    if compression is not None and not 1 <= compression <= 9:
        raise ValueError(f"compression must be None or 1 to 9, not {compression}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    allowed = None if memory_limit is None else parse_bytes(memory_limit)
    if record is not None:
        way = record.way
    if way is None:
        way = "symmetric" if looks_symmetric(source) else "general"
    workers = None
    if client is None:
        limit = default_limit() if allowed is None else allowed
        threads = threads or default_threads()
        with no_collection():
            source.warm_up(way)
        reserved = round_reserved(resident_bytes() + upload_bytes)
    else:
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
    return _Prepared(plan, job, tuning, blocks, workers)


def _device(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def _check_disk(plan: ExportPlan, out_dir: Path, scratch_dir: str | Path | None) -> None:
    """Refuse what cannot fit even if every edge is stored in both directions."""
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


def _interrupted_run(
    source: Source, out_dir: Path, compression: int | None, scratch_dir: str | Path | None
) -> RunRecord | None:
    """Return the run to go on with, if there is one.

    Raises
    ------
    ResumeError
        If it is not the one that is asked for.
    """
    record = read_run(out_dir / WORK_FOLDER)
    if record is None:
        log.info("no interrupted run in %s; starting from the beginning", out_dir)
        return None
    check_same(
        record,
        source=source.absolute().path,
        key=source.key,
        fingerprint=source.fingerprint(),
        compression=compression,
    )
    if (
        scratch_dir is not None
        and _scratch_base(out_dir, scratch_dir) != Path(record.scratch).parent
    ):
        raise ResumeError(
            f"the run that was interrupted in {out_dir} has its temporary files in "
            f"{record.scratch}. Leave out --scratch-dir, or start over without --resume."
        )
    return record


def _new_record(
    prepared: _Prepared,
    output: Output | RemoteOutput,
    scratch_dir: str | Path | None,
    force: bool,
) -> RunRecord:
    source, tuning, run = prepared.job.source, prepared.tuning, new_id()
    base = output.work if scratch_dir is None else _scratch_base(output.folder, scratch_dir)
    seeds = (int.from_bytes(os.urandom(8)), int.from_bytes(os.urandom(8)))
    return RunRecord(
        id=run,
        version=__version__,
        source=source.absolute().path,
        key=source.key,
        fingerprint=source.fingerprint(),
        out_dir=str(output.name),
        scratch=str(base.absolute() / f"run-{run}"),
        compression=prepared.plan.compression,
        way=prepared.job.way,
        block_entries=tuning.block_entries,
        block_rows=tuning.block_rows,
        piece_entries=tuning.piece_entries,
        shift=tuning.shift,
        seeds=seeds,
        force=force,
        started=now(),
        process=this_process(),
    )


def _scratch_base(out_dir: Path, scratch_dir: str | Path) -> Path:
    """Return the folder of all runs into `out_dir` inside the user's scratch folder."""
    return Path(scratch_dir).absolute() / scratch_name(out_dir)


@contextmanager
def _folders(
    record: RunRecord, output: Output | RemoteOutput, keep: bool, spooled: Path, lasting: bool
) -> Iterator[Path]:
    """Make the folders of a run, and remove them afterwards unless it can be gone on with.

    Yields
    ------
    Path
        Where the edge files are made.
    """
    scratch, edges = Path(record.scratch), output.work / f"edges-{record.id}"
    made: list[Path] = []
    output.keep = keep
    try:
        with named_disk_errors(scratch.parent.parent):
            if scratch.parent != output.work:
                made = make_folders(scratch.parent.parent)
                if not scratch.parent.is_symlink():
                    scratch.parent.mkdir(mode=0o700, exist_ok=True)
                check_own_folder(scratch.parent)
                for other in scratch.parent.iterdir():  # of runs that were killed
                    if other not in (scratch, spooled):
                        shutil.rmtree(other, ignore_errors=True)
            scratch.mkdir(mode=0o700, exist_ok=True)
            edges.mkdir(mode=0o700, exist_ok=True)
            record.write(output.work)
        yield edges
    except (KeyboardInterrupt, ClusterError) as error:
        if lasting and any_finished(output.work, record.id):
            output.keep = True
            if isinstance(error, ClusterError):
                goes_on = "What is finished is kept; the same export with --resume goes on."
                error.args = (f"{error} {goes_on}",)
        raise
    finally:
        if not output.keep:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(edges, ignore_errors=True)
            above = [scratch.parent] if scratch.parent != output.work else []
            for folder in (*above, *made):
                with suppress(OSError):
                    folder.rmdir()  # only if it is empty


@dataclass(frozen=True)
class _Result:
    """What a run has made."""

    manifest: Manifest
    scratch_bytes: int
    output_bytes: int
    kept_tasks: int


def _run(
    prepared: _Prepared,
    record: RunRecord,
    output: Output | RemoteOutput,
    edges: Path,
    progress: Progress,
    client: Client | None,
) -> _Result:
    """Run all stages; leave the edge files in the folder `edges`."""
    plan, scratch = prepared.plan, Scratch(record.scratch)
    job = replace(prepared.job, scratch=scratch)
    dtype = index_dtype(plan.n_cells)
    with named_disk_errors(Path(scratch.folder).parent):
        journal = Journal(output.work, record.id)
        delivery: EdgeFiles | PartDelivery | None = None
        try:
            if client is not None and prepared.workers is not None:
                check_folders(client, job.source.place.file, [Path(scratch.folder), edges])
                stages = Stages(Cluster(client, prepared.workers.n_threads, progress), journal)
                delivery = PartDelivery(
                    edges, scratch, dtype, job.cell_dtype, plan.compression, stages
                )
            else:
                stages = Stages(Threads(plan.threads, progress), journal)
                parts = {side: journal.found(f"deflate-{side}", DeflatePart) for side in SIDES}
                delivery = EdgeFiles(
                    edges,
                    dtype,
                    plan.compression,
                    parts,
                    lambda side, number, part: journal.add(f"deflate-{side}", number, part),
                )
            outcome = run_stages(
                job, prepared.blocks, prepared.tuning, record.seeds, stages, delivery
            )
        finally:
            if delivery is not None:
                delivery.close()
            journal.close()
    manifest = Manifest(plan.n_cells, outcome.n_edges, outcome.max_neighbors, plan.compression)
    return _Result(manifest, outcome.scratch_bytes, outcome.output_bytes, stages.n_kept)
