"""One progress bar a stage: on a terminal, or in a notebook."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..machine import html
from ..machine.amounts import clock, format_rate
from ..machine.memory import format_bytes

_UPDATE_SECONDS = 0.25  # between two looks of a notebook
# With so many columns the unit is told too, and how much is done.
_COLUMNS_WITH_UNIT, _COLUMNS_WITH_COUNTS = 64, 100


class Progress:
    """What a stage reports to, from many threads; this one shows nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units."""

    def advance(self, n: int) -> None:
        """Count `n` more units of the stage as done."""


def told(done: float, total: float, unit: str, seconds: float, columns: int) -> str:
    """Say how long a stage has taken, how long it will, and how fast it is."""
    parts = [clock(seconds)]
    if 0 < done < total:
        parts.append(f"{clock(seconds * (total - done) / done)} left")
    if done and seconds:
        shown = unit if columns >= _COLUMNS_WITH_UNIT else ""
        is_bytes, rate = unit == "bytes", done / seconds
        parts.append(f"{format_bytes(int(rate))}/s" if is_bytes else format_rate(rate, shown))
    if columns >= _COLUMNS_WITH_COUNTS:
        whole = format_bytes(int(total)) if unit == "bytes" else f"{total:,.0f} {unit}"
        part = format_bytes(int(done)) if unit == "bytes" else f"{done:,.0f}"
        parts.insert(0, f"{part} of {whole}")
    return ", ".join(parts)


class _Bars(Progress):
    """Bars on standard error."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column
        from rich.text import Text

        console = Console(
            stderr=True, force_jupyter=False, force_terminal=sys.stderr.isatty(),
            no_color=True if os.environ.get("CLICOLOR") == "0" else None,
        )  # fmt: skip
        columns = console.width
        told_columns = 26 if columns < _COLUMNS_WITH_UNIT else 36
        told_columns += 40 if columns >= _COLUMNS_WITH_COUNTS else 0

        class Told(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Text:
                seconds = task.finished_time if task.finished else task.elapsed
                total = task.total or 0
                return Text(told(task.completed, total, task.fields["unit"], seconds or 0, columns))

        self.bars = progress.Progress(
            progress.TextColumn("{task.description:<8}"),
            progress.BarColumn(max(4, min(40, columns - 8 - 4 - told_columns - 3))),
            progress.TaskProgressColumn(),
            Told(Column(no_wrap=True)),
            console=console,
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


class _Cell(Progress):
    """Bars in the output of a notebook's cell, without a widget."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._stages: list[list[Any]] = []  # name, done, total, unit, start, end
        self._lock = threading.Lock()
        self._shown = time.monotonic()
        self._display: Any = display(HTML(""), display_id=True)

    def start(self, stage: str, total: int, unit: str) -> None:
        with self._lock:
            now = time.monotonic()
            self._stages.append([stage, 0, total, unit, now, now])
            self._show()

    def advance(self, n: int) -> None:
        with self._lock:
            if self._stages:
                now = time.monotonic()
                self._stages[-1][1] += n
                self._stages[-1][5] = now
                if now - self._shown >= _UPDATE_SECONDS:
                    self._show()

    def end(self) -> None:
        with self._lock:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        lines = []
        for stage, done, total, unit, start, end in self._stages:
            share = done / total if total else 1
            text = f"{stage}: {share:.0%}, {told(done, total, unit, end - start, 100)}"
            color = html.BLUE if share < 1 else html.GREEN
            lines.append(html.bar([(share, color)], 1, text) + html.listed([text]))
        self._display.update(self._html("".join(lines)))


def _in_kernel() -> bool:
    """Whether this runs in a notebook; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


@contextmanager
def progress_bars(show: bool | None) -> Iterator[Progress]:
    """Give bars if `show`, or if it is None and there is a terminal or a notebook.

    They go to standard error, or to the output of the notebook's cell.
    """
    in_kernel = _in_kernel()
    if show is None:
        show = in_kernel or (sys.stderr is not None and sys.stderr.isatty())
    if not show:
        yield Progress()
    elif in_kernel:
        cell = _Cell()
        try:
            yield cell
        finally:
            cell.end()
    else:
        bars = _Bars()
        with bars.bars:
            yield bars
