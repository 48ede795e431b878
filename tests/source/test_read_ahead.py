"""What the system is asked to read ahead is what a block is made of, and no error comes of it."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData

from cellgraph_dask.source import arrays, chunked, matrix
from cellgraph_dask.source.blocks import cut_blocks
from cellgraph_dask.source.opening import open_source
from tests.helpers.stores import chunk_file, directed_graph, write_store

GRAPH = directed_graph(200, 7)


@pytest.fixture
def asked(monkeypatch):
    """Return the list of what is asked for from now on: path, first byte, number of bytes."""
    found = []

    def advise(fd, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        found.append((str(Path(f"/proc/self/fd/{fd}").readlink()), offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return found


def blocks_of(source):
    return cut_blocks(source, 300, 200)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_chunks_of_a_block(tmp_path, asked, zarr_format):
    store = write_store(tmp_path / "s.zarr", GRAPH, chunk=64, zarr_format=zarr_format)
    source = open_source(store)
    for block in blocks_of(source):
        source.begin_reading(block)
        expected = [
            chunk_file(store, name, k)
            for name in ("indices", "data")
            for k in range(block.start // 64, -(-block.stop // 64))
        ]
        assert asked == [(str(path), 0, path.stat().st_size) for path in expected]
        asked.clear()


def test_of_a_large_block_the_rest_comes_while_it_is_read(tmp_path, asked, monkeypatch):
    store = write_store(tmp_path / "s.zarr", GRAPH, chunk=64)
    source = open_source(store)
    monkeypatch.setattr(matrix, "_MOST_AHEAD", 100)
    monkeypatch.setattr(arrays, "_SPAN", 64)
    block = cut_blocks(source, 2000, 200)[0]
    assert block.stop > 640
    source.begin_reading(block)
    names = ("indices", "data")
    assert [path for path, *_ in asked] == [
        str(chunk_file(store, name, k)) for name in names for k in range(2)
    ]
    asked.clear()
    entries = source.read_block(block)
    assert np.array_equal(entries.indices, GRAPH.indices[: block.stop])
    last = -(-block.stop // 64)
    assert [path for path, *_ in asked] == [
        str(chunk_file(store, name, k)) for name in names for k in range(2, last)
    ]


def test_large_chunks_are_left_alone(tmp_path, asked, monkeypatch):
    source = open_source(write_store(tmp_path / "s.zarr", GRAPH, chunk=64))
    monkeypatch.setattr(chunked, "_MOST_AHEAD", 10)
    source.begin_reading(blocks_of(source)[0])
    assert asked == []


def test_the_values_of_an_h5ad(tmp_path, asked):
    path = tmp_path / "s.h5ad"
    AnnData(shape=GRAPH.shape, obsp={"connectivities": GRAPH}).write_h5ad(path)
    with h5py.File(path) as file:
        arrays = [file[f"obsp/connectivities/{name}"] for name in ("indices", "data")]
        assert all(not array.compression for array in arrays)  # as they are in memory
        values = [array[:] for array in arrays]
    source = open_source(path)
    content = path.read_bytes()
    for block in blocks_of(source):
        source.begin_reading(block)
        found = [content[begin : begin + n] for _, begin, n in asked]
        assert found == [part[block.start : block.stop].tobytes() for part in values]
        asked.clear()


def test_what_is_not_there_is_passed_over(tmp_path, asked):
    store = write_store(tmp_path / "s.zarr", GRAPH, chunk=64)
    source = open_source(store)
    block = blocks_of(source)[0]
    chunk_file(store, "indices").unlink()
    chunk_file(store, "data").unlink()
    chunk_file(store, "data").mkdir()
    source.begin_reading(block)
    names = [Path(path).name for path, *_ in asked]
    assert "0" not in names
    assert len(names) == 2 * (-(-block.stop // 64) - 1)


def test_a_system_that_does_not_take_the_advice(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    source = open_source(write_store(tmp_path / "s.zarr", GRAPH, chunk=64))
    block = blocks_of(source)[0]
    source.begin_reading(block)
    assert np.array_equal(source.read_block(block).indices, GRAPH.indices[: block.stop])


@pytest.mark.parametrize("chunk", [64, 67, 201, 300])
@pytest.mark.parametrize("span", [1, 130, 2**18])
def test_row_pointers_are_scanned_with_each_chunk_decoded_once(tmp_path, monkeypatch, chunk, span):
    source = open_source(write_store(tmp_path / "s.zarr", GRAPH, chunk=chunk))
    monkeypatch.setattr(arrays, "_SPAN", span)
    find, found = type(source.indptr).find, []
    monkeypatch.setattr(
        type(source.indptr), "find", lambda self, k: found.append((self.name, k)) or find(self, k)
    )
    rows = 0
    for first, values in source.scan_indptr():
        assert first == rows
        assert np.array_equal(values, GRAPH.indptr[first : first + values.size])
        rows = first + values.size - 1
    assert rows == 200
    n_chunks = -(-201 // source.indptr.chunk_size)
    assert found == [(source.indptr.name, k) for k in range(n_chunks)]
