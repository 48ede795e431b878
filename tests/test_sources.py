"""Every kind of source gives the same bytes, and each that is not one says what is wrong."""

from __future__ import annotations

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
from tests.oracle import assert_exported
from tests.servers import serving
from tests.stores import directed_graph, snapshot, symmetric_graph, write_anndata, write_store

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
    "zarr over HTTP": lambda f, m: write_store(f / "s.zarr", m, chunk=100),
    "zarr shards over HTTP": lambda f, m: write_store(f / "s.zarr", m, chunk=100, shard=400, zarr_format=3),
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
    return matrix, snapshot(folder / "out")


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
    assert snapshot(tmp_path / "out") == files
    assert report.n_cells == N_CELLS
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
