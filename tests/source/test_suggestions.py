"""Names that are typed wrongly, or in part: what may be meant is asked."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from scipy.sparse import csr_array

from cellgraph_dask.errors import SourceError
from cellgraph_dask.source.columns import open_column
from cellgraph_dask.source.embeddings import stored_embeddings
from cellgraph_dask.source.layout import Tree, find_matrix, near, suggestion
from tests.helpers.stores import symmetric_graph, write_store

NAMES = ["connectivities", "distances", "wide_connectivities", "wide_distances"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("conectivities", ["connectivities"]),
        ("conn", ["connectivities", "wide_connectivities"]),
        ("CONN", ["connectivities", "wide_connectivities"]),
        ("wide", ["wide_connectivities", "wide_distances"]),
        ("s", ["connectivities", "distances", "wide_connectivities"]),
        ("connectivities_of_T_cells", ["connectivities"]),
        ("umap", []),
        ("", []),
    ],
)
def test_what_may_be_meant(typed, meant):
    assert near(typed, NAMES) == meant


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], " Did you mean 'a'?"),
        (["a", "b"], " Did you mean 'a' or 'b'?"),
        (["a", "b", "c"], " Did you mean 'a', 'b' or 'c'?"),
    ],
)
def test_the_question(names, text):
    assert suggestion(names) == text


@pytest.mark.parametrize(
    ("held", "key", "meant"),
    [
        ({"obsp": {"connectivities": 1, "distances": 1}}, "conn", "'connectivities'"),
        ({"obsp": {"distances": 1}, "uns": {"neighbors": {"connectivities": 1}}}, "conn",
         "'uns/neighbors/connectivities'"),
        ({"mod": {"rna": {"obsp": {"connectivities": 1}}}}, "conn",
         "'mod/rna/obsp/connectivities'"),
        ({"mod": {"rna": {"obsp": {"connectivities": 1}}}}, "rna", "'mod/rna/obsp/connectivities'"),
    ],
)  # fmt: skip
def test_a_part_of_a_key(held, key, meant):
    matrix = csr_array(np.eye(2))

    def filled(value):
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return matrix

    with pytest.raises(SourceError) as told:
        find_matrix(Tree(filled(held)), "s", key, None)
    assert f"Did you mean {meant}?" in str(told.value)


def test_a_part_of_a_name_of_scanpy():
    held = {"uns": {"neighbors": {"distances": 1}, "wide_neighbors": {"distances": 1}}}
    with pytest.raises(SourceError, match="Did you mean 'wide_neighbors'"):
        find_matrix(Tree(held), "s", "connectivities", "wide")


def test_parts_of_embeddings_and_columns(tmp_path):
    store = write_store(
        tmp_path / "s.zarr", symmetric_graph(40),
        obsm={"X_umap": np.zeros((40, 2), "f4"), "X_umap_3d": np.zeros((40, 3), "f4")},
    )  # fmt: skip
    _, why = stored_embeddings(store, 40, name="UMA")
    assert why.endswith("; did you mean 'X_umap' or 'X_umap_3d'?")
    group = zarr.open_group(store, mode="r+", use_consolidated=False)["obs"]
    for name in ("leiden_fine", "leiden_coarse"):
        group.create_array(name, data=np.zeros(40))
    zarr.consolidate_metadata(store)
    with (
        pytest.raises(SourceError, match="Did you mean 'leiden_coarse' or 'leiden_fine'"),
        open_column(store, "leid", 40),
    ):
        pass
