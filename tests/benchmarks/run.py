"""Compare this tool with its peers: time, peak memory, and whether all files are the same.

Every run is a whole process, interpreter start included. Tools take turns (A B C A B C ...), so
that a noisy minute does not fall on one of them alone.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from tests.benchmarks.cgroup import CgroupUnavailableError, MemoryCgroup, memory_cgroup
from tests.benchmarks.make_store import add_graph_options
from tests.benchmarks.measure import Run, run_measured, touch_memory
from tests.benchmarks.peers.peer_job import SIDES, edge_dir, parse_bytes

REPOSITORY = Path(__file__).parents[2]
PEERS = {
    "scipy": "scipy_in_memory.py",
    "cellucid": "cellucid_prepare.py",
    "duckdb": "duckdb_sql.py",
    "floor": "floor.py",
}
OURS = "this tool"
FLOOR = "floor"
WARM_UP_CELLS = 70_000


@dataclass(frozen=True)
class Job:
    """One graph, and how it is exported."""

    cells: int
    kind: str
    order: str
    zarr_format: int
    compression: int | None

    def __str__(self) -> str:
        gzip_level = "" if self.compression is None else f" gzip {self.compression}"
        return f"{self.cells:,} {self.kind} {self.order} v{self.zarr_format}{gzip_level}"


@dataclass(frozen=True)
class Outcome:
    """A run, and what it wrote.

    Attributes
    ----------
    run
        Time, memory, output.
    report
        The JSON it printed, empty if it failed.
    digests
        SHA-256 of each edge file, decompressed.
    output_bytes
        Size of the edge files on disk.
    """

    run: Run
    report: dict[str, Any]
    digests: tuple[str, ...]
    output_bytes: int

    @property
    def failure(self) -> str | None:
        """Why there is no result, or None."""
        if self.run.oom_killed:
            return "killed: out of memory"
        if self.run.returncode != 0:
            lines = self.run.stderr.strip().splitlines() or [""]
            return f"exit {self.run.returncode}: {lines[-1]}"
        if len(self.digests) != len(SIDES):
            return "edge files are missing"
        return None


def ensure_store(job: Job, options: argparse.Namespace) -> Path:
    """Return the store of a job, made by another process if it is not there yet."""
    name = f"{job.kind}-{job.order}-{job.cells}x{options.neighbors}-v{job.zarr_format}"
    command = ["--cells", job.cells, "--kind", job.kind, "--order", job.order]
    command += ["--neighbors", options.neighbors, "--zarr-format", job.zarr_format]
    for key in ("chunk", "shard", "seed"):
        if value := getattr(options, key):
            name += f"-{key}{value}"
            command += [f"--{key}", value]
    path = Path(options.workdir) / f"{name}.zarr"
    if not path.exists():
        maker = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.make_store", path]
        subprocess.run([str(word) for word in [*maker, *command]], cwd=REPOSITORY, check=True)
    return path


def command_line(
    tool: str, job: Job, store: Path, out_dir: Path, n_edges: int | None, options: Any
) -> list[str]:
    """Return the command of one run."""
    if tool == OURS:
        command = [sys.executable, "-m", "cellgraph_dask", "export", store, out_dir]
        command += ["--no-progress", "--json", "--force"]
    else:
        script = Path(__file__).with_name("peers") / PEERS[tool]
        command = [options.peer_python, script, store, out_dir]
        if tool == FLOOR and n_edges is not None:
            command += ["--n-edges", n_edges]
    command += ["--memory-limit", options.memory_limit]
    if job.compression is not None:
        command += ["--compression", job.compression]
    return [str(word) for word in command]


def run_once(
    tool: str, job: Job, store: Path, n_edges: int | None, options: argparse.Namespace
) -> Outcome:
    """Run one tool once, read its files back, and delete them."""
    out_dir = Path(options.workdir) / "out"
    shutil.rmtree(out_dir, ignore_errors=True)
    command = command_line(tool, job, store, out_dir, n_edges, options)
    if options.drop_caches:
        drop_caches()
    if options.touch_memory:
        touch_memory(parse_bytes(options.touch_memory))
    with _limited(tool, options) as cgroup:
        run = run_measured(command, cgroup=cgroup, cwd=REPOSITORY)
    report = {}
    if run.returncode == 0:
        with contextlib.suppress(json.JSONDecodeError):
            report = json.loads(run.stdout)
    files = sorted(edge_dir(out_dir).glob("edges.*.bin*")) if run.returncode == 0 else []
    outcome = Outcome(run, report, tuple(map(digest, files)), sum(f.stat().st_size for f in files))
    shutil.rmtree(out_dir, ignore_errors=True)
    return outcome


@contextlib.contextmanager
def _limited(tool: str, options: argparse.Namespace) -> Iterator[MemoryCgroup | None]:
    """Make the cgroup of this tool's run, if one is wanted."""
    if not options.cgroup or tool != OURS:
        yield None
        return
    with memory_cgroup(parse_bytes(options.memory_limit)) as cgroup:
        yield cgroup


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, decompressed if its name ends in ``.gz``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        return hashlib.file_digest(cast("Any", file), "sha256").hexdigest()


