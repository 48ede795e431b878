"""Matrices in memory of kinds that carry more than values: masks, labels, other dimensions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray
from scipy import sparse

from cellgraph_dask import export_connectivities
from cellgraph_dask.errors import CellgraphError, SourceError
from tests.helpers.stores import directed_graph
from tests.oracle import assert_exported

GRAPH = directed_graph(40)
DENSE = GRAPH.toarray()
WEAK = np.median(GRAPH.data) > DENSE
STRONG = sparse.csr_matrix(np.where(WEAK, 0, DENSE))


def with_masked_data(layout):
    matrix = GRAPH.asformat(layout).copy()
    matrix.data = np.ma.masked_array(matrix.data, matrix.data < np.median(GRAPH.data))
    return matrix


def chunked(values):
    import dask.array as da

    return da.from_array(values, chunks=(13, 17), asarray=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ma.masked_array(DENSE, WEAK),
        lambda: np.ma.masked_array(np.where(WEAK, np.nan, DENSE), WEAK),
        lambda: chunked(np.ma.masked_array(DENSE, WEAK)),
        lambda: with_masked_data("csr"),
        lambda: with_masked_data("csc"),
        lambda: with_masked_data("coo"),
    ],
)
def test_what_is_masked_has_no_edge(tmp_path, make):
    export_connectivities(make(), tmp_path / "out")
    assert_exported(tmp_path / "out", STRONG)


LABELS = [f"c{i}" for i in range(40)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ma.masked_array(DENSE),
        lambda: np.ma.masked_array(DENSE, np.zeros(DENSE.shape, bool)),
        lambda: DENSE.view(np.matrix),
        lambda: pd.DataFrame(DENSE, LABELS, LABELS),
        lambda: pd.DataFrame(DENSE, LABELS),
        lambda: pd.DataFrame.sparse.from_spmatrix(GRAPH),
        lambda: xarray.DataArray(DENSE),
        lambda: xarray.DataArray(chunked(DENSE)),
        lambda: GRAPH.todok(),
        lambda: GRAPH.tolil(),
        lambda: GRAPH.tobsr(blocksize=(2, 2)),
        lambda: sparse.coo_array(GRAPH),
    ],
)
def test_matrices_of_other_kinds(tmp_path, make):
    export_connectivities(make(), tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


def masked_indices():
    matrix = GRAPH.copy()
    matrix.indices = np.ma.masked_array(matrix.indices, matrix.indices == 3)
    return matrix


def masked_blocks():
    matrix = GRAPH.tobsr(blocksize=(2, 2))
    matrix.data = np.ma.masked_array(matrix.data, matrix.data < 1)
    return matrix


def with_three_dimensions():
    try:
        return sparse.coo_array(np.ones((2, 2, 2)))
    except ValueError:
        pytest.skip("before 1.15, scipy has no such arrays")


def with_unknown():
    frame = pd.DataFrame(DENSE, dtype="Float32")
    frame.iloc[3, 4] = pd.NA
    return frame


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sparse.coo_array(np.arange(5)), "coo_array with 1 dimensions"),
        (with_three_dimensions, "with 3 dimensions"),
        (lambda: np.ma.masked_array(np.ones(3)), "with 1 dimensions"),
        (lambda: pd.Series(np.ones(3)), "with 1 dimensions"),
        (lambda: xarray.DataArray(np.ones(3)), "with 1 dimensions"),
        (masked_indices, "whose indices is partly masked"),
        (masked_blocks, "whose data is partly masked"),
        (lambda: pd.DataFrame(DENSE, LABELS, LABELS[::-1]), "have another order than its columns"),
        (with_unknown, "dtype object|must be finite"),
        (lambda: np.array(7), "with 0 dimensions"),
    ],
)
def test_what_is_no_matrix_is_refused_by_name(tmp_path, make, words):
    with pytest.raises(CellgraphError, match=words) as told:
        export_connectivities(make(), tmp_path / "out")
    assert isinstance(told.value, SourceError) or "dtype" in words
