"""The public functions: plan an export, do it, verify it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cluster import (
    Cluster,
    Workers,
    active_client,
    check_folders,
    compute_on_workers,
    inspect_workers,
    worker_peak_bytes,
)
from .download import downloaded
from .edge_files import EdgeFiles
from .edge_pairs import Manifest, index_dtype
from .errors import DiskSpaceError, InvalidExportError, NegativeWeightError, OtherWayError
from .execute import Executor, Threads, compute_on_threads, default_threads
from .files import free_bytes, make_folders, named_disk_errors
from .job import Job, Way
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
    cut_blocks,
    make_plan,
    partition_shift,
    round_reserved,
    tune,
)
from .progress import Progress, progress_bars
from .publish import Output, read_identity
from .remote import find_path
from .scratch import Scratch
from .source import Block, Source, open_source
from .spool import Compute, estimate, sketch, spool, spool_memory
from .stages import run_stages
from .stream import looks_symmetric
from .upload import RemoteOutput, open_output
from .verify import VerifyReport, verify

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
        output.disk,
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
        Whether to leave the temporary files of a `scratch_dir` where they are.
    force
        Whether to replace an export that is there.
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

    Examples
    --------
    >>> report = export_connectivities("atlas.zarr", "export", memory_limit="1GB")
    ... # doctest: +SKIP
    >>> report.n_edges  # doctest: +SKIP
    86012345
    """
    return run_export(
        open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options),
        out_dir,
        compression=compression,
        memory_limit=memory_limit,
        threads=threads,
        scratch_dir=scratch_dir,
        keep_scratch=keep_scratch,
        force=force,
        progress=progress,
        client=client if client is not None else active_client(),
        output_storage_options=output_storage_options,
    )


