"""Thinned graphs of matrices that store pairs several times: what float32 adds up to is float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import export_connectivities, open_export, verify_export
from cellgraph_dask.stages import pipeline
from tests.helpers.stores import Stored, write_store
from tests.helpers.thinning import thinned_edges

N_CELLS = 300
THINNING = [
    {"min_weight": 0.5},
    {"top_k": 2},
    {"top_k": 3, "max_edges": 100},
    {"max_edges": 100},
    {"min_weight": 1e-9, "strongest": "smallest", "top_k": 2},
]


def repeated(weights, *, mirrored=False):
    """Return a matrix whose entries are all stored twice, with weights of their own."""
    rng = np.random.default_rng(3)
    pairs = np.unique(rng.integers(0, N_CELLS, (1500, 2)), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]] if mirrored else pairs[pairs[:, 0] != pairs[:, 1]]
    drawn = weights(2 * len(pairs), rng).astype(np.float32)
    rows, columns = np.repeat(pairs, 2, axis=0).T
    if mirrored:
        rows, columns = np.append(rows, columns), np.append(columns, rows)
        drawn = np.append(drawn, drawn)
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(N_CELLS + 1))
    return Stored(indptr, columns[order].astype(np.int32), drawn[order], (N_CELLS, N_CELLS))


def summed(matrix):
    parts = matrix.data.astype(np.float64), matrix.indices, matrix.indptr
    added = sparse.csr_matrix(parts, shape=matrix.shape)
    added.sum_duplicates()
    return added


def long_fractions(n, rng):
    return rng.random(n)


def short_fractions(n, rng):
    return rng.integers(1, 9, n) / 8


def edges_of(out_dir):
    with open_export(out_dir) as graph:
        return [np.array(column) for column in (graph.src, graph.dst, graph.weights)]


@pytest.mark.parametrize("thinning", THINNING, ids=str)
@pytest.mark.parametrize("rule", ["max", "min", "ones", "sum"])
@pytest.mark.parametrize("weights", [long_fractions, short_fractions])
def test_what_repeats_add_up_to(tmp_path, weights, rule, thinning):
    matrix = repeated(weights)
    store = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(store, tmp_path / "out", weights=True, rule=rule, **thinning)
    expected = thinned_edges(summed(matrix), rule, **thinning)
    assert expected[0].size
    assert all(map(np.array_equal, edges_of(tmp_path / "out"), expected))
    assert verify_export(tmp_path / "out", source=store).ok


def test_repeats_that_add_up_to_a_symmetric_matrix(tmp_path):
    matrix = repeated(long_fractions, mirrored=True)
    store = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(store, tmp_path / "out", weights=True, rule="max", top_k=2)
    assert all(map(np.array_equal, edges_of(tmp_path / "out"),
                   thinned_edges(summed(matrix), "max", top_k=2)))  # fmt: skip
    assert verify_export(tmp_path / "out", source=store).ok


def test_a_pair_that_is_stored_over_and_over(tmp_path):
    n = 70_000
    weights = np.random.default_rng(1).random(n).astype(np.float32)
    indptr = np.array([0, n, n + 1])
    matrix = Stored(
        indptr,
        np.append(np.ones(n, np.int32), np.int32(0)),
        np.append(weights, np.float32(1)),
        (2, 2),
    )
    store = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(store, tmp_path / "out", weights=True, rule="max", top_k=1)
    src, dst, found = edges_of(tmp_path / "out")
    assert (src.tolist(), dst.tolist()) == ([0], [1])
    assert found.tolist() == [np.add.accumulate(weights, dtype=np.float64)[-1]]
    assert verify_export(tmp_path / "out", source=store).ok


def test_an_interrupted_run_goes_on_in_float64(tmp_path, monkeypatch):
    matrix = repeated(long_fractions)
    store = write_store(tmp_path / "s.zarr", matrix)

    def stop(*_, **__):
        raise KeyboardInterrupt

    options = {"weights": True, "rule": "max", "top_k": 2}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "thin", stop)
        with pytest.raises(KeyboardInterrupt):
            export_connectivities(store, tmp_path / "out", **options)
    report = export_connectivities(store, tmp_path / "out", resume=True, **options)
    assert report.kept_tasks
    assert all(map(np.array_equal, edges_of(tmp_path / "out"),
                   thinned_edges(summed(matrix), "max", top_k=2)))  # fmt: skip
