"""Stores and files that claim what is not there, or whose few bytes decode to gigabytes."""

from __future__ import annotations

import bz2
import functools
import json
import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np

from tests.helpers.planting import plant
from tests.helpers.stores import directed_graph, write_store
from tests.oracle import oracle_edges

GRAPH = directed_graph(40)
OBSP = "obsp/connectivities"
GB = 2**30
FLAT = 1_000_000  # values in a chunk with a bomb

# Arrays as their metadata and a few chunks.


def codecs_of(zarr_format: int, name: str | None) -> Any:
    """Return a codec in metadata."""
    if name is None:
        return None if zarr_format == 2 else []
    settings: dict[str, dict[str, Any]] = {
        "blosc": {"cname": "lz4", "clevel": 5, "shuffle": 1 if zarr_format == 2 else "shuffle",
                  "blocksize": 0},
        "zstd": {"level": 1}, "gzip": {"level": 1}, "zlib": {"level": 1}, "bz2": {"level": 1},
        "lzma": {"format": 1, "check": -1, "preset": None, "filters": None},
        "lz4": {"acceleration": 1},
    }  # fmt: skip
    if zarr_format == 2:
        return {"id": name, **settings[name]}
    if name in ("blosc", "zstd", "gzip"):
        more = {"typesize": 4} if name == "blosc" else {"checksum": False} if name == "zstd" else {}
        return [{"name": name, "configuration": settings[name] | more}]
    return [{"name": f"numcodecs.{name}", "configuration": settings[name]}]