def run_export(
    source: Source | LazyMatrix,
    out_dir: str | Path,
    *,
    keep_scratch: bool = False,
    force: bool = False,
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
    output = open_output(
        out_dir,
        force=force,
        scratch_dir=scratch_dir,
        storage_options=output_storage_options,
        on_cluster=client is not None,
    )
    read_identity(output.out_dir, source.n_cells)
    settings |= {"scratch_dir": scratch_dir, "upload_bytes": output.upload_bytes}
    prepared: _Prepared | None = None
    if isinstance(source, Source) and (client is None or source.place.is_shared):
        prepared = _prepare(source, output.disk, **settings)
        _check_disk(prepared.plan)
    with (
        output,
        progress_bars(progress) as bars,
        _scratch(output, scratch_dir, keep_scratch, needed=prepared is None) as folder,
    ):
        if prepared is None:
            counted = _spooled(source, Path(folder.folder), bars, settings)
            prepared = _prepare(counted, output.disk, **settings)
            _check_disk(prepared.plan)
        while True:
            try:
                with _scratch(output, scratch_dir, keep_scratch) as scratch:
                    manifest, n_scratch, n_output = _run(prepared, output, scratch, bars, client)
                    output.publish(manifest, bars)
                break
            except OtherWayError as reason:
                # Seen only on the way: some weights are negative, or an entry has no mirror image.
                way: Way = "signed" if isinstance(reason, NegativeWeightError) else "general"
                log.info("starting again the %s way", way)
                settings["way"] = way
                prepared = _prepare(prepared.job.source, output.disk, **settings)
                _check_disk(prepared.plan)
    plan = prepared.plan
    return ExportReport(
        out_dir=str(output.out_dir),
        n_cells=plan.n_cells,
        n_edges=manifest.n_edges,
        max_neighbors=manifest.max_neighbors,
        index_dtype=plan.index_dtype,
        compression=plan.compression,
        threads=plan.threads,
        seconds=round(time.perf_counter() - began, 3),
        memory_limit_bytes=plan.memory_limit_bytes,
        projected_memory_bytes=plan.projected_memory_bytes,
        peak_memory_bytes=peak_bytes() if client is None else worker_peak_bytes(client),
        scratch_bytes=n_scratch + prepared.job.source.spool_bytes,
        output_bytes=n_output,
        symmetric=plan.way == "symmetric",
    )


def verify_export(
    out_dir: str | Path,
    *,
    progress: bool | None = False,
    output_storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Check an export: manifest, sizes, order, largest degree, gzip.

    Parameters
    ----------
    out_dir
        Folder of the export, or its URL.
    progress, output_storage_options
        As for `export_connectivities`.

    Returns
    -------
    VerifyReport
        `ok` is False if anything is wrong; `problems` says what.
    """
    path = find_path(out_dir, output_storage_options)
    with progress_bars(progress) as bars:
        if isinstance(path, Path):
            return verify(path, bars)
        try:
            with downloaded(path) as folder:
                report = verify(folder, bars)
        except InvalidExportError as error:
            return VerifyReport(False, (str(error),))
    problems = tuple(text.replace(str(folder), str(path)) for text in report.problems)
    return replace(report, problems=problems)


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
    upload_bytes: int = 0,
) -> _Prepared:
    if compression is not None and not 1 <= compression <= 9:
        raise ValueError(f"compression must be None or 1 to 9, not {compression}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    allowed = None if memory_limit is None else parse_bytes(memory_limit)
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
    shift = tuning.shift if tuning else partition_shift(source.n_cells)
    job = Job(source, Scratch(""), shift, way)
    if tuning is None:
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


def _check_disk(plan: ExportPlan) -> None:
    """Refuse what cannot fit even if every edge is stored in both directions."""
    for warning in plan.warnings:
        log.warning("%s", warning)
    least = plan.output_bytes // 2 if plan.compression is None else 0
    if (
        plan.scratch_bytes - (0 if plan.compression is None else plan.output_bytes)
        > plan.scratch_free_bytes
    ):
        raise DiskSpaceError(
            f"the scratch disk has {format_bytes(plan.scratch_free_bytes)} free, but "
            f"{format_bytes(plan.scratch_bytes)} may be needed. Free some space, or name another "
            "disk with --scratch-dir."
        )
    if least > plan.output_free_bytes:
        raise DiskSpaceError(
            f"the output disk has {format_bytes(plan.output_free_bytes)} free, but at least "
            f"{format_bytes(least)} are needed. Free some space, or choose another folder."
        )


@contextmanager
def _scratch(
    output: Output | RemoteOutput, scratch_dir: str | Path | None, keep: bool, needed: bool = True
) -> Iterator[Scratch]:
    """Give a private folder for temporary files, and remove it afterwards."""
    if not needed:
        yield Scratch("")
        return
    parent = Path(scratch_dir) if scratch_dir is not None else output.work
    made: list[Path] = []
    try:
        with named_disk_errors(parent):
            made = make_folders(parent)
            folder = tempfile.mkdtemp(prefix="cellgraph-dask-", dir=parent)
        try:
            yield Scratch(folder)
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for above in made:
            with suppress(OSError):
                above.rmdir()  # only if it is empty


def _run(
    prepared: _Prepared,
    output: Output | RemoteOutput,
    scratch: Scratch,
    progress: Progress,
    client: Client | None,
) -> tuple[Manifest, int, int]:
    """Run all stages; return the manifest and the sizes of scratch and output in bytes."""
    plan, job = prepared.plan, replace(prepared.job, scratch=scratch)
    output.clear_edge_files()
    dtype = index_dtype(plan.n_cells)
    executor: Executor
    delivery: EdgeFiles | PartDelivery
    with named_disk_errors(Path(scratch.folder).parent):
        if client is not None and prepared.workers is not None:
            check_folders(client, job.source.place.file, [Path(scratch.folder), output.work])
            executor = Cluster(client, prepared.workers.n_threads, progress)
            delivery = PartDelivery(
                output.work, scratch, dtype, job.cell_dtype, plan.compression, executor
            )
        else:
            executor = Threads(plan.threads, progress)
            delivery = EdgeFiles(output.work, dtype, plan.compression)
        try:
            outcome = run_stages(job, prepared.blocks, prepared.tuning, executor, delivery)
        finally:
            delivery.close()
    manifest = Manifest(plan.n_cells, outcome.n_edges, outcome.max_neighbors, plan.compression)
    return manifest, outcome.scratch_bytes, outcome.output_bytes
