"""Groups and arrays of zarr stores: what zarr itself reads, with chunks that are not there told."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, ZstdCodec

from cellgraph_dask.errors import DamagedGraphError, SourceError
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.source.zarr_objects import Archive, Folder
from cellgraph_dask.source.zarr_store import (
    ZarrArray,
    ZarrGroup,
    open_local,
    open_remote,
    stored_array,
)
from tests.helpers.stores import directed_graph, write_anndata, write_store

NUMBERS = ["bool", "int8", "uint8", ">i2", "uint16", "int32", ">u4", "int64", "uint64",
           "float16", "float32", ">f8", "float64"]  # fmt: skip
V2: dict[str, dict[str, Any]] = {
    "as zarr likes": {},
    "plain": {"compressors": None},
    "gzip": {"compressors": numcodecs.GZip(level=2)},
    "delta": {"filters": [numcodecs.Delta("<i4")], "compressors": numcodecs.Zlib(level=1)},
    "quantized": {"filters": [numcodecs.FixedScaleOffset(0, 1, "<i4", "<i2")]},
    "other separator": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "no fill value": {"fill_value": None},
}
V3: dict[str, dict[str, Any]] = {
    "as zarr likes": {},
    "plain": {"compressors": None},
    "gzip": {"compressors": GzipCodec(level=2)},
    "blosc": {"compressors": BloscCodec(cname="lz4", typesize=4)},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "shards": {"shards": (40,)},
    "shards, index first": {
        "serializer": ShardingCodec(
            chunk_shape=(10,), codecs=[BytesCodec(), ZstdCodec()], index_location="start"
        ),
        "chunks": (40,),
        "compressors": None,
    },
    "shards, index without checksum": {
        "serializer": ShardingCodec(
            chunk_shape=(10,), codecs=[BytesCodec()], index_codecs=[BytesCodec()]
        ),
        "chunks": (40,),
        "compressors": None,
    },
    "shards in shards": {
        "serializer": ShardingCodec(
            chunk_shape=(20,), codecs=[ShardingCodec(chunk_shape=(10,), codecs=[BytesCodec()])]
        ),
        "chunks": (40,),
        "compressors": None,
    },
    "keys of format 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "keys with points": {"chunk_key_encoding": {"name": "default", "separator": "."}},
}
CASES = [(2, name) for name in V2] + [(3, name) for name in V3]


def made(path: Path, zarr_format: int, dtype: Any, options: dict[str, Any]) -> zarr.Array:
    """Write an array whose second half but its last chunk is not in the store."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    array = group.create_array(
        "inner/values", shape=(203,), dtype=dtype, **({"chunks": (10,)} | options)
    )
    array[:100] = np.arange(100) % 2 if array.dtype.kind == "b" else np.arange(100)
    array[202] = 1
    return array


def opened(path: Path) -> ZarrArray:
    """Return the array that `made` writes, as it is opened here."""
    node = open_local(Folder(str(path)))["inner/values"]
    assert isinstance(node, ZarrArray)
    return node


@pytest.mark.parametrize(("zarr_format", "name"), CASES)
def test_arrays_are_read_as_zarr_reads_them(tmp_path, zarr_format, name):
    options = (V2 if zarr_format == 2 else V3)[name]
    array = made(tmp_path / "s.zarr", zarr_format, "int32", options)
    node = opened(tmp_path / "s.zarr")
    read = pickle.loads(pickle.dumps(stored_array(node)))
    inner = {"shards, index first": 10, "shards in shards": 20}.get(name, array.chunks[0])
    assert (read.name, read.size, read.chunk_size) == ("inner/values", 203, inner)
    assert node.shards == ((40,) if "shards" in name else None)
    for at in (0, 57, 202):
        shard = at // (node.shards or node.chunks)[0]
        assert read.key_of(at) == array.metadata.encode_chunk_key((shard,))
    values = np.full(203, -1, np.int32)
    absent = read.read(0, 203, values)
    np.testing.assert_array_equal(values, array[:])
    first = 120 if node.shards else 100  # of shards that are there zarr says what they lack
    assert [a for a, _ in absent] == list(range(first, 200, inner))
    some = np.full(60, -1, np.int32)
    assert read.read(35, 95, some) == []
    np.testing.assert_array_equal(some, array[35:95])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_dtypes_and_fill_values(tmp_path, zarr_format, dtype):
    fill: Any = True if dtype == "bool" else 7
    array = made(tmp_path / "s.zarr", zarr_format, dtype, {"fill_value": fill})
    read = stored_array(opened(tmp_path / "s.zarr"))
    assert read.dtype == np.dtype(array.dtype).newbyteorder("=")
    values = np.empty(100, read.dtype)
    assert read.read(0, 100, values) == []
    np.testing.assert_array_equal(values, array[:100])
    with pytest.raises(DamagedGraphError, match=r"fill value is .*(True|7).*, not 0"):
        read.read(0, 203, np.empty(203, read.dtype))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -float("inf"), 0.5, -0.0])
