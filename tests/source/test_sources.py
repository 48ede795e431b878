"""Every kind of source gives the same bytes, and each that is not one says what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anndata
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import sparse as pydata
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import CellgraphError, DamagedGraphError, SourceError
from cellgraph_dask.source import zarr_objects
from tests.helpers.command import run, run_process
from tests.helpers.servers import serving
from tests.helpers.stores import (
    directed_graph,
    snapshot,
    symmetric_graph,
    write_anndata,
    write_store,
)
from tests.oracle import assert_exported

N_CELLS = 300
GRAPHS = {"symmetric": symmetric_graph(N_CELLS, 7), "directed": directed_graph(N_CELLS, 7)}


def in_anndata(matrix: Any) -> anndata.AnnData:
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"cell-{k}" for k in range(matrix.shape[0])]))
    adata.obsp["connectivities"] = matrix
    return adata


def h5ad(path: Path, matrix: Any, **options: Any) -> Path:
    in_anndata(matrix).write_h5ad(path, **options)
    return path


def with_filters(path: Path, matrix: Any, **options: Any) -> Path:
    """Write an h5ad whose matrix has gone through filters of HDF5."""
    h5ad(path, matrix)
    with h5py.File(path, "r+") as file:
        group = file["obsp/connectivities"]
        for name in ("indptr", "indices", "data"):
            values = group[name][:]
            del group[name]
            group.create_dataset(name, data=values, **options)
    return path


def zipped(folder: Path, store: Path, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "cells.zarr.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(store)}")
    return path


def memory_store(folder: Path, matrix: Any) -> zarr.storage.MemoryStore:
    store = zarr.storage.MemoryStore()
    source = zarr.open_group(write_store(folder / "s.zarr", matrix), mode="r")
    root = zarr.open_group(store, mode="w", zarr_format=2)
    root.attrs.update(source.attrs)
    target = root.create_group("obsp/connectivities")
    target.attrs.update(source["obsp/connectivities"].attrs)
    for name in ("indptr", "indices", "data"):
        values = source[f"obsp/connectivities/{name}"][:]
        target.create_array(name, data=values, chunks=(100,))
    return store


def dask_of(matrix: Any, chunks: Any, convert: Callable[[Any], Any]) -> da.Array:
    """Return a Dask array whose chunks are made by a function from slices of a CSR matrix."""
    pieces = da.core.normalize_chunks(chunks, matrix.shape)
    rows, columns = (np.concatenate(([0], np.cumsum(sizes))) for sizes in pieces)
    name = f"graph-{convert}-{chunks}-{matrix.nnz}"
    graph = {
        (name, i, j): (
            lambda a, b, c, d: convert(matrix[a:b, c:d]),
            int(rows[i]), int(rows[i + 1]), int(columns[j]), int(columns[j + 1]),
        )
        for i in range(len(pieces[0]))
        for j in range(len(pieces[1]))
    }  # fmt: skip
    return da.Array(graph, name, pieces, meta=convert(matrix[:1, :1])[:0, :0])


def in_diagonals(matrix: Any, kind: Any) -> Any:
    with pytest.warns(sparse.SparseEfficiencyWarning, match="diagonals"):
        return kind(matrix)


def lazily(path: Path) -> anndata.AnnData:
    from anndata.experimental import read_lazy

    return read_lazy(path)


def gcxs(matrix: Any, axis: int = 0) -> pydata.GCXS:
    return pydata.GCXS.from_scipy_sparse(matrix).change_compressed_axes([axis])


SOURCES: dict[str, Callable[[Path, Any], Any]] = {
    "zarr v2": lambda f, m: write_store(f / "s.zarr", m, chunk=100),
    "zarr v3": lambda f, m: write_store(f / "s.zarr", m, chunk=100, zarr_format=3),
    "zarr v3 shards": lambda f, m: write_store(
        f / "s.zarr", m, chunk=100, shard=400, zarr_format=3
    ),
    "zarr as text": lambda f, m: str(write_store(f / "s.zarr", m)),
    "zarr as file URL": lambda f, m: f"file://{write_store(f / 's.zarr', m)}",
    "zarr CSC": lambda f, m: write_store(f / "s.zarr", m.tocsc(), chunk=100),
    "zarr zip": lambda f, m: zipped(f, write_store(f / "s.zarr", m, chunk=100)),
    "zarr zip, deflated": lambda f, m: zipped(
        f, write_store(f / "s.zarr", m, chunk=100, zarr_format=3), method=zipfile.ZIP_DEFLATED
    ),
    "zarr zip of a folder": lambda f, m: zipped(f, write_store(f / "s.zarr", m), "s.zarr/"),
    "zarr zip of shards": lambda f, m: zipped(
        f, write_store(f / "s.zarr", m, chunk=100, shard=400, zarr_format=3)
    ),
    "zarr zip of shards, deflated": lambda f, m: zipped(
        f,
        write_store(f / "s.zarr", m, chunk=100, shard=400, zarr_format=3),
        method=zipfile.ZIP_DEFLATED,
    ),
    "zarr zip, plain, deflated": lambda f, m: zipped(
        f, write_store(f / "s.zarr", m, chunk=100, codec="none"), method=zipfile.ZIP_DEFLATED
    ),
    "zarr over HTTP": lambda f, m: write_store(f / "s.zarr", m, chunk=100),
    "zarr shards over HTTP": lambda f, m: write_store(
        f / "s.zarr", m, chunk=100, shard=400, zarr_format=3
    ),
    "zarr plain over HTTP": lambda f, m: write_store(f / "s.zarr", m, chunk=100, codec="none"),
    "zarr.Group": lambda f, m: zarr.open_group(write_store(f / "s.zarr", m), mode="r"),
    "zarr.Group inside": lambda f, m: zarr.open_group(
        write_store(f / "s.zarr", m), mode="r", path="obsp"
    ),
    "zarr LocalStore": lambda f, m: zarr.storage.LocalStore(write_store(f / "s.zarr", m)),
    "zarr MemoryStore": memory_store,
    "h5ad": lambda f, m: h5ad(f / "c.h5ad", m),
    "h5ad CSC": lambda f, m: h5ad(f / "c.h5ad", m.tocsc()),
    "h5ad gzip": lambda f, m: h5ad(f / "c.h5ad", m, compression="gzip"),
    "h5ad lzf": lambda f, m: h5ad(f / "c.h5ad", m, compression="lzf"),
    "h5ad contiguous": lambda f, m: with_filters(f / "c.h5ad", m),
    "h5ad gzip, shuffle, checksum": lambda f, m: with_filters(
        f / "c.h5ad", m, chunks=(90,), compression="gzip", shuffle=True, fletcher32=True
    ),
    "h5ad lzf, shuffle": lambda f, m: with_filters(
        f / "c.h5ad", m, chunks=(90,), compression="lzf", shuffle=True
    ),
    "h5ad scale-offset": lambda f, m: with_filters(f / "c.h5ad", m.astype(int), scaleoffset=0),
    "AnnData": lambda f, m: in_anndata(m),
    "AnnData, dense": lambda f, m: in_anndata(m.toarray()),
    "AnnData, backed": lambda f, m: anndata.read_h5ad(h5ad(f / "c.h5ad", m), backed="r"),
    "AnnData, lazy zarr": lambda f, m: lazily(write_anndata(f / "s.zarr", connectivities=m)),
    "AnnData, lazy h5ad": lambda f, m: lazily(h5ad(f / "c.h5ad", m)),
    "sparse dataset in zarr": lambda f, m: anndata.io.sparse_dataset(
        zarr.open_group(write_store(f / "s.zarr", m), mode="r")["obsp/connectivities"]
    ),
    "dense zarr": lambda f, m: write_anndata(f / "s.zarr", connectivities=m.toarray()),
    "dense h5ad": lambda f, m: h5ad(f / "c.h5ad", m.toarray(), compression="gzip"),
    "dense h5ad, contiguous": lambda f, m: h5ad(f / "c.h5ad", m.toarray()),
    **{
        f"scipy {kind.__name__}": lambda f, m, kind=kind: kind(m)
        for kind in (
            sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.lil_matrix,
            sparse.dok_matrix, sparse.bsr_matrix, sparse.csr_array, sparse.csc_array,
            sparse.coo_array, sparse.lil_array, sparse.dok_array, sparse.bsr_array,
        )
    },
    "scipy dia_matrix": lambda f, m: in_diagonals(m, sparse.dia_matrix),
    "scipy dia_array": lambda f, m: in_diagonals(m, sparse.dia_array),
    "numpy": lambda f, m: m.toarray(),
    "numpy matrix": lambda f, m: m.todense(),
    "lists": lambda f, m: m.toarray().tolist(),
    "DataFrame": lambda f, m: pd.DataFrame(m.toarray()),
    "PyData COO": lambda f, m: pydata.COO.from_scipy_sparse(m),
    "PyData GCXS": lambda f, m: gcxs(m),
    "PyData GCXS by columns": lambda f, m: gcxs(m, 1),
    "PyData DOK": lambda f, m: pydata.DOK(pydata.COO.from_scipy_sparse(m)),
    "Dask of CSR": lambda f, m: dask_of(m, (70, -1), sparse.csr_matrix),
    "Dask of CSC by columns": lambda f, m: dask_of(m, (-1, 70), sparse.csc_matrix),
    "Dask of CSR by columns": lambda f, m: dask_of(m, (-1, 70), sparse.csr_matrix),
    "Dask of GCXS, both": lambda f, m: dask_of(m, (70, 110), gcxs),
    "Dask of COO": lambda f, m: dask_of(m, (70, -1), pydata.COO.from_scipy_sparse),
    "Dask of one chunk": lambda f, m: dask_of(m, (-1, -1), sparse.csr_array),
    "Dask of numpy": lambda f, m: da.from_array(m.toarray(), chunks=(70, -1)),
    "Dask of numpy by columns": lambda f, m: da.from_array(m.toarray(), chunks=(-1, 70)),
    "Dask of numpy, both": lambda f, m: da.from_array(m.toarray(), chunks=(70, 110)),
}  # fmt: skip


@pytest.fixture(scope="module", params=GRAPHS)
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a graph and the files of its export from a plain zarr store."""
    folder = tmp_path_factory.mktemp("expected")
    matrix = GRAPHS[request.param]
    store = write_store(folder / "s.zarr", matrix)
    export_connectivities(store, folder / "out")
    assert_exported(folder / "out", matrix)
    return matrix, snapshot(folder / "out", but="provenance.json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_bytes(tmp_path, expected, kind):
    matrix, files = expected
    source = SOURCES[kind](tmp_path, matrix)
    with ExitStack() as stack:
        if kind.endswith("HTTP"):
            source = f"{stack.enter_context(serving(tmp_path))}/{source.name}"
        elif kind == "AnnData, backed":
            stack.callback(source.file.close)
        options = {"key": "/connectivities"} if kind == "zarr.Group inside" else {}
        before = set(tmp_path.iterdir())
        assert plan_export(source, tmp_path / "out", **options).n_cells == N_CELLS
        report = export_connectivities(source, tmp_path / "out", **options)
    assert snapshot(tmp_path / "out", but="provenance.json") == files
    assert report.n_cells == N_CELLS
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}


