"""Bad input and bad places: a named error, exit code 1, the earlier export whole, no litter.

Each case damages a good store in one way and names what the message must say.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities
from cellgraph_dask.errors import DamagedGraphError, SourceError
from tests.helpers.command import Outcome, run, run_process
from tests.helpers.disks import MS_RDONLY, MS_REMOUNT, Disks
from tests.helpers.stores import (
    Stored,
    add_matrix,
    chunk_file,
    directed_graph,
    snapshot,
    stored,
    symmetric_graph,
    write_anndata,
    write_store,
)
from tests.oracle import assert_exported

N_CELLS = 40
GRAPH = directed_graph(N_CELLS)  # five entries a row
OBSP = "obsp/connectivities"


def changed(**arrays: Any) -> Stored:
    """Return the good graph with some of its arrays replaced."""
    return stored(GRAPH)._replace(**arrays)


def with_value(name: str, at: int, value: Any, dtype: Any = None) -> Stored:
    """Return the good graph with one value of one array replaced."""
    values = getattr(GRAPH, name).astype(dtype or getattr(GRAPH, name).dtype)
    values[at] = value
    return changed(**{name: values})


def written(matrix: Any, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_store(folder / "s.zarr", matrix, **options)


def damaged(damage: Callable[[Path], object], **options: Any) -> Callable[[Path], Path]:
    """Write the good graph, then do something to its folder."""

    def build(folder: Path) -> Path:
        path = write_store(folder / "s.zarr", options.pop("matrix", GRAPH), **options)
        damage(path)
        return path

    return build


def scribble(array: str, k: int = 0) -> Callable[[Path], None]:
    """Turn the bytes in the middle of a chunk around."""

    def damage(store: Path) -> None:
        path = chunk_file(store, array, k)
        raw = bytearray(path.read_bytes())
        middle = slice(len(raw) // 3, 2 * len(raw) // 3)
        raw[middle] = bytes(255 - b for b in raw[middle])
        path.write_bytes(raw)

    return damage


def truncate(array: str, k: int = 0) -> Callable[[Path], None]:
    """Cut a chunk's file in half."""

    def damage(store: Path) -> None:
        path = chunk_file(store, array, k)
        os.truncate(path, path.stat().st_size // 2)

    return damage


def remove(array: str, k: int = 0) -> Callable[[Path], None]:
    return lambda store: chunk_file(store, array, k).unlink()


def set_attribute(name: str, value: Any) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        zarr.open_group(store)[OBSP].attrs[name] = value

    return damage


def only_file(folder: Path) -> Path:
    path = folder / "cells.h5ad"
    anndata.AnnData(np.zeros((3, 2), np.float32)).write_h5ad(path)
    return path


def empty_folder(folder: Path) -> Path:
    path = folder / "empty"
    path.mkdir()
    return path


def written_text(path: Path) -> Path:
    path.write_text("cell,neighbor\n")
    return path


def dense(folder: Path) -> Path:
    matrix = np.eye(3)
    matrix[1, 2] = np.nan
    return write_anndata(folder / "s.zarr", connectivities=matrix, distances=GRAPH[:3, :3])


# What is wrong: how to make it, more arguments, and what the message must say.
Case = tuple[Callable[[Path], Path], list[str], str]
CASES: dict[str, Case] = {
    "no such folder": (lambda folder: folder / "none.zarr", [], r"none\.zarr does not exist"),
    "an empty folder": (empty_folder, [], r"empty is not a zarr store"),
    "a file without a graph": (
        only_file,
        [],
        r"cells\.h5ad has no obsp/connectivities; obsp holds nothing",
    ),
    "another file": (
        lambda folder: written_text(folder / "cells.txt"),
        [],
        r"cells\.txt is a table, not a matrix over the cells. Read it in Python, and give",
    ),
    "no such key": (
        lambda folder: write_anndata(folder / "s.zarr", connectivities=GRAPH, distances=GRAPH),
        ["--key", "connectivity"],
        r"has no obsp/connectivity; obsp holds connectivities, distances\..*"
        r"Did you mean 'connectivities'\?.*--key",
    ),
    "no obsp at all": (
        damaged(lambda store: shutil.rmtree(store / "obsp"), consolidated=False),
        [],
        r"obsp holds nothing.*scanpy\.pp\.neighbors",
    ),
    "a dense matrix with NaN": (dense, [], r"the weight of cells \(1, 2\) .* is nan"),
    "not a sparse matrix": (
        damaged(set_attribute("encoding-type", "dict"), consolidated=False),
        [],
        r"encoding-type 'dict'; csr_matrix and csc_matrix",
    ),
    "a shape of three": (
        damaged(set_attribute("shape", [40, 40, 1]), consolidated=False),
        [],
        r"shape \[40, 40, 1\].*two integers",
    ),
    "no shape": (damaged(set_attribute("shape", None), consolidated=False), [], r"shape None"),
    "broken metadata": (
        damaged(
            lambda store: (store / OBSP / "indices/.zarray").write_text('{"chunks"'),
            consolidated=False,
        ),
        [],
        r"obsp/connectivities/indices|not a zarr store",
    ),
    "metadata that lacks a field": (
        damaged(
            lambda store: (store / OBSP / "data/.zarray").write_text('{"zarr_format": 2}'),
            consolidated=False,
        ),
        [],
        r"obsp/connectivities/data",
    ),
    "a codec nobody knows": (
        damaged(
            lambda store: (store / OBSP / "data/.zarray").write_text(
                (store / OBSP / "data/.zarray").read_text().replace('"blosc"', '"jetraw"')
            ),
            consolidated=False,
        ),
        [],
        r"obsp/connectivities/data.*jetraw",
    ),
    "not square": (written(changed(shape=(40, 41)), obs=False), [], r"not square: 40 by 41"),
    "other cells than obs": (
        written(GRAPH, n_obs=39),
        [],
        r"Connectivity matrix shape \(40, 40\) does not match number of cells 39\.",
    ),
    "not square, with obs": (
        written(changed(shape=(40, 41))),
        [],
        r"Connectivity matrix shape \(40, 41\) does not match number of cells 40\.",
    ),
    "indptr too short": (
        written(changed(indptr=GRAPH.indptr[:-1])),
        [],
        r"indptr has 40 values; a matrix of 40 cells needs 41",
    ),
    "indptr from 2": (written(with_value("indptr", 0, 2)), [], r"indptr starts at 2, not at 0"),
    "indptr falls": (
        written(with_value("indptr", 7, 12)),
        [],
        r"indptr decreases at row 6: from 30 to 12",
    ),
    "indptr falls below zero": (
        written(with_value("indptr", 7, -1)),
        [],
        r"indptr decreases at row 6: from 30 to -1",
    ),
    "indptr ends early": (
        written(with_value("indptr", 40, 199)),
        [],
        r"indptr ends at 199, but 200 entries are stored",
    ),
    "indptr ends late": (
        written(with_value("indptr", 40, 201)),
        [],
        r"indptr ends at 201, but 200 entries are stored",
    ),
    "float indptr": (
        written(changed(indptr=GRAPH.indptr.astype(float))),
        [],
        r"indptr has dtype float64; integers",
    ),
    "fewer weights than indices": (
        written(changed(data=GRAPH.data[:-3])),
        [],
        r"indices has 200 entries, but obsp/connectivities/data has 197",
    ),
    "a negative index": (
        written(with_value("indices", 67, -1)),
        [],
        r"indices holds -1 in row 13 \(entry 67\)",
    ),
    "an index too large": (
        written(with_value("indices", 199, 40)),
        [],
        r"indices holds 40 in row 39 .*from 0 to 39",
    ),
    "an index far too large": (
        written(with_value("indices", 3, 2**63, np.uint64)),
        [],
        r"indices holds 9223372036854775808 in row 0",
    ),
    "an index that wraps": (
        written(with_value("indices", 3, 2**32 + 1, np.int64)),
        [],
        r"indices holds 4294967297 in row 0",
    ),
    "float indices": (
        written(changed(indices=GRAPH.indices.astype(np.float32))),
        [],
        r"indices has dtype float32; integers",
    ),
    "complex weights": (
        written(changed(data=GRAPH.data.astype(np.complex64))),
        [],
        r"data has dtype complex64; weights must be",
    ),
    "words for weights": (
        written(changed(data=np.full(200, "far", "U3"))),
        [],
        r"data has dtype <U3",
    ),
    "NaN": (
        written(with_value("data", 37, np.nan)),
        [],
        rf"the weight of cells \(7, {GRAPH.indices[37]}\) .* is nan; weights must be finite",
    ),
    "NaN in half precision": (
        written(with_value("data", 37, np.nan, np.float16)),
        [],
        rf"the weight of cells \(7, {GRAPH.indices[37]}\) .* is nan",
    ),
    "infinity": (
        written(with_value("data", 0, -np.inf, np.float64), chunk=9, zarr_format=3),
        [],
        rf"the weight of cells \(0, {GRAPH.indices[0]}\) .* is -inf",
    ),
    "infinity by columns": (
        written(with_value("data", 37, np.inf)._replace(layout="csc")),
        [],
        rf"the weight of cells \({GRAPH.indices[37]}, 7\) .* is inf",
    ),
    "NaN among negative weights": (
        written(changed(data=np.where(np.arange(200) == 150, np.nan, -GRAPH.data))),
        [],
        rf"the weight of cells \(30, {GRAPH.indices[150]}\) .* is nan",
    ),
    "half a Blosc chunk": (
        damaged(truncate("indices", 2), chunk=50),
        [],
        r"chunk 2 of \S*/indices does not decode",
    ),
    "half a Blosc chunk of weights": (
        damaged(truncate("data", 3), chunk=50),
        [],
        r"chunk 3 of \S*/data does not decode",
    ),
    "half a Blosc chunk of indptr": (
        damaged(truncate("indptr"), chunk=50),
        [],
        r"chunk 0 of \S*/indptr does not decode",
    ),
    "an empty chunk": (
        damaged(lambda store: os.truncate(chunk_file(store, "data", 1), 0), chunk=50),
        [],
        r"chunk 1 of \S*/data does not decode",
    ),
    "noise for a Blosc chunk": (
        damaged(lambda store: chunk_file(store, "indices", 1).write_bytes(b"\x07" * 90), chunk=50),
        [],
        r"chunk 1 of \S*/indices does not decode",
    ),
    "half a zstd chunk": (
        damaged(truncate("indices", 2), chunk=50, zarr_format=3, codec="zstd"),
        [],
        r"chunk c/2 of \S*/indices does not decode",
    ),
    "noise for a zstd chunk": (
        damaged(
            lambda store: chunk_file(store, "data", 1).write_bytes(b"\x07" * 90),
            chunk=50,
            zarr_format=3,
            codec="zstd",
        ),
        [],
        r"chunk c/1 of \S*/data does not decode",
    ),
    "a zstd chunk of another size": (
        damaged(
            lambda store: shutil.copy(chunk_file(store, "indptr"), chunk_file(store, "indices")),
            zarr_format=3,
            codec="zstd",
        ),
        [],
        r"chunk c/0 of \S*/indices does not decode: it holds 164 bytes, not 800",
    ),
    "half a gzip chunk": (
        damaged(truncate("indices", 2), chunk=50, codec="gzip"),
        [],
        r"chunk 2 of \S*/indices does not decode",
    ),
    "a gzip chunk with changed bytes": (
        damaged(scribble("indices", 2), chunk=50, zarr_format=3, codec="gzip"),
        [],
        r"chunk c/2 of \S*/indices does not decode",
    ),
    "a zlib chunk with changed bytes": (
        damaged(scribble("data", 2), chunk=50, codec="zlib"),
        [],
        r"chunk 2 of \S*/data does not decode",
    ),
    "a lzma chunk with changed bytes": (
        damaged(scribble("indptr"), codec="lzma"),
        [],
        r"chunk 0 of \S*/indptr does not decode",
    ),
    "half a plain chunk": (
        damaged(truncate("data", 2), chunk=50, codec="none"),
        [],
        r"chunk 2 of \S*/data does not decode: it has 100 bytes, not 200",
    ),
    "a plain chunk too long": (
        damaged(
            lambda store: os.truncate(chunk_file(store, "indices", 1), 204),
            chunk=50,
            zarr_format=3,
            codec="none",
        ),
        [],
        r"chunk c/1 of \S*/indices does not decode: it has 204 bytes, not 200",
    ),
    "a folder for a chunk": (
        damaged(
            lambda store: (
                chunk_file(store, "data", 1).unlink(),
                chunk_file(store, "data", 1).mkdir(),
            ),
            chunk=50,
        ),
        [],
        r"chunk 1 of \S*/data does not decode",
    ),
    "half a shard": (
        damaged(truncate("indices", 1), chunk=10, shard=50, zarr_format=3),
        [],
        r"chunk c/1 of \S*/indices does not decode",
    ),
    "a shard with a wrong index": (
        damaged(
            lambda store: chunk_file(store, "data").write_bytes(
                chunk_file(store, "data").read_bytes()[:-2] + b"\0\0"
            ),
            chunk=10,
            shard=50,
            zarr_format=3,
        ),
        [],
        r"chunk c/0 of \S*/data does not decode: the checksum of its shard's index",
    ),
    "no chunk of indices": (
        damaged(remove("indices", 1), chunk=50),
        [],
        r"chunk 1 of \S*/indices is missing from the store: as zeros it would link cells",
    ),
    "no chunk of weights": (
        damaged(remove("data", 1), chunk=50),
        [],
        r"chunk 1 of \S*/data is missing from the store: the edges of its 50 entries",
    ),
    "no chunk of indptr": (
        damaged(remove("indptr", 1), chunk=20),
        [],
        r"chunk 1 of \S*/indptr is missing from the store: rows would lose entries",
    ),
    "no first chunk of indptr": (
        damaged(remove("indptr", 0), chunk=20),
        [],
        r"chunk 0 of \S*/indptr is missing from the store: 100 entries lose their rows",
    ),
    "no last chunk of indptr": (
        damaged(remove("indptr", 2), chunk=20),
        [],
        r"chunk 2 of \S*/indptr is missing from the store",
    ),
    "no indptr chunk at all": (
        damaged(remove("indptr", 0)),
        [],
        r"chunk 0 of \S*/indptr is missing|indptr ends at 0",
    ),
    "no shard of indices": (
        damaged(remove("indices", 2), chunk=10, shard=50, zarr_format=3),
        [],
        r"chunk c/2 of \S*/indices is missing",
    ),
    "no shard of weights": (
        damaged(remove("data", 2), chunk=10, shard=50, zarr_format=3),
        [],
        r"chunk c/2 of \S*/data is missing",
    ),
    "a memory limit too small": (
        written(GRAPH),
        ["--memory-limit", "50MB"],
        r"the memory limit of 50\.0 MB is too small.*smallest limit that will do is \d+MB",
    ),
}
for _name in ("indptr", "indices", "data"):
    CASES[f"no {_name}"] = (
        damaged(lambda store, name=_name: shutil.rmtree(store / OBSP / name), consolidated=False),
        [],
        rf"obsp/connectivities has no array '{_name}'",
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of another graph, to be copied and then threatened."""
    folder = tmp_path_factory.mktemp("earlier")
    source = write_store(folder / "s.zarr", symmetric_graph(N_CELLS, 3, seed=1))
    export_connectivities(source, folder / "out")
    return folder / "out"


def assert_refused(outcome: Outcome, message: str) -> None:
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("Error: ")
    assert "Traceback" not in outcome.stderr
    assert re.search(message, outcome.stderr), outcome.stderr


@pytest.mark.parametrize("name", CASES)
def test_bad_input(tmp_path, earlier, name):
    build, arguments, message = CASES[name]
    source = build(tmp_path)
    source_before = snapshot(source)
    out_dir = tmp_path / "out"
    shutil.copytree(earlier, out_dir)
    before = snapshot(out_dir)
    beside = sorted(tmp_path.iterdir())

    assert_refused(run("export", source, out_dir, "--force", *arguments), message)
    assert snapshot(out_dir) == before

    assert_refused(run("export", source, tmp_path / "new/out", *arguments), message)
    assert sorted(tmp_path.iterdir()) == beside
    assert snapshot(source) == source_before


@pytest.mark.parametrize("name", ["an index too large", "NaN", "half a zstd chunk", "no such key"])
def test_bad_input_in_a_process(tmp_path, earlier, name):
    build, arguments, message = CASES[name]
    source = build(tmp_path)
    shutil.copytree(earlier, tmp_path / "out")
    before = snapshot(tmp_path)
    outcome = run_process("export", source, tmp_path / "out", "--force", *arguments)
    assert_refused(outcome, message)
    assert snapshot(tmp_path) == before


def test_python_raises_what_the_command_prints(tmp_path):
    with pytest.raises(SourceError, match=r"has no obsp/connectivities"):
        export_connectivities(
            write_store(tmp_path / "a.zarr", GRAPH, key="distances"), tmp_path / "out"
        )
    source = damaged(remove("data", 1), chunk=50)(tmp_path)
    with pytest.raises(DamagedGraphError, match=r"chunk 1 of \S*/data is missing"):
        export_connectivities(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_threads_name_one_error_and_leave_nothing(tmp_path):
    source = write_store(
        tmp_path / "s.zarr", with_value("data", 190, np.nan), chunk=2, write_empty_chunks=True
    )
    outcome = run("export", source, tmp_path / "out", "--threads", 4)
    assert_refused(outcome, rf"\(38, {GRAPH.indices[190]}\) .* is nan")
    assert sorted(tmp_path.iterdir()) == [source]


def hub(n_cells: int) -> sparse.csr_matrix:
    """Return a graph whose every cell has cell 0 as its only neighbor."""
    rows = np.arange(1, n_cells)
    return sparse.csr_matrix(
        (np.ones(n_cells - 1, np.float32), (rows, np.zeros(n_cells - 1, np.int32))),
        shape=(n_cells, n_cells),
    )


@pytest.mark.parametrize(("zarr_format", "shard"), [(2, None), (3, None), (3, 100)])
def test_unwritten_zero_chunks_of_a_hub_are_right(tmp_path, zarr_format, shard):
    matrix = hub(201)
    source = write_store(
        tmp_path / "s.zarr", matrix, chunk=50, shard=shard, zarr_format=zarr_format
    )
    assert not chunk_file(source, "indices", 0).exists()
    assert chunk_file(source, "data", 0).exists()
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", matrix)


def test_unwritten_zero_chunk_of_indptr_is_right(tmp_path):
    # The first twenty rows are empty: zeros from end to end in their chunk of indptr.
    rows = np.repeat(np.arange(21, 40), 2)
    columns = (np.arange(rows.size) * 7) % 20
    matrix = sparse.csr_matrix((np.ones(rows.size), (rows, columns)), shape=(40, 40))
    source = write_store(tmp_path / "s.zarr", matrix, chunk=20)
    assert not chunk_file(source, "indptr", 0).exists()
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", matrix)


def test_unwritten_zero_shard_part_of_weights_is_right(tmp_path):
    # Inside a shard the writer notes that a chunk is all zeros, so it cannot have been lost.
    data = GRAPH.data.copy()
    data[10:20] = 0
    matrix = changed(data=data)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=10, shard=50, zarr_format=3)
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", matrix)


def test_unwritten_zero_weights_are_refused_with_a_way_out(tmp_path):
    data = GRAPH.data.copy()
    data[50:100] = 0
    matrix = changed(data=data)
    source = write_store(tmp_path / "a.zarr", matrix, chunk=50)
    assert_refused(run("export", source, tmp_path / "out"), r"chunk 1 .*write_empty_chunks")
    source = write_store(tmp_path / "b.zarr", matrix, chunk=50, write_empty_chunks=True)
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", matrix)


def test_an_export_is_not_replaced_without_force(tmp_path, earlier):
    shutil.copytree(earlier, tmp_path / "out")
    source = write_store(tmp_path / "s.zarr", GRAPH)
    before = snapshot(tmp_path)
    assert_refused(run("export", source, tmp_path / "out"), r"already holds an export.*--force")
    assert snapshot(tmp_path) == before
    assert run("export", source, tmp_path / "out", "--force").exit_code == 0
    assert_exported(tmp_path / "out", GRAPH)


@pytest.mark.parametrize("inside", ["", "out", "deep/er/out"])
def test_a_file_where_the_output_folder_should_be(tmp_path, inside):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    outcome = run("export", source, tmp_path / "file" / inside)
    assert_refused(outcome, r"cannot write to .*file.*: Not a directory")
    assert snapshot(tmp_path) == before


def test_a_file_where_the_edge_folder_should_be(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/connectivity").write_text("mine")
    before = snapshot(tmp_path)
    outcome = run("export", source, tmp_path / "out")
    assert_refused(outcome, r"cannot write to .*out: File exists")
    assert snapshot(tmp_path) == before


def test_a_scratch_folder_that_cannot_be_made(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    outcome = run("export", source, tmp_path / "out", "--scratch-dir", tmp_path / "file/scratch")
    assert_refused(outcome, r"cannot write to .*file/scratch: Not a directory")
    assert snapshot(tmp_path) == before


def test_a_new_scratch_folder_does_not_stay(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    outcome = run("export", source, tmp_path / "out", "--scratch-dir", tmp_path / "new/scratch")
    assert outcome.exit_code == 0
    assert not (tmp_path / "new").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a tmpfs, or skip where that is not allowed."""
    with Disks(tmp_path) as disks:
        yield disks.mount


def test_a_read_only_disk(tmp_path, small_disk, earlier):
    disk = small_disk("disk", "size=8m")
    shutil.copytree(earlier, disk / "out")
    source = write_store(tmp_path / "s.zarr", GRAPH)
    before = snapshot(disk)
    small_disk("disk", "size=8m", MS_REMOUNT | MS_RDONLY)
    for out_dir in (disk / "out", disk / "new"):
        outcome = run("export", source, out_dir, "--force")
        assert_refused(outcome, r"cannot write to .*disk/\w+: Read-only file system")
    assert snapshot(disk) == before


def test_a_disk_with_too_little_room_is_refused_before(tmp_path, small_disk):
    disk = small_disk("disk", "size=256k")
    source = write_store(tmp_path / "s.zarr", directed_graph(4000, 15))
    outcome = run("export", source, disk / "out")
    assert_refused(outcome, r"the scratch disk has .* free, but .* may be needed.*--scratch-dir")
    assert snapshot(disk) == {}


def test_a_disk_without_room_for_another_file(tmp_path, small_disk, earlier):
    # Every number of files that the disk can take, until the export fits.
    identity = json.dumps({"stats": {"n_cells": N_CELLS, "n_edges": 7}})
    source = write_store(tmp_path / "s.zarr", GRAPH)
    refused = 0
    for files in range(5, 30):
        disk = small_disk(f"disk-{files}", f"size=8m,nr_inodes={files}")
        try:
            shutil.copytree(earlier, disk / "out")
            (disk / "out/dataset_identity.json").write_text(identity)
        except (shutil.Error, OSError):
            continue
        before = snapshot(disk)
        outcome = run("export", source, disk / "out", "--force")
        if outcome.exit_code == 0:
            break
        assert_refused(outcome, r"the disk of .* is full")
        assert snapshot(disk) == before
        refused += 1
    assert refused > 3
    assert_exported(disk / "out", GRAPH)


def test_identity_stays_when_the_input_is_bad(tmp_path):
    source = written(with_value("data", 37, np.nan))(tmp_path)
    (tmp_path / "out").mkdir()
    identity = json.dumps({"stats": {"n_cells": 40, "n_edges": None}})
    (tmp_path / "out/dataset_identity.json").write_text(identity)
    before = snapshot(tmp_path)
    assert_refused(run("export", source, tmp_path / "out"), r"is nan")
    assert snapshot(tmp_path) == before


def test_two_matrices_one_of_them_bad(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    bad = with_value("indices", 5, 99)
    add_matrix(zarr.open_group(source), bad, key="distances")
    assert_refused(
        run("export", source, tmp_path / "out", "--key", "distances"),
        r"obsp/distances/indices holds 99 in row 1 \(entry 5\)",
    )
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", GRAPH)
