"""`inspect` says what is at a path."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import zlib
from contextlib import ExitStack
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from scipy import sparse

from cellgraph_dask import export_connectivities, inspect_path, symmetrize_connectivities
from cellgraph_dask.cli.group import command_to_resume
from cellgraph_dask.errors import SourceError
from cellgraph_dask.runtime.stage import Journal
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from tests.helpers.command import run
from tests.helpers.exporting import run_export
from tests.helpers.planting import plant
from tests.helpers.servers import serving
from tests.helpers.stores import add_matrix, directed_graph, symmetric_graph, write_store


def line_of(values) -> bytes:
    """Return a line of a journal, as whole as any."""
    text = json.dumps(values).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_a_store(tmp_path):
    store = write_store(
        tmp_path / "s.zarr", symmetric_graph(40, 5), chunk=64, consolidated=False,
        obsm={"X_umap": np.zeros((40, 2), "f4")},
    )  # fmt: skip
    root = zarr.open_group(store, mode="r+")
    add_matrix(root, directed_graph(40, 5).tocsc(), key="distances", codec="zstd")
    root["obsp"].create_array("dense", data=np.zeros((40, 40)))
    root["obsp"].create_group("broken", attributes={"encoding-type": "csr_matrix"})
    report = inspect_path(store)
    assert (report.kind, report.zarr_format) == ("store", 2)
    assert report.embeddings == ("obsm/X_umap",)
    broken, connectivities, dense, distances = report.matrices
    assert "metadata cannot be used" in broken.problem
    assert connectivities.format == "csr_matrix"
    assert connectivities.shape == (40, 40)
    assert connectivities.n_entries == symmetric_graph(40, 5).nnz
    assert (connectivities.dtype, connectivities.index_dtype) == ("float32", "int32")
    assert (connectivities.chunk, connectivities.shard) == (64, None)
    assert connectivities.codec == "blosc (lz4)"
    assert (distances.format, distances.n_entries, distances.codec) == ("csc_matrix", 200, "zstd")
    assert (dense.shape, dense.n_entries) == ((40, 40), None)
    text = run("inspect", store).stdout
    for part in ("zarr store, format 2", "obsp/distances", "40 by 40", "64 entries, blosc (lz4)"):
        assert part in text
    as_json = json.loads(run("inspect", store, "--json").stdout)
    assert as_json["matrices"][1]["n_entries"] == connectivities.n_entries


def test_a_sharded_store_of_format_3(tmp_path):
    store = write_store(
        tmp_path / "s.zarr",
        symmetric_graph(40, 5),
        zarr_format=3,
        chunk=32,
        shard=128,
        codec="zstd",
    )
    (matrix,) = inspect_path(store).matrices
    assert (matrix.chunk, matrix.shard, matrix.codec) == (32, 128, "zstd")
    assert "32 entries in shards of 128, zstd" in run("inspect", store).stdout


def test_a_store_without_matrices(tmp_path):
    zarr.open_group(tmp_path / "s.zarr", mode="w")
    assert inspect_path(tmp_path / "s.zarr").matrices == ()
    assert "obsp holds no matrix" in run("inspect", tmp_path / "s.zarr").stdout


@pytest.mark.parametrize("table", ["tables/table", "mod/rna"])
def test_the_matrices_of_tables_and_modalities(tmp_path, table):
    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    root.create_group(f"{table.split('/')[0]}/a/obsp/strange")
    write_store(tmp_path / "s.zarr" / table, symmetric_graph(40))
    broken = tmp_path / "s.zarr" / f"{table}2/obsp"
    broken.mkdir(parents=True)
    (broken.parent / ".zgroup").write_text('{"zarr_format": 2}')
    (broken / ".zgroup").write_text("{")
    matrices = {m.key: m for m in inspect_path(tmp_path / "s.zarr").matrices}
    assert matrices[f"{table}/obsp/connectivities"].shape == (40, 40)
    assert len(matrices) == 3
    assert sum(m.problem is not None for m in matrices.values()) == 2
    shown = run("inspect", tmp_path / "s.zarr").stdout
    assert f"{table}/obsp/connectivities" in shown
    assert "no matrix" not in shown


def test_an_export(tmp_path):
    store = write_store(tmp_path / "s.zarr", sparse.block_diag([symmetric_graph()] * 2, "csr"))
    export_connectivities(store, tmp_path / "out")
    report = inspect_path(tmp_path / "out")
    assert report.kind == "export"
    assert report.export.ok
    assert report.export.n_components == 2
    assert report.export.largest_component == 40
    outcome = run("inspect", tmp_path / "out")
    assert "is an export." in outcome.stdout
    assert "components:     2" in outcome.stdout


def test_a_damaged_export(tmp_path):
    out_dir = plant(tmp_path / "out", [(0, 1), (1, 2)], 3)
    (out_dir / "connectivity/edges.src.bin").write_bytes(b"\0\0")
    outcome = run("inspect", out_dir)
    assert outcome.exit_code == 0
    assert "is an export, and it is damaged." in outcome.stdout
    assert outcome.stderr.startswith("Wrong: ")
    assert json.loads(run("inspect", out_dir, "--json").stdout)["export"]["ok"] is False


@pytest.fixture
def scratch(tmp_path, leaves_scratch):
    folder = tmp_path / "out" / ".cellgraph-dask"
    folder.mkdir(parents=True)
    (folder / "split-000000.run").write_bytes(b"12345")
    return folder


@pytest.mark.parametrize("note", [None, b"{", b"[]", b"\xff\xfe"])
def test_a_scratch_folder_without_a_note(scratch, note):
    if note is not None:
        (scratch / "run.json").write_bytes(note)
    for path in (scratch, scratch.parent):
        report = inspect_path(path)
        assert (report.kind, report.path, report.run) == ("scratch", str(scratch), None)
        assert report.n_bytes == 5 + len(note or b"")
    assert "left no record" in run("inspect", scratch).stdout


def test_a_scratch_folder_of_a_run(scratch):
    run_file = {"source": "/data/a.zarr", "key": "obsp/connectivities", "out_dir": "/data/out",
                "method": "general", "version": "0.1.0", "started": "2026-11-22"}  # fmt: skip
    (scratch / "run.json").write_text(json.dumps(run_file))
    assert inspect_path(scratch).run == run_file
    text = run("inspect", scratch).stdout
    assert "scratch folder of a run:" in text
    assert "out dir:        /data/out" in text
    assert "files:          2, " in text


def test_an_export_that_a_run_was_to_replace(scratch):
    plant(scratch.parent, [(0, 1)], 2)
    assert inspect_path(scratch.parent).run is None
    (scratch / "run.json").write_text(json.dumps({"started": "2026-11-22 12:00:00"}))
    assert inspect_path(scratch.parent).kind == "export"
    text = run("inspect", scratch.parent).stdout
    assert "A run to replace it, started 2026-11-22 12:00:00, was interrupted" in text


DIRECTED = directed_graph(3000)
TUNING = Tuning(5000, 3000, 1500, 8, 1, True)  # three blocks


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize(
    ("n", "options", "stopped", "done"),
    [
        (2, {"compression": 6}, "split: 2 of 3 tasks done", None),
        (5, {"weights": True, "rule": "max"}, r"merge: 2 of \d+ tasks done", "split (3 tasks)"),
    ],
)
def test_where_a_run_stopped_and_how_to_resume(
    tmp_path, interrupt_after, monkeypatch, scratch, n, options, stopped, done
):
    monkeypatch.chdir(tmp_path)
    store, out = write_store(tmp_path / "a store.zarr", DIRECTED), tmp_path / "out"
    more = options | ({"scratch_dir": tmp_path / "fast"} if scratch else {})
    interrupt_after(n - 1)
    with pytest.raises(KeyboardInterrupt):
        run_export(open_source(store), out, tuning=TUNING, threads=1, memory_limit="4GB", **more)
    interrupt_after(10**9)
    report = inspect_path(out)
    assert (report.kind, report.running) == ("scratch", False)
    assert report.stages[-1].name == stopped.split(":")[0]
    places = [out, *(tmp_path / "fast").glob("*")]
    assert len(places) == 1 + scratch
    for place in places:
        text = run("inspect", place).stdout
        assert re.search(rf"^stopped at: +{stopped}$", text, re.M), text
        assert (done is None) == ("done:  " not in text)
        assert (done or "") in text
        command = shlex.split(text.rsplit("Resume with:\n", 1)[1])
        assert command[:2] == ["cellgraph-dask", "export"]
    assert json.loads(run("inspect", out, "--json").stdout)["stages"][0]["total"] == 3
    outcome = run(*command[1:], "--memory-limit", "4GB")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{n} finished tasks of the interrupted run were kept" in outcome.stdout
    assert inspect_path(out).export.ok


def test_a_run_that_is_running(tmp_path, monkeypatch):
    store, out, seen = write_store(tmp_path / "s.zarr", DIRECTED), tmp_path / "out", []
    add = Journal.add

    def look(self, *line):
        add(self, *line)
        if not seen:
            seen.append((inspect_path(out), run("inspect", out).stdout))

    monkeypatch.setattr(Journal, "add", look)
    run_export(open_source(store), out, tuning=TUNING, threads=1, memory_limit="4GB")
    ((report, text),) = seen
    assert report.running is True
    assert re.search(r"^is at: +split: 1 of 3 tasks done$", text, re.M)
    assert re.search(rf"^running: +yes: process {os.getpid()} on ", text, re.M)
    assert "Resume" not in text


RUN = {"source": "/a b.zarr", "out_dir": "/out", "key": "mod/rna/obsp/c", "scratch": "/out/x/run-1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compression": None}, ""),
        ({"cells": {"given": "obs:leiden=3"}, "top_k": 5}, "--cells obs:leiden=3 --top-k 5 "),
        ({"format": "parquet", "weights": True, "rule": "max", "directions": "both",
          "cells_table": False}, "--format parquet --weights --rule max --directions both "),
    ],
)  # fmt: skip
def test_the_command_that_resumes_a_run(options, words):
    command = command_to_resume(RUN | {"options": options})
    start = "cellgraph-dask export '/a b.zarr' /out --key mod/rna/obsp/c "
    assert command.startswith(start)
    assert sorted(command.removeprefix(start).split()) == sorted(f"{words}--resume".split())


def test_cells_that_only_python_knows_have_no_command():
    with pytest.raises(ValueError, match="a mask"):
        command_to_resume(RUN | {"options": {"cells": {"given": "a mask"}}})


def test_a_symmetrization_is_resumed_by_its_own_command(tmp_path, interrupt_after):
    store, dest = write_store(tmp_path / "s.zarr", DIRECTED), tmp_path / "new.zarr"
    interrupt_after(0)
    with pytest.raises(KeyboardInterrupt):
        symmetrize_connectivities(store, dest, rule="max", to_key="sym", threads=1)
    interrupt_after(10**9)
    text = run("inspect", dest).stdout
    command = shlex.split(text.rsplit("Resume with:\n", 1)[1])
    expected = ["symmetrize", str(store), str(dest), "--rule", "max", "--to-key", "sym"]
    assert command[1:8] == expected
    assert run(*command[1:]).exit_code == 0


@pytest.mark.parametrize(
    "run_file",
    [
        {"id": "../../etc", "out_dir": "/x", "options": {}},
        {"id": "0" * 8, "out_dir": 3, "source": ["a"], "key": None, "options": 7, "scratch": {}},
        {"id": "0" * 8, "out_dir": "\x1b[31m", "source": "a\nb; rm -rf x", "key": "k",
         "options": {"rule": "$(x)"}, "scratch": "s"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("journal", [b"", b"\xff\n00000000 []\n", line_of(["begun x", 0, ["a"]])])
def test_records_of_strangers(scratch, run_file, journal):
    (scratch / "run.json").write_text(json.dumps(run_file))
    (scratch / "journal-00000000").write_bytes(journal)
    outcome = run("inspect", scratch)
    assert outcome.exit_code == 0
    assert "scratch folder of a run:" in outcome.stdout
    if "Resume" in outcome.stdout:
        assert shlex.split(outcome.stdout.rsplit("Resume with:\n", 1)[1])[2:4] == [
            "a?b; rm -rf x", "?[31m",
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "HTTP", "h5ad", "h5mu"])
def test_whatever_can_be_exported(tmp_path, kind):
    graph, prefix = symmetric_graph(40, 5), ""
    adata = AnnData(obs=pd.DataFrame(index=[str(k) for k in range(40)]))
    adata.obsp["connectivities"], adata.obsp["distances"] = graph, graph * 2
    adata.obsp["dense"] = graph.toarray()
    adata.obsm["X_umap"] = np.zeros((40, 2))
    adata.uns["neighbors"] = {"connectivities_key": "connectivities"}
    zarr_format = None
    with ExitStack() as stack:
        if kind in ("h5ad", "h5mu"):
            source: Any = tmp_path / f"c.{kind}"
            adata.write_h5ad(tmp_path / "c.h5ad", compression="gzip")
            if kind == "h5mu":
                prefix = "mod/rna/"
                with h5py.File(source, "w") as file, h5py.File(tmp_path / "c.h5ad") as other:
                    other.copy("/", file.create_group("mod"), "rna")
        else:
            adata.write_zarr(tmp_path / "s.zarr")  # of which format, its version decides
            zarr_format = 3 if (tmp_path / "s.zarr/zarr.json").exists() else 2
            if kind == "zip":
                source = shutil.make_archive(str(tmp_path / "s"), "zip", tmp_path / "s.zarr")
            else:
                source = f"{stack.enter_context(serving(tmp_path))}/s.zarr"
        report = inspect_path(source)
        assert report.kind == "store"
        assert report.zarr_format == zarr_format
        if not prefix:
            assert [m.key for m in report.matrices] == ["connectivities", "dense", "distances"]
            assert report.embeddings == ("obsm/X_umap",)
            assert report.matrices[1].shape == (40, 40)
        else:
            assert [m.key for m in report.matrices] == [
                f"{prefix}obsp/{name}" for name in ("connectivities", "dense", "distances")
            ]
        key = f"{prefix}obsp/connectivities"
        (matrix,) = inspect_path(source, key=key).matrices
        assert (matrix.n_entries, matrix.format, matrix.dtype) == (
            graph.nnz,
            "csr_matrix",
            "float32",
        )
        assert matrix.codec.startswith({None: "zlib", 2: "blosc", 3: "zstd"}[zarr_format])
        if not prefix:
            assert inspect_path(source, neighbors_key="neighbors").matrices == (matrix,)
        text = run("inspect", source, "--key", key).stdout
        named = "HDF5 file" if kind.startswith("h5") else f"zarr store, format {zarr_format}"
        assert named in text
        assert f"{graph.nnz:,}" in text
        outcome = run("inspect", source, "--key", "nothing")
        assert outcome.exit_code == 1
        assert "has no obsp/nothing" in outcome.stderr


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_anything_else_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(SourceError):
        inspect_path(tmp_path / name)
    outcome = run("inspect", tmp_path / name)
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("Error: ")