def test_fill_values_of_floats(tmp_path, zarr_format, fill):
    made(tmp_path / "s.zarr", zarr_format, "float32", {"fill_value": fill})
    read = stored_array(opened(tmp_path / "s.zarr"))
    values = np.ones(203, np.float32)
    if fill == 0:
        assert read.read(0, 203, values)
        assert not values[100:200].any()
    else:
        with pytest.raises(DamagedGraphError, match=r"is missing .* not 0; write the store again"):
            read.read(0, 203, values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_no_number_has_a_shape_all_the_same(tmp_path, zarr_format):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("values", shape=(3, 4), dtype=str, chunks=(2, 2))
    node = open_local(Folder(str(tmp_path / "s.zarr")))["values"]
    assert node.shape == (3, 4)
    assert node.dtype.kind in "OT"


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_grid": {"name": "rectangular", "configuration": {}}},
        {"chunk_key_encoding": {"name": "hashed"}},
        {"shape": [2.0]},
        {"shape": "203"},
        {"fill_value": "seven"},
        {"shape": [203, 1]},
        {"storage_transformers": [{"name": "x"}]},
        {"compressor": None},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]},
        {"codecs": [{"name": "bytes"}, {"name": "rot13"}]},
        {"codecs": []},
        {"codecs": [{"name": "crc32c", "configuration": {"x": 1}}]},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "-"}}},
    ],
)
def test_strange_metadata(tmp_path, changes):
    path = write_store(tmp_path / "s.zarr", directed_graph(30), zarr_format=3, consolidated=False)
    file = path / "obsp/connectivities/indices/zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(SourceError, match=r"the metadata of obsp/connectivities/indices cannot"):
        open_source(path)


def test_what_a_reader_need_not_understand_is_passed_over(tmp_path):
    array = made(tmp_path / "s.zarr", 3, "int32", {})
    file = tmp_path / "s.zarr/inner/values/zarr.json"
    extended = {"x": {"must_understand": False}, "dimension_names": ["cells"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | extended))
    values = np.empty(203, np.int32)
    stored_array(opened(tmp_path / "s.zarr")).read(0, 203, values)
    np.testing.assert_array_equal(values, array[:])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("size", [0, 203])
def test_chunks_of_nothing_fit_an_array_of_nothing(tmp_path, zarr_format, size):
    made(tmp_path / "s.zarr", zarr_format, "int32", {})
    (file,) = (tmp_path / "s.zarr/inner/values").glob("*zarr*[ny]")
    document = json.loads(file.read_text()) | {"shape": [size]}
    if zarr_format == 2:
        document["chunks"] = [0]
    else:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [0]
    file.write_text(json.dumps(document))
    if size == 0:
        assert stored_array(opened(tmp_path / "s.zarr")).read(0, 0, np.empty(0, np.int32)) == []
    else:
        with pytest.raises(SourceError, match="chunks of 0 values"):
            stored_array(opened(tmp_path / "s.zarr"))


