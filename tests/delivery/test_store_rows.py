"""A new store with the rows of some cells alone, of whatever an AnnData has for each cell."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellgraph_dask import symmetrize_connectivities, verify_element
from cellgraph_dask.delivery import store_rows
from cellgraph_dask.errors import SourceError
from cellgraph_dask.source.selection import Selection, _Bits
from tests.helpers.command import run
from tests.helpers.stores import directed_graph

N = 90
MASK = np.random.default_rng(3).random(N) < 0.3
NAMES = np.array([f"cell-{k}" for k in range(N)])


def make_adata():
    rng = np.random.default_rng(0)
    obs = {
        "leiden": pd.Categorical(rng.integers(0, 4, N).astype(str)), "flag": rng.random(N) < 0.5,
        "count": rng.integers(0, 9, N), "text": rng.choice(["x", "long text"], N),
        "nullable": pd.array([None if k % 5 == 0 else k for k in range(N)], "Int64"),
    }  # fmt: skip
    counts = sparse.random(N, 13, 0.3, format="csr", dtype="f4", random_state=1)
    adata = anndata.AnnData(counts, obs=pd.DataFrame(obs, index=NAMES))
    adata.obsp["connectivities"] = directed_graph(N)
    adata.obsm["X_umap"] = rng.random((N, 2))
    adata.obsm["frame"] = pd.DataFrame({"q": rng.random(N)}, index=NAMES)
    adata.layers["dense"] = rng.random((N, 13))
    adata.uns["other"] = {"values": np.arange(N)}
    adata.raw = adata.copy()
    return adata


def write(adata, path, zarr_format=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(zarr_write_format=zarr_format):
            adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["a.h5ad", "2.zarr", "3.zarr", "memory"])
def test_the_rows_of_some_cells(tmp_path, monkeypatch, kind, zarr_format):
    monkeypatch.setattr(store_rows, "_ROWS_OF", 16)
    monkeypatch.setattr(store_rows, "_UNCHUNKED", 50)
    adata = make_adata()
    source = adata if kind == "memory" else write(adata, tmp_path / kind, int(kind[0] == "3") + 2)
    dest = tmp_path / "new.zarr"
    options = {"rule": "max", "zarr_format": zarr_format}
    report = symmetrize_connectivities(source, dest, cells=NAMES[MASK][::-1].tolist(), **options)
    assert report.n_cells == MASK.sum()
    found, expected = anndata.read_zarr(dest), adata[MASK]
    for a, b in ((found.X, expected.X), (found.raw.X, expected.raw.X)):
        assert (a != b).nnz == 0
        assert a.dtype == b.dtype
    pd.testing.assert_frame_equal(found.obs.astype(object), adata.obs[MASK].astype(object))
    pd.testing.assert_frame_equal(found.obsm["frame"], adata.obsm["frame"][MASK])
    assert np.array_equal(found.obsm["X_umap"], expected.obsm["X_umap"])
    assert np.array_equal(found.layers["dense"], expected.layers["dense"])
    assert found.uns["other"]["values"].size == N
    graph = adata.obsp["connectivities"][MASK][:, MASK]
    assert (found.obsp["connectivities"] != graph.maximum(graph.T)).nnz == 0
    verified = verify_element(dest, source=source, rule="max")
    assert verified.ok, verified.problems
    assert not verify_element(dest, source=source, rule="min").ok


def test_indexes_of_other_kinds(tmp_path):
    adata = make_adata()
    del adata.obsm["frame"]
    adata.obs.index = pd.CategoricalIndex(NAMES[::-1])
    source = write(adata, tmp_path / "a.h5ad")
    done = run("symmetrize", source, tmp_path / "new.zarr", "--rule", "sum", "--cells",
               "obs:leiden=2")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    chosen = (adata.obs["leiden"] == "2").to_numpy()
    assert list(anndata.read_zarr(tmp_path / "new.zarr").obs_names) == list(NAMES[::-1][chosen])


def test_what_cannot_be_taken_by_rows(tmp_path):
    adata = make_adata()
    adata.layers["columns"] = adata.X.tocsc()
    source = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match="layers/columns is stored so that the rows"):
        symmetrize_connectivities(source, tmp_path / "new.zarr", cells=["cell-3"], rule="max")
    assert not (tmp_path / "new.zarr").exists()
    store = write(make_adata(), tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="has other cells too"):
        symmetrize_connectivities(store, store, cells=["cell-3"], rule="max", force=True)


@given(st.data())
def test_entries_of_some_rows(data):
    n = data.draw(st.integers(1, 60))
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    bits = _Bits(n)
    bits.set(0, mask)
    kept = store_rows._ROWS_OF
    store_rows._ROWS_OF = data.draw(st.sampled_from([1, 3, 100]))
    try:
        entries = store_rows.Entries(indptr, Selection("", n, bits.words))
        new = np.concatenate([[0], np.cumsum(np.array(lengths)[mask])]).astype(int)
        a, b = sorted(data.draw(st.tuples(*[st.integers(0, new.size)] * 2)))
        if a < b:
            assert store_rows.NewIndptr(entries)[a:b].tolist() == new[a:b].tolist()
        places = np.concatenate([
            np.arange(indptr[k], indptr[k + 1]) for k in np.flatnonzero(mask)
        ] or [[]]).astype(int)  # fmt: skip
        assert entries.n_entries == places.size
        a, b = sorted(data.draw(st.tuples(*[st.integers(0, places.size)] * 2)))
        assert entries.places(a, b).tolist() == places[a:b].tolist()
    finally:
        store_rows._ROWS_OF = kept