# Old layouts and scanpy's names


def bundled_h5ad() -> Path:
    import scanpy

    return Path(scanpy.__file__).parent / "datasets/10x_pbmc68k_reduced.h5ad"


def old_layout(path: Path, matrix: Any, **obsp: Any) -> Path:
    """Write a store as AnnData before 0.7 did: structured obs, the graph in uns."""
    root = (
        h5py.File(path, "w")
        if path.suffix == ".h5ad"
        else zarr.open_group(path, mode="w", zarr_format=2)
    )
    names = np.zeros(matrix.shape[0], [("index", "S8"), ("n_genes", "<i8")])
    if isinstance(root, h5py.File):
        root["obs"] = names
    else:
        root.create_array("obs", data=names)
    for name, stored in {"connectivities": matrix, "distances": matrix * 2}.items():
        group = root.create_group(f"uns/neighbors/{name}")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = matrix.shape
        for array in ("indptr", "indices", "data"):
            values = getattr(stored, array)
            if isinstance(root, h5py.File):
                group[array] = values
            else:
                group.create_array(array, data=values)
    if isinstance(root, h5py.File):
        root.close()
    return path


@pytest.mark.parametrize("name", ["old.h5ad", "old.zarr"])
def test_old_layouts_are_found_and_said(tmp_path, name, caplog):
    matrix = GRAPHS["symmetric"]
    source = old_layout(tmp_path / name, matrix)
    plan = plan_export(source)
    assert plan.key == "uns/neighbors/connectivities"
    assert any("kept it before version 0.7" in warning for warning in plan.warnings)
    export_connectivities(source, tmp_path / "out")
    assert_exported(tmp_path / "out", matrix)
    assert "kept it before version 0.7" in caplog.text
    assert plan_export(source, key="distances").key == "uns/neighbors/distances"
    assert plan_export(source, neighbors_key="neighbors").key == "uns/neighbors/connectivities"
    with pytest.raises(
        SourceError, match=r"In old places: uns/neighbors/connectivities, .*"
    ) as told:
        plan_export(source, key="connectivity")
    assert "Did you mean 'uns/neighbors/connectivities'?" in str(told.value)


