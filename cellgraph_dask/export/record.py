"""The record of a run and its folders: made, resumed after an interruption, and removed.

``run.json`` in the work folder is written once, before the work starts. It is the plan of the run,
with what names it: id, fingerprint of the source, seeds, folders, process. The journal beside it
(`runtime.stage.Journal`) tells what is finished.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from .._version import __version__
from ..errors import ClusterError, OutputError, ResumeError
from ..machine.files import absolute, make_folders, named_disk_errors, this_process, write_aside
from ..machine.folders import clear, make_own, read_own, remove
from ..plan.options import Options
from ..plan.plan import ExportPlan, Prepared
from ..publish.whole import work_beside
from ..publish.work_folder import WORK_FOLDER, Place
from ..runtime.stage import any_finished
from ..source.matrix import Source
from ..stages.job import Method, Tuning

RUN = "run.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """What a run is; the content of ``run.json``.

    Its folders bear its random `id`: whatever a lost worker of an earlier run still writes goes
    nowhere.
    """

    plan: ExportPlan  # `source` in it is an absolute path or a URL
    id: str
    version: str  # of this package
    fingerprint: str  # of the source
    out_dir: str
    scratch: str  # the folder of temporary files
    seeds: tuple[int, int, int]  # of the hash that proves symmetry
    force: bool  # whether the user allowed to replace an export
    started: str
    process: str

    def write(self, folder: Path) -> None:
        """Write the record to a folder, as a whole or not at all."""
        content = asdict(self)
        text = json.dumps(content | content.pop("plan"), indent=2)
        aside = folder / f"{RUN}.{os.getpid()}.part"
        write_aside(folder / RUN, text, aside=aside)
        aside.replace(folder / RUN)


def read_run(folder: Path) -> RunRecord | None:
    """Return the record of the run that was interrupted in a work folder, if there is one."""
    try:
        found = json.loads(read_own(folder / RUN))
        own = {field.name: found[field.name] for field in fields(RunRecord) if field.name != "plan"}
        record = RunRecord(plan=_plan_of(found), **{**own, "seeds": tuple(found["seeds"])})
        if len(record.seeds) != 3 or not all(type(n) is int and n >= 0 for n in record.seeds):
            return None
        return record if _is_ours(record, folder) else None
    except (OSError, OutputError, ValueError, TypeError, KeyError, RecursionError):
        return None  # none, another user's, or torn by a loss of power


def _plan_of(found: Mapping[str, Any]) -> ExportPlan:
    """Return the plan that a record holds; an error if sizes are not positive integers."""
    values = {field.name: found[field.name] for field in fields(ExportPlan)}
    tuning = Tuning(**values["tuning"])
    sizes = [n for name, n in asdict(tuning).items() if not name.startswith("count_")]
    if not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError("sizes must be positive")
    return ExportPlan(**{**values, "tuning": tuning, "warnings": tuple(values["warnings"])})


def _scratch_name(work: Path) -> str:
    """Return the name of the folder of all runs in a work folder, inside the user's scratch."""
    return f"cellgraph-dask-{sha256(os.fsencode(work.resolve())).hexdigest()[:12]}"


def _is_ours(record: RunRecord, folder: Path) -> bool:
    """Whether a record has only names that we give, and no link leads out of its folders.

    What it names is written to and removed, and an output folder may be a stranger's.
    """
    scratch, work = Path(record.scratch), folder.resolve()
    inside = scratch.parent.resolve() == work and not folder.is_symlink()
    return (
        re.fullmatch(r"[0-9a-f]{8}", record.id) is not None
        and record.plan.method in get_args(Method)
        and ("://" in record.out_dir or _is_of(Path(record.out_dir), work))
        and scratch.name == f"run-{record.id}"
        and (inside or scratch.parent.name == _scratch_name(folder))
        and not any(_has_links(top) for top in (folder, scratch.parent))
    )


def _is_of(out_dir: Path, work: Path) -> bool:
    """Whether a work folder is in the folder of its export, or of one that is shown as a whole."""
    return work in (out_dir.resolve() / WORK_FOLDER, work_beside(out_dir.resolve()))


def _has_links(top: Path) -> bool:
    return top.is_symlink() or any(
        Path(above, name).is_symlink()
        for above, folders, files in os.walk(top)
        for name in (*folders, *files)
    )


