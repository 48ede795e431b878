"""HDF5 datasets that HDF5 would read as fill values, or that give out too much, are refused."""

from __future__ import annotations

import ctypes
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import CellgraphError, DamagedGraphError, SourceError
from cellgraph_dask.source.hdf5 import SlicedDataset
from cellgraph_dask.source.opening import open_source
from tests.helpers.stores import directed_graph, symmetric_graph
from tests.oracle import assert_exported

GRAPH = directed_graph(300, seed=3)
ARRAYS = ("indptr", "indices", "data")


def write(path: Path, matrix=GRAPH, **options) -> Path:
    """Write an h5ad with one way to store each of the three arrays."""
    with h5py.File(path, "w", userblock_size=options.pop("userblock_size", 0)) as file:
        obs = file.create_group("obs")
        obs.attrs["_index"] = "_index"
        obs["_index"] = np.arange(matrix.shape[0])
        group = file.create_group("obsp/connectivities")
        group.attrs["encoding-type"] = "csr_matrix"
        group.attrs["shape"] = matrix.shape
        for name in ARRAYS:
            group.create_dataset(name, data=getattr(matrix, name), **options)
    return path


def replace(path: Path, name: str, make) -> None:
    """Write one of the arrays in another way: `make` is called with group, name and values."""
    with h5py.File(path, "r+") as file:
        group = file["obsp/connectivities"]
        values = group[name][:]
        del group[name]
        make(group, name, values)


def assert_right(path: Path, out_dir: Path) -> None:
    export_connectivities(path, out_dir)
    assert_exported(out_dir, GRAPH)


@pytest.mark.parametrize("size", [512, 4096, 65536, 2**20])
@pytest.mark.parametrize("options", [{}, {"chunks": (100,), "compression": "gzip"}])
def test_user_blocks_of_any_size(tmp_path, size, options):
    path = write(tmp_path / "s.h5ad", userblock_size=size, **options)
    assert_right(path, tmp_path / "out")


def halves(folder: Path, missing: str = "", short: bool = False):
    """Return what writes an array as two halves in other files."""

    def make(group, name, values):
        middle = values.size // 2
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        for k, part in enumerate((values[:middle], values[middle:])):
            where = folder / f"{name}-{k}.h5"
            with h5py.File(where, "w") as file:
                kept = part[:-5] if short and k else part
                file.create_dataset("x", data=kept, chunks=(64,), compression="gzip")
            a = k * middle
            layout[a : a + part.size] = h5py.VirtualSource(where.name, "x", shape=part.shape)
        group.create_virtual_dataset(name, layout)
        if missing:
            (folder / missing).unlink()

    return make


def test_virtual_datasets(tmp_path):
    path = write(tmp_path / "s.h5ad")
    for name in ARRAYS:
        replace(path, name, halves(tmp_path))
    assert_right(path, tmp_path / "out")
    source = open_source(path)
    assert {file.name for file in source.indices.files()} == {
        "s.h5ad", "indices-0.h5", "indices-1.h5"
    }  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_virtual_datasets_of_which_files_are_missing(tmp_path, name):
    path = write(tmp_path / "s.h5ad")
    replace(path, name, halves(tmp_path, missing=f"{name}-1.h5"))
    with pytest.raises(DamagedGraphError, match=rf"{name}-1\.h5 is missing"):
        plan_export(path)
    replace_again = write(tmp_path / "t.h5ad")
    replace(replace_again, name, halves(tmp_path, short=True))
    with pytest.raises(DamagedGraphError, match=r"should have \d+ values"):
        plan_export(replace_again)


def test_virtual_datasets_that_map_only_a_part(tmp_path):
    def make(group, name, values):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:-9] = h5py.VirtualSource("x.h5", "x", shape=values.shape)[:-9]
        group.create_virtual_dataset(name, layout)

    path = write(tmp_path / "s.h5ad")
    replace(path, "data", make)
    with pytest.raises(DamagedGraphError, match="not every value is mapped"):
        plan_export(path)


def in_files(folder: Path):
    """Return what writes an array into two files of raw values."""

    def make(group, name, values):
        middle = values.size // 3 * values.itemsize
        raw = values.tobytes()
        (folder / f"{name}.0").write_bytes(raw[:middle])
        (folder / f"{name}.1").write_bytes(b"head" + raw[middle:])
        external = [
            (f"{name}.0", 0, middle), (f"{name}.1", 4, h5py.h5f.UNLIMITED),
        ]  # fmt: skip
        group.create_dataset(name, shape=values.shape, dtype=values.dtype, external=external)

    return make


def test_external_files(tmp_path):
    path = write(tmp_path / "s.h5ad")
    for name in ARRAYS:
        replace(path, name, in_files(tmp_path))
    assert_right(path, tmp_path / "out")
    (tmp_path / "data.1").write_bytes((tmp_path / "data.1").read_bytes()[:-1])
    with pytest.raises(DamagedGraphError, match=r"data\.1 should have \d+ bytes"):
        plan_export(path)
    (tmp_path / "indptr.0").unlink()
    with pytest.raises(DamagedGraphError, match=r"the file indptr\.0 is missing"):
        plan_export(path)