@pytest.mark.slow
def test_the_h5ad_that_scanpy_brings_along(tmp_path):
    import scanpy

    outcome = run_process("export", bundled_h5ad(), tmp_path / "out")
    assert outcome.exit_code == 0
    with h5py.File(bundled_h5ad()) as file:
        is_old = "obsp" not in file  # newer scanpy brings a newer one
    assert ("uns/neighbors/connectivities is exported" in outcome.stderr) == is_old
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its old layout
        adata = scanpy.datasets.pbmc68k_reduced()
    assert_exported(tmp_path / "out", adata.obsp["connectivities"].tocsr())
    export_connectivities(adata, tmp_path / "memory")
    memory, out = (snapshot(tmp_path / name, but="provenance.json") for name in ("memory", "out"))
    assert memory == out


def named_graphs(path: Path) -> Path:
    """Write a store with two of scanpy's neighbour graphs, one under another name."""
    adata = in_anndata(GRAPHS["symmetric"])
    adata.obsp["wide_connectivities"] = GRAPHS["directed"]
    adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"n": 7}}
    adata.uns["wide"] = {"connectivities_key": "wide_connectivities"}
    adata.uns["pca"] = {"variance": np.ones(3)}
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        adata.write_zarr(path)
    return path


@pytest.mark.parametrize("kind", ["n.h5ad", "n.zarr", "memory"])
def test_neighbors_key_follows_scanpys_names(tmp_path, kind):
    source: Any = named_graphs(tmp_path / ("n.zarr" if kind == "memory" else kind))
    if kind == "memory":
        source = anndata.read_zarr(source)
    for name, matrix in (("wide", "directed"), ("neighbors", "symmetric")):
        export_connectivities(source, tmp_path / name, neighbors_key=name)
        assert_exported(tmp_path / name, GRAPHS[matrix])
    message = r"no neighbors 'wid' in uns; there is neighbors, wide\. Did you mean 'wide'\?"
    with pytest.raises(SourceError, match=message):
        plan_export(source, neighbors_key="wid")
    with pytest.raises(ValueError, match="not both"):
        plan_export(source, key="distances", neighbors_key="wide")


