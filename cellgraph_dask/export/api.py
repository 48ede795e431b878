"""The public functions that plan an export and do it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.edge_files import DeflatePart, EdgeFiles
from ..delivery.parts import PartDelivery
from ..edge_pairs.format import SIDES, Manifest, index_dtype
from ..errors import NegativeWeightError, OtherWayError, ResumeError
from ..machine.files import named_disk_errors
from ..machine.memory import limit_bytes, peak_bytes, reset_peak
from ..machine.remote import default_options
from ..plan.plan import Prepared, check_disk, prepare
from ..plan.tuning import ExportPlan
from ..publish.publish import WORK_FOLDER, Output, read_identity
from ..publish.upload import RemoteOutput, local_folder, open_output
from ..runtime.cluster import (
    Cluster,
    active_client,
    check_folders,
    compute_on_workers,
    worker_peak_bytes,
)
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Stages
from ..runtime.threads import Threads, compute_on_threads, default_threads
from ..source.lazy import LazyMatrix
from ..source.matrix import Source, open_source
from ..source.spool import Compute, estimate, sketch, spool, spool_memory
from ..stages.job import Way
from ..stages.pipeline import run_stages
from ..stages.runs import Scratch
from .journal import Journal, RunRecord, read_run
from .record import interrupted_run, new_record, run_folders, spool_folder

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
    prepared = prepare(
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
        record = interrupted_run(source, folder, settings.get("compression"), scratch_dir)
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
    prepared: Prepared | None = None
    if ready and isinstance(source, Source):
        prepared = prepare(source, output.folder, **settings)
        if record is None:
            check_disk(prepared.plan, output.folder, scratch_dir)
    with (
        output,
        progress_bars(progress) as bars,
        spool_folder(output, scratch_dir, keep_scratch, needed=not ready) as spooled,
    ):
        if prepared is None:
            counted = _spooled(source, spooled, bars, settings)
            prepared = prepare(counted, output.folder, **settings)
            check_disk(prepared.plan, output.folder, scratch_dir)
        if resume and read_run(output.work) != record:
            raise ResumeError(f"another run has ended in {out_dir} just now; try again.")
        while True:
            if record is None:
                record = new_record(prepared, output, scratch_dir, force)
            try:
                with run_folders(record, output, keep_scratch, spooled, lasting) as edges:
                    result = _run(prepared, record, output, edges, bars, client)
                    output.publish(result.manifest, edges, bars)
                break
            except OtherWayError as reason:
                # Seen only on the way: some weights are negative, or an entry has no mirror image.
                way: Way = "signed" if isinstance(reason, NegativeWeightError) else "general"
                log.info("starting again the %s way", way)
                settings |= {"way": way, "record": None}
                prepared = prepare(prepared.job.source, output.folder, **settings)
                check_disk(prepared.plan, output.folder, scratch_dir)
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
    return partial(compute_on_threads, n_threads=threads, limit=limit_bytes(memory_limit))


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


@dataclass(frozen=True)
class _Result:
    """What a run has made."""

    manifest: Manifest
    scratch_bytes: int
    output_bytes: int
    kept_tasks: int


def _run(
    prepared: Prepared,
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