def partly(group, name, values):
    """Write all chunks but the second, with a filter that HDF5 itself has to apply."""
    part = group.create_dataset(name, values.shape, values.dtype, chunks=(64,), scaleoffset=0)
    part[:64] = values[:64]
    part[128:] = values[128:]


@pytest.mark.parametrize("name", ARRAYS)
def test_lost_chunks_of_datasets_that_hdf5_reads(tmp_path, name):
    weights = GRAPH.copy()
    weights.data = np.arange(1, GRAPH.nnz + 1)
    path = write(tmp_path / "s.h5ad", weights, chunks=(64,), scaleoffset=0)
    assert isinstance(open_source(path).data, SlicedDataset)
    assert_right(path, tmp_path / "out")
    replace(path, name, partly)
    with pytest.raises(
        DamagedGraphError, match=f"chunk 1 of obsp/connectivities/{name}|ends at|decr"
    ):
        export_connectivities(path, tmp_path / "lost")


def bomb(values):
    return zlib.compress(bytes(2**28), 9)


@pytest.mark.parametrize("filters", ["known", "unknown"])
def test_a_chunk_that_inflates(tmp_path, filters):
    def make(group, name, values):
        options = {"scaleoffset": 0} if filters == "unknown" else {}
        data = group.create_dataset(
            name, values.shape, values.dtype, chunks=(100_000,), compression="gzip",
            maxshape=(None,), **options,
        )  # fmt: skip
        data.id.write_direct_chunk((0,), bomb(values))

    path = write(tmp_path / "s.h5ad")
    replace(path, "indices", make)
    with pytest.raises(DamagedGraphError, match="holds more than"):
        export_connectivities(path, tmp_path / "out")


def test_compressed_twice(tmp_path):
    def make(group, name, values):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((64,))
        properties.set_deflate(1)
        properties.set_shuffle()
        properties.set_deflate(9)
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.py_create(values.dtype)
        h5py.h5d.create(group.id, name.encode(), kind, space, properties)
        group[name][:] = values

    path = write(tmp_path / "s.h5ad")
    replace(path, "indices", make)
    with pytest.raises(SourceError, match="whose memory is not known"):
        plan_export(path)


def test_partial_chunks_without_filters(tmp_path):
    library = ctypes.CDLL(h5py.h5p.__file__)

    def make(shuffle):
        def write_it(group, name, values):
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk((100,))
            if shuffle:
                properties.set_shuffle()
            if shuffle != "alone":
                properties.set_deflate(4)
            library.H5Pset_chunk_opts(ctypes.c_int64(properties.id), ctypes.c_uint(2))
            space = h5py.h5s.create_simple(values.shape)
            kind = h5py.h5t.py_create(values.dtype)
            h5py.h5d.create(group.id, name.encode(), kind, space, properties)
            group[name][:] = values

        return write_it

    for k, shuffle in enumerate([False, True, "alone"]):
        path = tmp_path / f"{k}.h5ad"
        with h5py.File(path, "w", libver="latest"):
            pass
        write(path)
        for name in ARRAYS:
            replace(path, name, make(shuffle))
        assert_right(path, tmp_path / f"out-{k}")


def test_chunks_of_one_byte_are_not_repeated(tmp_path):
    def make(group, name, values):
        data = group.create_dataset(name, values.shape, "u1", chunks=(200,), shuffle=True)
        data[:] = 1
        data.id.write_direct_chunk((0,), b"\1")

    path = write(tmp_path / "s.h5ad")
    replace(path, "data", make)
    with pytest.raises(DamagedGraphError, match="holds 1 bytes, not 200"):
        export_connectivities(path, tmp_path / "out")


DENSE = symmetric_graph(60, 5).toarray()


def dense(path: Path, make) -> Path:
    write(path, symmetric_graph(60, 5))
    with h5py.File(path, "r+") as file:
        del file["obsp/connectivities"]
        make(file["obsp"], "connectivities", DENSE)
    return path


def test_dense_matrices(tmp_path):
    def whole(group, name, values):
        group.create_dataset(name, data=values, chunks=(7, 60), compression="gzip")

    def without_a_band(group, name, values):
        group.create_dataset(name, values.shape, values.dtype, chunks=(10, 10))[20:] = values[20:]

    def inflating(group, name, values):
        options = {"chunks": (10, 60), "compression": "gzip"}
        data = group.create_dataset(name, data=values, **options)
        data.id.write_direct_chunk((20, 0), bomb(values))

    def external(group, name, values):
        (tmp_path / "dense.raw").write_bytes(values.tobytes())
        group.create_dataset(
            name, shape=values.shape, dtype=values.dtype, external=[("dense.raw", 0, values.nbytes)]
        )

    export_connectivities(dense(tmp_path / "a.h5ad", whole), tmp_path / "out")
    assert_exported(tmp_path / "out", symmetric_graph(60, 5))
    for k, (make, words) in enumerate(
        [
            (without_a_band, "12 of 36 chunks"),
            (inflating, "260922 bytes for 2400"),
            (external, "missing"),
        ]
    ):
        path = dense(tmp_path / f"{k}.h5ad", make)
        (tmp_path / "dense.raw").unlink(missing_ok=True)
        with pytest.raises(CellgraphError, match=words) as told:
            export_connectivities(path, tmp_path / f"out{k}")
        assert isinstance(told.value, DamagedGraphError)
