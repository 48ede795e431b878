"""Ctrl-C, SIGTERM and SIGHUP: until a result is shown they end the work, from then on they wait.

What follows is tidying up. It is done to its end, and the signals are delivered afterwards; only a
second one cuts it short. Where the main thread is another one, no signal is met here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Hold:
    """Signals that wait from `begin` to `end`; made by `holding`."""

    def __init__(self) -> None:
        self.shown = False  # whether the result is, so that a second signal may cut in
        self.noted: list[int] = []  # signals that came meanwhile
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Let signals wait from now on, if they have handlers in Python and this thread gets them.

        Others, such as an unhandled SIGTERM, are left to the system.
        """
        if threading.current_thread() is threading.main_thread() and not self._before:
            for number in SIGNALS:
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._note)

    @property
    def is_held(self) -> bool:
        """Whether signals wait now."""
        return bool(self._before)

    def end(self, *, deliver: bool = True) -> None:
        """Let signals through again, and first those that came meanwhile, if they should come."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        if deliver:
            while self.noted:
                signal.raise_signal(self.noted.pop(0))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.noted.append(number)
        if self.shown and len(self.noted) > 1:
            raise KeyboardInterrupt


_here = threading.local()


@contextmanager
def holding(*, deliver: bool = True) -> Iterator[Hold]:
    """Give a `Hold`, and end it; inside another one of this thread it is that, which goes on."""
    outer: Hold | None = getattr(_here, "hold", None)
    if outer is not None:
        yield outer
        return
    hold = _here.hold = Hold()
    try:
        yield hold
    finally:
        _here.hold = None
        hold.end(deliver=deliver)
