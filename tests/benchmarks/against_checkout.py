"""Compare this checkout with another one of the project: exports and verifications, in turns.

Both run as whole processes, each in a memory cgroup of the limit, with the same interpreter. The
edge files of both are compared, and so is the memory that the plans project.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

from tests.benchmarks.cgroup import CgroupUnavailableError, memory_cgroup
from tests.benchmarks.measure import Run, run_measured, touch_memory
from tests.benchmarks.peers.peer_job import parse_bytes
from tests.benchmarks.run import REPOSITORY, digest


def run_once(
    checkout: Path, arguments: list[str], limit: str, touch: int, *, allowed: tuple[int, ...] = (0,)
) -> Run:
    """Run a command of a checkout once; `allowed` are its exit codes.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    if touch:
        touch_memory(touch)
    command = [sys.executable, "-m", "cellgraph_dask", *arguments, "--memory-limit", limit]
    with contextlib.ExitStack() as stack:
        cgroup = None
        with contextlib.suppress(CgroupUnavailableError):
            cgroup = stack.enter_context(memory_cgroup(parse_bytes(limit)))
        env = {**os.environ, "PYTHONPATH": str(checkout)}
        run = run_measured([*command, "--json"], cgroup=cgroup, cwd=checkout, env=env)
    if run.returncode not in allowed:
        raise RuntimeError(f"{checkout}: exit code {run.returncode}: {run.stderr.strip()[-500:]}")
    return run


def compare(source: str, other: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure one source; print a row for the export and one for the verification."""
    checkouts = {"here": REPOSITORY, "other": other}
    out_dirs = {name: options.workdir.absolute() / f"out-{name}" for name in checkouts}
    level = [] if options.compression is None else ["--compression", str(options.compression)]
    runs: dict[tuple[str, str], list[Run]] = {}
    for k in range(options.repeat + 1):  # the first one warms up
        turn = list(checkouts.items())
        for name, checkout in turn if k % 2 else reversed(turn):  # neither always comes first
            shutil.rmtree(out_dirs[name], ignore_errors=True)
            jobs = {"export": ["export", source, str(out_dirs[name]), *level]}
            if options.verify:
                jobs["verify"] = ["verify", str(out_dirs[name]), "--source", source]
            for job, arguments in jobs.items():
                run = run_once(checkout, arguments, options.memory_limit, options.touch_memory)
                runs.setdefault((job, name), []).append(run)
    digests = {
        tuple(map(digest, sorted((folder / "connectivity").glob("edges.*"))))
        for folder in out_dirs.values()
    }
    if len(digests) != 1:
        raise RuntimeError(f"{source}: the edge files differ")
    for job in dict.fromkeys(job for job, _ in runs):
        here, there = (runs[job, name][1:] for name in checkouts)
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(here, there, strict=True))
        row = [statistics.median(run.seconds for run in of) for of in (here, there)]
        peaks = [max(run.peak_rss_bytes for run in of) / 1e6 for of in (here, there)]
        planned = [json.loads(of[0].stdout).get("projected_memory_bytes", 0) / 1e6
                   for of in (here, there)]  # fmt: skip
        print(f"{Path(source).name:<34}{job:<8}{row[0]:>8.2f}{row[1]:>8.2f}{ratio:>7.2f}"
              f"{peaks[0]:>8.0f}{peaks[1]:>8.0f}{planned[0]:>10.0f}{planned[1]:>8.0f}")  # fmt: skip
    for folder in out_dirs.values():
        shutil.rmtree(folder, ignore_errors=True)
    return {f"{job} {name}": [run.seconds for run in of[1:]] for (job, name), of in runs.items()}


def main(arguments: list[str] | None = None) -> int:
    """Compare all sources, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against_checkout")
    parser.add_argument("other", type=Path, help="another checkout of the project")
    parser.add_argument("sources", nargs="+", help="stores, as make_store and convert_store make")
    parser.add_argument("--compression", type=int)
    parser.add_argument("--memory-limit", default="512MB")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--verify", action="store_true", help="verify --source, too")
    parser.add_argument("--touch-memory", type=parse_bytes, default=0, metavar="SIZE")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    print(f"{'source':<34}{'job':<8}{'s':>8}{'other':>8}{'ratio':>7}{'MB':>8}{'other':>8}"
          f"{'planned':>10}{'other':>8}")  # fmt: skip
    for source in options.sources:
        absolute = source if "://" in source else str(Path(source).absolute())
        compare(absolute, options.other.absolute(), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
