"""Attributes as other languages write them, and files that are named for what they are."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import SourceError
from cellgraph_dask.source.opening import open_source
from tests.helpers.stores import directed_graph, write_store
from tests.oracle import assert_exported
from tests.source.test_hdf5 import GRAPH, write

SMALL = directed_graph(40)
OBSP = "obsp/connectivities"


@pytest.mark.parametrize(
    "encoding",
    [b"csr_matrix", np.array(["csr_matrix"], "S10"), np.array(["csr_matrix"], object),
     np.bytes_(b"csr_matrix"), np.array("csr_matrix", "S10")],
)  # fmt: skip
@pytest.mark.parametrize("attribute", ["encoding-type", "h5sparse_format"])
def test_encodings_of_an_h5ad(tmp_path, encoding, attribute):
    path = write(tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:
        del file[OBSP].attrs["encoding-type"]
        file[OBSP].attrs[attribute] = encoding
    export_connectivities(path, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


SHAPES = [
    np.array([300, 300], "f8"), np.array([300, 300], ">i2"), np.array([[300, 300]]),
    np.array([b"300", b"300"]), np.array(["300", "300"], object), "300 300", "[300, 300]",
    b"(300,300)",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_an_h5ad(tmp_path, shape):
    path = write(tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:
        del file[OBSP].attrs["shape"]
        file[OBSP].attrs["shape"] = shape
    assert open_source(path).n_cells == 300


@pytest.mark.parametrize(
    "shape", [[300.5, 300], [300, float("inf")], ["3e2", "300"], [True, True], [-300, -300],
              [300], [2**60, 2**60], "300", [300, 300, 300]]
)  # fmt: skip
def test_shapes_that_are_none(tmp_path, shape):
    path = write(tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:
        del file[OBSP].attrs["shape"]
        file[OBSP].attrs["shape"] = shape
    with pytest.raises(SourceError, match="two integers are needed"):
        open_source(path)


@pytest.mark.parametrize("shape", [[40.0, 40.0], ["40", "40"], "40 40"])
@pytest.mark.parametrize("encoding", ["csr_matrix", ["csr_matrix"]])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_attributes_of_zarr(tmp_path, zarr_format, shape, encoding):
    store = write_store(tmp_path / "s.zarr", SMALL, zarr_format=zarr_format, consolidated=False)
    path = store / OBSP / (".zattrs" if zarr_format == 2 else "zarr.json")
    document = json.loads(path.read_text())
    inner = document if zarr_format == 2 else document["attributes"]
    inner.update({"shape": shape, "encoding-type": encoding})
    path.write_text(json.dumps(document))
    assert open_source(store).n_cells == 40


def archive_of(path: Path, folder: Path) -> dict[str, Path]:
    raw = path.read_bytes()
    made = {}
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        made[suffix] = folder / f"s.h5ad{suffix}"
        made[suffix].write_bytes(pack(raw))
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")):
        made[suffix] = folder / f"s{suffix}"
        with tarfile.open(made[suffix], mode) as archive:
            archive.add(path, "s.h5ad")
    made[".zip"] = folder / "s.zip"
    with zipfile.ZipFile(made[".zip"], "w") as archive:
        archive.write(path, "folder/s.h5ad")
    return made


def test_archives_are_named_for_what_they_are(tmp_path):
    words = {
        ".gz": "compressed with gzip.*gunzip", ".bz2": "compressed with bzip2.*bunzip2",
        ".xz": "compressed with xz.*unxz", ".tar": "a tar archive, .*tar -xf",
        ".tar.gz": "a tar archive compressed with gzip.*tar -xf",
        ".tgz": "a tar archive compressed with gzip.*tar -xf",
        ".zip": r"a zip archive of folder/s\.h5ad.*unzip",
    }  # fmt: skip
    for suffix, path in archive_of(write(tmp_path / "s.h5ad"), tmp_path).items():
        with pytest.raises(SourceError, match=words[suffix]):
            plan_export(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("edges.csv", "a table"), ("edges.mtx", "a table"), ("s.rds", "a file of R"),
     ("what.bin", "not a zarr store")],
)  # fmt: skip
def test_other_files(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"1,2\n")
    with pytest.raises(SourceError, match=words):
        plan_export(tmp_path / name)


def test_loom_files(tmp_path):
    path = tmp_path / "s.loom"
    with h5py.File(path, "w") as file:
        file["matrix"] = np.zeros((5, 40))
        graph = file.create_group("col_graphs/KNN")
        for name, values in (("a", [1, 2]), ("b", [2, 3]), ("w", [1.0, 1.0])):
            graph[name] = values
    with pytest.raises(SourceError, match=r"a loom file.*col_graphs hold KNN.*coo_array"):
        plan_export(path)


REFUSED = PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("kind", ["zarr", "zip", "h5ad", "h5ad with filters"])
def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch, kind):
    if kind == "zarr":
        path = write_store(tmp_path / "s.zarr", SMALL)
    elif kind == "zip":
        store = write_store(tmp_path / "s.zarr", SMALL)
        path = tmp_path / "s.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in store.rglob("*"):
                archive.write(file, file.relative_to(store))
    else:
        options = {"chunks": (99,), "compression": "gzip"} if "filters" in kind else {}
        path = write(tmp_path / "s.h5ad", **options)
    source = open_source(path)
    real = os.open

    def refuse(file, *arguments, **more):
        if str(path) in str(file):
            raise REFUSED
        return real(file, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    out = np.empty(5, source.data.dtype)
    with pytest.raises(SourceError, match="cannot be read: Permission denied") as told:
        source.data.read(0, 5, out)
    assert "damaged" not in str(told.value)


LOCKED = """
import h5py, sys
with h5py.File(sys.argv[1], "r+") as file:
    print("open", flush=True)
    input()
"""


def test_a_file_that_is_open_elsewhere(tmp_path):
    path = write(tmp_path / "s.h5ad")
    command = [sys.executable, "-c", LOCKED, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(SourceError, match="open for writing in another program") as told:
            plan_export(path)
        assert "opy it again" not in str(told.value)
        other.communicate(b"\n")
    assert plan_export(path).n_cells == 300
