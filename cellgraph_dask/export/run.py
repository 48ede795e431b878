"""One export: the methods that are tried, the stages that are run, and what is published."""

from __future__ import annotations

import logging
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ..edge_pairs.provenance import Provenance
from ..errors import ClusterError, ResumeError, SourceError
from ..machine.amounts import counted
from ..machine.files import named_disk_errors
from ..machine.interrupts import Hold, holding
from ..machine.memory import format_bytes, limit_bytes, peak_bytes, reset_peak
from ..machine.remote import is_url, local_path
from ..machine.report import Report
from ..plan.options import Options
from ..plan.plan import ExportPlan, Prepared, check_disk, prepare
from ..publish.apart import check_apart
from ..publish.output import local_folder
from ..publish.whole import work_beside
from ..publish.work_folder import WORK_FOLDER, Place
from ..runtime.cluster import Cluster, check_folders, compute_on_workers, worker_peak_bytes
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Executor, Journal, ResumableExecutor
from ..runtime.threads import Threads, compute_on_threads, default_threads
from ..source.matrix import NegativeWeightError, Source
from ..source.spool import Compute, LazyMatrix, spool, spool_memory
from ..source.stamps import Watch
from ..stages.job import Method, OtherMethodError, Tuning
from ..stages.pipeline import Outcome, run_stages
from ..stages.rules import RULES
from ..stages.runs import Scratch
from ..stages.thinning import Thinned
from .check import Target, broken_rules
from .record import RunRecord, interrupted_run, new_record, read_run, run_folders, spool_folder

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport(Report):
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
        Resident memory: allowed, foreseen at most, and measured; 0 if workers could not tell.
    scratch_bytes, output_bytes : int
        Temporary and final bytes on disk.
    symmetric : bool
        Whether the matrix was proved symmetric, so that one pass without temporary files was all.
    kept_tasks : int
        Tasks of an interrupted run that did not have to be done again.
    warnings : tuple of str
        What the user should know about the matrix and what is made of it, as in the plan.
    thinned : Thinned or None
        What thinning has done; None if all edges were kept.
    """

    _title = "Export"

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
    warnings: tuple[str, ...] = ()
    thinned: Thinned | None = None


def is_interrupted(out_dir: str | Path, scratch_dir: str | Path | None = None) -> bool:
    """Whether a run into `out_dir` was interrupted, so that `resume` continues it."""
    places = [local_folder(out_dir, scratch_dir) / WORK_FOLDER]
    if not is_url(out_dir):
        places.append(work_beside(local_path(out_dir)))
    return any(read_run(place) is not None for place in places)


def refuse_inside(source: Source | LazyMatrix, options: Options) -> None:
    """Refuse an export of a source into itself."""
    origin, product = source.origin, options.product
    out_dir = options.out_dir
    if product.is_inside:
        out_dir = product.work(out_dir, options.scratch_dir)
    check_apart(origin.path, origin.file, out_dir, options.scratch_dir)


def run_export(
    source: Source | LazyMatrix,
    options: Options,
    *,
    method: Method | None = None,
    tuning: Tuning | None = None,
) -> ExportReport:
    """Export an open source; tests choose the first method and how the work is cut."""
    began = time.perf_counter()
    reset_peak()
    refuse_inside(source, options)
    with Watch(source) as watch, holding() as hold:
        export = _Export(source, watch, hold, options, method, tuning)
        return _run_export(export, options, began)


def _run_export(export: _Export, options: Options, began: float) -> ExportReport:
    options.product.check(export.source.n_cells)  # which takes no spooling
    source, record = export.source, export.interrupted()
    force = options.force or (record is not None and record.force)
    output = output_of(options, force=force, resume=record is not None)
    options.product.check_place(output, source.n_cells)
    # What needs no spooling is planned, and refused, before anything is written.
    ready = export.ready
    prepared = export.prepare(ready, output, record) if ready is not None else None
    try:
        with (
            output,
            progress_bars(options.progress) as bars,
            spool_folder(output, options, needed=prepared is None) as spooled,
        ):
            if prepared is None:
                prepared = export.prepare(_spooled(source, spooled, bars, options), output, None)
            if record is not None and read_run(output.work) != record:
                raise ResumeError(
                    f"another run has ended in {options.out_dir} just now; try again."
                )
            export.run(prepared, record, output, spooled, bars)
    except (Exception, KeyboardInterrupt) as error:
        if not export.hold.shown:
            raise
        log.warning(
            "the export in %s is complete; tidying up was cut short (%s), and temporary files may "
            "be left for the next export into it to remove",
            output.name,
            str(error) or type(error).__name__,
        )
    prepared, result = export.made[-1]
    return _report(output, options, prepared, result, time.perf_counter() - began)


def output_of(options: Options, *, force: bool, resume: bool = False) -> Place:
    """Return where an export goes, to be held for writing."""
    return options.product.open(
        options.out_dir,
        force=force,
        resume=resume,
        scratch_dir=options.scratch_dir,
        storage_options=options.output_storage_options,
        on_cluster=options.client is not None,
    )


class _Result(NamedTuple):
    """What a run has made."""

    outcome: Outcome
    n_kept: int  # tasks of an interrupted run
    peak: int  # most resident bytes of a worker; 0 if there are none, or they cannot tell


@dataclass(frozen=True, eq=False)
class _Export:
    """An export of a source: how it is planned and run, until a method suits the matrix."""

    source: Source | LazyMatrix
    watch: Watch
    hold: Hold
    options: Options
    method: Method | None
    tuning: Tuning | None
    made: list[tuple[Prepared, _Result]] = field(default_factory=list)

    @property
    def ready(self) -> Source | None:
        """The source, if all that work on it can read it as it is; else it has to be spooled."""
        if isinstance(self.source, LazyMatrix):
            return None
        is_seen = self.options.client is None or self.source.origin.is_shared
        return self.source if is_seen else None

    @property
    def lasting(self) -> bool:
        """Whether the source will be there for another run, by the same name."""
        return self.ready is not None and self.ready.origin.is_lasting

    def interrupted(self) -> RunRecord | None:
        """Return the interrupted run to resume, if one is wanted and there is one."""
        if not self.options.resume:
            return None
        if self.ready is None or not self.lasting:
            log.info(
                "only exports of whole sparse matrices in files and at URLs can be resumed; "
                "starting from the beginning"
            )
            return None
        return interrupted_run(self.ready, self.watch.fingerprint, self.options)

    def provenance(self, record: RunRecord) -> Provenance:
        """Return what the edges were made from."""
        return Provenance(
            source=record.plan.source,
            key=record.plan.key,
            options=record.plan.options,
            fingerprint=record.fingerprint if self.lasting else None,
            version=record.version,
        )

    def prepare(self, source: Source, output: Place, record: RunRecord | None) -> Prepared:
        """Plan a run, as an interrupted one was planned if there is one; check the disks."""
        prepared = prepare(
            source,
            output.folder,
            self.options,
            scratch_dir=Path(record.scratch).parent if record is not None else None,
            upload_bytes=output.upload_bytes,
            method=self.method,
            tuning=self.tuning,
            resumed=record.plan if record is not None else None,
        )
        if record is None:
            scratch = Path(self.options.scratch_dir or output.folder)
            check_disk(prepared.plan, output.folder, scratch)
        return prepared

    def run(
        self,
        prepared: Prepared,
        record: RunRecord | None,
        output: Place,
        spooled: Path,
        progress: Progress,
    ) -> None:
        """Try methods until one suits the matrix, and publish what it has made."""
        while True:
            if record is None:
                record = new_record(prepared, self.watch.fingerprint, output, self.options)
            keep = self.options.keep_scratch
            try:
                with run_folders(record, output, keep, spooled, self.lasting) as edges:
                    result = _run(prepared, record, output, edges, progress, self.options)
                    self.watch.check()
                    n_edges = result.outcome.n_edges
                    log.info("publishing %s to %s", counted(n_edges, "edge"), output.name)
                    self.made.append((prepared, result))
                    self.options.product.publish(
                        output, edges, prepared.plan.n_cells, result.outcome,
                        self.provenance(record), progress,
                    )  # fmt: skip
                return
            except (OtherMethodError, NegativeWeightError) as reason:
                if self.options.product.is_strict:
                    scratch = Path(record.scratch).parent
                    why = _not_symmetric(prepared, self.options, scratch, progress)
                    if why is not None:
                        raise why from None
                # Seen only while running: a weight is negative, say, or has no mirror image.
                method: Method = "signed"
                if isinstance(reason, OtherMethodError):
                    method = reason.method
                log.info("starting again with the %s method", method)
                record = None
                again = replace(self, method=method)
                prepared = again.prepare(prepared.job.source, output, None)


def _report(
    output: Place, options: Options, prepared: Prepared, result: _Result, seconds: float
) -> ExportReport:
    plan, outcome = prepared.plan, result.outcome
    return ExportReport(
        out_dir=str(output.out_dir),
        n_cells=plan.n_cells,
        n_edges=outcome.n_edges,
        max_neighbors=outcome.max_neighbors,
        index_dtype=plan.index_dtype,
        compression=plan.compression,
        threads=plan.threads,
        seconds=round(seconds, 3),
        memory_limit_bytes=plan.memory_limit_bytes,
        projected_memory_bytes=plan.projected_memory_bytes,
        peak_memory_bytes=peak_bytes() if options.client is None else result.peak,
        scratch_bytes=outcome.scratch_bytes + prepared.job.source.spool_bytes,
        output_bytes=outcome.output_bytes,
        symmetric=plan.method == "symmetric",
        kept_tasks=result.n_kept,
        warnings=(
            *prepared.job.source.notes,
            *options.product.warnings(plan.n_cells, outcome.n_edges),
        ),
        thinned=outcome.thinned,
    )


def computing(
    matrix: LazyMatrix, client: Client | None, memory_limit: int | str | None, threads: int
) -> Compute:
    """Return the function that computes a `LazyMatrix`: on the cluster, or on threads."""
    if client is not None and not matrix.is_local:
        return partial(compute_on_workers, client)
    limit = limit_bytes(memory_limit if client is None else None)  # else it is that of workers
    return partial(compute_on_threads, n_threads=threads, limit=limit, task_bytes=matrix.task_bytes)


def _spooled(
    source: Source | LazyMatrix, folder: Path, progress: Progress, options: Options
) -> Source:
    """Return a source that is counted and that all see, in files of ours."""
    with named_disk_errors(folder.parent):
        if options.client is not None:
            file = source.origin.file if isinstance(source, LazyMatrix) else None
            check_folders(options.client, file, [folder])
        if isinstance(source, Source):
            return spool_memory(source, folder)
        threads = options.threads or default_threads()
        compute = computing(source, options.client, options.memory_limit, threads)
        return spool(source, folder, compute, progress)


def _run(
    prepared: Prepared,
    record: RunRecord,
    output: Place,
    edges: Path,
    progress: Progress,
    options: Options,
) -> _Result:
    """Run all stages; leave the edge files in the folder `edges`."""
    log.info(_taken(prepared.plan))
    plan, blocks, scratch = prepared.plan, prepared.blocks, Path(record.scratch)
    client = options.client
    job = replace(prepared.job, scratch=Scratch(record.scratch, options.keep_scratch))
    with named_disk_errors(scratch.parent), closing(Journal(output.work, record.id)) as journal:
        executor: Executor = Threads(plan.threads, progress)
        if client is not None:
            check_folders(client, job.source.origin.file, [scratch, edges])
            executor = Cluster(client, progress)
        resumable = ResumableExecutor(executor, journal)
        making = options.product.delivery(job, edges, resumable, on_cluster=client is not None)
        with closing(making) as delivery:
            outcome = run_stages(job, blocks, plan.tuning, record.seeds, resumable, delivery)
    peak = 0
    if client is not None:  # not later: what dies from now on has done its work
        with suppress(ClusterError):
            peak = worker_peak_bytes(client)
    return _Result(outcome, resumable.n_kept, peak)


def _taken(plan: ExportPlan) -> str:
    """Say for the log which method is taken, with which sizes."""
    return (
        f"{plan.key} of {plan.source}: {counted(plan.n_cells, 'cell')}, "
        f"{counted(plan.n_entries, 'entry')}; {plan.method} method, "
        f"{counted(plan.n_blocks, 'block')}, {counted(plan.n_partitions, 'partition')}, "
        f"{counted(plan.threads, 'thread')}; projected memory "
        f"{format_bytes(plan.projected_memory_bytes)} of "
        f"{format_bytes(plan.memory_limit_bytes)}, temporary files up to "
        f"{format_bytes(plan.scratch_bytes)}"
    )


def _not_symmetric(
    prepared: Prepared, options: Options, scratch: Path, progress: Progress
) -> SourceError | None:
    """Say what keeps a matrix from being taken with its weights as they are.

    None if nothing does: repeats may add up to a symmetric matrix.
    """
    source, plan = prepared.job.source, prepared.plan
    broken = broken_rules(
        source, cast(Target, options.product.reader), limit=plan.memory_limit_bytes,
        threads=plan.threads, scratch=scratch, progress=progress,
    )  # fmt: skip
    broken = tuple(rule for rule in broken if rule.rule not in _left_aside(options))
    if not broken:
        return None
    told = " ".join(rule.text for rule in broken)
    return SourceError(
        f"{source.key} of {source.path} cannot be taken with its weights as they are: {told} Mend "
        "that, or choose how both directions of a pair become one weight, with `rule`: "
        f"{', '.join(RULES)}."
    )


def _left_aside(options: Options) -> set[str]:
    """Return the rules of a reader that a matrix may break, as they are seen to otherwise."""
    is_dropped = options.product.reader == "cellucid-0.9.5" and not options.product.refuses_diagonal
    return {"size", *(["diagonal"] if is_dropped else [])}
