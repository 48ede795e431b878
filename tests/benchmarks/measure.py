"""Run a command as a whole process, and measure its time and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cgroup import MemoryCgroup

LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes
    ----------
    returncode
        Negative if a signal ended it.
    seconds, cpu_seconds
        From fork to exit; user and system time.
    peak_rss_bytes
        Largest resident set, of it or of a child it waited for (``ru_maxrss``).
    cgroup_peak_bytes
        Peak usage of the cgroup, page cache included; None without one.
    oom_killed
        Whether the cgroup's limit killed it.
    stdout, stderr
        What it printed.
    """

    returncode: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    cgroup_peak_bytes: int | None
    oom_killed: bool
    stdout: str
    stderr: str


def run_measured(
    command: Sequence[str | Path],
    *,
    cgroup: MemoryCgroup | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Run:
    """Run a command to its end, whatever that is.

    Parameters
    ----------
    command
        Program and arguments.
    cgroup
        Joined by the process before the program starts. Use one cgroup per run.
    cwd, env
        As in `subprocess.Popen`.
    """
    procs = "" if cgroup is None else str(cgroup.procs)
    reader, writer = os.pipe()
    launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(writer), procs]
    try:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            subprocess.run(
                [*launch, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=env,
                pass_fds=(writer,),
                check=True,
            )
            report = json.loads(os.read(reader, 65_536))
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
    finally:
        os.close(reader)
        os.close(writer)
    return Run(
        **report,
        cgroup_peak_bytes=None if cgroup is None else cgroup.peak_bytes(),
        oom_killed=cgroup is not None and cgroup.oom_kills() > 0,
        stdout=texts[0],
        stderr=texts[1],
    )


def touch_memory(n_bytes: int) -> None:
    """Use so much free memory once, in a process of its own.

    A virtual machine that gives free memory back to its host gets it again page by page, at some
    hundred MB/s. Whoever runs first after a pause would pay for it.
    """
    script = (
        "import mmap, sys; "
        "mmap.mmap(-1, int(sys.argv[1]), "
        "flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(n_bytes)], check=True)