def walk(group: Any, path: str = "") -> dict[str, Any]:
    """Return all groups and arrays below one: attributes of groups, shapes of arrays."""
    found = {}
    for name in group.keys():  # noqa: SIM118 (not a dict)
        node = group[name]
        full = f"{path}/{name}"
        if hasattr(node, "shape"):
            found[full] = tuple(node.shape)
        else:
            found[full] = dict(node.attrs)
            found |= walk(node, full)
    return found


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["folder", "archive", "store"])
def test_groups_hold_what_zarr_finds_in_them(tmp_path, zarr_format, kind):
    path = write_store(tmp_path / "s.zarr", directed_graph(30), zarr_format=zarr_format)
    expected = walk(zarr.open_group(path, mode="r", use_consolidated=False))
    assert "/obsp/connectivities/indptr" in expected
    root: ZarrGroup
    if kind == "store":
        root = open_remote(zarr.storage.LocalStore(path, read_only=True))
    elif kind == "folder":
        root = open_local(Folder(str(path)))
    else:
        archive = shutil.make_archive(str(tmp_path / "s.zarr"), "zip", path)
        root = open_local(Archive(archive))
    assert walk(root) == expected
    assert isinstance(root["obsp/connectivities/indptr"], ZarrArray)
    with pytest.raises(KeyError):
        root["obsp/distances"]
    with pytest.raises(KeyError):
        root["obsp/connectivities/indptr/0"]


def test_files_that_are_no_nodes_are_passed_over(tmp_path):
    path = write_store(tmp_path / "s.zarr", directed_graph(30))
    (path / "obsp/.DS_Store").write_bytes(b"\0")
    (path / "obsp/notes").mkdir()
    assert open_local(Folder(str(path)))["obsp"].keys() == ["connectivities"]


def test_a_path_does_not_point_upwards(tmp_path):
    path = write_store(tmp_path / "s.zarr", directed_graph(30))
    root = open_local(Folder(str(path)))
    for name in ("..", "obsp/../obsp", "obsp/./connectivities"):
        with pytest.raises(SourceError, match="cannot be used"):
            root[name]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_metadata_themselves_say_what_is_there(tmp_path, zarr_format):
    # A consolidated copy may be older than the store: anndata's write_elem leaves it as it is.
    path = write_store(
        tmp_path / "s.zarr", directed_graph(30), consolidated=True, zarr_format=zarr_format
    )
    shutil.copytree(path / "obsp/connectivities", path / "obsp/added")
    shutil.rmtree(path / "obsp/connectivities")
    assert open_source(path, "added").n_cells == 30
    with pytest.raises(SourceError, match="has no obsp/connectivities; obsp holds added"):
        open_source(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_is_no_store(tmp_path, zarr_format):
    zarr.create_array(tmp_path / "a.zarr", shape=(3,), dtype="i4", zarr_format=zarr_format)
    with pytest.raises(SourceError, match="an array, not a group"):
        open_source(tmp_path / "a.zarr")


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(SourceError, match=r"neither zarr.json nor .zgroup"):
        open_source(tmp_path)


def test_a_deflated_archive_that_unpacks_to_gigabytes(tmp_path):
    path = write_store(tmp_path / "s.zarr", directed_graph(30))
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.name != ".zattrs":
                archive.write(file, file.relative_to(path))
        with archive.open("obsp/connectivities/.zattrs", "w", force_zip64=True) as attributes:
            for _ in range(2**5):
                attributes.write(b" " * 2**20)
    with pytest.raises(SourceError, match=r"\.zattrs has 33,554,432 bytes"):
        open_source(tmp_path / "s.zip")


@pytest.mark.parametrize("kind", ["store", "anndata's"])
def test_an_export_does_without_heavy_libraries(tmp_path, kind):
    graph = directed_graph(30)
    if kind == "store":
        source = write_store(tmp_path / "s.zarr", graph, zarr_format=3)
    else:
        source = write_anndata(tmp_path / "s.zarr", connectivities=graph)
    script = (
        "import sys; from cellgraph_dask import export_connectivities as export;"
        "export(sys.argv[1], sys.argv[2]); print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    for out in ("first", "second"):  # the first one may still compile its loops, with numba
        run = subprocess.run(
            [sys.executable, "-c", script, source, tmp_path / out],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    loaded = set(run.stdout.split())
    assert {"dask", "numcodecs", "zarr", "cellgraph_dask"} <= loaded
    assert not {"anndata", "scipy", "numba", "distributed", "h5py", "rich"} & loaded
