"""The benchmarks themselves, on tiny graphs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr
from scipy import sparse

from tests.benchmarks import convert_store, gzip_levels, outputs, run, source_kinds
from tests.benchmarks.cgroup import CgroupUnavailableError, memory_cgroup
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import run_measured
from tests.benchmarks.peers.peer_job import parse_bytes
from tests.benchmarks.ring_graph import cell_at, place, ring_graph

N_CELLS = 2_000
N_NEIGHBORS = 10
PEERS = Path(__file__).with_name("peers")


def edges(out_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    sides = (out_dir / f"connectivity/edges.{side}.bin" for side in ("src", "dst"))
    sources, destinations = (np.fromfile(path, "<u2") for path in sides)
    return sources, destinations


@pytest.mark.parametrize("kind", ["symmetric", "directed"])
@pytest.mark.parametrize("order", ["random", "spatial"])
@pytest.mark.parametrize(
    ("zarr_format", "chunk", "shard"), [(2, None, None), (3, None, None), (3, 500, 4_000)]
)
def test_anndata_reads_the_store(tmp_path, kind, order, zarr_format, chunk, shard):
    path = make_store(
        tmp_path / "s.zarr",
        n_cells=N_CELLS,
        n_neighbors=N_NEIGHBORS,
        kind=kind,
        order=order,
        zarr_format=zarr_format,
        chunk=chunk,
        shard=shard,
    )
    stored = zarr.open_group(path, mode="r")["obsp/connectivities"]
    assert stored.metadata.zarr_format == zarr_format
    assert stored["indices"].shards == (None if shard is None else (shard,))
    dtypes = [stored[name].dtype for name in ("indptr", "indices", "data")]
    assert dtypes == [np.int32, np.int32, np.float32]

    adata = anndata.read_zarr(path)
    assert adata.obs_names.tolist() == [str(k) for k in range(N_CELLS)]
    matrix = adata.obsp["connectivities"]
    assert isinstance(matrix, sparse.csr_matrix)
    assert matrix.shape == (N_CELLS, N_CELLS)
    assert matrix.has_canonical_format
    assert matrix.data.min() > 0
    assert not matrix.diagonal().any()
    lengths = np.diff(matrix.indptr)
    distance = np.abs(matrix.tocoo().row - matrix.tocoo().col)
    near = np.minimum(distance, N_CELLS - distance) <= 3 * N_NEIGHBORS
    assert near.all() == (order == "spatial")
    if kind == "symmetric":
        assert (matrix != matrix.T).nnz == 0
        assert matrix.data.max() <= 1
        assert len(set(lengths)) > 5
        assert abs(lengths.mean() - N_NEIGHBORS) < 0.05 * N_NEIGHBORS
    else:
        assert set(lengths) == {N_NEIGHBORS}
        mutual = matrix.astype(bool).multiply(matrix.astype(bool).T).nnz / matrix.nnz
        assert 0.4 < mutual < 0.7


@pytest.mark.parametrize("n_cells", [3, 4, 5, 63, 64, 65, 1_000])
def test_random_order_is_a_bijection(n_cells):
    graph = ring_graph(n_cells, 2, kind="symmetric", order="random")
    places = [place(graph, cell) for cell in range(n_cells)]
    assert sorted(places) == list(range(n_cells))
    assert [cell_at(graph, position) for position in places] == list(range(n_cells))


def test_blocks_agree_with_the_whole(tmp_path, monkeypatch):
    options = {"n_cells": N_CELLS, "n_neighbors": N_NEIGHBORS, "chunk": 300}
    whole = make_store(tmp_path / "whole.zarr", **options)
    monkeypatch.setattr("tests.benchmarks.make_store.STRIDE", 64)
    monkeypatch.setattr("tests.benchmarks.make_store.COUNT_BLOCK", 256)
    monkeypatch.setattr("tests.benchmarks.make_store.UNIT_ENTRIES", 1_000)
    monkeypatch.setattr("tests.benchmarks.make_store.NAME_BLOCK", 150)
    blocks = make_store(tmp_path / "blocks.zarr", **options)
    for name in ("obsp/connectivities/" + part for part in ("indptr", "indices", "data")):
        stored = [zarr.open_group(path, mode="r")[name][:] for path in (whole, blocks)]
        np.testing.assert_array_equal(*stored)
    assert anndata.read_zarr(blocks).obs_names[-1] == str(N_CELLS - 1)


def test_indptr_is_int64_when_entries_need_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.make_store.MAX_INT32", 10 * N_CELLS)
    for n_neighbors, dtype in ((10, np.int32), (11, np.int64)):
        path = tmp_path / f"{n_neighbors}.zarr"
        make_store(path, n_cells=N_CELLS, n_neighbors=n_neighbors, kind="directed")
        stored = zarr.open_group(path, mode="r")["obsp/connectivities/indptr"]
        assert stored.dtype == dtype
        assert stored[-1] == n_neighbors * N_CELLS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": 2_000}, "n_neighbors"),
        ({"n_cells": 2**31}, "n_cells"),
        ({"shard": 1_000}, "shard"),
        ({"zarr_format": 3, "shard": 1_000}, "shard"),
        ({"zarr_format": 3, "shard": 1_000, "chunk": 300}, "shard"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path, change, named):
    options = {"n_cells": N_CELLS, "n_neighbors": N_NEIGHBORS} | change
    with pytest.raises(ValueError, match=named):
        make_store(tmp_path / "s.zarr", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symmetric", "directed"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_scipy_and_floor(tmp_path, kind, zarr_format):
    store = make_store(
        tmp_path / "s.zarr",
        n_cells=N_CELLS,
        n_neighbors=N_NEIGHBORS,
        kind=kind,
        zarr_format=zarr_format,
    )
    matrix = anndata.read_zarr(store).obsp["connectivities"]
    upper = sparse.triu(matrix + matrix.T, k=1).tocsr().tocoo()
    degrees = np.bincount(np.concatenate([upper.row, upper.col]))

    ran = run_measured([sys.executable, PEERS / "scipy_in_memory.py", store, tmp_path / "scipy"])
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["n_edges"], report["max_neighbors"]) == (upper.nnz, degrees.max())
    for side, expected in zip(edges(tmp_path / "scipy"), (upper.row, upper.col), strict=True):
        np.testing.assert_array_equal(side, expected)

    size = ["--n-edges", str(upper.nnz)]
    ran = run_measured([sys.executable, PEERS / "floor.py", store, tmp_path / "floor", *size])
    assert ran.returncode == 0, ran.stderr
    assert [side.size for side in edges(tmp_path / "floor")] == [upper.nnz, upper.nnz]


@pytest.mark.slow
@pytest.mark.thorough
def test_runner(tmp_path, capsys):
    small = ["--cells", str(N_CELLS), "--neighbors", "8", "--repeat", "1", "--no-warm-up"]
    small += ["--touch-memory", "50MB"]
    axes = ["--kind", "symmetric", "directed", "--compression", "none", "6"]
    places = ["--workdir", str(tmp_path), "--json", str(tmp_path / "runs.json")]
    code = run.main([*small, *axes, *places, "--peers", "scipy,floor"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "all edge files are the same" in printed
    jobs = json.loads((tmp_path / "runs.json").read_text())["jobs"]
    assert len(jobs) == 4
    assert all(set(job["tools"]) == {run.OURS, "scipy", "floor"} for job in jobs)


def test_runner_reports_failures_and_differences():
    job = run.Job(1, "symmetric", "random", 2, None)
    good = run.Run(0, 1.0, 1.0, 10, None, False, "", "")
    bad = run.Run(-9, 1.0, 1.0, 10, 10, True, "", "")
    outcomes = {
        run.OURS: [run.Outcome(good, {"n_edges": 1}, ("a", "b"), 8)],
        "scipy": [run.Outcome(good, {"n_edges": 1}, ("a", "c"), 8)],
        "duckdb": [run.Outcome(bad, {}, (), 0)],
    }
    found = run.problems(job, outcomes)
    assert [line.split(": ", 1)[1].split(":")[0] for line in found] == ["duckdb", "files differ"]
    assert "killed: out of memory" in run.table({job: outcomes})


def test_peak_memory_is_of_the_child_alone():
    ballast = np.ones(1 << 25)
    ran = run_measured([sys.executable, "-I", "-S", "-c", "pass"])
    assert ran.returncode == 0
    assert ran.peak_rss_bytes < 50e6 < ballast.nbytes


def test_missing_program_is_reported():
    ran = run_measured(["/no/such/program"])
    assert ran.returncode == 127
    assert "/no/such/program" in ran.stderr


def test_cgroup_kills_what_does_not_fit():
    program = "import sys; block = b'x' * (int(sys.argv[1]) << 20)"
    try:
        for megabytes, fits in ((10, True), (200, False)):
            with memory_cgroup(100_000_000) as cgroup:
                command = [sys.executable, "-I", "-S", "-c", program, str(megabytes)]
                ran = run_measured(command, cgroup=cgroup)
            assert not cgroup.path.exists()
            assert ran.oom_killed == (not fits)
            assert (ran.returncode == 0) == fits
            assert ran.cgroup_peak_bytes is None or ran.cgroup_peak_bytes <= 100_000_000
    except CgroupUnavailableError as error:
        pytest.skip(str(error))


def test_gzip_levels(capsys):
    rows = gzip_levels.measure(N_CELLS, 8, "spatial")
    assert {row.library for row in rows} >= {"zlib"}
    assert all(0 < row.packed_bytes < row.raw_bytes for row in rows if row.library == "zlib")
    gzip_levels.print_table(rows)
    assert "spatial order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512_000_000), ("4GiB", 4 << 30), ("1.5 kB", 1_500), ("7", 7)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.slow
@pytest.mark.thorough
def test_source_kinds_are_compared(tmp_path, capsys):
    store = make_store(tmp_path / "s.zarr", n_cells=N_CELLS, n_neighbors=N_NEIGHBORS)
    kinds = "zarr;zarr zip;zarr v3 shards of 16;h5ad lzf;Dask;scipy, h5ad"
    options = ["--kinds", kinds, "--repeat", "1", "--workdir", str(tmp_path / "work")]
    assert source_kinds.main([str(store), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in printed[1:-1]] == kinds.split(";")
    assert printed[-1] == "[]"  # no failures, and the same files


@pytest.mark.parametrize("name", ["s.h5ad", "s.zarr.zip", "t.zarr"])
def test_anndata_reads_stores_in_other_forms(tmp_path, name):
    store = make_store(tmp_path / "s.zarr", n_cells=N_CELLS, n_neighbors=N_NEIGHBORS)
    path = tmp_path / name
    convert_store.main([str(store), str(path), "--zarr-format", "2", "--chunk", "700"])
    if name == "s.h5ad":
        adata = anndata.read_h5ad(path)
        assert adata.obs_names.tolist() == [str(k) for k in range(N_CELLS)]
    elif name == "t.zarr":
        adata = anndata.read_zarr(path)
    else:
        with zarr.storage.ZipStore(path, mode="r") as opened:
            adata = anndata.read_zarr(opened)
    assert (
        adata.obsp["connectivities"] != anndata.read_zarr(store).obsp["connectivities"]
    ).nnz == 0


@pytest.mark.slow
@pytest.mark.thorough
def test_other_outputs_are_compared(tmp_path, capsys):
    store = make_store(tmp_path / "s.zarr", n_cells=N_CELLS, n_neighbors=N_NEIGHBORS)
    jobs = list(outputs.JOBS)
    arguments = ["--repeat", "1", "--workdir", str(tmp_path / "work"), "--memory-limit", "1GB"]
    assert outputs.main([str(store), *arguments]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row[28:40].strip() for row in rows] == ["export", *jobs]
    assert all(float(row.split()[-3]) > 0 for row in rows)
