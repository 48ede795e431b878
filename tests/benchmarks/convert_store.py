"""Write the graph of a zarr store in another form, in little memory: h5ad, zip, other chunks.

The h5ad has the layout that anndata gives it: chunks that h5py chooses, not compressed unless told.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

SLICE = 1 << 22  # values copied at once
ARRAYS = ("indptr", "indices", "data")
MATRIX = "obsp/connectivities"


def write_h5ad(store: Path, path: Path, **options: Any) -> Path:
    """Write an h5ad that ``anndata.read_h5ad`` reads; `options` are those of h5py's datasets."""
    root = zarr.open_group(store, mode="r")
    n_cells = root["obs/_index"].shape[0]
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _attributes(file.create_group(name), "dict", "0.1.0")
        for name, length in (("obs", n_cells), ("var", 0)):
            frame = _attributes(file.create_group(name), "dataframe", "0.2.0")
            frame.attrs["_index"] = "_index"
            frame.attrs["column-order"] = np.array([], h5py.string_dtype())
            index = frame.create_dataset("_index", (length,), h5py.string_dtype())
            _attributes(index, "string-array", "0.2.0")
            for start in range(0, length, SLICE):
                stop = min(start + SLICE, length)
                index[start:stop] = np.arange(start, stop).astype("S").astype(object)
        matrix = _attributes(file.create_group(MATRIX), "csr_matrix", "0.1.0")
        matrix.attrs["shape"] = [n_cells, n_cells]
        for name in ARRAYS:
            source = root[f"{MATRIX}/{name}"]
            target = matrix.create_dataset(
                name, source.shape, source.dtype, maxshape=(None,), **options
            )
            for start in range(0, source.shape[0], SLICE):
                target[start : start + SLICE] = source[start : start + SLICE]
    return path


def _attributes(node: Any, encoding: str, version: str) -> Any:
    node.attrs["encoding-type"] = encoding
    node.attrs["encoding-version"] = version
    return node


def write_zip(store: Path, path: Path) -> Path:
    """Write the files of a store into a zip archive, not compressed again."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(store).as_posix())
    return path


def write_zarr(
    store: Path, path: Path, *, zarr_format: int, chunk: int, shard: int | None, compressors: Any
) -> Path:
    """Write a store with other chunks, shards and codecs of the matrix."""
    root = zarr.open_group(store, mode="r")
    if zarr_format == 2 and root.metadata.zarr_format == 2:
        shutil.copytree(store, path, ignore=shutil.ignore_patterns("obsp", ".zmetadata"))
        target = zarr.open_group(path, mode="a", use_consolidated=False)
    else:
        target = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        target.attrs.update(dict(root.attrs))
    target.create_group("obsp", attributes=dict(root["obsp"].attrs))
    matrix = target.create_group(MATRIX, attributes=dict(root[MATRIX].attrs))
    unit = shard or chunk
    for name in ARRAYS:
        source = root[f"{MATRIX}/{name}"]
        array = matrix.create_array(
            name, shape=source.shape, dtype=source.dtype, chunks=(chunk,),
            shards=None if shard is None else (shard,), compressors=compressors, fill_value=0,
        )  # fmt: skip
        step = unit * max(1, SLICE // unit)
        for start in range(0, source.shape[0], step):
            array[start : start + step] = source[start : start + step]
    return path


def main(arguments: list[str] | None = None) -> None:
    """Convert one store."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.convert_store")
    parser.add_argument("store", type=Path)
    parser.add_argument("path", type=Path, help="ends in .h5ad, .zip or .zarr")
    parser.add_argument("--compression", choices=("gzip", "lzf"), help="of an h5ad")
    parser.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    parser.add_argument("--chunk", type=int, default=1_000_000, metavar="ENTRIES")
    parser.add_argument("--shard", type=int, metavar="ENTRIES")
    parser.add_argument("--codec", choices=("blosc", "zstd", "none"), default="blosc")
    options = parser.parse_args(arguments)
    if options.path.suffix == ".h5ad":
        extra = {"compression": options.compression} if options.compression else {}
        write_h5ad(options.store, options.path, **extra)
    elif options.path.suffix == ".zip":
        write_zip(options.store, options.path)
    else:
        write_zarr(
            options.store, options.path, zarr_format=options.zarr_format, chunk=options.chunk,
            shard=options.shard, compressors=_codec(options.zarr_format, options.codec),
        )  # fmt: skip


def _codec(zarr_format: int, name: str) -> Any:
    import numcodecs
    from zarr.codecs import BloscCodec, ZstdCodec

    if name == "none":
        return None
    if zarr_format == 2:
        return {"blosc": numcodecs.Blosc("lz4", 5, 1), "zstd": numcodecs.Zstd(1)}[name]
    return {
        "blosc": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),
        "zstd": ZstdCodec(level=0),
    }[name]


if __name__ == "__main__":
    main()