def interrupted_run(source: Source, fingerprint: str, options: Options) -> RunRecord | None:
    """Return the run to resume, if any; a ResumeError if it is not the one that is asked for."""
    work = options.product.work(options.out_dir, options.scratch_dir)
    record = read_run(work)
    if record is None:
        log.info("no interrupted run in %s; starting from the beginning", work.parent)
        return None
    found_options, wanted_options = record.plan.options, options.product.options
    for name, found, wanted in (
        ("version", record.version, __version__),
        ("source", record.plan.source, source.origin.name),
        ("key", record.plan.key, source.key),
        *(
            (name, found_options.get(name), wanted_options.get(name))
            for name in (found_options | wanted_options)
        ),
    ):
        if found != wanted:
            raise ResumeError(
                f"the run that was interrupted in {record.out_dir} had {name} {found!r}, not "
                f"{wanted!r}. Give the same options to resume it, or start over without "
                "`resume=True`."
            )
    if record.fingerprint != fingerprint:
        raise ResumeError(
            f"{source.path} has changed since the run that was interrupted in {record.out_dir} was "
            f"started ({record.started}). Start over without `resume=True`."
        )
    base = _scratch_base(work, options)
    if options.scratch_dir is not None and base.resolve() != Path(record.scratch).parent.resolve():
        raise ResumeError(
            f"the run that was interrupted in {record.out_dir} has its temporary files in "
            f"{record.scratch}. Leave out `scratch_dir`, or start over without `resume=True`."
        )
    return record


def new_record(prepared: Prepared, fingerprint: str, output: Place, options: Options) -> RunRecord:
    """Return the record of a run that begins, of a source with that fingerprint."""
    source, run = prepared.job.source, os.urandom(4).hex()

    def random() -> int:
        return int.from_bytes(os.urandom(8))

    scratch = absolute(_scratch_base(output.work, options)) / f"run-{run}"
    return RunRecord(
        plan=replace(prepared.plan, source=source.origin.name),
        id=run,
        version=__version__,
        fingerprint=fingerprint,
        out_dir=str(output.name),
        scratch=str(scratch),
        seeds=(random(), random(), random()),
        force=options.force,
        started=time.strftime("%Y-%m-%d %H:%M:%S"),
        process=this_process(),
    )


def _scratch_base(work: Path, options: Options) -> Path:
    """Return the folder of scratch folders: the work folder, or one in the user's for it."""
    if options.scratch_dir is None:
        return work
    return Path(options.scratch_dir) / _scratch_name(work)


@contextmanager
def run_folders(
    record: RunRecord, output: Place, keep: bool, spooled: Path, lasting: bool
) -> Iterator[Path]:
    """Make the folders of a run; give that of the edge files. Remove them unless it can be resumed.

    `spooled` is a folder that is in use too; `lasting` tells whether the source will be there for
    another run.
    """
    scratch, edges = Path(record.scratch), output.work / f"edges-{record.id}"
    is_apart = scratch.parent.resolve() != output.work.resolve()  # from lock and journal
    made: list[Path] = []
    output.keep = keep
    try:
        with named_disk_errors(scratch.parent.parent):
            if is_apart:
                made = make_folders(scratch.parent.parent)
                make_own(scratch.parent)
                clear(scratch.parent, keep=[scratch.name, spooled.name])  # of runs that were killed
            make_own(scratch)
            make_own(edges)
            record.write(output.work)
            if is_apart:
                record.write(scratch)  # so that who finds it knows what it is
        yield edges
        (output.work / RUN).unlink(missing_ok=True)  # it is published: nothing to resume
    except (KeyboardInterrupt, ClusterError) as error:
        if lasting and any_finished(output.work, record.id):
            output.keep = True
            if isinstance(error, ClusterError):
                hint = "What is finished is kept; the same export with `resume=True` continues it."
                error.args = (f"{error} {hint}",)
        raise
    finally:
        if not output.keep:
            remove(scratch)
            remove(edges)
            above = [scratch.parent] if is_apart else []
            _remove_empty((*above, *made))


@contextmanager
def spool_folder(output: Place, options: Options, *, needed: bool) -> Iterator[Path]:
    """Give the folder of what has to be spooled, and remove it afterwards."""
    base = _scratch_base(output.work, options)
    folder = absolute(base) / "spool"
    if not needed:
        yield folder
        return
    made: list[Path] = []
    try:
        with named_disk_errors(base.parent):
            made = make_folders(base.parent)
            make_own(base)
            remove(folder)  # of a run that was killed
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        if not options.keep_scratch:
            remove(folder)
            _remove_empty((*([base] if base != output.work else []), *made))


def _remove_empty(folders: tuple[Path, ...]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty
