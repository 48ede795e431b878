"""Compare what one graph costs from sources of many kinds: time and peak memory of whole processes.

The other forms are made from a zarr store first, each once, and kept in the work folder. Kinds take
turns, as in `tests.benchmarks.run`, and all edge files are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs

from tests.benchmarks.cgroup import CgroupUnavailableError, memory_cgroup
from tests.benchmarks.convert_store import write_h5ad, write_zarr, write_zip
from tests.benchmarks.measure import Run, run_measured
from tests.benchmarks.peers.peer_job import parse_bytes
from tests.benchmarks.run import REPOSITORY, digest

# The graph as a Dask array of sparse blocks that lose their weak edges, exported by a script.
DASK = """
import sys
from cellgraph_dask import export_connectivities, read_connectivities

def drop_weak(block):
    strong = block.copy()
    strong.data[strong.data < 0] = 0
    return strong

graph = read_connectivities(sys.argv[1])
strong = graph.map_blocks(drop_weak, dtype=graph.dtype, meta=graph._meta)
print(export_connectivities(strong, sys.argv[2], memory_limit=sys.argv[3]).to_json())
"""


def _zarr(**options: Any) -> Callable[[Path, Path], Path]:
    settings = {"shard": None, "compressors": "auto", **options}
    return lambda store, folder: write_zarr(store, folder / "s.zarr", **settings)


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "zarr": lambda store, folder: store,
    "zarr zip": lambda store, folder: write_zip(store, folder / "s.zarr.zip"),
    "zarr v2 zstd": _zarr(zarr_format=2, chunk=1_000_000, compressors=numcodecs.Zstd(1)),
    "zarr v3 zstd": _zarr(zarr_format=3, chunk=1_000_000),
    "zarr v3 not compressed": _zarr(zarr_format=3, chunk=1_000_000, compressors=None),
    "zarr v3 shards of 16": _zarr(zarr_format=3, chunk=500_000, shard=8_000_000),
    "zarr v2 chunks of 10,000": _zarr(
        zarr_format=2, chunk=10_000, compressors=numcodecs.Blosc("lz4", 5, 1)
    ),
    "zarr v2 chunks of 10 M": _zarr(
        zarr_format=2, chunk=10_000_000, compressors=numcodecs.Blosc("lz4", 5, 1)
    ),
    "h5ad": lambda store, folder: write_h5ad(store, folder / "s.h5ad"),
    "h5ad lzf": lambda store, folder: write_h5ad(store, folder / "s.h5ad", compression="lzf"),
    "h5ad gzip": lambda store, folder: write_h5ad(store, folder / "s.h5ad", compression="gzip"),
    "Dask": lambda store, folder: store,
    "scipy in memory": lambda store, folder: store,
    "scipy, h5ad": lambda store, folder: _made("h5ad", store, folder.parent),
}


def _made(kind: str, store: Path, workdir: Path) -> Path:
    """Return a kind's source, made if it is not there yet."""
    folder = workdir / kind.replace(" ", "-").replace(",", "")
    done = folder / "source.txt"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"making {kind}", file=sys.stderr)
        done.write_text(str(KINDS[kind](store, folder).absolute()))
    return Path(done.read_text())


def _command(kind: str, source: Path, out_dir: Path, limit: str) -> list[str | Path]:
    if kind == "Dask":
        return [sys.executable, "-W", "ignore", "-c", DASK, source, out_dir, limit]
    if kind.startswith("scipy"):
        peer = Path(__file__).with_name("peers") / "scipy_in_memory.py"
        return [sys.executable, peer, source, out_dir]
    return [sys.executable, "-m", "cellgraph_dask", "export", source, out_dir, "--json",
            "--memory-limit", limit]  # fmt: skip


def measure(kind: str, source: Path, out_dir: Path, limit: str) -> tuple[Run, tuple[str, ...]]:
    """Run a kind once; return how it went and the digests of its files, which are deleted."""
    shutil.rmtree(out_dir, ignore_errors=True)
    command = _command(kind, source, out_dir, limit)
    with contextlib.ExitStack() as stack:
        cgroup = None
        if not kind.startswith("scipy"):
            with contextlib.suppress(CgroupUnavailableError):
                cgroup = stack.enter_context(memory_cgroup(parse_bytes(limit)))
        run = run_measured(command, cgroup=cgroup, cwd=REPOSITORY)
    files = sorted((out_dir / "connectivity").glob("edges.*")) if run.returncode == 0 else []
    digests = tuple(map(digest, files))
    shutil.rmtree(out_dir, ignore_errors=True)
    return run, digests


def main(arguments: list[str] | None = None) -> int:
    """Run all kinds that are asked for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.source_kinds")
    parser.add_argument("store", type=Path, help="a store of make_store")
    parser.add_argument("--kinds", default=";".join(KINDS), help="by semicolons")
    parser.add_argument("--memory-limit", default="512MB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args(arguments)
    kinds = [kind.strip() for kind in options.kinds.split(";")]
    sources = {kind: _made(kind, options.store, options.workdir) for kind in kinds}
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    seen: dict[tuple[str, ...], str] = {}
    failures = []
    for _, kind in itertools.product(range(options.repeat), kinds):
        run, digests = measure(kind, sources[kind], options.workdir / "out", options.memory_limit)
        runs[kind].append(run)
        if run.returncode:
            failures.append(f"{kind}: {run.stderr.strip().splitlines()[-1:]}")
        else:
            seen.setdefault(digests, kind)
    print(f"{'kind':<28}{'seconds':>8}{'(min-max)':>16}{'peak MB':>9}")
    for kind, of_kind in runs.items():
        seconds = [run.seconds for run in of_kind if run.returncode == 0]
        if not seconds:
            print(f"{kind:<28}  failed")
            continue
        peak = max(run.peak_rss_bytes for run in of_kind) / 1e6
        spread = f"({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"{kind:<28}{statistics.median(seconds):>8.2f}{spread:>16}{peak:>9.0f}")
    if len(seen) > 1:
        failures.append(f"edge files differ: {', '.join(seen.values())}")
    print(json.dumps(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