def drop_caches() -> None:
    """Empty the page cache, of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def run_job(job: Job, tools: list[str], options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Run every tool ``options.repeat`` times, in turns."""
    store = ensure_store(job, options)
    outcomes: dict[str, list[Outcome]] = {tool: [] for tool in tools}
    n_edges = None
    for turn, tool in itertools.product(range(options.repeat), tools):
        print(f"{job}: {tool}, {turn + 1} of {options.repeat}", file=sys.stderr)
        outcome = run_once(tool, job, store, n_edges, options)
        if tool != FLOOR:
            n_edges = outcome.report.get("n_edges", n_edges)
        outcomes[tool].append(outcome)
    return outcomes


def problems(job: Job, outcomes: dict[str, list[Outcome]]) -> list[str]:
    """Return what is wrong: failed runs, and files or numbers that differ."""
    found = []
    seen: dict[str, dict[Any, str]] = {"files": {}, "n_edges": {}, "max_neighbors": {}}
    for tool, runs in outcomes.items():
        for outcome in runs:
            if outcome.failure is not None:
                found.append(f"{job}: {tool}: {outcome.failure}")
            elif tool != FLOOR:
                seen["files"].setdefault(outcome.digests, tool)
                for key in ("n_edges", "max_neighbors"):
                    if outcome.report.get(key) is not None:
                        seen[key].setdefault(outcome.report[key], tool)
    for what, values in seen.items():
        if len(values) > 1:
            found.append(f"{job}: {what} differ: first seen in {', '.join(values.values())}")
    return list(dict.fromkeys(found))


def table(results: dict[Job, dict[str, list[Outcome]]]) -> str:
    """Return one line for every job and tool."""
    head = ("job", "tool", "seconds", "(min-max)", "peak MB", "cgroup MB", "ratio", "of floor")
    lines = [head]
    for job, outcomes in results.items():
        medians = {
            tool: statistics.median(o.run.seconds for o in runs)
            for tool, runs in outcomes.items()
            if all(o.failure is None for o in runs)
        }
        for tool, runs in outcomes.items():
            if tool not in medians:
                failure = next(o.failure for o in runs if o.failure is not None)
                peak = max(o.run.peak_rss_bytes for o in runs)
                lines.append((str(job), tool, "failed", failure, f"{peak / 1e6:.0f}", "", "", ""))
                continue
            seconds = [o.run.seconds for o in runs]
            cgroup_peaks = [o.run.cgroup_peak_bytes or 0 for o in runs]
            lines.append(
                (
                    str(job),
                    tool,
                    f"{medians[tool]:.2f}",
                    f"({min(seconds):.2f}-{max(seconds):.2f})",
                    f"{max(o.run.peak_rss_bytes for o in runs) / 1e6:.0f}",
                    f"{max(cgroup_peaks) / 1e6:.0f}" if any(cgroup_peaks) else "",
                    f"{medians[tool] / medians[OURS]:.2f}" if OURS in medians else "",
                    f"{medians[FLOOR] / medians[tool]:.0%}" if FLOOR in medians else "",
                )
            )
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k in (0, 1, 3) else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(path: Path, results: dict[Job, dict[str, list[Outcome]]], options: Any) -> None:
    """Write every run, and where it ran."""
    payload = {
        "machine": platform.platform(),
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "options": {key: str(value) for key, value in vars(options).items()},
        "jobs": [
            {
                "job": asdict(job),
                "tools": {tool: [asdict(o) for o in runs] for tool, runs in outcomes.items()},
            }
            for job, outcomes in results.items()
        ],
    }
    path.write_text(json.dumps(payload, indent=1), encoding="utf-8")


