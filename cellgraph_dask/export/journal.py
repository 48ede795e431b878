"""What an interrupted export has finished, so that ``--resume`` can go on.

Two files in the work folder tell it. ``run.json`` is written once, before the work starts: what the
run is and how it was cut. The *journal* gets a line for each finished task, its summary with the
checksum of what it wrote. Nothing in them is believed: a summary counts only if the bytes that it
tells of are there and have that checksum.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from zlib_ng import zlib_ng

from .._version import __version__
from ..errors import ResumeError
from ..machine.files import append, write_aside
from ..plan.tuning import Tuning
from ..stages.job import Way

RUN = "run.json"
JOURNAL = "journal"

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


def this_process() -> str:
    """Return who we are, for another process that finds our files."""
    return f"process {os.getpid()} on {os.uname().nodename}"


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


class Journal:
    """The journal of a run; safe to use from threads.

    Parameters
    ----------
    folder
        The work folder.
    run
        Name of the run, which begins its journal.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._lock = threading.Lock()
        path = folder / f"{JOURNAL}-{run}"
        self._found = dict(_read_journal(path))
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        append(self._fd, b"\n")  # ends what a torn last line has left

    def add(self, stage: str, number: int, summary: tuple[Any, ...]) -> None:
        """Note that a task is finished."""
        text = json.dumps([stage, number, summary], default=_plain)
        line = f"{zlib_ng.crc32(text.encode()):08x} {text}\n".encode()
        with self._lock:
            append(self._fd, line)  # mostly one call, so that lines are whole or last

    def found(self, stage: str, kind: type[Summary]) -> dict[int, Summary]:
        """Return the summaries that an earlier attempt has noted for a stage, by number."""
        return {
            number: kind(*values)
            for (of_stage, number), values in self._found.items()
            if of_stage == stage
        }

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def any_finished(folder: Path, run: str) -> bool:
    """Tell whether a run has finished a task."""
    return any(_read_journal(folder / f"{JOURNAL}-{run}"))


def _plain(value: Any) -> Any:
    """Turn an array of a summary into a list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a summary")


def _read_journal(path: Path) -> Iterator[tuple[tuple[str, int], list[Any]]]:
    """Yield what the whole lines of a journal say."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if f"{zlib_ng.crc32(text):08x}".encode() == checksum:
            stage, number, values = json.loads(text)
            yield (stage, number), values
