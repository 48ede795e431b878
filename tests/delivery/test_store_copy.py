"""Indexes of data frames become arrays of texts in a new store, however the source has them."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData

from cellgraph_dask import symmetrize_connectivities
from cellgraph_dask.delivery import row_names
from cellgraph_dask.errors import SourceError
from tests.helpers.stores import directed_graph, snapshot

N = 7
NAMES = [f"é{k}" for k in range(N)]
FRAMES = ("obs", "var", "raw/var", "obsm/frame", "uns/deep/frame")


def cells(names=NAMES) -> AnnData:
    frame = pd.DataFrame({"n": range(N), "t": NAMES}, index=names)
    obs = frame.rename_axis("barcode")
    adata = AnnData(np.zeros((N, N), np.float32), obs=obs, var=frame[["n"]])
    adata.raw = adata
    adata.obsm["frame"] = adata.obs[["n"]]
    adata.obsp["connectivities"] = directed_graph(N, 2)
    adata.uns["deep"] = {"frame": frame[["n"]], "numbered": pd.DataFrame({"a": [5, 6]})}
    return adata


def put(group, name: str, values) -> None:
    """Write an array, of texts if need be, to zarr or HDF5."""
    if isinstance(group, h5py.Group):
        dtype = h5py.string_dtype() if values.dtype == object else values.dtype
        array = group.create_dataset(name, data=values, dtype=dtype)
    else:
        dtype = "str" if values.dtype == object else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=dtype)
        array[:] = values
    default = "string-array" if values.dtype == object else "array"
    array.attrs.update({"encoding-type": default, "encoding-version": "0.2.0"})


def store_with(folder: Path, kind: str, index: str, **options) -> Path:
    """Write a store whose indexes are groups."""
    path = folder / ("s.h5ad" if kind == "h5ad" else "s.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "h5ad":
            cells().write_h5ad(path)
            root = h5py.File(path, "a")
        else:
            with anndata.settings.override(zarr_write_format=int(kind)):
                cells().write_zarr(path)
            root = zarr.open_group(path, mode="a", use_consolidated=False)
        for frame in FRAMES:
            regroup(root[frame], index, **options)
        if kind == "h5ad":
            root.close()
    return path


def regroup(frame, index: str, *, missing: int | None = None) -> None:
    """Write the index of a data frame anew, as a group."""
    name = frame.attrs["_index"]
    del frame[name]
    group = frame.create_group(name)
    mask = np.arange(N) == (-1 if missing is None else missing)
    if index == "nullable":
        group.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        put(group, "values", np.array(NAMES, object))
        put(group, "mask", mask)
        return
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0"})
    group.attrs["ordered"] = False
    put(group, "categories", np.array(NAMES[::-1], object))
    put(group, "codes", np.where(mask, -1, np.arange(N)[::-1]).astype(np.int8))


def read(path: Path) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path)


def assert_named(dest: Path) -> None:
    root = zarr.open_group(dest, mode="r", use_consolidated=True)
    for frame in FRAMES:
        stored = root[frame][root[frame].attrs["_index"]]
        assert dict(stored.attrs) == {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        assert list(stored[:]) == NAMES
    found = read(dest)
    for frame in (found.obs, found.var, found.raw.var, found.obsm["frame"]):
        assert list(frame.index) == NAMES
        assert list(frame["n"]) == list(range(N))
    assert list(found.obs["t"]) == NAMES
    assert list(found.uns["deep"]["numbered"]["a"]) == [5, 6]


@pytest.mark.parametrize("index", ["nullable", "categorical"])
@pytest.mark.parametrize(("kind", "zarr_format"), [("h5ad", 3), ("2", 2), ("3", 2), ("3", 3)])
def test_an_index_that_is_a_group_becomes_an_array(tmp_path, kind, index, zarr_format):
    source, dest = store_with(tmp_path, kind, index), tmp_path / "d.zarr"
    report = symmetrize_connectivities(source, dest, rule="max", zarr_format=zarr_format)
    assert report.warnings == ()
    assert_named(dest)


@pytest.mark.parametrize(("kind", "index"), [("h5ad", "nullable"), ("2", "categorical")])
def test_so_does_that_of_chosen_cells(tmp_path, kind, index):
    chosen = np.arange(N) % 3 != 1
    source, dest = store_with(tmp_path, kind, index), tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max", cells=chosen)
    found = read(dest)
    names = np.array(NAMES)[chosen].tolist()
    assert list(found.obs_names) == list(found.obsm["frame"].index) == names
    assert list(found.var_names) == NAMES
    root = zarr.open_group(dest, mode="r")
    assert isinstance(root["obs/barcode"], zarr.Array)
    assert isinstance(root["var/_index"], zarr.Array)


@pytest.mark.parametrize(
    ("dtype", "zarr_format"), [("object", 2), ("string", 3), ("string", 2), ("category", 2)]
)
def test_so_does_an_index_in_memory(tmp_path, dtype, zarr_format):
    adata = cells(pd.Index(NAMES, dtype=dtype))
    report = symmetrize_connectivities(adata, tmp_path / "d.zarr", rule="max",
                                       zarr_format=zarr_format)  # fmt: skip
    assert report.warnings == ()
    assert_named(tmp_path / "d.zarr")
    assert adata.obs_names.dtype == dtype
    symmetrize_connectivities(adata[:5], tmp_path / "view.zarr", rule="max")
    assert list(read(tmp_path / "view.zarr").obs_names) == NAMES[:5]


@pytest.mark.parametrize(
    ("kind", "index"), [("h5ad", "nullable"), ("2", "categorical"), ("3", "nullable")]
)
def test_an_index_with_a_name_missing_is_copied_and_told_of(tmp_path, kind, index):
    source = store_with(tmp_path, kind, index, missing=3)
    report = symmetrize_connectivities(source, tmp_path / "d.zarr", rule="max", zarr_format=2)
    told = [text.partition(":")[0] for text in report.warnings]  # of those that are looked at
    paths = ["obs/barcode", "raw/var/_index", "var/_index"]
    assert told == [f"{path} has no name for row 3" for path in paths]
    assert "copied as it is, and `cellucid serve` opens a store only if" in report.warnings[0]
    stored = zarr.open_group(tmp_path / "d.zarr", mode="r")["obs/barcode"]
    assert isinstance(stored, zarr.Group)
    found = read(tmp_path / "d.zarr")
    assert found.obs_names.isna().tolist() == [k == 3 for k in range(N)]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("where", ["uns/deep", "obsm"])
def test_links_in_a_circle_are_named(tmp_path, kind, where):
    path = tmp_path / f"s.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells().write_h5ad(path) if kind == "h5ad" else cells().write_zarr(path)
    if kind == "h5ad":
        with h5py.File(path, "a") as root:
            root[where]["link"] = h5py.SoftLink(f"/{where}")
    else:
        (path / where / "link").symlink_to(path / where)
        (path / ".zmetadata").unlink(missing_ok=True)  # which tells of no link
    with pytest.raises(SourceError, match=rf"{where}/link/link.* more than 30 .* Remove the link"):
        symmetrize_connectivities(path, tmp_path / "new.zarr", rule="max", memory_limit="4GB")
    assert not (tmp_path / "new.zarr").exists()


def test_what_anndata_cannot_write_is_named(tmp_path):
    adata = cells()
    adata.write_zarr(tmp_path / "s.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = anndata.experimental.read_lazy(str(tmp_path / "s.zarr"))
    with pytest.raises(SourceError, match=r"is read lazily.* Give the path"):
        symmetrize_connectivities(lazy, tmp_path / "d.zarr", rule="max")
    adata.uns["f"] = open
    with pytest.raises(SourceError, match=r"^uns of AnnData in memory cannot be copied: IOReg"):
        symmetrize_connectivities(adata, tmp_path / "d.zarr", rule="max")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_names_missing_in_memory_are_told_of(tmp_path):
    names = pd.Index([*NAMES[:3], None, *NAMES[4:]], dtype="category")
    report = symmetrize_connectivities(cells(names), tmp_path / "d.zarr", rule="max")
    assert len(report.warnings) == 3
    assert "obs/index has no name for row 3" in report.warnings[0]


def test_an_index_with_very_many_categories_is_copied_and_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(row_names, "_AT_ONCE", N - 1)  # also: values are looked at in parts
    source = store_with(tmp_path, "2", "categorical")
    report = symmetrize_connectivities(source, tmp_path / "d.zarr", rule="max")
    assert "obs/barcode has 7 categories, which is too many" in " ".join(report.warnings)
    source = store_with(tmp_path, "h5ad", "nullable", missing=N - 1)
    report = symmetrize_connectivities(source, tmp_path / "e.zarr", rule="max")
    assert f"obs/barcode has no name for row {N - 1}" in " ".join(report.warnings)


@pytest.mark.parametrize("index", ["nullable", "categorical"])
def test_a_store_that_is_there_stays_as_it_is(tmp_path, index):
    source = store_with(tmp_path, "2", index)
    before = snapshot(source / "obs")
    report = symmetrize_connectivities(source, source, rule="max", to_key="symmetric")
    assert snapshot(source / "obs") == before
    told = [text.partition(",")[0] for text in report.warnings]
    assert told == [
        f"{path} is a group" for path in ("obs/barcode", "var/_index", "raw/var/_index")
    ]
    assert "Write to a new store" in report.warnings[0]
    dest = tmp_path / "d.zarr"
    assert symmetrize_connectivities(source, dest, key="symmetric").warnings == ()
    assert symmetrize_connectivities(dest, dest, to_key="again").warnings == ()
