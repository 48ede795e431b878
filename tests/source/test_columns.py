"""Columns of `obs`, however they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellgraph_dask.errors import SourceError
from cellgraph_dask.source.columns import Column, open_column

N = 40


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Any]:
    """Give the same cells in memory, in zarr and in HDF5."""
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["b", "a", None, "c"] * 10),
            "text": ["y", "x"] * 20,
            "whole": np.arange(N),
            "real": np.linspace(0, 1, N),
            "flag": [True, False] * 20,
            "maybe": pd.array([1, None] * 20, dtype="Int64"),
            "perhaps": pd.array([True, False, None, True] * 10, dtype="boolean"),
            "barcode": [f"c{k}" for k in range(N)],
        },
        index=[f"cell-{k}" for k in range(N)],
    )
    cells = AnnData(np.zeros((N, 1), np.float32), obs=obs)
    cells.uns["kind_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    cells.uns["text_colors"] = ["#ff0000"]  # of other categories
    folder = tmp_path_factory.mktemp("columns")
    cells.write_zarr(folder / "c.zarr")
    cells.write_h5ad(folder / "c.h5ad")
    return {"memory": cells, "zarr": folder / "c.zarr", "hdf5": folder / "c.h5ad"}


def read(source: Any, name: str) -> Column:
    with open_column(str(source) if isinstance(source, Path) else source, name, N) as reader:
        return reader.read()


@pytest.mark.parametrize("where", ["memory", "zarr", "hdf5"])
def test_columns_are_categories_or_numbers(stores, where):
    found = {name: read(stores[where], name) for name in stores["memory"].obs.columns}
    assert found["kind"].categories == ("a", "b", "c")
    assert found["kind"].values[:4].tolist() == [1, 0, -1, 2]
    assert found["kind"].colors == ("#ff0000", "#00ff00", "#0000ff")
    assert found["text"].categories == ("x", "y")
    assert found["text"].values[:2].tolist() == [1, 0]
    assert found["text"].colors == ()
    assert found["whole"].values.tolist() == list(range(N))
    assert found["real"].values.dtype == np.float32
    assert found["flag"].categories == ("False", "True")
    assert found["flag"].values[:2].tolist() == [1, 0]
    assert found["maybe"].values[0] == 1
    assert np.isnan(found["maybe"].values[1])
    assert found["perhaps"].categories == ("False", "True")
    assert found["perhaps"].values[:4].tolist() == [1, 0, -1, 1]


@pytest.mark.parametrize("where", ["memory", "zarr", "hdf5"])
def test_a_column_that_is_not_there_or_is_of_names_is_refused(stores, where, monkeypatch):
    with pytest.raises(SourceError, match=r"has no column 'kin'; it has .* Did you mean 'kind'"):
        read(stores[where], "kin")
    monkeypatch.setattr("cellgraph_dask.source.columns._MOST_CATEGORIES", 30)
    with pytest.raises(SourceError, match="has more than 30 different values"):
        read(stores[where], "barcode")
    with (
        pytest.raises(SourceError, match="is not a column of values for 7 cells"),
        open_column(stores[where], "real", 7),
    ):
        pass


def test_categories_where_anndata_once_kept_them(tmp_path):
    import zarr

    root = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    obs = root.create_group("obs", attributes={"_index": "index"})
    for place, values in [("kind", [1, 0, 1]), ("__categories/kind", [10, 20])]:
        obs.create_array(place, data=np.array(values, np.int8))
    with open_column(str(tmp_path / "old.zarr"), "kind", 3) as reader:
        column = reader.read()
    assert column.categories == ("10", "20")
    assert column.values.tolist() == [1, 0, 1]
