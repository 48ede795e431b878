"""Dense matrices and embeddings in stores: right however they are chunked, judged before read."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec, TransposeCodec

from cellgraph_dask import export_connectivities, plan_export, verify_export
from cellgraph_dask.errors import CellgraphError, DamagedGraphError, MemoryLimitError, SourceError
from tests.helpers.stores import directed_graph, symmetric_graph, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph(60, seed=4)
DENSE = GRAPH.toarray()


def write(path: Path, zarr_format: int = 2, obs: bool = True, **options) -> Path:
    """Write a store whose matrix is dense."""
    write_store(path, GRAPH, zarr_format=zarr_format, obs=obs, consolidated=False)
    shutil.rmtree(path / "obsp/connectivities")
    root = zarr.open_group(path, mode="r+", zarr_format=zarr_format)
    settings = {"chunks": (25, 60), "compressors": None} | options
    array = root["obsp"].create_array(
        "connectivities", shape=DENSE.shape, dtype=DENSE.dtype, **settings
    )
    array[:] = DENSE
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (7, 11), "compressors": numcodecs.Blosc()},
        {"chunks": (25, 11), "order": "F"},
        {"chunks": (25, 11), "filters": [numcodecs.BitRound(20)], "compressors": numcodecs.GZip()},
        {"zarr_format": 3, "chunks": (7, 10)},
        {"zarr_format": 3, "chunks": (7, 10), "shards": (14, 30), "compressors": GzipCodec()},
        {"zarr_format": 3, "chunks": (10, 10), "shards": (60, 60)},
        {"zarr_format": 3, "chunks": (20, 60), "filters": [TransposeCodec(order=(1, 0))]},
    ],
)
def test_dense_matrices_of_any_chunks(tmp_path, options):
    store = write(tmp_path / "s.zarr", **options)
    export_connectivities(store, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


def edit(store: Path, **changes) -> Path:
    (path,) = (store / "obsp/connectivities").glob("*zarr*[ny]")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return store


HUGE = [2**40, 2**40]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": HUGE}, r"Write it as a sparse matrix|does not match|cannot be used"),
        ({"shape": HUGE, "chunks": [2**20, 2**20]}, "Write it as a sparse|cannot be used"),
        ({"shape": HUGE, "chunks": HUGE}, "memory limit|cannot be used|too large"),
        ({"chunks": [0, 0]}, "chunks|cannot be used"),
        ({"chunks": [60, 2**40]}, "memory limit|cannot be used|too large"),
        ({"chunks": [2**14, 2**14]}, "memory limit of 512.* is too small: reading a chunk"),
        ({"fill_value": "NaN"}, "fill value is|cannot be used"),
        ({"fill_value": 3}, "fill value is"),
        ({"dtype": "<U100000000"}, "dtype|cannot be used"),
    ],
)
@pytest.mark.parametrize("obs", [True, False])
def test_claims_are_judged_before_anything_is_built(tmp_path, changes, words, obs):
    store = edit(write(tmp_path / "s.zarr", obs=obs), **changes)
    if "fill_value" in changes:
        (store / "obsp/connectivities/0.0").unlink()
    else:
        words += "|number of cells 60"
    limit = "512MB" if "memory limit" in words else "4GB"  # of a process that may be large by now
    with pytest.raises(CellgraphError, match=words):
        export_connectivities(store, tmp_path / "out", memory_limit=limit)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_of_nothing(tmp_path, zarr_format):
    """Newer zarr reads them as chunks of one value; none of those is there."""
    store = write(tmp_path / "s.zarr", zarr_format)
    array = store / "obsp/connectivities"
    for chunk in array.glob("[c0-9]*"):
        shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    no_chunks = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 0]}}}
    edit(store, **(no_chunks if zarr_format == 3 else {"chunks": [0, 0]}))
    with pytest.raises(SourceError, match=r"chunks|cannot be used"):
        export_connectivities(store, tmp_path / "out")


def test_the_limit_that_a_huge_chunk_needs_is_accepted(tmp_path):
    store = edit(write(tmp_path / "s.zarr"), chunks=[4000, 4000])
    shutil.rmtree(store / "obsp/connectivities", ignore_errors=False)
    root = zarr.open_group(store, mode="r+", zarr_format=2)
    array = root["obsp"].create_array(
        "connectivities", shape=DENSE.shape, dtype="f8", chunks=(4000, 4000)
    )
    array[:] = DENSE
    for call in (plan_export, export_connectivities):
        arguments = (store,) if call is plan_export else (store, tmp_path / "out")
        with pytest.raises(MemoryLimitError, match="reading a chunk of the matrix") as told:
            call(*arguments, memory_limit="400MB")
        call(*arguments, memory_limit=str(told.value).split("allow ")[1].split(" ")[0])
    assert_exported(tmp_path / "out", GRAPH)


def test_a_chunk_that_inflates(tmp_path):
    store = write(tmp_path / "s.zarr", chunks=(60, 60), compressors=numcodecs.GZip(1))
    (store / "obsp/connectivities/0.0").write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(DamagedGraphError, match="holds more than 14400 bytes"):
        export_connectivities(store, tmp_path / "out")


def test_an_embedding_that_inflates(tmp_path):
    matrix = symmetric_graph(300, 5)
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": np.ones((300, 2))})
    path = store / "obsm/X_umap/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"compressor": {"id": "gzip"}}))
    (store / "obsm/X_umap/0.0").write_bytes(gzip.compress(bytes(2**23)))
    export_connectivities(store, tmp_path / "out")
    report = verify_export(tmp_path / "out", source=store)
    assert report.ok
    assert any("holds more than 4800 bytes" in text for text in report.warnings)
    assert "X_umap cannot be used" in report.unchecked[0]


@pytest.mark.parametrize("codec", [None, "gzip"])
def test_a_name_that_inflates(tmp_path, codec):
    store = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    root = zarr.open_group(store, mode="r+", zarr_format=2)
    graph = root["uns"].create_group("n")
    if codec is None:  # a text of a gigabyte, by its dtype
        named = graph.create_array("connectivities_key", shape=(), dtype="<U10")
        changes = {"dtype": "<U250000000"}
    else:
        named = graph.create_array("connectivities_key", shape=(1,), dtype="<U10")
        changes = {"compressor": {"id": "gzip", "level": 1}}
        (store / "uns/n/connectivities_key/0").write_bytes(gzip.compress(bytes(2**23)))
    assert named.shape is not None
    path = store / "uns/n/connectivities_key/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SourceError, match=r"bytes by its metadata|too many for a name"):
        plan_export(store, neighbors_key="n")
