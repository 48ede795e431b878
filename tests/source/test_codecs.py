"""Codecs beside the common ones: read by zarr and HDF5 themselves, or refused by name."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import DamagedGraphError, SourceError
from cellgraph_dask.source.codecs import chunk_codecs
from cellgraph_dask.source.hdf5 import SlicedDataset
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.source.zarr_store import SlicedArray
from tests.benchmarks.measure import run_measured
from tests.helpers.command import run
from tests.helpers.servers import serving
from tests.helpers.stores import ARRAYS, chunk_file, directed_graph, symmetric_graph, write_store
from tests.oracle import assert_exported

OBSP = "obsp/connectivities"
GRAPH = directed_graph(60, 6)


def coded(path: Path, options: Callable[[str, np.dtype[Any]], Any], **store: Any) -> Path:
    """Write a store whose arrays have the codecs that `options` gives for name and dtype."""
    write_store(path, GRAPH, consolidated=False, **store)
    group = zarr.open_group(path)[OBSP]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # codecs of numcodecs are not in the specification
        for name in ARRAYS:
            values = getattr(GRAPH, name)
            array = group.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=(50,), fill_value=0,
                overwrite=True, **options(name, values.dtype),
            )  # fmt: skip
            array[:] = values
    return path


def raw_lzma(name: str, dtype: np.dtype[Any]) -> Any:
    filters = [{"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    return {"compressors": numcodecs.LZMA(format=lzma.FORMAT_RAW, filters=filters)}


def v3(name: str, **settings: Any) -> Any:
    import zarr.codecs.numcodecs as codecs

    return getattr(codecs, name)(**settings)


FORMAT_2: dict[str, Callable[[str, np.dtype[Any]], Any]] = {
    "bitround": lambda name, dtype: (
        {"filters": [numcodecs.BitRound(keepbits=10)]} if name == "data" else {}
    ),
    "delta": lambda name, dtype: {"filters": [numcodecs.Delta(dtype)]},
    "delta after shuffle": lambda name, dtype: {
        "filters": [numcodecs.Shuffle(dtype.itemsize), numcodecs.Delta("u1")]
    },
    "quantize": lambda name, dtype: (
        {"filters": [numcodecs.Quantize(4, dtype)]} if name == "data" else {}
    ),
    "fixedscaleoffset": lambda name, dtype: {
        "filters": [numcodecs.FixedScaleOffset(0, 1, dtype, "f8")]
    },
    "lzma": lambda name, dtype: {"compressors": numcodecs.LZMA()},
    "raw lzma": raw_lzma,
    "two compressors": lambda name, dtype: {
        "filters": [numcodecs.Zlib(1)], "compressors": numcodecs.BZ2(1)
    },
    "base64": lambda name, dtype: {"compressors": numcodecs.Base64()},
}  # fmt: skip
FORMAT_3: dict[str, Callable[[str, np.dtype[Any]], Any]] = {
    "bitround": lambda name, dtype: (
        {"filters": [v3("BitRound", keepbits=10)]} if name == "data" else {}
    ),
    "delta": lambda name, dtype: {"filters": [v3("Delta", dtype=dtype.str)]},
    "fixedscaleoffset": lambda name, dtype: {
        "filters": [v3("FixedScaleOffset", offset=0, scale=1, dtype=dtype.str, astype="<f8")]
    },
    "zlib": lambda name, dtype: {"compressors": [v3("Zlib", level=1)]},
    "bz2": lambda name, dtype: {"compressors": [v3("BZ2", level=1)]},
    "lz4": lambda name, dtype: {"compressors": [v3("LZ4")]},
    "lzma": lambda name, dtype: {"compressors": [v3("LZMA")]},
    "shuffle, zstd": lambda name, dtype: {
        "compressors": [v3("Shuffle", elementsize=4), v3("Zstd", level=1)]
    },
    "two compressors": lambda name, dtype: {
        "compressors": [v3("Zlib", level=1), v3("BZ2", level=1)]
    },
    "two compressors in shards": lambda name, dtype: {
        "compressors": [v3("Zlib", level=1), v3("BZ2", level=1)], "shards": (100,)
    },
}  # fmt: skip
CASES = [(2, name) for name in FORMAT_2] + [(3, name) for name in FORMAT_3]
BY_ZARR = {"bitround", "delta after shuffle", "quantize", "fixedscaleoffset", "raw lzma", "base64",
           "two compressors", "two compressors in shards"}  # fmt: skip


@pytest.mark.parametrize(("zarr_format", "name"), CASES)
def test_any_codec_of_zarr(tmp_path, zarr_format, name):
    options = (FORMAT_2 if zarr_format == 2 else FORMAT_3)[name]
    source = coded(tmp_path / "s.zarr", options, zarr_format=zarr_format)
    read_by_zarr = isinstance(open_source(source).data, SlicedArray)
    assert read_by_zarr == (name in BY_ZARR)
    export_connectivities(source, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(source))
    export_connectivities(tmp_path / "s.zip", tmp_path / "zip")
    assert_exported(tmp_path / "zip", GRAPH)
    chunk_file(source, "data", 1).unlink()  # one that zarr reads as zeros
    with pytest.raises(DamagedGraphError, match=r"chunk \S*1 of obsp/connectivities/data is missi"):
        export_connectivities(source, tmp_path / "out", force=True)


@pytest.mark.parametrize(
    "compressor",
    [numcodecs.LZ4(), numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.GZip(), numcodecs.Zlib(),
     numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.LZMA(format=lzma.FORMAT_ALONE), None],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 50])
def test_any_compressor_behind_a_filter_of_zarr(tmp_path, compressor, chunk):
    """Chunks of one value may have fewer bytes than some headers."""
    graph = directed_graph(9, 2)
    store = write_store(tmp_path / "s.zarr", graph, consolidated=False, zarr_format=2)
    zarr.open_group(store)[OBSP].create_array(
        "data", shape=graph.data.shape, dtype=graph.data.dtype, chunks=(chunk,), overwrite=True,
        filters=[numcodecs.BitRound(keepbits=10)], compressors=compressor,
    )[:] = graph.data  # fmt: skip
    assert isinstance(open_source(store).data, SlicedArray)
    export_connectivities(store, tmp_path / "out")
    assert_exported(tmp_path / "out", graph)


def test_any_codec_over_http(tmp_path):
    source = coded(tmp_path / "s.zarr", FORMAT_2["fixedscaleoffset"])
    with serving(tmp_path) as address:
        export_connectivities(f"{address}/s.zarr", tmp_path / "out")
        assert_exported(tmp_path / "out", GRAPH)
        chunk_file(source, "indices", 2).unlink()
        with pytest.raises(DamagedGraphError, match=r"chunk 2 of \S*/indices is missing"):
            export_connectivities(f"{address}/s.zarr", tmp_path / "out", force=True)


@pytest.mark.parametrize("name", ["fixedscaleoffset", "raw lzma", "two compressors", "base64"])
def test_damage_that_zarr_finds_is_named(tmp_path, name):
    source = coded(tmp_path / "s.zarr", FORMAT_2[name])
    chunk_file(source, "indices", 1).write_bytes(b"\1\2\3")
    outcome = run("export", source, tmp_path / "out")
    assert outcome.exit_code == 1
    assert "chunk 1 of obsp/connectivities/indices does not decode" in outcome.stderr


def test_chunks_that_zarr_reads_are_in_the_plan(tmp_path):
    source = coded(tmp_path / "s.zarr", FORMAT_2["fixedscaleoffset"])
    for name in ARRAYS[1:]:
        file = source / OBSP / name / ".zarray"
        metadata = json.loads(file.read_text())
        file.write_text(json.dumps(metadata | {"chunks": [10**6]}))
    opened = open_source(source)
    assert opened.data.work_bytes > 6 * 4 * 10**6
    assert opened.block_bytes(1000, 10, signed=False) > opened.data.work_bytes


@pytest.mark.slow
def test_a_large_store_that_zarr_reads_stays_within_the_limit(tmp_path):
    graph = symmetric_graph(60_000, 10)
    source = write_store(tmp_path / "s.zarr", graph, chunk=500_000, consolidated=False)
    group = zarr.open_group(source)[OBSP]
    for name in ARRAYS:
        values = getattr(graph, name)
        filters = [numcodecs.FixedScaleOffset(0, 1, values.dtype, "f8")]
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(500_000,), fill_value=0,
            filters=filters, overwrite=True,
        )  # fmt: skip
        array[:] = values
    command = [sys.executable, "-m", "cellgraph_dask", "export", source, tmp_path / "out"]
    measured = run_measured([*command, "--json", "--memory-limit", "400MB"])
    assert measured.returncode == 0, measured.stderr
    report = json.loads(measured.stdout)
    assert measured.peak_rss_bytes <= report["projected_memory_bytes"] <= 400 * 10**6
    assert report["n_edges"] == sparse.triu(graph, k=1).nnz
    outcome = run("verify", tmp_path / "out", "--source", source)
    assert outcome.exit_code == 0, outcome.stderr


# HDF5


def h5ad(path: Path, **options: Any) -> Path:
    """Write a file whose arrays went through filters."""
    with h5py.File(path, "w") as file:
        group = file.create_group(OBSP)
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", GRAPH.shape
        for name in ARRAYS:
            group.create_dataset(name, data=getattr(GRAPH, name), chunks=(50,), **options)
    return path


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LZ4", {}), ("Bitshuffle", {}), ("Bitshuffle", {"cname": "zstd"}), ("Blosc2", {}),
        ("Blosc", {"cname": "lz4"}), ("Blosc", {"cname": "zlib", "shuffle": 2}), ("Zstd", {}),
        ("BZip2", {}),
    ],
)  # fmt: skip
def test_filters_of_hdf5plugin(tmp_path, name, settings):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    source = h5ad(tmp_path / "c.h5ad", compression=getattr(hdf5plugin, name)(**settings))
    read_by_hdf5 = isinstance(open_source(source).data, SlicedDataset)
    assert read_by_hdf5 == (name not in ("Blosc", "Zstd"))
    export_connectivities(source, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


def test_a_filter_of_hdf5_itself(tmp_path):
    path = h5ad(tmp_path / "c.h5ad")
    with h5py.File(path, "r+") as file:
        for name in ("indptr", "indices"):
            values = file[f"{OBSP}/{name}"][:]
            del file[f"{OBSP}/{name}"]
            file[OBSP].create_dataset(name, data=values, chunks=(50,), scaleoffset=0)
    assert isinstance(open_source(path).indices, SlicedDataset)
    export_connectivities(path, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


@pytest.mark.parametrize("plugin", ["LZ4", None])
def test_chunks_that_hdf5_has_not_got_are_told(tmp_path, plugin):
    options = {}
    if plugin is not None:
        options = {"compression": getattr(pytest.importorskip("hdf5plugin"), plugin)()}
    path = h5ad(tmp_path / "c.h5ad")
    with h5py.File(path, "r+") as file:
        del file[f"{OBSP}/data"]
        data = file[OBSP].create_dataset("data", GRAPH.data.shape, "f4", chunks=(50,), **options)
        data[:100], data[150:] = GRAPH.data[:100], GRAPH.data[150:]
    with pytest.raises(DamagedGraphError, match=r"chunk 2 of obsp/connectivities/data is missing"):
        export_connectivities(path, tmp_path / "out")


def test_a_filter_that_is_not_installed(tmp_path, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = h5ad(tmp_path / "c.h5ad", compression=hdf5plugin.LZ4())
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code < 256)
    message = r"indptr is compressed with filter 32004 of HDF5 .*pip install hdf5plugin"
    with pytest.raises(SourceError, match=message):
        plan_export(path)


@pytest.mark.parametrize("dtype", ["<i4", ">i4"])
def test_chunks_without_filters_wherever_they_are(tmp_path, dtype):
    path = h5ad(tmp_path / "c.h5ad")
    with h5py.File(path, "r+") as file:
        del file[f"{OBSP}/indices"]
        size = GRAPH.indices.size
        array = file[OBSP].create_dataset("indices", (size,), dtype, chunks=(50,))
        for first in (200, 0, 50, 300, 100, 250):  # the one from 150 on is never written
            array[first : first + 50] = GRAPH.indices[first : first + 50]
    stored = open_source(path).indices
    expected = GRAPH.indices[:350].copy()
    expected[150:200] = 0
    for start, stop in ((0, 350), (10, 120), (149, 201), (155, 160), (199, 350)):
        out = np.empty(stop - start, np.int32)
        absent = stored.read(start, stop, out)
        assert out.tolist() == expected[start:stop].tolist()
        inside = (max(start, 150), min(stop, 200))
        assert absent == ([inside] if inside[0] < inside[1] else [])
    assert len(pickle.dumps(stored)) < 1000
    assert pickle.loads(pickle.dumps(stored)).value_at(349) == expected[349]


def test_a_user_block(tmp_path):
    path = tmp_path / "c.h5ad"
    with h5py.File(path, "w", userblock_size=1024) as file:
        group = file.create_group(OBSP)
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", GRAPH.shape
        group.create_dataset("indptr", data=GRAPH.indptr)
        group.create_dataset("indices", data=GRAPH.indices, chunks=(50,), compression="gzip")
        group.create_dataset("data", data=GRAPH.data, chunks=(50,))
    export_connectivities(path, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


# Codecs that run what they read

HARMED: list[str] = []


class Harmful:
    """What notes that it is unpickled."""

    def __reduce__(self) -> Any:
        return HARMED.append, ("unpickled",)


CHAINS: dict[str, dict[str, Any]] = {
    "pickle": {"filters": [{"id": "pickle"}]},
    "pickle after text": {"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
    "pickle for a compressor": {"filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}},
    "json": {"filters": [{"id": "json2"}]},
    "msgpack": {"filters": [{"id": "msgpack2"}]},
}


def spoil(store: Path, name: str, chain: dict[str, Any], dtype: str | None = None) -> None:
    """Give an array other codecs, and a chunk that harms whoever unpickles it."""
    file = store / name / ".zarray"
    changes = {"compressor": None} | chain | ({"dtype": dtype} if dtype else {})
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for chunk in (store / name).glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Harmful()))


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let numcodecs unpickle, as its versions before 0.16.6 do."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    HARMED.clear()


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("where", ["the matrix", "text in uns", "obsm", "a dense matrix"])
def test_codecs_that_run_what_they_read(tmp_path, where, chain):
    points = np.zeros((60, 2), np.float32)
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False, obsm={"X_umap": points})
    root = zarr.open_group(source)
    key = (
        root["uns"]
        .create_group("n")
        .create_array("connectivities_key", shape=(), dtype=str, fill_value="")
    )
    key[()] = "connectivities"
    root["obsp"].create_array("dense", data=GRAPH.toarray())
    arguments: list[Any] = []
    if where == "the matrix":
        for name in ARRAYS:
            spoil(source, f"{OBSP}/{name}", CHAINS[chain])
    elif where == "text in uns":
        spoil(source, "uns/n/connectivities_key", CHAINS[chain])
        arguments = ["--neighbors-key", "n"]
    elif where == "obsm":
        spoil(source, "obsm/X_umap", CHAINS[chain])
    else:
        spoil(source, "obsp/dense", CHAINS[chain])
        arguments = ["--key", "dense"]
    outcome = run("export", source, tmp_path / "out", *arguments)
    if where == "obsm":
        assert outcome.exit_code == 0, outcome.stderr
        run("verify", tmp_path / "out", "--source", source)
    else:
        assert outcome.exit_code == 1
        assert outcome.stderr.startswith("Error: ")
    assert HARMED == []


def test_a_key_in_uns_is_read(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    group = zarr.open_group(source)["uns"].create_group("n")
    for dtype, fill in ((str, ""), ("U20", "")):
        key = group.create_array(
            "connectivities_key", shape=(), dtype=dtype, fill_value=fill, overwrite=True
        )
        key[()] = "connectivities"
        assert open_source(source, neighbors_key="n").key == OBSP
    many = group.create_array("connectivities_key", shape=(9,), dtype=str, overwrite=True)
    many[:] = "connectivities"
    with pytest.raises(SourceError, match="connectivities_key"):
        open_source(source, neighbors_key="n")


# Streams


@pytest.mark.parametrize("padding", [b"", b"\0" * 5])
def test_members_of_gzip_follow_each_other(padding):
    raw = bytes(range(256)) * 20
    encoded = gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]) + padding
    codecs = chunk_codecs([("gzip", {})], np.dtype("u1"), len(raw))
    out = np.empty(len(raw), np.uint8)
    codecs.decode(np.frombuffer(encoded, np.uint8), out)
    assert out.tobytes() == raw
    with pytest.raises(ValueError, match="goes on after its end"):
        codecs.decode(np.frombuffer(encoded + b"x", np.uint8), out)
    with pytest.raises(ValueError, match="ends early"):
        codecs.decode(np.frombuffer(encoded[: 30 - len(encoded)], np.uint8), out)
