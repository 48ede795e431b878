"""All compiled loops are loaded before memory is shared out; none is compiled in between."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import check_connectivities
from cellgraph_dask.edge_pairs import components
from cellgraph_dask.export import check, run
from cellgraph_dask.machine.compiled import Loop
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import loops, symmetry_loops, thinning_loops, weighted_loops
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.wishes import Thinning
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, symmetric_graph


@pytest.fixture
def loaded(monkeypatch):
    """Return the names of the loops that are loaded from now on, as if none had been."""
    for module in (loops, weighted_loops, symmetry_loops, thinning_loops, components):
        for loop in vars(module).values():
            if isinstance(loop, Loop):
                monkeypatch.setattr(loop, "_ready", {})
    names: list[str] = []
    load = Loop._load
    monkeypatch.setattr(Loop, "_load", lambda self, s: names.append(self.__name__) or load(self, s))
    return names


def hub(sign):
    """Return a graph of a cell with all neighbors, and a pair that is stored over and over."""
    n = 300
    indptr = np.concatenate([[0, n, 2 * n], np.full(n - 2, 2 * n)])
    indices = np.concatenate([np.arange(n), np.full(n, 5)]).astype(np.int32)
    return sparse.csr_matrix((np.full(2 * n, sign, np.float32), indices, indptr), shape=(n, n))


@pytest.mark.parametrize(("graph", "options"), [
    (hub(1), {}), (hub(-1), {"method": "signed"}), (symmetric_graph(), {}),
    (hub(1), {"weights": True, "rule": "max"}),
    (symmetric_graph(), {"weights": True, "rule": "max"}),
    (directed_graph(), {"compression": 6}),
    (symmetric_graph(), {"thinning": Thinning(top_k=3, max_edges=99)}),
    (hub(1), {"rule": "max", "thinning": Thinning(top_k=3, max_edges=99)}),
    (hub(1), {"rule": "mean", "thinning": Thinning(min_weight=0.1)}),
])  # fmt: skip
@pytest.mark.parametrize("count_degrees", [True, False])
def test_of_an_export(tmp_path, monkeypatch, loaded, graph, options, count_degrees):
    before = []
    stages = run.run_stages
    monkeypatch.setattr(
        run, "run_stages", lambda *args: before.append(len(loaded)) or stages(*args)
    )
    tuning = Tuning(100, 100, 50, 8, threads=1, count_degrees=count_degrees,
                    count_components=count_degrees)  # fmt: skip
    run_export(open_source(graph), tmp_path / "out", tuning=tuning, **options)
    assert before[0] > 0
    assert loaded[before[-1] :] == []


@pytest.mark.parametrize("graph", [symmetric_graph(), directed_graph()])
def test_of_a_check(monkeypatch, loaded, graph):
    at_work = []
    cut = check.cut_blocks
    monkeypatch.setattr(check, "cut_blocks", lambda *a: at_work.append(len(loaded)) or cut(*a))
    check_connectivities(graph)
    assert at_work[0] > 0
    assert loaded[at_work[-1] :] == []
