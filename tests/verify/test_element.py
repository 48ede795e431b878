"""Verification of what `symmetrize` writes: every changed bit is found."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from cellgraph_dask import symmetrize_connectivities
from cellgraph_dask.errors import CellgraphError
from cellgraph_dask.stages.rules import RULES
from cellgraph_dask.verify.element import verify_element
from cellgraph_dask.verify.proof import ProofPlan
from tests.helpers.effort import PART
from tests.helpers.stores import directed_graph, write_store


def graph_of(n_cells=12, n_neighbors=2):
    graph = directed_graph(n_cells, n_neighbors)
    graph.data = np.random.default_rng(0).random(graph.nnz, np.float32)
    return graph


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_written_is_proved(tmp_path, dtype):
    source = write_store(tmp_path / "s.zarr", graph_of(300, 6))
    for rule in RULES if dtype == "float32" else ("mean",):
        dest = tmp_path / f"{rule}.zarr"
        made = symmetrize_connectivities(source, dest, rule=rule, dtype=dtype)
        report = verify_element(dest, source=source, rule=rule)
        assert report.ok, report.problems
        assert report.proof == "weights"
        assert (report.n_edges, report.max_neighbors) == (made.n_edges, made.max_neighbors)
        assert verify_element(dest).ok
        other = "sum" if rule != "sum" else "max"
        assert not verify_element(dest, source=source, rule=other).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_every_bit_that_changes_is_found(tmp_path, name):
    source = write_store(tmp_path / "s.zarr", graph_of(6, 1))
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max")
    array = zarr.open_group(dest, mode="r+", use_consolidated=False)["obsp/connectivities"][name]
    right = array[:]
    for bit in range(0, right.nbytes * 8, PART):
        wrong = right.copy()
        wrong.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        array[:] = wrong
        try:
            assert not verify_element(dest, source=source, rule="max").ok, bit
        except CellgraphError:
            assert name != "data"  # the matrix cannot be opened or read at all


@pytest.mark.parametrize("both", [False, True])
def test_without_a_source_one_direction_is_found_and_with_it_both(tmp_path, both):
    source = write_store(tmp_path / "s.zarr", graph_of())
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max")
    group = zarr.open_group(dest, mode="r+", use_consolidated=False)["obsp/connectivities"]
    indptr, indices, data = (group[name][:] for name in ("indptr", "indices", "data"))
    column = int(indices[0])
    mirror = int(indptr[column] + np.searchsorted(indices[indptr[column] : indptr[column + 1]], 0))
    data[0] = np.nextafter(data[0], np.float32(2))
    if both:
        data[mirror] = data[0]
    group["data"][:] = data
    assert verify_element(dest).ok == both
    report = verify_element(dest, source=source, rule="max")
    assert not report.ok
    assert "not symmetric" in report.problems[0] or f"(0, {column})" in report.problems[0]


@pytest.mark.slow
def test_blocks_of_any_size(tmp_path, monkeypatch):
    source = write_store(tmp_path / "s.zarr", graph_of(60, 4), chunk=50)
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="mean")
    for size in (1, 3, 17, 1000):
        plan = ProofPlan(size, 5, size, 2, short_keys=False)
        monkeypatch.setattr("cellgraph_dask.verify.element.plan_proof", lambda *_, p=plan: p)
        report = verify_element(dest, source=source, rule="mean")
        assert report.ok, report.problems


def test_other_matrices_are_told(tmp_path):
    source = write_store(tmp_path / "s.zarr", graph_of())
    assert "not symmetric" in verify_element(source).problems[0]
    other = write_store(tmp_path / "o.zarr", graph_of(13))
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max")
    assert "13" in verify_element(dest, source=other, rule="max").problems[0]
