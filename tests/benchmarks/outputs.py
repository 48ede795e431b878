"""Compare other outputs with the plain export of the same store, in turns.

All run as whole processes, each in a memory cgroup of the limit. A row tells the median time, the
median of the ratios to the export of the same turn, and the most memory. What they write is removed
in the end: whenever ext4 makes a file, it first passes over those that were removed minutes ago.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.against_checkout import run_once
from tests.benchmarks.measure import Run, run_measured, touch_memory
from tests.benchmarks.peers.peer_job import parse_bytes
from tests.benchmarks.run import REPOSITORY

# What follows the source, and the output if there is one.
JOBS: dict[str, tuple[str, list[str]]] = {
    "weights": ("export", ["--weights", "--rule", "max"]),
    "rule min": ("export", ["--rule", "min"]),
    "parquet": ("export", ["--format", "parquet", "--weights", "--rule", "max"]),
    "symmetrize": ("symmetrize", ["--rule", "max", "--drop-diagonal"]),
    "check": ("check", ["--for", "cellucid-0.9.5"]),
    "min-weight": ("export", ["--rule", "max", "--min-weight", "0.01"]),
    "top-k": ("export", ["--rule", "max", "--top-k", "10"]),
    "max-edges": ("export", ["--rule", "max", "--max-edges", "viewer"]),
}
IN_MEMORY = ("symmetrize", "check", "parquet", "top-k", "max-edges")
PEERS = Path(__file__).with_name("peers") / "in_memory.py"


_numbers = itertools.count()


def measure(source: str, job: str, folder: Path, options: argparse.Namespace) -> Run:
    """Run a job once; what it writes stays in the folder."""
    command, more = JOBS.get(job, ("export", []))
    target = [] if command == "check" else [str(folder / f"{next(_numbers)}.zarr")]
    arguments = [command, source, *target, *more]
    return run_once(
        REPOSITORY, arguments, options.memory_limit, options.touch_memory, allowed=(0, 3)
    )


def measure_peer(source: str, job: str, options: argparse.Namespace) -> Run:
    """Run what does the same job in memory once, with the interpreter that has its libraries."""
    out = options.workdir.absolute() / "out-peer"
    python = options.checker_python if job == "check" else options.peer_python
    if options.touch_memory:
        touch_memory(options.touch_memory)
    found = run_measured([python, PEERS, job, source, out])
    shutil.rmtree(out, ignore_errors=True)
    if found.returncode:
        raise RuntimeError(f"{job} in memory: {found.stderr.strip()[-500:]}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure all jobs on all sources, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.outputs")
    parser.add_argument("sources", nargs="+", help="stores, as make_store makes")
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of these")
    parser.add_argument("--memory-limit", default="512MB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--touch-memory", type=parse_bytes, default=0, metavar="SIZE")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--peers", action="store_true", help="once, the same jobs in memory too")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="has anndata, pandas, pyarrow, scipy and duckdb")  # fmt: skip
    parser.add_argument("--checker-python", default=sys.executable, metavar="PYTHON",
                        help="has cellucid 0.9.5")  # fmt: skip
    options = parser.parse_args(arguments)
    jobs = ["export", *options.jobs.split(",")]
    print(f"{'source':<28}{'job':<12}{'s':>8}{'ratio':>8}{'MB':>8}{'planned':>10}")
    options.workdir.mkdir(parents=True, exist_ok=True)
    for source in options.sources:
        with tempfile.TemporaryDirectory(dir=options.workdir) as name:
            _measure_all(str(Path(source).absolute()), jobs, Path(name).absolute(), options)
    return 0


def _measure_all(source: str, jobs: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Measure all jobs on one source, and print their rows."""
    runs: dict[str, list[Run]] = {job: [] for job in jobs}
    for _ in range(options.repeat + 1):  # the first one warms up
        for job in jobs:
            runs[job].append(measure(source, job, folder, options))
    for job in jobs:
        seconds = [run.seconds for run in runs[job][1:]]
        base = [run.seconds for run in runs["export"][1:]]
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        peak = max(run.peak_rss_bytes for run in runs[job]) / 1e6
        planned = json.loads(runs[job][0].stdout).get("projected_memory_bytes", 0) / 1e6
        print(f"{Path(source).name:<28}{job:<12}{statistics.median(seconds):>8.2f}"
              f"{ratio:>8.2f}{peak:>8.0f}{planned:>10.0f}")  # fmt: skip
        if options.peers and job in IN_MEMORY:
            peer = measure_peer(source, job, options)
            print(f"{'':<28}{'  in memory':<12}{peer.seconds:>8.2f}{'':>8}"
                  f"{peer.peak_rss_bytes / 1e6:>8.0f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
