"""Stores that mean harm: refused by name, in little memory, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from tests.benchmarks.measure import run_measured
from tests.helpers.command import run
from tests.helpers.stores import chunk_file, directed_graph, snapshot, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph(40)
OBSP = "obsp/connectivities"
LIMIT = 400_000_000
GIGABYTE = 2**30
CHUNK = 1_000_000  # values; so large that the bombs pass for its file
HARMED: list[str] = []


def harm(word: str) -> None:
    HARMED.append(word)


class Harmful:
    """What calls `harm` when it is unpickled."""

    def __reduce__(self) -> Any:
        return harm, ("unpickled",)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change fields of a metadata file."""

    def damage(store: Path) -> None:
        path = store / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def deflated_zeros(wbits: int) -> bytes:
    """Return a gigabyte of zeros, compressed."""
    deflate = zlib.compressobj(9, wbits=wbits)
    block = bytes(2**26)
    parts = [deflate.compress(block) for _ in range(GIGABYTE // len(block))]
    return b"".join([*parts, deflate.flush()])


def zstd_zeros() -> bytes:
    """Return a zstd frame of four gigabytes that does not say so: one repeated byte a block."""
    n_blocks = GIGABYTE // 2**17
    blocks = [
        struct.pack("<I", (2**17 << 3) | (1 << 1) | (k == n_blocks - 1))[:3] + b"\0"
        for k in range(n_blocks)
    ]
    return b"\x28\xb5\x2f\xfd" + bytes([0, 0x58]) + b"".join(blocks)


BOMBS: dict[str, tuple[dict[str, Any], Callable[[], bytes], str]] = {
    "gzip": ({"codec": "gzip"}, lambda: deflated_zeros(31), "holds more than 4000000 bytes"),
    "zlib": ({"codec": "zlib"}, lambda: deflated_zeros(15), "holds more than 4000000 bytes"),
    "bz2": (
        {"codec": "bz2"},
        lambda: numcodecs.BZ2(level=9).encode(np.zeros(2**28, np.uint8)),
        "holds more than 4000000 bytes",
    ),
    "lzma": (
        {"codec": "lzma"},
        lambda: numcodecs.LZMA().encode(np.zeros(2**29, np.uint8)),
        "holds more than 4000000 bytes",
    ),
    "zstd that does not say": ({"codec": "zstd"}, zstd_zeros, "does not decode"),
    "zstd that says": (
        {"codec": "zstd"},
        lambda: b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", GIGABYTE) + b"\x01\x00\x00",
        f"holds {GIGABYTE} bytes, not 4000000",
    ),
    "zstd that says too little": (
        {"codec": "zstd"},
        lambda: numcodecs.Zstd().encode(np.zeros(3_999_996, np.uint8)),
        "holds 3999996 bytes, not 4000000",
    ),
    "blosc that says": (
        {},
        lambda: struct.pack("<BBBBIII", 2, 1, 33, 4, 2**31 - 17, 2**20, 20) + bytes(4),
        f"holds {2**31 - 17} bytes, not 4000000",
    ),
    "blosc with huge blocks": (
        {},
        lambda: struct.pack("<BBBBIII", 2, 1, 33, 4, 4_000_000, 2**31 - 1, 20) + bytes(4),
        "blocks of 2147483647 bytes",
    ),
    "lz4 that says": (
        {"codec": "lz4"},
        lambda: struct.pack("<I", 2**31 - 1) + bytes(40),
        f"holds {2**31 - 1} bytes, not 4000000",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(tmp_path, name):
    options, make, message = BOMBS[name]
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False, **options)
    edit(f"{OBSP}/indices/.zarray", chunks=[CHUNK])(source)
    bomb = make()
    assert len(bomb) < 4 * CHUNK
    chunk_file(source, "indices").write_bytes(bomb)
    measured = run_measured(
        [sys.executable, "-m", "cellgraph_dask", "export", source, tmp_path / "out",
         "--memory-limit", LIMIT]
    )  # fmt: skip
    assert measured.returncode == 1, measured.stderr
    assert message in measured.stderr
    assert "Traceback" not in measured.stderr
    assert measured.peak_rss_bytes < LIMIT
    assert not (tmp_path / "out").exists()


def test_a_file_far_larger_than_its_chunk_is_not_read(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH, codec="gzip")
    os.truncate(chunk_file(source, "data"), 2**40)
    outcome = run("export", source, tmp_path / "out")
    assert f"data does not decode: it has {2**40} bytes for 800 bytes" in outcome.stderr


def two_to_the_62(store: Path) -> None:
    for name in ("indices", "data"):
        edit(f"{OBSP}/{name}/.zarray", shape=[2**62])(store)


def huge_but_allowed(n_cells: int, n_entries: int) -> Callable[[Path], None]:
    """Say that the matrix has so many cells and entries; most of its chunks are not there."""

    def damage(store: Path) -> None:
        edit(f"{OBSP}/.zattrs", shape=[n_cells, n_cells])(store)
        edit("obs/_index/.zarray", shape=[n_cells])(store)
        edit(f"{OBSP}/indptr/.zarray", shape=[n_cells + 1])(store)
        for name in ("indices", "data"):
            edit(f"{OBSP}/{name}/.zarray", shape=[n_entries])(store)

    return damage


def deep(store: Path) -> None:
    (store / OBSP / ".zattrs").write_text("[" * 100_000 + "]" * 100_000)


def long_attributes(store: Path) -> None:
    with (store / OBSP / ".zattrs").open("a") as file:
        file.write(" " * 2**25)


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something that is no file in the place of one."""

    def damage(store: Path) -> None:
        (store / name).unlink()
        make(store / name)

    return damage


def twice(store: Path) -> None:
    path = store / OBSP / "indices/.zarray"
    path.write_text(path.read_text().rstrip()[:-1] + ', "dtype": "<f8"}')


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "2^62 entries": (two_to_the_62, r"has 4611686018427387904 values"),
    "2^100 entries": (
        edit(f"{OBSP}/indices/.zarray", shape=[2**100]),
        r"indices has \d+ values|metadata of",
    ),
    "2^47 cells": (huge_but_allowed(2**47, 200), r"memory limit|indptr is missing"),
    "2^45 entries": (huge_but_allowed(40, 2**45), r"memory limit|indptr ends at 200"),
    "2^36 cells, none of their rows": (
        huge_but_allowed(2**36, 200),
        r"memory limit|chunk \d+ of \S*/indptr is missing",
    ),
    "a chunk of 2^40": (
        edit(f"{OBSP}/indices/.zarray", chunks=[2**40]),
        r"the memory limit of 400 MB is too small",
    ),
    "an indptr chunk of 2^31": (
        edit(f"{OBSP}/indptr/.zarray", chunks=[2**31]),
        r"the memory limit of 400 MB is too small",
    ),
    "a chunk of 2^62": (edit(f"{OBSP}/data/.zarray", chunks=[2**62]), r"values in a chunk"),
    "chunks of nothing": (edit(f"{OBSP}/data/.zarray", chunks=[0]), r"connectivities/data"),
    "chunks of less": (edit(f"{OBSP}/data/.zarray", chunks=[-5]), r"connectivities/data"),
    "a shape of NaN": (
        edit(f"{OBSP}/indices/.zarray", shape=[float("nan")]),
        r"metadata of obsp/connectivities/indices",
    ),
    "a shape below zero": (edit(f"{OBSP}/indptr/.zarray", shape=[-1]), r"connectivities/indptr"),
    "no shape": (edit(f"{OBSP}/indices/.zarray", shape=None), r"connectivities/indices"),
    "a matrix of NaN": (edit(f"{OBSP}/.zattrs", shape=[float("nan")] * 2), r"shape \[nan, nan\]"),
    "a matrix of true": (edit(f"{OBSP}/.zattrs", shape=[True, True]), r"shape \[True, True\]"),
    "a matrix of 2^70": (edit(f"{OBSP}/.zattrs", shape=[2**70] * 2), r"two integers are needed"),
    "a list for a type": (
        edit(f"{OBSP}/.zattrs", **{"encoding-type": [["csr_matrix"]]}),
        r"encoding-type \[\['csr_matrix'\]\]",
    ),
    "attributes that are a list": (
        lambda store: (store / OBSP / ".zattrs").write_text("[1]"),
        r"metadata of obsp/connectivities",
    ),
    "an index beyond the store": (
        edit("obs/.zattrs", _index="../../../etc"),
        r"metadata of obs/\.\./\.\./\.\./etc cannot be used",
    ),
    "deep metadata": (deep, r"RecursionError"),
    "32 MB of attributes": (long_attributes, r"\.zattrs has 33,\d+,\d+ bytes"),
    "a pipe for a chunk": (
        instead(f"{OBSP}/indices/0", os.mkfifo),
        r"indices does not decode: it is not a file",
    ),
    "zeros without end for a chunk": (
        instead(f"{OBSP}/data/0", lambda path: path.symlink_to("/dev/zero")),
        r"data does not decode: it is not a file",
    ),
    "a pipe for metadata": (instead(f"{OBSP}/indices/.zarray", os.mkfifo), r"is not a file"),
    "a chunk that links to itself": (
        instead(f"{OBSP}/data/0", lambda path: path.symlink_to(path.name)),
        r"chunk 0 of \S*/data does not decode",
    ),
    "a dtype twice": (twice, r"indices has dtype float64"),
    "objects": (
        edit(f"{OBSP}/data/.zarray", dtype="|O", filters=[{"id": "pickle"}], fill_value=None),
        r"connectivities/data",
    ),
    "pickle for a compressor": (
        edit(f"{OBSP}/data/.zarray", compressor={"id": "pickle"}),
        r"data is encoded with 'pickle', which is not for numbers|data cannot be used \(.*pickle",
    ),
    "pickle for a filter": (
        edit(f"{OBSP}/data/.zarray", filters=[{"id": "pickle"}]),
        r"data is encoded with 'pickle', which is not for numbers|data cannot be used \(.*pickle",
    ),
    "two compressors": (
        edit(f"{OBSP}/data/.zarray", filters=[{"id": "zlib", "level": 1}]),
        r"chunk 0 of \S*/data does not decode",  # it was not written with both
    ),
    "missing fields": (
        lambda store: (store / OBSP / "indices/.zarray").write_text(
            '{"zarr_format": 2, "shape": [200]}'
        ),
        r"the metadata of obsp/connectivities/indices cannot be used \(KeyError",
    ),
    "all fields missing": (
        lambda store: (store / OBSP / "indices/.zarray").write_text('{"zarr_format": 2}'),
        r"indices is not a one-dimensional array by its metadata",  # zarr takes it for a group
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_stores_are_refused(tmp_path, name):
    damage, message = CASES[name]
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    damage(source)
    measured = run_measured(
        [sys.executable, "-m", "cellgraph_dask", "export", source, tmp_path / "out",
         "--memory-limit", LIMIT]
    )  # fmt: skip
    assert measured.returncode == 1, measured.stderr
    assert measured.stderr.startswith("Error: ")
    assert "Traceback" not in measured.stderr
    assert len(measured.stderr) < 1200
    assert re.search(message, measured.stderr), measured.stderr
    assert measured.peak_rss_bytes < LIMIT
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["compressor", "filters"])
def test_no_pickle_is_loaded(tmp_path, field):
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    codec = {"id": "pickle"}
    for name in ("indptr", "indices", "data"):
        settings = {"compressor": codec} if field == "compressor" else {
            "compressor": None, "filters": [codec]}  # fmt: skip
        edit(f"{OBSP}/{name}/.zarray", **settings)(source)
        chunk_file(source, name).write_bytes(pickle.dumps(Harmful()))
    HARMED.clear()
    assert run("export", source, tmp_path / "out").exit_code == 1
    assert HARMED == []
    pickle.loads(chunk_file(source, "data").read_bytes())
    assert HARMED == ["unpickled"]


def test_a_pickled_obs_is_not_loaded(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    edit("obs/_index/.zarray", dtype="|O", filters=[{"id": "pickle"}], fill_value=None)(source)
    (source / "obs/_index/0").write_bytes(pickle.dumps(Harmful()))
    HARMED.clear()
    outcome = run("export", source, tmp_path / "out")
    assert outcome.exit_code == 0 or "metadata of obs/_index" in outcome.stderr
    assert HARMED == []


def test_linked_chunks_are_read(tmp_path):
    # Data managers such as git-annex keep large files elsewhere.
    source = write_store(tmp_path / "s.zarr", GRAPH)
    path = chunk_file(source, "indices")
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path)
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", GRAPH)
    shutil.rmtree(tmp_path / "out")
    assert snapshot(tmp_path) == before


def filtered(tmp_path: Path, filters: dict[str, list[Any]], compressor: Any) -> Path:
    """Write the good graph with filters on its arrays."""
    path = write_store(tmp_path / "s.zarr", GRAPH, consolidated=False)
    group = zarr.open_group(path)[OBSP]
    for name in ("indptr", "indices", "data"):
        values = getattr(GRAPH, name)
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(50,), fill_value=0,
            filters=filters.get(name), compressors=compressor, overwrite=True,
        )  # fmt: skip
        array[:] = values
    return path


@pytest.mark.parametrize(
    "compressor", [None, numcodecs.Zlib(level=1), numcodecs.Blosc(), numcodecs.Zstd()], ids=str
)
@pytest.mark.parametrize("kind", ["delta", "narrow delta", "shuffle", "checksums"])
def test_filters_that_are_read(tmp_path, kind, compressor):
    delta = numcodecs.Delta("<i4", "<i4" if kind == "delta" else "<i2")
    filters: dict[str, list[Any]] = {
        "delta": {"indptr": [delta], "indices": [delta]},
        "narrow delta": {"indptr": [delta], "indices": [delta]},
        "shuffle": {"data": [numcodecs.Shuffle(4)], "indices": [delta, numcodecs.Shuffle(2)]},
        "checksums": {"data": [numcodecs.CRC32()], "indices": [numcodecs.Adler32()],
                      "indptr": [numcodecs.Fletcher32()]},
    }[kind]  # fmt: skip
    source = filtered(tmp_path, filters, compressor)
    assert run("export", source, tmp_path / "out").exit_code == 0
    assert_exported(tmp_path / "out", GRAPH)
    path = chunk_file(source, "indices", 1)
    raw = bytearray(path.read_bytes())
    raw.append(7)
    path.write_bytes(raw)
    outcome = run("export", source, tmp_path / "out", "--force")
    assert "chunk 1 of obsp/connectivities/indices does not decode" in outcome.stderr
    assert_exported(tmp_path / "out", GRAPH)
