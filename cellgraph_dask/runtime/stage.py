"""Stages as values, the journal of what they have finished, and stages that resume.

A *stage* is a function over keys: blocks, pieces, stretches. Its tasks write to disk and return
small summaries. An *executor* runs a stage, on threads or on a cluster; the *journal* gets a line
for each finished task, its summary with the checksum of what it wrote. Nothing in the journal is
believed: a summary counts only if the bytes that it tells of are there and have that checksum.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from zlib_ng import zlib_ng

from ..machine.amounts import counted
from ..machine.files import append

JOURNAL = "journal"
_BEGUN = "begun "  # before the name of a stage: a line that tells how many tasks it has
_SPENT = "spent "  # … or that what they have written is removed

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Summary = TypeVar("Summary")


def do_nothing(*_: object) -> None:
    """Do nothing; the default of what an executor calls."""


class Stage(NamedTuple, Generic[Key, Summary]):
    """One step of the work: a function over keys, whatever runs it.

    The function writes to disk, returns a small summary, and can be repeated. For a stage that can
    be resumed, `summary` makes a summary from its values in the journal, and `holds` tells from key
    and summary of a finished task whether its output is still there.
    """

    name: str  # on the progress bar, in the journal, and in the names of tasks
    function: Callable[[Key], Summary]
    keys: Sequence[Key]  # in the order in which they start
    sizes: Sequence[int]  # what each key counts for in the progress
    unit: str  # what is counted
    summary: Callable[..., Summary] | None = None
    holds: Callable[[tuple[Key, Summary]], bool] | None = None
    variant: str = ""  # what else must be the same for summaries to count: where edges go
    ahead: Callable[[Key], None] = do_nothing  # called some tasks before, where it may help


class Executor(Protocol):
    """Runs the tasks of a stage."""

    def run(
        self, stage: Stage[Key, Summary], *,
        stop: Callable[[], None] = do_nothing, done: Callable[[Key, Summary], None] = do_nothing,
    ) -> list[Summary]:  # fmt: skip
        """Run a stage and return its summaries in the order of its keys.

        `stop` is called when a task has failed, so that tasks that wait for it end too; `done` with
        each key and its summary when the task is finished.
        """


class ResumableExecutor:
    """Runs stages, keeps a journal of them, and skips tasks that the journal has already."""

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self.executor = executor
        self.journal = journal
        self.n_kept = 0  # tasks of an interrupted run that did not have to be repeated

    def run(
        self, stage: Stage[Key, Summary], *,
        keep: Callable[[dict[int, Summary]], None] = do_nothing,
        stop: Callable[[], None] = do_nothing, kept: dict[int, Summary] | None = None,
    ) -> list[Summary]:  # fmt: skip
        """Run a stage for all keys that are not finished; return all summaries in order.

        Keys have a `number`. `keep` is called with the summaries that are kept, by number, before
        the others are computed; `stop` is as for an executor. `kept` are those that are kept, if
        that has been found out already.
        """
        label, numbers = _label(stage), [_number(key) for key in stage.keys]
        if kept is None:
            kept = self.kept(stage)
        self.n_kept += len(kept)
        keep(kept)
        self.journal.begin(label, len(numbers))
        todo = [k for k, number in enumerate(numbers) if number not in kept]
        keys, sizes = [stage.keys[k] for k in todo], [stage.sizes[k] for k in todo]
        began = time.perf_counter()
        new = self.executor.run(
            stage._replace(keys=keys, sizes=sizes),
            stop=stop,
            done=lambda key, value: self.journal.add(label, _number(key), value),
        )
        log.info(
            "stage %s: %s, %s %s, %.2f s%s", stage.name, counted(len(keys), "task"),
            f"{sum(sizes):,}", stage.unit, time.perf_counter() - began,
            f"; kept: {len(kept):,}" if kept else "",
        )  # fmt: skip
        summaries = kept | {numbers[k]: value for k, value in zip(todo, new, strict=True)}
        return [summaries[number] for number in numbers]

    def spend(self, stage: Stage[Key, Summary], left: Sequence[Any]) -> None:
        """Note that what a stage has written is about to be removed, and what is `left` of it."""
        self.journal.add(_SPENT + _label(stage), 0, left)

    def spent(self, stage: Stage[Key, Summary]) -> tuple[list[Summary], list[Any]] | None:
        """Return the summaries of such a stage and what is left; None if nothing was removed."""
        assert stage.summary is not None
        left = self.journal.found(_SPENT + _label(stage), lambda *values: list(values)).get(0)
        found = self.journal.found(_label(stage), stage.summary)
        if left is None or not found.keys() >= set(map(_number, stage.keys)):
            return None  # or a line of the journal is damaged
        return [found[_number(key)] for key in stage.keys], left

    def kept(self, stage: Stage[Key, Summary]) -> dict[int, Summary]:
        """Return the summaries in the journal whose output still holds, by number."""
        assert stage.summary is not None
        assert stage.holds is not None
        found = self.journal.found(_label(stage), stage.summary)
        numbers = [(key, _number(key)) for key in stage.keys]
        candidates = [(key, found[number]) for key, number in numbers if number in found]
        if not candidates:
            return {}
        sizes = [1] * len(candidates)
        check = Stage(f"check {stage.name}", stage.holds, candidates, sizes, "tasks")
        sound = self.executor.run(check)
        verdicts = zip(candidates, sound, strict=True)
        return {_number(key): value for (key, value), ok in verdicts if ok}


def _label(stage: Stage[Any, Any]) -> str:
    """Return the name of a stage in the journal."""
    return f"{stage.name} {stage.variant}"


def _number(key: Any) -> int:
    """Return the number of a key in its stage."""
    number: int = key.number
    return number


class Journal:
    """The journal of a run, in the work folder; safe to use from threads."""

    def __init__(self, folder: Path, run: str) -> None:
        self._lock = threading.Lock()
        path = folder / f"{JOURNAL}-{run}"
        self._found = dict(_read_journal(path))
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        append(self._fd, b"\n")  # ends what a torn last line has left

    def begin(self, stage: str, n_tasks: int) -> None:
        """Note that a stage has begun."""
        self._write(_BEGUN + stage, 0, [n_tasks])

    def add(self, stage: str, number: int, summary: Any) -> None:
        """Note that a task is finished."""
        self._write(stage, number, summary)

    def _write(self, stage: str, number: int, summary: Any) -> None:
        text = json.dumps([stage, number, summary], default=_plain)
        line = f"{zlib_ng.crc32(text.encode()):08x} {text}\n".encode()
        with self._lock:
            append(self._fd, line)  # mostly one call, so that lines are whole or last

    def found(self, stage: str, kind: Callable[..., Summary]) -> dict[int, Summary]:
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
    """Whether a run has finished a task."""
    lines = _read_journal(folder / f"{JOURNAL}-{run}")
    return any(not stage.startswith(_BEGUN) for (stage, _), _ in lines)


@dataclass(frozen=True)
class StageDone:
    """How far a run has come in a stage."""

    name: str
    done: int  # tasks
    total: int


def stages_done(journal: bytes) -> list[StageDone]:
    """Return how far a run has come, given the content of its journal; a ValueError if it is none.

    Stages are in the order in which they began.
    """
    totals: dict[str, int] = {}
    done: dict[str, set[int]] = {}
    for (stage, number), values in _lines(journal):
        if stage.startswith(_BEGUN):
            totals[stage.removeprefix(_BEGUN)] = int(values[0])
        else:
            done.setdefault(stage, set()).add(number)
    return [
        StageDone(label.split(" ")[0], len(done.get(label, ())), n) for label, n in totals.items()
    ]


def _plain(value: Any) -> Any:
    """Turn an array of a summary into a list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a summary")


def _read_journal(path: Path) -> Iterator[tuple[tuple[str, int], list[Any]]]:
    """Yield what the whole lines of a journal say."""
    with suppress(OSError):
        yield from _lines(path.read_bytes())


def _lines(journal: bytes) -> Iterator[tuple[tuple[str, int], list[Any]]]:
    for line in journal.splitlines():
        checksum, _, text = line.partition(b" ")
        if f"{zlib_ng.crc32(text):08x}".encode() == checksum:
            stage, number, values = json.loads(text)
            yield (stage, number), values
