"""The number of cells is compared with the matrix, however the names of cells are written."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities, plan_export, verify_export
from cellgraph_dask.errors import SourceError
from cellgraph_dask.source import cells
from cellgraph_dask.source.layout import get
from cellgraph_dask.source.opening import open_source
from tests.helpers.command import run
from tests.helpers.stores import symmetric_graph, write_store

GRAPH = symmetric_graph(40, 5)
KINDS = ["zarr2", "zarr3", "h5ad"]
INDEXES = ["object", "string", "category", "int64"]
MISMATCH = r"shape \(40, 40\) does not match number of cells 37"


def write(path: Path, kind: str, n_cells: int, dtype: str, *, at: str = "", **more):
    """Write an AnnData whose obs need not fit its matrix, and return its root, still open."""
    names = [f"c{i}" for i in range(n_cells)] if dtype != "int64" else range(n_cells)
    obs = pd.DataFrame({"x": np.arange(n_cells)}, index=pd.Index(names, dtype=dtype))
    if kind == "h5ad":
        root = h5py.File(path, "w")
    else:
        root = zarr.open_group(path, mode="w", zarr_format=int(kind[-1]))
    inside = root.require_group(at) if at else root
    with warnings.catch_warnings(), anndata.settings.override(allow_write_nullable_strings=True):
        warnings.simplefilter("ignore")
        for name, element in {"obs": obs, "obsp": {"connectivities": GRAPH}, **more}.items():
            anndata.io.write_elem(inside, name, element)
    return root


def close(root) -> None:
    if isinstance(root, h5py.File):
        root.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_tells_first_is_enough(tmp_path, kind, monkeypatch):
    """What is opened takes requests where a store is remote, and obs may have many columns."""
    root = write(tmp_path / "s", kind, 40, "string", obsm={"X_pca": np.zeros((40, 2))})
    opened = []
    monkeypatch.setattr(cells, "get", lambda node, path: opened.append(path) or get(node, path))
    assert cells.count_cells(root, "s", "obsp/connectivities") == (40, ())
    assert opened[:2] == ["obs", "_index"]
    assert set(opened[2:]) <= {"codes", "values", "mask"}  # which the index may be made of
    close(root)


@pytest.mark.parametrize("dtype", INDEXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["", "tables/table", "mod/rna"])
def test_an_index_of_any_kind(tmp_path, kind, dtype, at):
    key = f"{at}/obsp/connectivities" if at else "connectivities"
    for n_cells in (40, 37):
        path = tmp_path / f"{n_cells}.h5mu"
        close(write(path, kind, n_cells, dtype, at=at))
        if n_cells == 40:
            assert open_source(path, key).notes == ()
        else:
            with pytest.raises(SourceError, match=MISMATCH):
                open_source(path, key)


def change(obs, how: str) -> None:
    """Make an index that cannot be found or read."""
    if how == "attribute gone":
        del obs.attrs["_index"]
    elif how == "names nothing":
        obs.attrs["_index"] = "cell_id"
    elif how == "an array of one name":
        obs.attrs["_index"] = ["_index"]
    elif how == "a column is left":
        del obs["_index"]
    elif how == "a categorical is left":
        del obs["_index"], obs["x"]
        obs.create_group("y").create_dataset("codes", data=np.zeros(37, np.int8)) if isinstance(
            obs, h5py.Group
        ) else obs.create_group("y").create_array("codes", data=np.zeros(37, np.int8))
    else:
        assert how == "no attributes"
        for name in list(obs.attrs):
            del obs.attrs[name]


@pytest.mark.parametrize(
    "how", ["attribute gone", "names nothing", "an array of one name", "a column is left",
            "a categorical is left", "no attributes"]
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_cannot_be_found(tmp_path, kind, how):
    path = tmp_path / "s"
    root = write(path, kind, 37, "object")
    change(root["obs"], how)
    close(root)
    with pytest.raises(SourceError, match=MISMATCH):
        open_source(path)


@pytest.mark.parametrize("beside", ["X", "sparse X", "layers", "obsm", "frame in obsm"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_obs_the_rows_of_what_lies_beside_it_count(tmp_path, kind, beside):
    more = {
        "X": {"X": np.zeros((37, 2))},
        "sparse X": {"X": sparse.csr_matrix((37, 2))},
        "layers": {"layers": {"counts": np.zeros((37, 2))}},
        "obsm": {"obsm": {"X_umap": np.zeros((37, 2))}},
        "frame in obsm": {"obsm": {"f": pd.DataFrame({"a": [1.0] * 37}, map(str, range(37)))}},
    }[beside]  # fmt: skip
    root = write(tmp_path / "s", kind, 40, "object", **more)
    del root["obs"]
    close(root)
    with pytest.raises(SourceError, match=MISMATCH):
        open_source(tmp_path / "s")


@pytest.mark.parametrize("name", ["/", ".", "./", "self", "/obs"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_is_obs_itself(tmp_path, kind, name):
    """What its name leads to is no column; the lengths of other columns tell."""
    for n_cells in (40, 37):
        path = tmp_path / str(n_cells)
        root = write(path, kind, n_cells, "object")
        root["obs"].attrs["_index"] = name
        root["obs"].attrs["column-order"] = [name, "x"]
        if kind == "h5ad":
            root["obs"]["self"] = h5py.SoftLink("/obs")
        close(root)
        if n_cells == 40:
            assert open_source(path).notes == ()
        else:
            with pytest.raises(SourceError, match=MISMATCH):
                open_source(path)


def test_an_empty_dataset_has_no_length(tmp_path):
    root = write(tmp_path / "s", "h5ad", 37, "object")
    del root["obs/_index"]
    root["obs/_index"] = h5py.Empty("f4")
    root["obsp/none"] = h5py.Empty("f4")
    close(root)
    with pytest.raises(SourceError, match=MISMATCH):
        open_source(tmp_path / "s")
    with pytest.raises(SourceError, match="metadata of obsp/none cannot be used"):
        open_source(tmp_path / "s", "none")


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_whose_metadata_are_damaged(tmp_path, kind):
    if kind == "h5ad":
        pytest.skip("HDF5 has no such files")
    write(tmp_path / "s", kind, 37, "object")
    name = ".zarray" if kind == "zarr2" else "zarr.json"
    (tmp_path / "s" / "obs" / "_index" / name).write_text("{}")
    with pytest.raises(SourceError, match=MISMATCH):
        open_source(tmp_path / "s")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", ["no obs", "an empty obs"])
def test_where_nothing_tells_the_number_of_cells(tmp_path, kind, left):
    path, out_dir = tmp_path / "s", tmp_path / "out"
    root = write(path, kind, 40, "object")
    del root["obs"]
    if left == "an empty obs":
        root.create_group("obs")
    close(root)
    for report in (
        plan_export(path), export_connectivities(path, out_dir), verify_export(out_dir, source=path)
    ):  # fmt: skip
        (warning,) = report.warnings
        assert "could not be compared with the cells of" in warning
    outcome = run("plan", path)
    assert "Warning: The rows of obsp/connectivities could not be compared" in outcome.stdout
    shutil.rmtree(out_dir)


def test_tables_and_modalities_in_memory(tmp_path):
    adata = anndata.AnnData(obs=pd.DataFrame(index=map(str, range(40))))
    adata.obsp["connectivities"] = GRAPH
    spatial = SimpleNamespace(tables={"table": adata}, images={})
    multi = SimpleNamespace(
        obsp={}, uns={}, obsm={}, obs=pd.DataFrame(index=map(str, range(80))), mod={"rna": adata}
    )
    for source, key in ((spatial, "tables/table"), (multi, "mod/rna")):
        assert open_source(source, f"{key}/obsp/connectivities").n_cells == 40
        with pytest.raises(SourceError, match=f"{key}/obsp/connectivities"):
            open_source(source)
    multi.obsp["connectivities"] = GRAPH
    with pytest.raises(SourceError, match="number of cells 80"):
        open_source(multi)


def test_sparse_columns_do_not_hide_the_index(tmp_path):
    store = write_store(tmp_path / "s.zarr", GRAPH, n_obs=37)
    with pytest.raises(SourceError, match=MISMATCH):
        open_source(store)
