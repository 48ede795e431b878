"""Kill exports at random moments, go on with them, and compare bytes and work.

::

    python -m tests.benchmarks.kill_and_resume --cells 2000000 --kills 20

Each kind of graph is exported by threads and by a cluster of two processes. An export is killed
with SIGKILL after a random part of its time; then ``--resume`` must give the bytes of the whole
run. The table says how many tasks were kept, and the seconds that going on took.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.make_store import make_store


@contextmanager
def scheduler(kind: str) -> Iterator[list[str]]:
    """Give the options that name the executor: none for threads, a cluster of two processes."""
    if kind == "threads":
        yield []
        return
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="600MB", dashboard_address=":0"
    ) as cluster:
        yield ["--scheduler-address", cluster.scheduler_address]


def export(store: Path, out_dir: Path, options: list[str]) -> subprocess.Popen[str]:
    """Start an export."""
    command = [sys.executable, "-m", "cellgraph_dask", "export", str(store), str(out_dir)]
    return subprocess.Popen([*command, "--json", *options], stdout=subprocess.PIPE, text=True)


def report(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for an export and return its report."""
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the export failed with {process.returncode}")
    found: dict[str, float] = json.loads(text)
    return found


def edges(out_dir: Path) -> dict[str, bytes]:
    """Return the bytes of an export."""
    return {p.name: p.read_bytes() for p in sorted(out_dir.rglob("*.*")) if p.is_file()}


def main() -> None:
    """Run all kinds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2_000_000)
    parser.add_argument("--neighbors", type=int, default=15)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--memory-limit", default="400MB")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"{'graph':<10} {'by':<10} {'kills':>5} {'whole s':>8} {'resumed s':>9} {'kept':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("directed", "symmetric"):
            store = make_store(
                Path(folder, f"{kind}.zarr"), n_cells=options.cells,
                n_neighbors=options.neighbors, kind=kind,
            )  # fmt: skip
            for by in ("threads", "processes"):
                with scheduler(by) as words:
                    run(Path(folder), store, kind, by, [*words, "--memory-limit",
                        options.memory_limit], options.kills, rng)  # fmt: skip


def run(
    folder: Path, store: Path, kind: str, by: str, words: list[str], kills: int, rng: random.Random
) -> None:
    """Kill one kind of export so many times and print its line."""
    whole, out_dir = folder / "whole", folder / "out"
    times = []
    for _ in range(3):
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        seconds = report(export(store, whole, words))["seconds"]
        lasts, times = time.monotonic() - began, [*times, seconds]
    expected, seconds = edges(whole), statistics.median(times)
    resumed, kept = [], []
    while len(resumed) < kills:
        shutil.rmtree(out_dir, ignore_errors=True)
        process = export(store, out_dir, words)
        time.sleep(rng.uniform(lasts - seconds, lasts))
        process.kill()
        process.communicate()
        if (out_dir / "connectivity_manifest.json").exists():
            continue  # it was done before
        found = report(export(store, out_dir, [*words, "--resume"]))
        if edges(out_dir) != expected:
            raise SystemExit(f"other bytes after a kill: {kind}, {by}")
        resumed.append(found["seconds"])
        kept.append(found["kept_tasks"])
    print(
        f"{kind:<10} {by:<10} {kills:>5} {seconds:>8.2f} {statistics.median(resumed):>9.2f} "
        f"{statistics.median(kept):>6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
