"""The folders of a run and its record: made, gone on with after an interruption, and removed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_args

from .._version import __version__
from ..errors import ClusterError, ResumeError
from ..machine.files import make_folders, named_disk_errors, this_process, write_aside
from ..plan.plan import Prepared
from ..publish.publish import WORK_FOLDER, Output, check_own_folder
from ..publish.upload import RemoteOutput
from ..runtime.stage import any_finished
from ..source.matrix import Source
from ..stages.job import Tuning, Way

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
        source=source.origin.name,
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
        source=source.origin.name,
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


RUN = "run.json"

Summary = TypeVar("Summary", bound=tuple[Any, ...])


@dataclass(frozen=True)
class RunRecord:
    """What a run is; the content of ``run.json``.

    Attributes
    ----------
    id : str
        Random name of the run, which its folders bear: whatever a lost worker of an earlier run
        still writes goes nowhere.
    version : str
        Version of this package.
    source, key, fingerprint : str
        The store, the matrix in it, and a digest that changes when the matrix does.
    out_dir, scratch : str
        Folders of the export and of temporary files.
    compression : int or None
        Level of gzip.
    way : {"symmetric", "general", "signed"}
        How the edges are found.
    block_entries, block_rows, piece_entries, shift : int
        How the work is cut; see `plan.Tuning`.
    seeds : tuple of int
        Seeds of the hash that proves symmetry.
    force : bool
        Whether the user allowed to replace an export.
    started, process : str
        When and where it was started.
    """

    id: str
    version: str
    source: str
    key: str
    fingerprint: str
    out_dir: str
    scratch: str
    compression: int | None
    way: Way
    block_entries: int
    block_rows: int
    piece_entries: int
    shift: int
    seeds: tuple[int, int]
    force: bool
    started: str
    process: str

    def tuning(self, threads: int) -> Tuning:
        """Return the sizes of the run, for so many threads."""
        sizes = (self.block_entries, self.block_rows, self.piece_entries, self.shift)
        return Tuning(*sizes, threads)

    def write(self, folder: Path) -> None:
        """Write the record to a folder, as a whole or not at all."""
        text = json.dumps(asdict(self), indent=2)
        aside = folder / f"{RUN}.{os.getpid()}.part"
        write_aside(folder / RUN, text, aside=aside)
        aside.replace(folder / RUN)


def new_id() -> str:
    """Return a random name for a run."""
    return os.urandom(4).hex()


def now() -> str:
    """Return the time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def read_run(folder: Path) -> RunRecord | None:
    """Return the record of the run that was interrupted in a work folder, if there is one."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
        record = RunRecord(**{**found, "seeds": tuple(found["seeds"])})
        sizes = (record.block_entries, record.block_rows, record.piece_entries, record.shift)
        numbers = [*sizes, *record.seeds]
        if not all(type(n) is int and n >= 0 for n in numbers) or 0 in sizes:
            return None
        return record if _is_ours(record, folder) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # none, or torn by a loss of power


def scratch_name(out_dir: Path) -> str:
    """Return the name of the folder of all runs into `out_dir` inside the user's scratch folder."""
    return f"cellgraph-dask-{sha256(os.fsencode(out_dir.absolute())).hexdigest()[:12]}"


def _is_ours(record: RunRecord, folder: Path) -> bool:
    """Tell whether a record has only names that we give, and no link leads out of its folders.

    What it names is written to and removed, and an output folder may be a stranger's.
    """
    scratch, work = Path(record.scratch), folder.resolve()
    inside = scratch.parent.resolve() == work and not folder.is_symlink()
    return (
        re.fullmatch(r"[0-9a-f]{8}", record.id) is not None
        and record.way in get_args(Way)
        and ("://" in record.out_dir or Path(record.out_dir).resolve() == work.parent)
        and scratch.name == f"run-{record.id}"
        and (inside or scratch.parent.name == scratch_name(folder.parent))
        and not any(_has_links(top) for top in (folder, scratch.parent))
    )


def _has_links(top: Path) -> bool:
    return top.is_symlink() or any(
        Path(above, name).is_symlink()
        for above, folders, files in os.walk(top)
        for name in (*folders, *files)
    )


def check_same(
    record: RunRecord, *, source: str, key: str, fingerprint: str, compression: int | None
) -> None:
    """Make sure that an interrupted run is the one that the user wants to go on.

    Raises
    ------
    ResumeError
        With what differs.
    """
    wanted = {
        "version": __version__,
        "source": source,
        "key": key,
        "compression": compression,
    }
    for name, value in wanted.items():
        found = getattr(record, name)
        if found != value:
            raise ResumeError(
                f"the run that was interrupted in {record.out_dir} had {name} {found!r}, not "
                f"{value!r}. Give the same options to go on with it, or start over without "
                "--resume."
            )
    if record.fingerprint != fingerprint:
        raise ResumeError(
            f"{source} has changed since the run that was interrupted in {record.out_dir} was "
            f"started ({record.started}). Start over without --resume."
        )
