"""Standard output and error that may be closed, full, or left by their reader.

What was asked for has been done when its words are printed. So words that cannot be written raise
nothing: they are lost, and `finish` says so where it matters.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Stream(io.FileIO):
    """A file whose writes always succeed; the first error of one that did not is kept."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


_raw: dict[int, _Stream] = {}
_done: list[bool] = []  # not empty if more was asked for than words, and has been done


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a name that is not text as its bytes, and what an encoding lacks as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def prepare() -> None:
    """Let standard output and error be streams that raise nothing.

    Where one is closed, what is opened next would take its number, and be written to by whoever
    prints: it is held by the null device.
    """
    codecs.register_error("cellgraph", _spell)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        encoding = getattr(before, "encoding", None) or "utf-8"
        with suppress(OSError, ValueError, AttributeError):
            before.flush()
        raw = _raw[number] = _Stream(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding,
            "cellgraph",
            line_buffering=number == 2 or raw.isatty(),
        )
        setattr(sys, name, stream)


def note_done() -> None:
    """Note that what was asked for was more than words, and has been done."""
    _done.append(True)


def finish(code: int) -> int:
    """Write what is left; return the exit code, given that of the command.

    Readers that have had enough are no error.
    """
    sys.stdout.flush()
    error = _raw[1].error
    if error is not None and error.errno != errno.EPIPE:
        what = "Warning: what was asked for is done, but" if _done else "Error:"
        print(f"{what} standard output cannot be written: {error.strerror}.", file=sys.stderr)
        code = code if _done else code or 1
    sys.stderr.flush()
    return code
