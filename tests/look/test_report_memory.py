"""A report keeps to its limit, whatever it has to gather."""

from __future__ import annotations

import json
import re

import pytest

from cellgraph_dask import export_connectivities
from tests.benchmarks.make_store import make_store
from tests.helpers.command import run_process


@pytest.mark.slow
def test_a_report_keeps_to_the_limit_that_a_refusal_names(tmp_path):
    store = tmp_path / "s.zarr"
    make_store(store, n_cells=50_000, n_neighbors=15)
    export_connectivities(store, tmp_path / "out", weights=True)

    def reported(limit):
        return run_process(
            "report", tmp_path / "out", "--source", store, "--memory-limit", limit, "--json",
            "--no-picture", "--components",
        )  # fmt: skip

    reported("400MB")  # compiles what is not in the cache
    limit = "60MB"
    for _ in range(3):
        outcome = reported(limit)
        if outcome.exit_code == 0:
            break
        limit = re.search(r"smallest limit that will do is (\d+MB)", outcome.stderr)[1]
    assert outcome.exit_code == 0, outcome
    report = json.loads(outcome.stdout)
    found = report["verification"]
    assert sum(report["weights"]["histogram"]["counts"]) == found["n_edges"]
    assert found["peak_memory_bytes"] <= found["memory_limit_bytes"]
