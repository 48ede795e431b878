"""The folders of a run and its record: made, gone on with after an interruption, and removed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._version import __version__
from ..errors import ClusterError, ResumeError
from ..machine.files import make_folders, named_disk_errors
from ..plan.plan import Prepared
from ..publish.publish import WORK_FOLDER, Output, check_own_folder
from ..publish.upload import RemoteOutput
from ..source.matrix import Source
from .journal import (
    RunRecord,
    any_finished,
    check_same,
    new_id,
    now,
    read_run,
    scratch_name,
    this_process,
)

log = logging.getLogger(__name__)


def interrupted_run(
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
        and scratch_base(out_dir, scratch_dir) != Path(record.scratch).parent
    ):
        raise ResumeError(
            f"the run that was interrupted in {out_dir} has its temporary files in "
            f"{record.scratch}. Leave out --scratch-dir, or start over without --resume."
        )
    return record


def new_record(
    prepared: Prepared,
    output: Output | RemoteOutput,
    scratch_dir: str | Path | None,
    force: bool,
) -> RunRecord:
    """Return the record of a run that begins."""
    source, tuning, run = prepared.job.source, prepared.tuning, new_id()
    base = output.work if scratch_dir is None else scratch_base(output.folder, scratch_dir)
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


def scratch_base(out_dir: Path, scratch_dir: str | Path) -> Path:
    """Return the folder of all runs into `out_dir` inside the user's scratch folder."""
    return Path(scratch_dir).absolute() / scratch_name(out_dir)


@contextmanager
def run_folders(
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


@contextmanager
def spool_folder(
    output: Output | RemoteOutput, scratch_dir: str | Path | None, keep: bool, *, needed: bool
) -> Iterator[Path]:
    """Give the folder of what has to be spooled, and remove it afterwards."""
    base = output.work if scratch_dir is None else scratch_base(output.folder, scratch_dir)
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
