"""One progress bar a stage, on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """What a stage reports to, from many threads; this one shows nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units."""

    def advance(self, n: int) -> None:
        """Count `n` more units of the stage as done."""


class _Bars(Progress):
    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self.bars = progress.Progress(
            progress.TextColumn("{task.description:<8}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._lock = threading.Lock()
        self._task: progress.TaskID | None = None

    def start(self, stage: str, total: int, unit: str) -> None:
        with self._lock:
            self._task = self.bars.add_task(stage, total=total, unit=unit)

    def advance(self, n: int) -> None:
        with self._lock:
            if self._task is not None:
                self.bars.advance(self._task, n)


@contextmanager
def progress_bars(show: bool | None) -> Iterator[Progress]:
    """Give bars on standard error if `show`, or if it is None and that is a terminal."""
    if show is None:
        show = sys.stderr is not None and sys.stderr.isatty()
    if not show:
        yield Progress()
        return
    bars = _Bars()
    with bars.bars:
        yield bars
