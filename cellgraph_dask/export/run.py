"""To be described."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.edge_files import EdgeFiles
from ..delivery.parts import PartDelivery
from ..edge_pairs.format import SIDES, Manifest, index_dtype, read_identity
from ..edge_pairs.gzip_member import DeflatePart
from ..errors import ResumeError
from ..machine.files import named_disk_errors
from ..machine.memory import limit_bytes, peak_bytes, reset_peak
from ..plan.plan import Prepared, check_disk, prepare
from ..publish.publish import WORK_FOLDER, Output
from ..publish.upload import RemoteOutput, local_folder, open_output
from ..runtime.cluster import Cluster, check_folders, compute_on_workers, worker_peak_bytes
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Journal, ResumableExecutor
from ..runtime.threads import Threads, compute_on_threads, default_threads
from ..source.matrix import NegativeWeightError, Source
from ..source.spool import Compute, LazyMatrix, spool, spool_memory
from ..stages.job import OtherWayError, Way
from ..stages.pipeline import run_stages
from ..stages.runs import Scratch
from .record import RunRecord, interrupted_run, new_record, read_run, run_folders, spool_folder

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
        scratch_dir = Path(scratch_dir).absolute() if scratch_dir is not None else None
    ready = isinstance(source, Source) and (client is None or source.origin.is_shared)
    lasting = isinstance(source, Source) and ready and source.origin.is_lasting
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
            except (OtherWayError, NegativeWeightError) as reason:
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
                check_folders(client, job.source.origin.file, [Path(scratch.folder), edges])
                executor = ResumableExecutor(
                    Cluster(client, prepared.workers.n_threads, progress), journal
                )
                delivery = PartDelivery(
                    edges, scratch, dtype, job.cell_dtype, plan.compression, executor
                )
            else:
                executor = ResumableExecutor(Threads(plan.threads, progress), journal)
                parts = {side: journal.found(f"deflate-{side}", DeflatePart) for side in SIDES}
                delivery = EdgeFiles(
                    edges,
                    dtype,
                    plan.compression,
                    parts,
                    lambda side, number, part: journal.add(f"deflate-{side}", number, part),
                )
            outcome = run_stages(
                job, prepared.blocks, prepared.tuning, record.seeds, executor, delivery
            )
        finally:
            if delivery is not None:
                delivery.close()
            journal.close()
    manifest = Manifest(plan.n_cells, outcome.n_edges, outcome.max_neighbors, plan.compression)
    return _Result(manifest, outcome.scratch_bytes, outcome.output_bytes, executor.n_kept)
