"""The command line, run in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from click.testing import CliRunner

from cellgraph_dask.cli.commands import cli


class Outcome(NamedTuple):
    """What a command came to."""

    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: Any) -> Outcome:
    """Run a command in this process; an exception that it lets out is raised here."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def run_process(*arguments: Any, before: Sequence[str] = (), timeout: float = 120) -> Outcome:
    """Run a command in a process of its own, `before` being what starts it (strace, say)."""
    result = subprocess.run(
        [*before, sys.executable, "-m", "cellgraph_dask", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)
