"""Verification keeps to its limit, also where the compiler has to come."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import cellgraph_dask
from cellgraph_dask import export_connectivities
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import run_measured
from tests.helpers.command import run_process
from tests.helpers.stores import Stored, write_store

PACKAGE = Path(cellgraph_dask.__file__).parent


@pytest.mark.slow
@pytest.mark.thorough
def test_the_first_verification_keeps_to_its_limit(tmp_path):
    """It compiles its loops first, and what numba takes for that is not there for the rest."""
    package = tmp_path / "site"
    shutil.copytree(
        PACKAGE, package / "cellgraph_dask", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = os.environ | {"PYTHONPATH": str(package), "XDG_CACHE_HOME": str(tmp_path)}

    def command(*words):
        line = [sys.executable, "-m", "cellgraph_dask", *map(str, words)]
        return run_measured(line, cwd=tmp_path, env=environment)

    def verified_in_smallest_limit(*, is_first):
        limit = 100
        for _ in range(4):
            if is_first:
                for path in package.rglob("loop-*.o"):
                    path.unlink()
            ran = command("verify", out_dir, "--source", store, "--memory-limit", f"{limit}MB")
            if ran.returncode == 0:
                return limit, ran.peak_rss_bytes / 1e6
            found = re.search(r"smallest limit that will do is (\d+)MB", ran.stderr)
            assert found, ran.stderr
            limit = int(found[1])
        raise AssertionError("no limit will do")

    store, out_dir = tmp_path / "directed.zarr", tmp_path / "directed"
    make_store(store, n_cells=300_000, n_neighbors=15, kind="directed", zarr_format=2)
    assert command("export", store, out_dir).returncode == 0
    first, peak = verified_in_smallest_limit(is_first=True)
    assert peak <= first
    later, peak = verified_in_smallest_limit(is_first=False)
    assert peak <= later
    assert later < first - 50  # numba need not come any more


@pytest.mark.slow
@pytest.mark.parametrize("is_signed", [False, True])
def test_hubs_and_repeats_keep_to_the_smallest_limit(tmp_path, is_signed):
    """A cell with every other, and a pair that is stored more often than fits a piece."""
    n = 300_000
    rng = np.random.default_rng(0)
    rows = np.concatenate([
        rng.integers(0, n, 600_000), np.zeros(800_000, int), np.arange(n), np.full(500_000, 5),
    ])  # fmt: skip
    columns = np.concatenate([
        rng.integers(0, n, 1_400_000), np.zeros(n, int), np.full(500_000, 9),
    ])  # fmt: skip
    order = np.argsort(rows, kind="stable")
    weights = rng.normal(size=rows.size) if is_signed else np.ones(rows.size)
    indptr = np.searchsorted(rows[order], np.arange(n + 1))
    matrix = Stored(indptr, columns[order].astype("i4"), weights.astype("f4"), (n, n))
    store = write_store(tmp_path / "s.zarr", matrix, chunk=50_000)
    export_connectivities(store, tmp_path / "out")

    def verified(limit):
        return run_process(
            "verify", tmp_path / "out", "--source", store, "--memory-limit", limit, "--json"
        )

    verified("400MB")  # compiles what is not in the cache
    refused = verified("60MB")
    least = re.search(r"smallest limit that will do is (\d+MB)", refused.stderr)[1]
    outcome = verified(least)
    if outcome.exit_code != 0:  # the survey fits, the proof does not
        least = re.search(r"smallest limit that will do is (\d+MB)", outcome.stderr)[1]
        outcome = verified(least)
    assert outcome.exit_code == 0, outcome
    report = json.loads(outcome.stdout)
    assert report["proof"] == ("signed" if is_signed else "comparison")
    assert report["peak_memory_bytes"] <= report["memory_limit_bytes"]