def set_array(
    store: Path,
    path: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    codec: str | None = None,
    dtype: str = "i4",
    shards: tuple[int, ...] | None = None,
    filters: Any = None,
    content: Mapping[str, bytes] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Put an array into a zarr store; `content` are the bytes of some chunks, by "0" or "0.0"."""
    zarr_format = 3 if (store / "zarr.json").exists() else 2
    folder = store / path
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    codecs = codecs_of(zarr_format, codec)
    for key, values in (content or {}).items():
        file = folder / (key if zarr_format == 2 else f"c/{key.replace('.', '/')}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(values)
    if zarr_format == 2:
        kind = dtype if dtype[0] in "<|" else f"<{dtype}"
        metadata = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": kind,
                    "compressor": codecs, "filters": filters, "fill_value": 0,
                    "order": "C"}  # fmt: skip
        (folder / ".zarray").write_text(json.dumps(metadata))
        (folder / ".zattrs").write_text(json.dumps(attributes or {}))
        return
    name = {"i4": "int32", "f4": "float32", "i8": "int64"}.get(dtype, dtype)
    chain = [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs]
    if shards:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": chunks, "codecs": chain, "index_codecs": index,
                    "index_location": "end"}  # fmt: skip
        chain = [{"name": "sharding_indexed", "configuration": sharding}]
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards or chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0, "codecs": chain, "attributes": attributes or {},
    }  # fmt: skip
    (folder / "zarr.json").write_text(json.dumps(metadata))


def zarr_base(folder: Path, zarr_format: int) -> Path:
    """Write a sound store."""
    return write_store(folder / "s.zarr", GRAPH, zarr_format=zarr_format, consolidated=False)


def with_array(zarr_format: int, path: str, *args: Any, folder: Path, **options: Any) -> Path:
    """Write a sound store but for one array; shapes that are functions give bytes late."""
    store = zarr_base(folder, zarr_format)
    content = options.pop("content", None)
    set_array(store, path, *args, content=content() if content else None, **options)
    return store


def hdf5_base(folder: Path, **options: Any) -> Path:
    """Write a sound HDF5 file."""
    path = folder / "s.h5ad"
    with h5py.File(path, "w", **options) as file:
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "_index": "_index"})
        obs["_index"] = np.array([f"c{k}" for k in range(40)], object)
        group = file.create_group(OBSP)
        group.attrs.update({"encoding-type": "csr_matrix", "shape": GRAPH.shape})
        for name in ("indptr", "indices", "data"):
            group[name] = getattr(GRAPH, name)
    return path


def with_dataset(
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    *,
    folder: Path,
    chunk: Callable[[], bytes] | None = None,
    dtype: Any = "i4",
    file: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a sound HDF5 file but for one dataset, whose first chunk has bytes of our own."""
    path = hdf5_base(folder, **(file or {}))
    with h5py.File(path, "r+") as opened:
        if name in opened:
            del opened[name]
        dataset = opened.create_dataset(name, shape, dtype, chunks=chunks, **options)
        if chunk is not None:
            dataset.id.write_direct_chunk((0,) * len(shape), chunk())
    return path


# Bombs: few bytes that decode to a gigabyte and more.


@functools.cache
def zeros(name: str, n_bytes: int = GB) -> bytes:
    """Return so many zeros, encoded."""
    block = bytes(2**26)
    encoder: Any = {
        "gzip": lambda: zlib.compressobj(9, wbits=31), "zlib": lambda: zlib.compressobj(9),
        "bz2": bz2.BZ2Compressor, "lzma": lzma.LZMACompressor,
    }.get(name, lambda: None)()  # fmt: skip
    if encoder is not None:
        parts = [encoder.compress(block) for _ in range(n_bytes // len(block))]
        return b"".join([*parts, encoder.flush()])
    if name == "zstd":
        n = n_bytes // 2**17  # blocks of one byte that repeats; the frame does not say its size
        blocks = [struct.pack("<I", (2**17 << 3) | 2 | (k == n - 1))[:3] + b"\0" for k in range(n)]
        return b"\x28\xb5\x2f\xfd" + bytes([0, 0x58]) + b"".join(blocks)
    if name == "zstd says":
        return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", n_bytes) + b"\x01\x00\x00"
    if name == "lz4":
        return struct.pack("<I", 2**31 - 1) + bytes(40)
    assert name == "blosc"
    return struct.pack("<BBBBIII", 2, 1, 33, 4, 2**31 - 17, 2**20, 20) + bytes(4)


def shard_of(chunk: bytes, n: int) -> bytes:
    """Return a shard of `n` chunks of which the first is there."""
    index = struct.pack("<QQ", 0, len(chunk)) + b"\xff" * 16 * (n - 1)
    return chunk + index + google_crc32c.value(index).to_bytes(4, "little")


def zip_bomb(what: str, folder: Path) -> Path:
    """Write a zip archive in which one member is a gigabyte of zeros, deflated."""
    store = zarr_base(folder, 2)
    set_array(store, f"{OBSP}/indices", (GB // 4,), (GB // 4,))
    with zipfile.ZipFile(folder / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(store.rglob("*")):
            name = file.relative_to(store).as_posix()
            if file.is_file() and name != what:
                archive.write(file, name)
        with archive.open(what, "w", force_zip64=True) as member:
            for _ in range(GB // 2**24):
                member.write((b" " if what.endswith(".zattrs") else b"\0") * 2**24)
    return folder / "s.zip"


def zip_of_chunks(folder: Path) -> Path:
    """Write an archive whose sound chunks are zeros, deflated a thousand times smaller."""
    store = zarr_base(folder, 2)
    n = 25_000_000
    set_array(store, f"{OBSP}/indptr", (41,), (41,), content={"0": np.linspace(
        0, n, 41).astype("i4").tobytes()})  # fmt: skip
    for name in ("indices", "data"):
        set_array(store, f"{OBSP}/{name}", (n,), (n,), content={"0": bytes(4 * n)})
    return deflated(store, folder / "s.zip")


def deflated(store: Path, path: Path) -> Path:
    """Write the files of a store into an archive as ``zip -r`` does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(store.rglob("*")):
            archive.write(file, file.relative_to(store).as_posix())
    return path


# Claims of what is not there.


def key_string(zarr_format: int, folder: Path, **options: Any) -> Path:
    """Write a store whose neighbors have a connectivities key of an odd kind."""
    store = zarr_base(folder, zarr_format)
    for above in ("uns", "uns/neighbors"):
        name, text = (("zarr.json", '{"zarr_format": 3, "node_type": "group", "attributes": {}}')
                      if zarr_format == 3 else (".zgroup", '{"zarr_format": 2}'))  # fmt: skip
        (store / above).mkdir(exist_ok=True)
        (store / above / name).write_text(text)
    options = {"shape": (), "chunks": (), "dtype": "i4", **options}
    content = options.pop("content", None)
    set_array(store, "uns/neighbors/connectivities_key", options.pop("shape"),
              options.pop("chunks"), content=content() if content else None, **options)  # fmt: skip
    return store


def claims_of_cells(zarr_format: int, n: int, folder: Path) -> Path:
    """Write a store that says that it has so many cells."""
    store = zarr_base(folder, zarr_format)
    for path, size in (("obs/_index", n), (f"{OBSP}/indptr", n + 1)):
        set_array(store, path, (size,), (min(size, FLAT),), codec="gzip")
    name = "zarr.json" if zarr_format == 3 else ".zattrs"
    file = store / OBSP / name
    metadata = json.loads(file.read_text())
    (metadata["attributes"] if zarr_format == 3 else metadata)["shape"] = [n, n]
    file.write_text(json.dumps(metadata))
    return store


def hdf5_cells(n: int, folder: Path) -> Path:
    """Write an HDF5 file that says that it has so many cells."""
    path = with_dataset(f"{OBSP}/indptr", (n + 1,), (FLAT,), folder=folder, compression="gzip")
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        file.create_dataset("obs/_index", (n,), "i4", chunks=(FLAT,))
        file[OBSP].attrs["shape"] = [n, n]
    return path


def claiming_export(folder: Path, **figures: Any) -> Path:
    """Write a sound store, and beside it an export whose manifest says other figures."""
    source = zarr_base(folder, 2)
    path = sound_export(folder) / "connectivity_manifest.json"
    manifest = json.loads(path.read_text())
    cells = figures.get("n_cells", 40)
    wide = {"index_bytes": 4, "index_dtype": "uint32"} if cells > 65_535 else {}
    wide = {"index_bytes": 8, "index_dtype": "uint64"} if cells > 2**32 else wide
    path.write_text(json.dumps(manifest | wide | figures))
    for name in ("sourcesPath", "destinationsPath"):
        file = path.parent / manifest[name]
        values = np.frombuffer(file.read_bytes(), "<u2")
        file.write_bytes(values.astype(f"<u{wide.get('index_bytes', 2)}").tobytes())
    return source


def sound_export(folder: Path) -> Path:
    """Write the export of the sound graph."""
    edges = zip(*(side.tolist() for side in oracle_edges(GRAPH)), strict=True)
    return plant(folder / "out", list(edges), 40)
