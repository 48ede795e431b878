"""Small AnnData stores, written array by array so that a test decides every byte of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.storage import MemoryStore

ARRAYS = ("indptr", "indices", "data")

_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
_CODECS: dict[tuple[int, str], Any] = {
    (2, "blosc"): numcodecs.Blosc(cname="lz4", clevel=5, shuffle=1),
    (2, "zstd"): numcodecs.Zstd(level=1),
    (2, "gzip"): numcodecs.GZip(level=1),
    (2, "zlib"): numcodecs.Zlib(level=1),
    (2, "lzma"): numcodecs.LZMA(),
    (2, "bz2"): numcodecs.BZ2(level=1),
    (2, "lz4"): numcodecs.LZ4(),
    (2, "none"): None,
    (3, "blosc"): BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),
    (3, "zstd"): ZstdCodec(level=1),
    (3, "gzip"): GzipCodec(level=1),
    (3, "none"): None,
}


class Stored(NamedTuple):
    """A sparse matrix as it lies in a store: any dtypes, unsorted, damaged, or not square."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]
    layout: str = "csr"


def stored(matrix: Any) -> Stored:
    """Return the arrays of a CSR or CSC matrix as they are, repeats and all."""
    if isinstance(matrix, Stored):
        return matrix
    return Stored(matrix.indptr, matrix.indices, matrix.data, matrix.shape, matrix.format)


def write_store(
    path: Path,
    matrix: Any,
    *,
    zarr_format: int = 2,
    chunk: int | None = None,
    shard: int | None = None,
    key: str = "connectivities",
    consolidated: bool = True,
    n_obs: int | None = None,
    obs: bool = True,
    write_empty_chunks: bool = False,
    obsm: Mapping[str, np.ndarray] | None = None,
    codec: str = "blosc",
) -> Path:
    """Write a store that anndata reads, with `matrix` (scipy's or `Stored`) in obsp.

    `chunk` and `shard` count values of all three arrays; `n_obs` is the number of cells in obs, by
    default that of the matrix; without `obs` the store has none.
    """
    matrix = stored(matrix)
    store = MemoryStore()
    root = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        root.create_group(name, attributes=_DICT)
    if obs:
        _write_names(root, "obs", matrix.shape[0] if n_obs is None else n_obs)
    _write_names(root, "var", 0)
    for name, values in (obsm or {}).items():
        array = root["obsm"].create_array(name, shape=values.shape, dtype=values.dtype)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        array[:] = values
    add_matrix(
        root, matrix, chunk=chunk, shard=shard, key=key, codec=codec,
        write_empty_chunks=write_empty_chunks,
    )  # fmt: skip
    if consolidated:
        zarr.consolidate_metadata(store)
    return put(store, path)


def put(store: MemoryStore, path: Path) -> Path:
    """Make a folder hold what is in a store; zarr itself writes a file in three times the time."""
    shutil.rmtree(path, ignore_errors=True)
    made: set[str] = set()
    for name, content in store._store_dict.items():
        folder = name.rpartition("/")[0]
        if folder not in made:
            (path / folder).mkdir(parents=True, exist_ok=True)
            made.add(folder)
        (path / name).write_bytes(content.to_bytes())
    return path


def add_matrix(
    root: zarr.Group,
    matrix: Any,
    *,
    chunk: int | None = None,
    shard: int | None = None,
    key: str = "connectivities",
    codec: str = "blosc",
    write_empty_chunks: bool = False,
) -> None:
    """Write a matrix into the obsp of an open store."""
    matrix = stored(matrix)
    group = root["obsp"].create_group(
        key,
        attributes={
            "encoding-type": f"{matrix.layout}_matrix",
            "encoding-version": "0.1.0",
            "shape": [int(n) for n in matrix.shape],
        },
    )
    with zarr.config.set({"array.write_empty_chunks": write_empty_chunks}):
        for name in ARRAYS:
            values = getattr(matrix, name)
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(chunk or max(1, values.size),),
                shards=None if shard is None else (shard,),
                compressors=_CODECS[root.metadata.zarr_format, codec],
                fill_value=0,
            )
            array[:] = values


def _write_names(root: zarr.Group, frame: str, length: int) -> None:
    group = root.create_group(
        frame,
        attributes={
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": "_index",
            "column-order": [],
        },
    )
    names = group.create_array(
        "_index",
        shape=(length,),
        dtype="str",
        chunks=(max(1, length),),
        fill_value="",
        attributes={"encoding-type": "string-array", "encoding-version": "0.2.0"},
    )
    if length:
        names[:] = np.array([f"cell-{k}" for k in range(length)], dtype=object)


def write_anndata(path: Path, **obsp: Any) -> Path:
    """Write matrices as anndata itself writes them."""
    n_cells = next(iter(obsp.values())).shape[0]
    adata = AnnData(obs=pd.DataFrame(index=[f"cell-{k}" for k in range(n_cells)]))
    for name, matrix in obsp.items():
        adata.obsp[name] = matrix
    adata.write_zarr(path)
    return path


def chunk_file(store: Path, array: str, k: int = 0, *, key: str = "connectivities") -> Path:
    """Return the file of the `k`-th chunk (or shard) of an array of the matrix."""
    folder = store / "obsp" / key / array
    return folder / "c" / str(k) if (folder / "zarr.json").exists() else folder / str(k)


def directed_graph(
    n_cells: int = 40, n_neighbors: int = 5, *, seed: int = 0, dtype: Any = np.float32
) -> sparse.csr_matrix:
    """Return a graph like scanpy's distances: so many distinct neighbors a row, none of them it."""
    rng = np.random.default_rng(seed)
    columns = [
        np.sort(rng.choice(np.delete(np.arange(n_cells), i), n_neighbors, replace=False))
        for i in range(n_cells)
    ]
    weights = rng.integers(1, 9, n_cells * n_neighbors).astype(dtype)
    indptr = np.arange(0, n_cells * n_neighbors + 1, n_neighbors, dtype=np.int32)
    return sparse.csr_matrix(
        (weights, np.concatenate(columns).astype(np.int32), indptr), shape=(n_cells, n_cells)
    )


def symmetric_graph(n_cells: int = 40, n_neighbors: int = 5, *, seed: int = 0) -> sparse.csr_matrix:
    """Return a graph like scanpy's connectivities."""
    directed = directed_graph(n_cells, n_neighbors, seed=seed)
    return directed.maximum(directed.T).tocsr()


def snapshot(folder: Path, *, but: str = "") -> dict[str, bytes | None]:
    """Return every path below a folder with its bytes (None for folders); {} if it is not there.

    Files called `but` are left out: ``provenance.json``, say, of exports of two stores.
    """
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name != but
    }