def test_neighbors_key_on_the_command_line(tmp_path):
    source = named_graphs(tmp_path / "n.h5ad")
    outcome = run("export", source, tmp_path / "out", "--neighbors-key", "wide")
    assert outcome.exit_code == 0, outcome.stderr
    assert_exported(tmp_path / "out", GRAPHS["directed"])
    assert run("plan", source, "--neighbors-key", "wide", "--key", "distances").exit_code == 2
    outcome = run("plan", source, "--neighbors-key", "wiide")
    assert outcome.exit_code == 1
    assert "Did you mean 'wide'?" in outcome.stderr


@pytest.mark.parametrize("name", ["m.h5mu", "m.zarr"])
def test_a_modality_by_its_path(tmp_path, name):
    inner = write_anndata(tmp_path / "a.zarr", connectivities=GRAPHS["directed"])
    h5ad(tmp_path / "a.h5ad", GRAPHS["directed"])
    if name == "m.zarr":
        zarr_format = zarr.open_group(inner).metadata.zarr_format
        root = zarr.open_group(tmp_path / name, mode="w", zarr_format=zarr_format)
        root.create_group("mod")
        shutil.copytree(inner, tmp_path / name / "mod/rna")
    else:
        with h5py.File(tmp_path / name, "w") as file, h5py.File(tmp_path / "a.h5ad") as other:
            other.copy("/", file.create_group("mod"), "rna")
            file["obs"] = np.zeros(N_CELLS + 9, [("index", "S8")])  # cells of all modalities
    key = "mod/rna/obsp/connectivities"
    export_connectivities(tmp_path / name, tmp_path / "out", key=key)
    assert_exported(tmp_path / "out", GRAPHS["directed"])
    with pytest.raises(SourceError, match=rf"tables and modalities: {key}.*Did you mean '{key}'"):
        plan_export(tmp_path / name)