def _level(text: str) -> int | None:
    """Parse a gzip level or ``none``."""
    if text == "none":
        return None
    if text not in set("123456789"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'none' nor 1 to 9")
    return int(text)


def _tools(text: str) -> list[str]:
    """Parse a comma-separated list of peers."""
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"unknown: {sorted(unknown)}; known: {sorted(PEERS)}")
    return names


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run")
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000_000], metavar="N")
    parser.add_argument("--kind", nargs="+", default=["symmetric"])
    parser.add_argument("--order", nargs="+", default=["random"])
    parser.add_argument("--zarr-format", type=int, nargs="+", default=[2], choices=(2, 3))
    parser.add_argument("--compression", type=_level, nargs="+", default=[None], metavar="none|1-9")
    add_graph_options(parser)
    parser.add_argument("--peers", type=_tools, default=["scipy", "floor"], metavar="A,B,...")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory-limit", default="512MB", help="told to this tool and the peers")
    parser.add_argument("--cgroup", action="store_true", help="enforce the limit on this tool")
    parser.add_argument("--drop-caches", action="store_true", help="before each run; needs root")
    parser.add_argument(
        "--touch-memory",
        metavar="SIZE",
        help="before each run: what a virtual machine has not used of late is slow to come back",
    )
    parser.add_argument("--no-warm-up", action="store_true", help="time first-run compilation too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cellgraph-benchmarks",
        help="stores are kept here and used again",
    )
    options = parser.parse_args(arguments)
    options.workdir = options.workdir.resolve()
    return options


def check_permissions(options: argparse.Namespace) -> None:
    """Switch off, with a message, what this machine does not allow."""
    if options.cgroup:
        try:
            with memory_cgroup(parse_bytes(options.memory_limit)):
                pass
        except CgroupUnavailableError as error:
            print(f"--cgroup is left out: {error}", file=sys.stderr)
            options.cgroup = False
    if options.drop_caches:
        try:
            drop_caches()
        except OSError as error:
            print(f"--drop-caches is left out: {error}", file=sys.stderr)
            options.drop_caches = False


def main(arguments: list[str] | None = None) -> int:
    """Run, print the table, and return 1 if anything failed or differs."""
    options = parse(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    check_permissions(options)
    tools = [OURS, *options.peers]
    axes = (options.cells, options.kind, options.order, options.zarr_format, options.compression)
    jobs = [Job(*values) for values in itertools.product(*axes)]
    compileall.compile_dir(REPOSITORY / "cellgraph_dask", quiet=1)  # as an installation does
    if not options.no_warm_up:
        warm_up = Job(WARM_UP_CELLS, "directed", "random", 2, None)
        small = argparse.Namespace(**vars(options) | {"neighbors": 5, "chunk": None, "shard": None})
        for tool in tools:
            run_once(tool, warm_up, ensure_store(warm_up, small), None, small)
    results = {}
    for job in jobs:
        results[job] = run_job(job, tools, options)
    print(table(results))
    found = [line for job, outcomes in results.items() for line in problems(job, outcomes)]
    for line in found:
        print(line)
    if not found:
        print("all edge files are the same")
    if options.json:
        write_json(options.json, results, options)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
