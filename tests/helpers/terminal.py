"""A program on a terminal of its own: keys are sent to it, and what it shows is read."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

# Makes the terminal one that sends signals, and becomes the program.
_CONTROLLED = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]|\x07")


class Terminal:
    """A program on a pseudo-terminal; a context manager that ends it."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], columns: int = 80
    ) -> None:
        self._fd, inner = pty.openpty()
        ioctl(inner, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CONTROLLED, *command], stdin=inner, stdout=inner, stderr=inner,
            cwd=cwd, env=dict(env),
        )  # fmt: skip
        os.close(inner)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)

    def send(self, keys: str) -> None:
        """Type."""
        os.write(self._fd, keys.encode())

    def read(self, pattern: str, timeout: float = 10) -> str:
        """Return what is shown from now on, without colors, once it matches a pattern."""
        raw, end = b"", time.monotonic() + timeout
        while time.monotonic() < end:
            text = _ESCAPES.sub("", raw.decode(errors="replace"))
            if re.search(pattern, text, re.S):
                return text
            try:
                if select.select([self._fd], [], [], 0.1)[0]:
                    raw += os.read(self._fd, 65536)
            except OSError:  # the program has ended
                break
        text = _ESCAPES.sub("", raw.decode(errors="replace"))
        if re.search(pattern, text, re.S):
            return text
        raise AssertionError(f"{pattern!r} is not shown, but {text!r}")

    def rest(self) -> bytes:
        """Return all that is shown until the program ends."""
        raw = b""
        with suppress(OSError):
            while part := os.read(self._fd, 65536):
                raw += part
        self.process.wait()
        return raw