# What is wrong


def remove_dataset(path: Path, name: str) -> Path:
    with h5py.File(path, "r+") as file:
        del file[name]
    return path


def cut_off(path: Path, part: float) -> Path:
    os.truncate(path, int(path.stat().st_size * part))
    return path


def scribbled(path: Path, name: str) -> Path:
    """Turn the bytes in the middle of a dataset's second chunk around."""
    with h5py.File(path, "r") as file:
        chunk = file[f"obsp/connectivities/{name}"].id.get_chunk_info(1)
    raw = bytearray(path.read_bytes())
    middle = slice(chunk.byte_offset + chunk.size // 3, chunk.byte_offset + 2 * chunk.size // 3)
    raw[middle] = bytes(255 - b for b in raw[middle])
    path.write_bytes(raw)
    return path


def with_weight(value: float) -> Any:
    matrix = GRAPHS["directed"].copy()
    matrix.data[37] = value
    return matrix


OBSP = "obsp/connectivities"
SMALL = {"chunks": (90,), "compression": "gzip"}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half an h5ad": (
        lambda f: cut_off(h5ad(f / "c.h5ad", GRAPHS["directed"]), 0.5),
        r"c\.h5ad is not an HDF5 file that can be opened .*truncated",
    ),
    "an h5ad without indices": (
        lambda f: remove_dataset(h5ad(f / "c.h5ad", GRAPHS["directed"]), f"{OBSP}/indices"),
        r"obsp/connectivities has no array 'indices'",
    ),
    "an h5ad with NaN": (
        lambda f: h5ad(f / "c.h5ad", with_weight(np.nan)),
        r"the weight of cells \(5, \d+\) in obsp/connectivities is nan",
    ),
    **{
        f"an h5ad whose {filters} chunk is damaged": (
            lambda f, options=options: scribbled(
                with_filters(f / "c.h5ad", GRAPHS["directed"], chunks=(90,), **options), "indices"
            ),
            r"chunk 1 of obsp/connectivities/indices does not decode",
        )
        for filters, options in {
            "gzip": {"compression": "gzip"},
            "lzf": {"compression": "lzf", "shuffle": True},
            "checksummed": {"fletcher32": True},
        }.items()
    },
    "an h5ad with an index too large": (
        lambda f: h5ad(
            f / "c.h5ad", sparse.csr_matrix(GRAPHS["directed"]), compression="lzf"
        ) and changed_value(f / "c.h5ad", "indices", 100, N_CELLS),
        r"indices holds 300 in row 14 \(entry 100\)",
    ),
    "an h5ad with other cells than obs": (
        lambda f: changed_shape(h5ad(f / "c.h5ad", GRAPHS["directed"]), (299, 299)),
        r"Connectivity matrix shape \(299, 299\) does not match number of cells 300",
    ),
    "a name that cannot be": (lambda f: f / ("x" * 300), r"cannot be opened: File name too long"),
    "half a zip": (
        lambda f: cut_off(zipped(f, write_store(f / "s.zarr", GRAPHS["directed"])), 0.5),
        r"s\.zarr\.zip is not a whole zip archive|cells\.zarr\.zip is not a whole zip archive",
    ),
    "a zip with changed bytes": (
        lambda f: changed_zip(
            zipped(f, write_store(f / "s.zarr", GRAPHS["directed"], codec="none"))
        ),
        r"chunk 0 of obsp/connectivities/indices does not decode: its checksum in the zip",
    ),
    "an h5ad at a URL": (
        lambda f: "https://host/cells.h5ad", r"is an HDF5 file on another machine",
    ),
    "a URL that nobody serves": (
        lambda f: "http://127.0.0.1:9/cells.zarr", r"is not a zarr store that can be opened",
    ),
    "a URL that nobody knows": (lambda f: "xyz://host/cells.zarr", r"not a zarr store.*xyz"),
    "a matrix that is not square": (lambda f: np.zeros((3, 4)), r"matrix is not square: 3 by 4"),
    "three dimensions": (lambda f: np.zeros((3, 3, 3)), r"ndarray with 3 dimensions"),
    "no matrix at all": (lambda f: 7, r"is of type int with 0 dimensions"),
    "words": (lambda f: np.full((3, 3), "far"), r"has dtype <U3; weights must be"),
    "complex numbers": (lambda f: GRAPHS["directed"].astype(complex), r"has dtype complex128"),
    "scipy with NaN": (lambda f: with_weight(np.nan), r"the weight of cells \(5, \d+\) .* is nan"),
    "PyData of ones": (
        lambda f: pydata.COO.from_numpy(np.eye(3)) + 1, r"matrix has the fill value 1\.0",
    ),
    "Dask of another shape": (lambda f: da.zeros((6, 7), chunks=3), r"not square: 6 by 7"),
    "Dask of one dimension": (lambda f: da.zeros(7), r"a Dask array of 1 dimensions"),
    "Dask of unknown chunks": (
        lambda f: da.zeros((6, 6), chunks=3)[da.ones(6, chunks=3) > 0], r"unknown sizes",
    ),
    "Dask chunks of another shape": (
        lambda f: da.zeros((6, 6), chunks=3).map_blocks(lambda block: block[:2], chunks=(3, 3)),
        r"a chunk of matrix has the shape \(2, 3\), but the Dask array says \(3, 3\)",
    ),
    "Dask chunks of words": (
        lambda f: da.zeros((6, 6), chunks=3).map_blocks(lambda b: b.astype(str), dtype=float),
        r"a chunk of matrix has dtype <U32",
    ),
    "Dask with NaN": (
        lambda f: da.full((6, 6), np.nan, chunks=3), r"the weight of cells \(0, 0\) .* is nan",
    ),
}  # fmt: skip


