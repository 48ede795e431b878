"""Exports to Parquet by the public functions: the same bytes always, all of them or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgraph_dask import export_connectivities, open_export, plan_export, verify_export
from cellgraph_dask.delivery import parquet
from cellgraph_dask.edge_pairs import parquet_io
from cellgraph_dask.errors import OutputError, ResumeError, SourceError
from cellgraph_dask.export.run import is_interrupted
from cellgraph_dask.plan import plan as plans
from cellgraph_dask.publish.whole import work_beside
from cellgraph_dask.runtime.stage import Journal
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from tests.benchmarks.make_store import make_store
from tests.helpers.command import run
from tests.helpers.exporting import run_export
from tests.helpers.stores import snapshot, write_store
from tests.helpers.tables import wanted

pq = pytest.importorskip("pyarrow.parquet")
N = 300
DIRECTED = sp.random(N, N, density=0.03, format="csr", random_state=0, dtype=np.float32)
SYMMETRIC = sp.csr_matrix(DIRECTED.maximum(DIRECTED.T))
SYMMETRIC.setdiag(0)
SYMMETRIC.eliminate_zeros()


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "s.zarr", DIRECTED)


def read(path: Path) -> dict[str, list]:
    """Return the columns of a file."""
    with pq.ParquetFile(path) as file:
        return file.read().to_pydict()


@pytest.mark.parametrize("directions", ["one", "both"])
@pytest.mark.parametrize(("weights", "rule"), [(False, None), (False, "min"), (True, "mean")])
def test_the_graph_of_scipy(tmp_path, store, directions, weights, rule):
    out_dir = tmp_path / "out"
    options = {"format": "parquet", "directions": directions, "weights": weights, "rule": rule}
    plan = plan_export(store, out_dir, **options)
    assert not out_dir.exists()
    report = export_connectivities(store, out_dir, **options)
    assert report.peak_memory_bytes <= plan.projected_memory_bytes
    assert report.output_bytes == (out_dir / "edges-00000.parquet").stat().st_size
    src, dst, values = wanted(DIRECTED, rule or "ones", both=directions == "both")
    found = read(out_dir / "edges-00000.parquet")
    assert (found["src"], found["dst"]) == (src.tolist(), dst.tolist())
    assert found.get("weight") == (values.tolist() if weights else None)
    assert report.n_edges == src.size // (1 + (directions == "both"))
    verified = verify_export(out_dir, source=store)
    assert verified.ok, verified.problems
    assert verified.max_neighbors == report.max_neighbors
    assert verified.provenance.source == os.path.realpath(store)
    with open_export(out_dir) as graph:
        assert graph.n_edges == report.n_edges


@pytest.mark.parametrize("directions", ["one", "both"])
def test_bytes_are_the_same_by_every_method_and_size(tmp_path, monkeypatch, directions):
    monkeypatch.setattr(parquet, "FILE_ROWS", 1000)
    store = write_store(tmp_path / "s.zarr", SYMMETRIC, chunk=200)
    options = {"format": "parquet", "directions": directions, "weights": True, "rule": "max"}
    results = []
    for k, (method, tuning) in enumerate(
        [
            ("symmetric", Tuning(400, 400, 100, 8, 2)),
            ("general", Tuning(400, 400, 900, 8, 1)),
            ("general", Tuning(4000, 4000, 90000, 8, 3, True)),
        ]
    ):
        out_dir = tmp_path / str(k)
        report = run_export(open_source(store), out_dir, method=method, tuning=tuning, **options)
        assert report.symmetric == (method == "symmetric")
        results.append(snapshot(out_dir))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) > 3
    strict = tmp_path / "strict"
    export_connectivities(store, strict, format="parquet", directions=directions, weights=True)
    assert verify_export(strict, source=store).ok


def test_weights_without_a_rule_must_be_symmetric(tmp_path, store):
    with pytest.raises(SourceError):
        export_connectivities(store, tmp_path / "out", format="parquet", weights=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_as_a_whole_and_only_if_it_is_ours(tmp_path, store):
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir, format="parquet")
    before = snapshot(out_dir)
    with pytest.raises(OutputError, match="there already"):
        export_connectivities(store, out_dir, format="parquet", rule="min")
    (out_dir / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="nothing that may be replaced"):
        export_connectivities(store, out_dir, format="parquet", rule="min", force=True)
    (out_dir / "notes.txt").unlink()
    assert snapshot(out_dir) == before
    export_connectivities(store, out_dir, format="parquet", rule="min", force=True)
    assert verify_export(out_dir, source=store).ok
    assert json.loads((out_dir / "_graph.json").read_text())["rule"] == "min"
    assert not work_beside(out_dir).exists()


def test_interrupted_runs_are_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FILE_ROWS", 500)
    store = write_store(tmp_path / "s.zarr", DIRECTED, chunk=200)
    tuning = Tuning(400, 400, 900, 8, 1)
    options = {"format": "parquet", "weights": True, "rule": "sum", "tuning": tuning}
    options["method"] = "general"
    run_export(open_source(store), tmp_path / "whole", **options)
    add, out_dir = Journal.add, tmp_path / "out"
    n_lines, kept = 0, []
    while True:
        left = iter(range(n_lines := n_lines + 5))

        def counted(self, *line, left=left):
            add(self, *line)
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "add", counted)
        try:
            report = run_export(open_source(store), out_dir, resume=True, **options)
            break
        except KeyboardInterrupt:
            assert not out_dir.exists()
            assert is_interrupted(out_dir)
            with pytest.raises(ResumeError, match="had rule"):
                run_export(open_source(store), out_dir, resume=True, **options | {"rule": "max"})
            kept.append(n_lines)
    assert len(kept) > 1
    assert report.kept_tasks > 5
    assert snapshot(out_dir) == snapshot(tmp_path / "whole")
    assert not work_beside(out_dir).exists()


def test_nothing_is_left_of_an_export_that_fails(tmp_path, store, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(parquet_io, "write_at", fails)
    with pytest.raises(Exception, match="full"):
        export_connectivities(store, tmp_path / "out", format="parquet")
    assert set(tmp_path.iterdir()) == before


def test_temporary_files_may_be_elsewhere(tmp_path, store):
    scratch = tmp_path / "scratch"
    export_connectivities(store, tmp_path / "out", format="parquet", scratch_dir=scratch)
    assert verify_export(tmp_path / "out", source=store, scratch_dir=scratch).ok
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["out", "s.zarr"],
        ["out", "s.zarr", "scratch"],
    )
    assert not scratch.exists() or not any(scratch.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "format must be one of cellucid, parquet"),
        ({"format": "parquet", "directions": "two"}, "directions must be one of one, both"),
        ({"format": "parquet", "compression": 6}, "Parquet has its own"),
        ({"directions": "both"}, "each edge once"),
        ({"cells_table": True}, "table of cells"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, store, options, message):
    with pytest.raises(ValueError, match=message):
        export_connectivities(store, tmp_path / "out", **options)


def test_urls_are_refused(store):
    with pytest.raises(OutputError, match="this machine"):
        export_connectivities(store, "s3://bucket/out", format="parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"cellgraph-dask\[parquet\]"):
        export_connectivities(store, tmp_path / "out", format="parquet")


def test_the_command_line(tmp_path, store):
    out_dir = tmp_path / "out"
    options = ("--format", "parquet", "--weights", "--rule", "max", "--directions", "both")
    told = run("plan", store, out_dir, *options)
    assert "int32 src and dst, float64 weight; directions: both" in told.stdout
    assert run("export", store, out_dir, *options, "--cells-table").exit_code == 0
    assert read(out_dir / "cells.parquet")["name"][:2] == ["cell-0", "cell-1"]
    told = run("verify", out_dir, "--source", store)
    assert told.exit_code == 0, told
    assert "each one compared, with its weight" in told.stdout
    told = run("inspect", out_dir)
    assert "is an export" in told.stdout
    for wrong in (("--directions", "both"), ("--format", "parquet", "--compression", "6")):
        assert run("export", store, tmp_path / "other", *wrong).exit_code == 2


def with_cells(names, **obsm) -> ad.AnnData:
    return ad.AnnData(
        obs=pd.DataFrame(index=pd.Index(names)), obsp={"connectivities": DIRECTED}, obsm=obsm
    )


NAMES = [f"Zelle-{k}-ä" for k in range(N)]
UMAP = np.random.default_rng(0).random((N, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", ["zarr", "h5ad", "memory"])
def test_cells_have_numbers_names_and_places(tmp_path, kind):
    source: object = with_cells(NAMES, X_umap=UMAP, X_pca=np.zeros((N, 5)))
    if kind == "zarr":
        source.write_zarr(tmp_path / "s.zarr")
        source = tmp_path / "s.zarr"
    elif kind == "h5ad":
        source.write_h5ad(tmp_path / "s.h5ad")
        source = tmp_path / "s.h5ad"
    out_dir = tmp_path / "out"
    export_connectivities(source, out_dir, format="parquet", cells_table=True)
    found = read(out_dir / "cells.parquet")
    assert found["cell"] == list(range(N))
    assert found["name"] == NAMES
    np.testing.assert_array_equal(np.array([found["x"], found["y"]], np.float32).T, UMAP)
    assert "z" not in found
    assert verify_export(out_dir, source=source).ok


def _index_as(store, kind) -> None:
    """Write the index of obs in another way."""
    import zarr

    obs = zarr.open_group(store, mode="r+", use_consolidated=False)["obs"]
    del obs["_index"]
    if kind == "categorical":
        group = obs.create_group("_index", attributes={"encoding-type": "categorical"})
        group.create_array("codes", data=np.arange(N)[::-1].astype(np.int16) - 1)
        names = np.array(NAMES, dtype=np.dtypes.StringDType())
        group.create_array("categories", data=names)
    elif kind == "nullable":
        group = obs.create_group("_index", attributes={"encoding-type": "nullable-string-array"})
        group.create_array("values", data=np.array(NAMES, dtype=np.dtypes.StringDType()))
        group.create_array("mask", data=np.arange(N) == 3)
    elif kind == "numbers":
        obs.create_array("_index", data=np.arange(N) * 2)
    elif kind == "short":
        obs.create_array("_index", data=np.arange(N - 1))


@pytest.mark.parametrize("kind", ["categorical", "nullable", "numbers", "absent", "short"])
def test_names_of_every_kind(tmp_path, kind):
    store = write_store(tmp_path / "s.zarr", DIRECTED, zarr_format=3)
    _index_as(store, kind)
    out_dir = tmp_path / "out"
    if kind in ("absent", "short"):
        with pytest.raises(SourceError):
            export_connectivities(store, out_dir, format="parquet", cells_table=True)
        assert not out_dir.exists()
        return
    export_connectivities(store, out_dir, format="parquet", cells_table=True)
    names = read(out_dir / "cells.parquet")["name"]
    expected = {
        "categorical": [*NAMES[: N - 1][::-1], None],
        "nullable": [*NAMES[:3], None, *NAMES[4:]],
        "numbers": [str(2 * k) for k in range(N)],
    }[kind]
    assert names == expected


def test_names_of_files_before_anndata_0_7(tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        obs = np.zeros(N, [("index", "S12"), ("leiden", "i1")])
        obs["index"] = [f"c{k}" for k in range(N)]
        file["obs"] = obs
        group = file.create_group("uns/neighbors/connectivities")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = DIRECTED.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(DIRECTED, name)
    export_connectivities(path, tmp_path / "out", format="parquet", cells_table=True)
    found = read(tmp_path / "out" / "cells.parquet")
    assert found == {"cell": list(range(N)), "name": [f"c{k}" for k in range(N)]}


def test_a_matrix_alone_has_no_names(tmp_path):
    with pytest.raises(SourceError, match="without the names"):
        export_connectivities(DIRECTED, tmp_path / "out", format="parquet", cells_table=True)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_same_bytes_on_a_cluster(tmp_path, store):
    from distributed import Client, LocalCluster

    options = {"format": "parquet", "weights": True, "rule": "mean", "directions": "both"}
    export_connectivities(store, tmp_path / "threads", **options)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit="1GB", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        export_connectivities(store, tmp_path / "cluster", client=client, **options)
    assert snapshot(tmp_path / "cluster") == snapshot(tmp_path / "threads")


def test_a_small_disk_is_not_refused_for_files_that_get_smaller(tmp_path, store, monkeypatch):
    plan = plan_export(store, tmp_path / "out", format="parquet", weights=True, rule="max")
    assert plan.output_bytes == DIRECTED.nnz * 16
    monkeypatch.setattr(plans, "free_bytes", lambda _: plan.scratch_bytes + 1)
    export_connectivities(store, tmp_path / "out", format="parquet", weights=True, rule="max")


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_comes_to_the_same_files(tmp_path):
    """It is killed in every stage, while files are written too, and replaces an older folder."""
    store = make_store(
        tmp_path / "s.zarr", n_cells=60_000, n_neighbors=15, kind="directed", order="random",
        zarr_format=2, chunk=9_000,
    )  # fmt: skip
    options = {"format": "parquet", "weights": True, "rule": "max", "directions": "both"}
    options["memory_limit"] = "4GB"
    export_connectivities(store, tmp_path / "whole", **options)
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir, format="parquet")
    before = snapshot(out_dir)
    command = [sys.executable, "-m", "cellgraph_dask", "export", str(store), str(out_dir)]
    command += ["--format", "parquet", "--weights", "--rule", "max", "--directions", "both"]
    command += ["--memory-limit", "600MB", "--force", "--resume"]
    n_killed, n_bytes = 0, 300
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None:
            journals = work_beside(out_dir).glob("journal-*")
            if any(path.stat().st_size > n_bytes for path in journals):
                time.sleep(0.02 * n_killed)  # a while into the task, and into the next
                process.kill()
                break
            time.sleep(0.001)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        n_killed, n_bytes = n_killed + 1, 3 * n_bytes
        assert snapshot(out_dir) == before
    assert n_killed > 1
    assert snapshot(out_dir) == snapshot(tmp_path / "whole")
    assert not work_beside(out_dir).exists()
