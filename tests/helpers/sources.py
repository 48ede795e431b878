"""Sources of every kind from one small matrix: stores, files, and objects of other libraries."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import numcodecs
import numpy as np
import pandas as pd
import sparse as pydata
import zarr
from anndata import AnnData
from scipy import sparse
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    ZstdCodec,
)
from zarr.storage import MemoryStore

from cellgraph_dask import read_connectivities
from tests.helpers.stores import put

BLOSCS = ["lz4", "lz4hc", "zstd", "zlib", "blosclz"]


@dataclass(frozen=True)
class Matrix:
    """A matrix as entries in stored order, and the dtypes and layout in which it is stored."""

    n: int
    rows: list[int]
    columns: list[int]
    weights: list[Any]  # numbers of Python that `dtype` holds exactly
    dtype: str
    index_dtype: str
    indptr_dtype: str
    layout: str

    def arrays(self) -> dict[str, np.ndarray]:
        """Return indptr, indices and data; rows unsorted and repeats kept."""
        major, minor = (
            (self.rows, self.columns) if self.layout == "csr" else (self.columns, self.rows)
        )
        order = np.argsort(np.array(major, np.int64), kind="stable")
        counts = np.bincount(np.array(major, np.int64), minlength=self.n)
        return {
            "indptr": np.concatenate(([0], np.cumsum(counts))).astype(self.indptr_dtype),
            "indices": np.array(minor, np.int64)[order].astype(self.index_dtype),
            "data": np.array(self.weights, self.dtype)[order],
        }

    def dense(self) -> np.ndarray:
        """Return all values; repeats are not for this."""
        values = np.zeros((self.n, self.n), self.dtype)
        values[self.rows, self.columns] = self.weights
        return values


class Kind(NamedTuple):
    """A kind of source: how it is made, and the matrices that it can hold."""

    make: Callable[[Matrix, Path, Random], Any]
    suit: Callable[[Matrix], Matrix] = lambda matrix: matrix
    small: bool = True  # a large number of cells would take long
    is_lazy: bool = False  # `verify` cannot compare with it


def make_source(kind: str, matrix: Matrix, folder: Path, random: Random) -> tuple[Any, Any]:
    """Return a source of a kind, and what `verify` compares with: where it can, the same."""
    source = KINDS[kind].make(matrix, folder, random)
    if not KINDS[kind].is_lazy:
        return source, source
    return source, zarr_folder(matrix, folder / "reference", random, zarr_format=2)


def without_repeats(matrix: Matrix) -> Matrix:
    """Return a matrix whose entries lie at different places."""
    places = zip(matrix.rows, matrix.columns, strict=True)
    entries = dict(zip(places, matrix.weights, strict=True))
    rows, columns = map(list, zip(*entries, strict=True)) if entries else ([], [])
    return replace(matrix, rows=rows, columns=columns, weights=list(entries.values()))


def native(matrix: Matrix) -> Matrix:
    """Return a matrix with dtypes that scipy has."""
    dtype = matrix.dtype.replace(">", "").replace("f2", "f4")
    index = "i4" if matrix.n % 2 else "i8"
    return replace(matrix, dtype=dtype, index_dtype=index, indptr_dtype=index)


def native_without_repeats(matrix: Matrix) -> Matrix:
    """Return a matrix that any format of scipy has."""
    return native(without_repeats(matrix))


def add_names(root: Any, n: int, random: Random) -> None:
    """Give a store an `obs` that names the cells, if they are few; or leave it without."""
    if n > 12 or random.random() < 0.3:
        return
    obs = root.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
    obs.attrs["_index"] = "names"
    obs.attrs["column-order"] = []
    values = np.arange(n)
    if isinstance(root, h5py.Group):
        obs.create_dataset("names", data=np.array([f"c{k}" for k in values], object))
    else:
        obs.create_array("names", data=values)


def zarr_codecs(zarr_format: int, name: str, dtype: np.dtype[Any], random: Random) -> Any:
    """Return filters, compressors, and for format 3 what makes bytes of an array."""
    level, cname = random.choice([1, 5, 9]), random.choice(BLOSCS)
    if zarr_format == 2:
        compressor = random.choice([
            None, numcodecs.Blosc(cname, level, random.choice([0, 1, 2])), numcodecs.Zstd(level),
            numcodecs.GZip(level), numcodecs.Zlib(level), numcodecs.LZMA(), numcodecs.BZ2(level),
            numcodecs.LZ4(),
        ])  # fmt: skip
        filters: list[Any] = []
        if name != "data" and random.random() < 0.2:
            filters.append(numcodecs.Delta(dtype))
        if random.random() < 0.2:
            filters.append(random.choice([
                numcodecs.CRC32(), numcodecs.Adler32(), numcodecs.Fletcher32(),
                numcodecs.Shuffle(dtype.itemsize),
            ]))  # fmt: skip
        return {"compressors": compressor, "filters": filters or None}
    blosc = BloscCodec(
        cname=cname, clevel=level, typesize=dtype.itemsize,
        shuffle=random.choice(["noshuffle", "shuffle", "bitshuffle"]),
    )  # fmt: skip
    compressors = random.choice([[], [blosc], [ZstdCodec(level=level)], [GzipCodec(level=level)]])
    if random.random() < 0.2:
        compressors = [*compressors, Crc32cCodec()]
    endian = random.choice(["little", "big"]) if dtype.itemsize > 1 else None
    return {"compressors": compressors, "serializer": BytesCodec(endian=endian)}


def fill_zarr(
    root: zarr.Group, matrix: Matrix, random: Random, *, is_sharded: bool = False
) -> None:
    """Write a matrix into an open store."""
    add_names(root, matrix.n, random)
    group = root.create_group("obsp/connectivities")
    group.attrs.update({"encoding-type": f"{matrix.layout}_matrix", "encoding-version": "0.1.0",
                        "shape": [matrix.n, matrix.n]})  # fmt: skip
    zarr_format = root.metadata.zarr_format
    step = random.choice([1, 2, 3, 7, 100])
    repeats = len({*zip(matrix.rows, matrix.columns, strict=True)}) < len(matrix.rows)
    for name, values in matrix.arrays().items():
        chunk = max(step, (matrix.n if name == "indptr" else values.size) // 40)
        # A chunk of zeros that is not there is taken for a loss where it may be one.
        is_told = chunk > 4 and (name != "indices" or repeats)
        with zarr.config.set({"array.write_empty_chunks": is_told or random.random() < 0.5}):
            stored = values.dtype.newbyteorder("=") if zarr_format == 3 else values.dtype
            settings = zarr_codecs(zarr_format, name, stored, random)
            chunks: int = chunk
            if is_sharded:
                inner = [settings["serializer"], *settings["compressors"]]
                location = random.choice(["start", "end"])
                sharding = ShardingCodec(chunk_shape=(chunk,), codecs=inner,
                                         index_location=location)  # fmt: skip
                settings = {"serializer": sharding, "compressors": []}
                chunks = chunk * random.choice([1, 2, 5])
            array = group.create_array(name, shape=values.shape, dtype=stored, chunks=(chunks,),
                                       fill_value=0, **settings)  # fmt: skip
            array[:] = values


def zarr_folder(
    matrix: Matrix, path: Path, random: Random, *, zarr_format: int, is_sharded: bool = False
) -> Path:
    """Write a zarr store."""
    store = MemoryStore()
    root = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    fill_zarr(root, matrix, random, is_sharded=is_sharded)
    if random.random() < 0.3:
        zarr.consolidate_metadata(store)
    return put(store, path)


def make_zarr(zarr_format: int, is_sharded: bool, matrix: Matrix, folder: Path, random: Random):
    """Write a store of a format."""
    return zarr_folder(
        matrix, folder / "s.zarr", random, zarr_format=zarr_format, is_sharded=is_sharded
    )


def make_zip(matrix: Matrix, folder: Path, random: Random) -> Path:
    """Write a zip archive of a store; its root may be a folder in it."""
    is_sharded = random.random() < 0.3
    zarr_format = 3 if is_sharded else random.choice([2, 3])
    store = zarr_folder(
        matrix, folder / "s.zarr", random, zarr_format=zarr_format, is_sharded=is_sharded
    )
    above = store if random.random() < 0.5 else folder
    method = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(folder / "s.zip", "w", method) as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file() or random.random() < 0.5:
                archive.write(file, file.relative_to(above).as_posix())
    return folder / "s.zip"


def make_zarr_group(matrix: Matrix, folder: Path, random: Random) -> Any:
    """Return an open group of zarr, of a store in memory or on disk."""
    store: Any = random.choice([MemoryStore(), folder / "s.zarr"])
    root = zarr.open_group(store, mode="w", zarr_format=random.choice([2, 3]))
    fill_zarr(root, matrix, random)
    return random.choice([root, root.store])


def hdf5_options(size: int, dtype: np.dtype[Any], random: Random) -> dict[str, Any]:
    """Return how a dataset is stored."""
    if not size or random.random() < 0.2:
        return {}
    options: dict[str, Any] = {"chunks": (random.choice([1, 2, 3, 7, 100, size]),)}
    if size / options["chunks"][0] > 60:
        options["chunks"] = (size // 40,)
    if random.random() < 0.5:
        options["maxshape"] = (None,)
    else:
        options["chunks"] = (min(size, options["chunks"][0]),)
    compressions: list[dict[str, Any]] = [
        {}, {"compression": "gzip", "compression_opts": random.randrange(10)},
        {"compression": "lzf"},
    ]  # fmt: skip
    try:
        import hdf5plugin as plugin
    except ImportError:
        pass
    else:
        compressions += [plugin.Blosc(random.choice(BLOSCS)), plugin.Zstd(), plugin.LZ4(),
                         plugin.Bitshuffle(), plugin.BZip2(), plugin.Blosc2()]  # fmt: skip
    options |= random.choice(compressions)
    if random.random() < 0.3:
        options["shuffle"] = True
    if random.random() < 0.3:
        options["fletcher32"] = True
    if dtype.kind in "iu" and "compression" not in options and random.random() < 0.1:
        options["scaleoffset"] = 0
        options.pop("fletcher32", None)
    return options


def make_h5ad(matrix: Matrix, folder: Path, random: Random) -> Path:
    """Write an HDF5 file; each array with filters of its own."""
    options = {"libver": random.choice(["earliest", "latest"]),
               "userblock_size": random.choice([0, 0, 0, 512, 2048])}  # fmt: skip
    with h5py.File(folder / "s.h5ad", "w", **options) as file:
        add_names(file, matrix.n, random)
        group = file.create_group("obsp/connectivities")
        group.attrs["encoding-type"] = f"{matrix.layout}_matrix"
        group.attrs["shape"] = [matrix.n, matrix.n]
        for name, values in matrix.arrays().items():
            group.create_dataset(
                name, data=values, **hdf5_options(values.size, values.dtype, random)
            )
    return folder / "s.h5ad"


def make_scipy(matrix: Matrix, folder: Path, random: Random) -> Any:
    """Return a CSR, CSC or COO matrix or array of scipy with all repeats."""
    is_array = random.random() < 0.5
    shape = (matrix.n, matrix.n)
    if random.random() < 0.3:
        of = sparse.coo_array if is_array else sparse.coo_matrix
        data = np.array(matrix.weights, matrix.dtype)
        places = (np.array(matrix.rows, int), np.array(matrix.columns, int))
        return of((data, places), shape=shape)
    name = f"{matrix.layout}_{'array' if is_array else 'matrix'}"
    arrays = matrix.arrays()
    made = getattr(sparse, name)((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
    assert made.nnz == len(matrix.rows)
    return made


def make_other_scipy(matrix: Matrix, folder: Path, random: Random) -> Any:
    """Return a matrix of scipy in a format that cannot repeat entries."""
    return make_scipy(matrix, folder, random).asformat(random.choice(["lil", "dok", "bsr", "dia"]))


def make_pydata(matrix: Matrix, folder: Path, random: Random) -> Any:
    """Return a matrix of PyData sparse."""
    places = np.array([matrix.rows, matrix.columns], int).reshape(2, -1)
    data = np.array(matrix.weights, matrix.dtype)
    made = pydata.COO(places, data, shape=(matrix.n, matrix.n))
    kind = random.choice(["COO", "GCXS", "DOK"])
    if kind == "DOK":
        return pydata.DOK.from_coo(made)
    if kind == "COO":
        return made
    arrays = matrix.arrays()  # made of a COO, it would be compiled for each dtype
    values = arrays["data"], arrays["indices"].astype(np.int64), arrays["indptr"].astype(np.int64)
    axes = [int(matrix.layout == "csc")]
    return pydata.GCXS(values, shape=(matrix.n, matrix.n), compressed_axes=axes)


def make_dask(matrix: Matrix, folder: Path, random: Random) -> Any:
    """Return a Dask array of dense or sparse chunks, or what is read from a store."""
    import dask.array as da

    if random.random() < 0.3:
        layout = random.choice(["csr", "gcxs"])
        store = zarr_folder(matrix, folder / "s.zarr", random, zarr_format=2)
        return read_connectivities(store, layout=layout)
    chunks = tuple(random.choice([1, 2, 5, matrix.n]) for _ in range(2))
    chunks = tuple(max(chunk, matrix.n // 6) for chunk in chunks)
    array = da.from_array(matrix.dense(), chunks=chunks)
    convert = random.choice([
        None, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix, pydata.COO.from_numpy,
    ])  # fmt: skip
    return array if convert is None else array.map_blocks(convert, dtype=array.dtype)


def make_anndata(matrix: Matrix, folder: Path, random: Random) -> AnnData:
    """Return an AnnData in memory."""
    adata = AnnData(obs=pd.DataFrame(index=[f"c{k}" for k in range(matrix.n)]))
    arrays = matrix.arrays()
    of = getattr(sparse, f"{matrix.layout}_matrix")
    values = of((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(matrix.n, matrix.n))
    adata.obsp["connectivities"] = values
    return adata


def make_numpy(matrix: Matrix, folder: Path, random: Random) -> np.ndarray:
    """Return a dense matrix in memory, in an order of its axes."""
    return np.asarray(matrix.dense(), order=random.choice(["C", "F"]))


def make_dense_zarr(matrix: Matrix, folder: Path, random: Random) -> Path:
    """Write a store with a dense matrix."""
    path = folder / "s.zarr"
    zarr_format = random.choice([2, 3])
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    add_names(root, matrix.n, random)
    values = matrix.dense()
    dtype = values.dtype.newbyteorder("=") if zarr_format == 3 else values.dtype
    chunks = tuple(max(random.choice([1, 2, 5, matrix.n]), matrix.n // 6) for _ in range(2))
    array = root.create_group("obsp").create_array(
        "connectivities", shape=values.shape, dtype=dtype, chunks=chunks, fill_value=0
    )
    array[:] = values
    return path


def make_dense_h5ad(matrix: Matrix, folder: Path, random: Random) -> Path:
    """Write an HDF5 file with a dense matrix."""
    with h5py.File(folder / "s.h5ad", "w") as file:
        add_names(file, matrix.n, random)
        options = random.choice([{}, {"compression": "gzip"}, {"chunks": True, "shuffle": True}])
        file.create_dataset("obsp/connectivities", data=matrix.dense(), **options)
    return folder / "s.h5ad"


KINDS = {
    "zarr 2": Kind(partial(make_zarr, 2, False), small=False),
    "zarr 3": Kind(partial(make_zarr, 3, False), small=False),
    "sharded": Kind(partial(make_zarr, 3, True), small=False),
    "zip": Kind(make_zip),
    "zarr group": Kind(make_zarr_group),
    "h5ad": Kind(make_h5ad, small=False),
    "scipy": Kind(make_scipy, native, small=False),
    "other scipy": Kind(make_other_scipy, native_without_repeats),
    "pydata": Kind(make_pydata, native_without_repeats),
    "anndata": Kind(make_anndata, native),
    "numpy": Kind(make_numpy, without_repeats),
    "dask": Kind(make_dask, native_without_repeats, is_lazy=True),
    "dense zarr": Kind(make_dense_zarr, without_repeats, is_lazy=True),
    "dense h5ad": Kind(make_dense_h5ad, without_repeats, is_lazy=True),
}
