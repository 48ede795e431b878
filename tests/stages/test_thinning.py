"""Thinning keeps the edges that numpy keeps, whatever the rule, the output, and how work is cut."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cellgraph_dask import export_connectivities, open_export, verify_export
from cellgraph_dask.edge_pairs import components as forests
from cellgraph_dask.edge_pairs.components import Components
from cellgraph_dask.errors import SourceError
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.wishes import Thinning
from tests.helpers.effort import part_of
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.helpers.thinning import thinned_edges

RULES = [None, "max", "min", "mean", "sum", "fuzzy", "ones"]


@st.composite
def graphs(draw):
    """Draw a matrix with many equal weights, whose sums are exact in any order, and a rule."""
    n = draw(st.sampled_from([2, 5, 12, 300]))
    rule = draw(st.sampled_from(RULES))
    cells = st.integers(0, min(n, 12) - 1).map(lambda k: k if n < 300 else k * 27)
    pairs = draw(st.sets(st.tuples(cells, cells), max_size=60))
    weights = draw(st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0]), min_size=len(pairs),
                            max_size=len(pairs)))  # fmt: skip
    rows, columns = np.array(sorted(pairs), int).reshape(-1, 2).T
    dtype = draw(st.sampled_from(["f4", "f8"]))
    matrix = sparse.csr_matrix((np.array(weights, dtype), (rows, columns)), shape=(n, n))
    if rule is None or draw(st.booleans()):
        matrix = matrix.maximum(matrix.T).tocsr()
        matrix.setdiag(0)
        matrix.eliminate_zeros()
    return matrix, rule


thinnings = st.builds(
    Thinning,
    min_weight=st.sampled_from([None, 0.0, 0.25, 0.6]),
    top_k=st.sampled_from([None, 1, 2, 4, 50]),
    max_edges=st.sampled_from([None, 1, 3, 10, 1000]),
).flatmap(
    lambda some: st.sampled_from([some, *([replace(some, strongest="smallest")] if some else [])])
)
tunings = st.builds(
    Tuning, st.sampled_from([3, 10, 1000]), st.sampled_from([3, 1000]),
    st.sampled_from([2, 8, 1000]), st.sampled_from([1, 8]), threads=st.sampled_from([1, 3]),
    count_components=st.booleans(),
)  # fmt: skip
outputs = st.sampled_from([
    {}, {"weights": True}, {"compression": 6},
    {"format": "parquet", "weights": True}, {"format": "parquet", "directions": "both"},
])  # fmt: skip


def components(n_cells, src, dst):
    graph = sparse.coo_matrix((np.ones(src.size), (src, dst)), shape=(n_cells, n_cells))
    _, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    return Components(sizes.size, int(sizes.max()))


def assert_report(report, matrix, rule, kept):
    """Check what an export says that it has done."""
    n = matrix.shape[0]
    before = thinned_edges(matrix, rule)
    degrees = [np.bincount(np.concatenate(edges[:2]), minlength=n) for edges in (before, kept)]
    assert report.n_edges == kept[0].size
    assert report.max_neighbors == degrees[1].max()
    assert report.thinned.n_dropped == before[0].size - kept[0].size
    became = (degrees[0] > 0) & (degrees[1] == 0)
    assert report.thinned.n_became_isolated == became.sum()
    if report.thinned.after is not None:
        assert report.thinned.before == components(n, *before[:2])
        assert report.thinned.after == components(n, *kept[:2])


@pytest.mark.slow
@settings(max_examples=part_of(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), thinning=thinnings.filter(bool), tuning=tunings, output=outputs,
       method=st.sampled_from([None, "general"]),
       settling=st.sampled_from([1, 20, 10**6]))  # fmt: skip
def test_any_graph(graph, thinning, tuning, output, method, settling):
    matrix, rule = graph
    kept = thinned_edges(matrix, rule, **thinning.options)
    few = mock.patch.object(forests, "_FIRST_SETTLING", settling)  # edges before a large tree
    with tempfile.TemporaryDirectory() as folder, few:
        out_dir = Path(folder) / "out"

        def export():
            return run_export(
                open_source(matrix), out_dir, rule=rule, thinning=thinning, method=method,
                tuning=tuning, memory_limit="4GB", **output,
            )  # fmt: skip

        if not kept[0].size and thinned_edges(matrix, rule)[0].size:
            with pytest.raises(SourceError, match=r"no edge of matrix has a weight of at least"):
                export()
            return
        report = export()
        assert_report(report, matrix, rule, kept)
        with open_export(out_dir) as graph:
            found = graph.to_scipy() if hasattr(graph, "to_scipy") else None
            assert found is not None
            expected = sparse.coo_matrix((kept[2], kept[:2]), shape=matrix.shape)
            if not output.get("weights"):
                expected.data[:] = 1
            assert (found != (expected + expected.T).tocsr()).nnz == 0


@pytest.mark.parametrize("thinning", [
    {"top_k": 3}, {"max_edges": 500}, {"top_k": 4, "max_edges": 900, "min_weight": 0.1},
])  # fmt: skip
def test_symmetric_and_directed_graphs(tmp_path, thinning):
    """Weights that are all different; both methods give the same bytes."""
    matrix = directed_graph(2000, 12)
    matrix.data = np.random.default_rng(1).random(matrix.nnz).astype(np.float32)
    symmetric = matrix.maximum(matrix.T).tocsr()
    kept = thinned_edges(symmetric, None, **thinning)
    for name, graph, rule in (("a", matrix, "max"), ("b", symmetric, None)):
        source = write_store(tmp_path / f"{name}.zarr", graph)
        report = export_connectivities(
            source, tmp_path / name, rule=rule, weights=True, memory_limit="4GB", **thinning
        )
        assert report.symmetric == (name == "b")
        assert_report(report, graph, rule, kept)
    found = [snapshot(tmp_path / name / "connectivity") for name in ("a", "b")]
    for one in found:
        one.pop("provenance.json", None)
    assert found[0] == found[1]


def test_a_hub_goes_through_many_blocks(tmp_path):
    """The strongest of a row are found among those of all its blocks."""
    n = 400
    star = sparse.lil_matrix((n, n))
    star[0, 1:] = np.random.default_rng(0).permutation(n - 1) + 1
    matrix = (star + star.T).tocsr()
    tuning = Tuning(16, 1000, 100, 8, threads=2)
    report = run_export(
        open_source(matrix), tmp_path / "out", thinning=Thinning(max_edges=5), tuning=tuning
    )
    assert report.n_edges == 5
    kept = thinned_edges(matrix, None, max_edges=5)
    with open_export(tmp_path / "out") as graph:
        assert graph.dst.tolist() == kept[1].tolist()
    star[1, 2] = star[2, 1] = 1000  # so that cells 1 and 2 do not need the hub
    matrix = (star.maximum(star.T)).tocsr()
    kept = thinned_edges(matrix, None, top_k=1)
    run_export(open_source(matrix), tmp_path / "top", thinning=Thinning(top_k=1), tuning=tuning)
    with open_export(tmp_path / "top") as graph:
        assert graph.dst.tolist() == kept[1].tolist()


def test_matrices_that_are_not_symmetric_need_a_rule(tmp_path):
    with pytest.raises(SourceError, match=r"choose how both directions .* with `rule`"):
        export_connectivities(directed_graph(), tmp_path / "out", top_k=3, memory_limit="4GB")
    assert not (tmp_path / "out").exists()


def test_distances_need_to_be_told(tmp_path):
    source = write_store(tmp_path / "s.zarr", symmetric_graph(), key="distances")
    with pytest.raises(SourceError, match="looks like distances"):
        export_connectivities(source, tmp_path / "out", key="distances", top_k=3)
    export_connectivities(
        source, tmp_path / "out", key="distances", top_k=3, strongest="smallest",
        memory_limit="4GB",
    )  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [
    ({"top_k": 0}, "top_k must be at least 1, not 0"),
    ({"max_edges": -1}, "max_edges must be at least 1, not -1"),
    ({"top_k": "3"}, "top_k must be a whole number, not '3'"),
    ({"top_k": 2.0}, "top_k must be a whole number, not 2.0"),
    ({"max_edges": True}, "max_edges must be a whole number, not True"),
    ({"max_edges": "all"}, "max_edges must be a number or 'viewer', not 'all'"),
    ({"min_weight": -1}, "min_weight must be a finite number"),
    ({"min_weight": float("nan")}, "min_weight must be a finite number"),
    ({"min_weight": 10**5000}, "min_weight must be a finite number, at least 0, not inf"),
    ({"min_weight": "0.5"}, "min_weight must be a number, not '0.5'"),
    ({"strongest": "smallest"}, "strongest says which edges"),
    ({"top_k": 1, "strongest": "best"}, "strongest must be one of largest, smallest, not 'best'"),
])  # fmt: skip
def test_numbers_outside_their_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_connectivities(symmetric_graph(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy(tmp_path):
    source = write_store(tmp_path / "s.zarr", symmetric_graph())
    options = {"min_weight": np.float32(0.5), "top_k": np.int64(2), "max_edges": np.uint8(200)}
    export_connectivities(source, tmp_path / "out", memory_limit="4GB", **options)
    report = verify_export(tmp_path / "out", source=source)
    assert report.ok, report.problems
    assert report.thinning == {"min_weight": 0.5, "top_k": 2, "max_edges": 200}


def test_nothing_is_left(tmp_path):
    with pytest.raises(SourceError, match=r"no edge of .* at least 99; the largest is 8\. Choose"):
        export_connectivities(
            symmetric_graph(), tmp_path / "out", min_weight=99, memory_limit="4GB"
        )
    assert not (tmp_path / "out").exists()


def test_as_many_as_the_viewer_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("cellgraph_dask.edge_pairs.format.VIEWER_BYTES", 48 * 100 + 4 * 300)
    report = export_connectivities(
        symmetric_graph(300), tmp_path / "out", max_edges="viewer", memory_limit="4GB"
    )
    assert report.n_edges == 100