def changed_value(path: Path, name: str, at: int, value: int) -> Path:
    with h5py.File(path, "r+") as file:
        file[f"{OBSP}/{name}"][at] = value
    return path


def changed_shape(path: Path, shape: tuple[int, int]) -> Path:
    with h5py.File(path, "r+") as file:
        file[OBSP].attrs["shape"] = shape
    return path


def changed_zip(path: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{OBSP}/indices/0")
    raw = bytearray(path.read_bytes())
    at = raw.index(GRAPHS["directed"].indices[:50].tobytes(), member.header_offset)
    raw[at] ^= 1
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_are_named_and_leave_nothing(tmp_path, name):
    build, message = BAD[name]
    source = build(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CellgraphError, match=message):
        export_connectivities(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_what_the_users_own_function_raises_comes_through(tmp_path):
    def broken(block: Any) -> Any:
        if block.shape == (3, 3):
            raise ZeroDivisionError("mine")
        return block

    array = da.zeros((6, 6), chunks=3).map_blocks(broken, meta=np.zeros((0, 0)))
    with pytest.raises(ZeroDivisionError, match="mine"):
        export_connectivities(array, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_options_that_make_no_sense(tmp_path):
    store = write_store(tmp_path / "s.zarr", GRAPHS["directed"])
    with pytest.raises(ValueError, match="storage options are for URLs"):
        plan_export(store, storage_options={"anon": True})
    with pytest.raises(ValueError, match="storage options are for URLs"):
        plan_export(GRAPHS["directed"], storage_options={"anon": True})
    with pytest.raises(ValueError, match="key and neighbors_key are for stores"):
        plan_export(GRAPHS["directed"], key="distances")


# Servers that fail


@pytest.mark.parametrize("fault", ["error", "drop"])
def test_requests_that_fail_are_tried_again(tmp_path, fault, monkeypatch):
    monkeypatch.setattr(zarr_objects, "_WAITS", (0.0, 0.0, 0.0))
    write_store(tmp_path / "s.zarr", GRAPHS["directed"], chunk=100)
    # The metadata come whole; then every fourth request fails.
    faults = (fault if k > 20 and k % 4 == 1 else None for k in range(10**6))
    with serving(tmp_path, faults) as address:
        export_connectivities(f"{address}/s.zarr", tmp_path / "out", threads=1)
    assert_exported(tmp_path / "out", GRAPHS["directed"])


@pytest.mark.parametrize("fault", ["error", "drop"])
def test_a_server_that_goes_on_failing_is_named(tmp_path, fault, monkeypatch):
    monkeypatch.setattr(zarr_objects, "_WAITS", (0.0,))
    write_store(tmp_path / "s.zarr", GRAPHS["directed"], chunk=100)
    faults = (fault if k > 20 else None for k in range(10**6))
    with serving(tmp_path, faults) as address:
        outcome = run("export", f"{address}/s.zarr", tmp_path / "out")
    assert outcome.exit_code == 1
    assert re.search(r"obsp/connectivities/\w+/\d cannot be read from .*try again", outcome.stderr)
    assert not (tmp_path / "out").exists()


def test_a_chunk_that_a_server_does_not_have(tmp_path):
    store = write_store(tmp_path / "s.zarr", GRAPHS["directed"], chunk=100)
    (store / OBSP / "indices/3").unlink()
    with serving(tmp_path) as address, pytest.raises(DamagedGraphError, match="is missing"):
        export_connectivities(f"{address}/s.zarr", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [None, 400])
@pytest.mark.parametrize("action", [500, "slow", "drop"])
def test_s3(tmp_path, s3, proxy, shard, action):
    """A real S3 server; every seventh answer is an error, late, or cut off in the middle."""
    store = write_store(
        tmp_path / "s.zarr", GRAPHS["directed"], chunk=100, shard=shard, zarr_format=3
    )
    bucket = s3.make_bucket()
    s3.file_system().put(str(store), f"{bucket}/s.zarr", recursive=True)
    for k in range(12):
        proxy.inject(action, "GET", "connectivities/", skip=6 * k)
    outcome = run(
        "export", f"s3://{bucket}/s.zarr", tmp_path / "out", "--threads", 2,
        "--storage-options", json.dumps(s3.options(proxy.port)),
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert sum(fault.hits for fault in proxy.faults) > 3
    assert_exported(tmp_path / "out", GRAPHS["directed"])


@pytest.mark.slow
def test_s3_without_permission(tmp_path, s3, proxy):
    store = write_store(tmp_path / "s.zarr", GRAPHS["directed"], chunk=100)
    bucket = s3.make_bucket()
    s3.file_system().put(str(store), f"{bucket}/s.zarr", recursive=True)
    proxy.inject(403, "GET", "data/", times=10**6)
    outcome = run(
        "export", f"s3://{bucket}/s.zarr", tmp_path / "out",
        "--storage-options", json.dumps(s3.options(proxy.port)),
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert re.search(r"data/\d cannot be read from |data cannot be used", outcome.stderr)
    assert not (tmp_path / "out").exists()
