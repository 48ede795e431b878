"""Verification keeps to its limit, also where the compiler has to come."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import cellgraph_dask
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import run_measured

PACKAGE = Path(cellgraph_dask.__file__).parent


@pytest.mark.slow
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
