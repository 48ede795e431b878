"""`verify --source`: it agrees with right edges, and finds every wrong one, whatever the matrix."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.errors import DamagedGraphError, MemoryLimitError, OutputError
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.verify import difference, loops, pair_file
from cellgraph_dask.verify.checks import verify
from cellgraph_dask.verify.difference import EdgeCheck
from cellgraph_dask.verify.proof import ProofPlan, plan_proof, proof_bytes
from tests.helpers.command import run, run_process
from tests.helpers.effort import PART, part_of
from tests.helpers.planting import edges_of, plant
from tests.helpers.stores import (
    Stored,
    chunk_file,
    directed_graph,
    snapshot,
    stored,
    symmetric_graph,
    write_store,
)
from tests.oracle import oracle_edges
from tests.source.test_any_matrix import oracle, stores, write

TINY = ProofPlan(block_entries=7, block_rows=3, piece_entries=4, threads=2)
SIZES = {
    "tiny": TINY,
    "tiny, partly held": replace(TINY, room=100),
    "from the limit": None,
}


def signed_graph(dtype):
    """Return a graph with weights of both signs; some entries cancel their mirror images."""
    matrix = directed_graph(30, 6, seed=3, dtype=dtype)
    matrix.data[::3] *= -1
    dense = matrix.toarray()
    for i, j in ((0, 5), (2, 9), (11, 29)):
        dense[i, j], dense[j, i] = 4, -4
    return sparse.csr_matrix(dense)


def repeats_and_zeros():
    """Return a matrix with repeated entries, stored zeros, a diagonal and unsorted rows."""
    rows = [0, 0, 0, 0, 1, 1, 2, 3, 3, 5, 5, 5]
    columns = [3, 1, 3, 0, 0, 4, 2, 1, 5, 4, 2, 4]
    weights = [1, 0, 1, 2, 0, 3, 9, 0, 1, 2, 1, 2]
    indptr = np.searchsorted(rows, np.arange(7))
    return Stored(indptr, np.array(columns, "i4"), np.array(weights, "f4"), (6, 6))


def hub():
    """Return a directed matrix in which cell 0 has every other cell, one way or the other."""
    matrix = sparse.lil_matrix((40, 40), dtype=np.float32)
    matrix[0, 1:40:2] = 1
    matrix[2:40:2, 0] = 1
    matrix[7, 9] = matrix[30, 8] = 1
    return matrix.tocsr()


MATRICES = {
    "symmetric": (symmetric_graph(30, 4), "sums"),
    "directed": (directed_graph(30, 4), "comparison"),
    "directed csc": (directed_graph(30, 4, seed=1).tocsc(), "comparison"),
    "symmetric csc": (symmetric_graph(30, 4, seed=1).tocsc(), "sums"),
    "upper only": (sparse.triu(symmetric_graph(30, 4), format="csr"), "comparison"),
    "repeats and zeros": (repeats_and_zeros(), "comparison"),
    "hub": (hub(), "comparison"),
    "signed floats": (signed_graph(np.float32), "signed"),
    "signed integers": (signed_graph(np.int64), "signed"),
    "signed csc": (signed_graph(np.float64).tocsc(), "signed"),
    "no edges": (sparse.csr_matrix((5, 5), dtype=np.float32), None),
}


def check(out_dir, store, proof_plan=None, **options):
    return verify(
        Path(out_dir), Progress(), source=open_source(store), limit=4 * 10**9, threads=2,
        proof_plan=proof_plan, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Write every matrix once."""
    folder = tmp_path_factory.mktemp("matrices")
    return {
        name: write_store(folder / f"{k}.zarr", matrix, chunk=5, write_empty_chunks=True)
        for k, (name, (matrix, _)) in enumerate(MATRICES.items())
    }


def right_edges(name):
    src, dst = oracle_edges(stored(MATRICES[name][0]))
    return list(zip(src.tolist(), dst.tolist(), strict=True))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("compression", [None, 1])
@pytest.mark.parametrize("name", MATRICES)
def test_right_edges_are_proved(cases, tmp_path, name, compression, sizes):
    matrix, proof = MATRICES[name]
    out_dir = plant(tmp_path / "out", right_edges(name), matrix.shape[0], compression)
    before = snapshot(tmp_path)
    report = check(out_dir, cases[name], SIZES[sizes])
    assert report.problems == ()
    assert report.ok
    assert proof is None or report.proof == proof
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "no edges"])
def test_any_missing_edge_is_named(cases, tmp_path, name):
    edges = right_edges(name)
    n_cells = MATRICES[name][0].shape[0]
    step = 1 if len(edges) < 30 else 5
    for k in range(0, len(edges), step * PART):
        left = edges[:k] + edges[k + 1 :]
        out_dir = plant(tmp_path / "out", left, n_cells)
        report = check(out_dir, cases[name], list(SIZES.values())[k % 3])
        assert not report.ok
        (problem,) = report.problems
        assert f"there is no edge {edges[k]}; it would be edge {k} (byte {2 * k})" in problem
        row, column = map(int, re.search(r"in row (\d+), column (\d+),", problem).groups())
        assert (min(row, column), max(row, column)) == edges[k]
        assert dense(MATRICES[name][0])[row, column] != 0


@pytest.mark.parametrize("name", MATRICES)
def test_any_edge_too_many_is_named(cases, tmp_path, name):
    edges = right_edges(name)
    n_cells = MATRICES[name][0].shape[0]
    absent = sorted(set(combinations(range(n_cells), 2)) - set(edges))
    for n, pair in enumerate(absent[:: max(1, len(absent) // part_of(25))]):
        planted = sorted([*edges, pair])
        out_dir = plant(tmp_path / "out", planted, n_cells, 6 if n % 5 == 0 else None)
        report = check(out_dir, cases[name], list(SIZES.values())[n % 3])
        assert not report.ok
        at = planted.index(pair)
        assert f"edge {at} (byte {2 * at}) is {pair}, but the matrix has no" in report.problems[0]


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "no edges"])
def test_a_moved_edge_is_found(cases, tmp_path, name):
    """With as many edges as before, and at best the same degrees."""
    edges = right_edges(name)
    n_cells = MATRICES[name][0].shape[0]
    absent = sorted(set(combinations(range(n_cells), 2)) - set(edges))
    rng = np.random.default_rng(0)
    for n in range(part_of(20)):
        lost, gained = edges[rng.integers(len(edges))], absent[rng.integers(len(absent))]
        planted = sorted((set(edges) - {lost}) | {gained})
        out_dir = plant(tmp_path / "out", planted, n_cells)
        report = check(out_dir, cases[name], list(SIZES.values())[n % 3])
        assert not report.ok
        assert any(str(lost) in text or str(gained) in text for text in report.problems)


def test_crossed_edges_are_found(tmp_path):
    """Two edges that swap ends leave every degree as it was."""
    matrix = symmetric_graph(30, 4)
    store = write_store(tmp_path / "s.zarr", matrix)
    src, dst = oracle_edges(matrix)
    edges = set(zip(src.tolist(), dst.tolist(), strict=True))
    (a, b), (c, d) = next(
        (p, q) for p, q in combinations(sorted(edges), 2)
        if p[0] < q[1] and q[0] < p[1] and not {(p[0], q[1]), (q[0], p[1])} & edges
    )  # fmt: skip
    planted = sorted((edges - {(a, b), (c, d)}) | {(a, d), (c, b)})
    out_dir = plant(tmp_path / "out", planted, 30)
    assert verify_export(out_dir).ok
    assert not verify_export(out_dir, source=store).ok


def test_cancelled_entries_must_not_have_an_edge(cases, tmp_path):
    for name in ("signed floats", "signed integers", "signed csc"):
        edges = right_edges(name)
        assert (0, 5) not in edges
        out_dir = plant(tmp_path / "out", sorted([*edges, (0, 5)]), 30)
        for sizes in SIZES.values():
            assert "(0, 5), but the matrix has no nonzero" in check(
                out_dir, cases[name], sizes
            ).problems[0]  # fmt: skip


def test_sums_that_would_overflow(tmp_path):
    low = np.iinfo(np.int64).min
    matrix = sparse.csr_matrix(np.array([[0, low, 2**62, 0], [low, 0, 0, 5], [2**62, 0, 0, 0],
                                         [0, -5, 0, 0]], np.int64))  # fmt: skip
    store = write_store(tmp_path / "s.zarr", matrix)
    out_dir = plant(tmp_path / "out", [(0, 1), (0, 2)], 4)
    assert check(out_dir, store).ok
    assert not check(plant(tmp_path / "out", [(0, 1), (0, 2), (1, 3)], 4), store).ok


@pytest.mark.slow
@settings(max_examples=part_of(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=stores(), change=st.sampled_from(["none", "lose", "gain", "move"]), data=st.data())
def test_any_matrix_and_any_change(case, change, data):
    edges, _ = oracle(case["n"], case["entries"])
    planted = set(edges)
    if change in ("lose", "move") and edges:
        planted.remove(data.draw(st.sampled_from(edges)))
    if change in ("gain", "move"):
        cells = sorted({0, case["n"] - 1, *(cell for e in case["entries"] for cell in e[:2])})
        absent = sorted(set(combinations(cells, 2)) - set(edges))
        if absent:
            planted.add(data.draw(st.sampled_from(absent)))
    tuning = case["tuning"]
    sizes = ProofPlan(
        tuning.block_entries, min(tuning.block_rows, 65_535), tuning.piece_entries, tuning.threads,
        room=data.draw(st.sampled_from([0, 40, 10**6])),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        write(Path(folder, "s.zarr"), case)
        out_dir = plant(Path(folder, "out"), sorted(planted), case["n"], case["compression"])
        report = check(out_dir, Path(folder, "s.zarr"), sizes)
        assert report.ok == (planted == set(edges)), report
        assert not list(Path(folder).glob("out/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [22, 23, 31, 32, 40, 46])
@pytest.mark.parametrize("name", ["directed", "hub", "signed floats", "signed integers"])
def test_keys_of_any_width(cases, tmp_path, monkeypatch, name, bits):
    """As those of 2**bits cells are, which leave room for fewer bits of the smaller cell."""
    for module in (difference, pair_file):
        monkeypatch.setattr(module, "cell_bits", lambda _: bits)
    edges = right_edges(name)
    n_cells = MATRICES[name][0].shape[0]
    for sizes in SIZES.values():
        assert check(plant(tmp_path / "out", edges, n_cells), cases[name], sizes).ok
        (problem,) = check(
            plant(tmp_path / "out", edges[:7] + edges[8:], n_cells), cases[name], sizes
        ).problems
        assert f"there is no edge {edges[7]}; it would be edge 7 (byte 14)" in problem


@settings(deadline=None)
@given(bits=st.integers(2, 46), n_rows=st.integers(1, 4), is_weighted=st.booleans(), data=st.data())
def test_pairs_come_back_from_their_keys(bits, n_rows, is_weighted, data):
    """Block after block, partition after partition, each in stored order."""
    shift = data.draw(st.integers(max(8, bits - 8), 16)) if bits <= 24 else 16
    n_partitions = min(((1 << bits) - 1 >> shift) + 1, 100)  # more would take long
    n_cells = min(1 << bits, n_partitions << shift)
    first_row = data.draw(st.integers(0, max(0, n_cells - n_rows)))
    n_rows = min(n_rows, n_cells)
    # The larger cell may be far above the partitions that are looked at.
    columns = st.one_of(st.integers(0, n_cells - 1), st.integers(0, (1 << bits) - 1))
    rows = [data.draw(st.lists(columns, max_size=6)) for _ in range(n_rows)]
    indices = np.array([column for row in rows for column in row], np.int64)
    indptr = np.cumsum([0, *map(len, rows)])
    weights = np.arange(1.0, indices.size + 1) if is_weighted else np.empty(0)

    starts = np.zeros(n_partitions + 1, np.int64)
    loops.count_pairs(indices, indptr, first_row, shift, starts[1:])
    np.cumsum(starts, out=starts)
    keys = np.empty(starts[-1], np.uint32 if shift + bits + is_weighted <= 32 else np.int64)
    kept = np.empty(starts[-1] * is_weighted)
    places = starts[:-1].copy()
    loops.place_pairs(indices, indptr, weights, first_row, shift, bits, places, keys, kept)
    check = EdgeCheck(None, None, shift, bits)
    entries = [
        (min(first_row + r, column), max(first_row + r, column), column < first_row + r)
        for r, row in enumerate(rows)
        for column in row
    ]
    expected = sorted(
        ((i >> shift, i, j, below, weight) for weight, (i, j, below) in enumerate(entries, 1)
         if i != j),
        key=lambda pair: pair[0],
    )  # fmt: skip
    found = []
    for f in range(n_partitions):
        for k in range(starts[f], starts[f + 1]):
            key = int(keys[k])
            i, j = check.pair(f, key >> 1 if is_weighted else key)
            found.append((f, i, j, *((key & 1, kept[k]) if is_weighted else ())))
    assert found == [pair if is_weighted else pair[:3] for pair in expected]


@given(parts=st.lists(st.lists(st.integers(0, 20)), max_size=5))
def test_repeats_are_dropped_in_each_partition(parts):
    for dtype in (np.uint32, np.int64):
        keys = np.array([key for part in parts for key in sorted(part)], dtype)
        starts = np.cumsum([0, *map(len, parts)])
        pairs = np.empty(keys.size, np.int64)
        n = loops.distinct(keys, starts, 6, pairs)
        assert pairs[:n].tolist() == [
            (f << 6) + key for f, part in enumerate(parts) for key in sorted(set(part))
        ]


def test_cells_beyond_16_bits(tmp_path):
    n = 70_000
    rng = np.random.default_rng(0)
    matrix = sparse.csr_matrix(
        (np.ones(200_000, np.float32), rng.integers(0, n, (2, 200_000))), shape=(n, n)
    )
    for name, graph in (("directed", matrix), ("symmetric", (matrix + matrix.T).tocsr())):
        store = write_store(tmp_path / f"{name}.zarr", graph, chunk=30_000)
        export_connectivities(store, tmp_path / name)
        assert check(tmp_path / name, store).ok
        edges = edges_of(tmp_path / name)
        del edges[len(edges) // 3]
        assert not check(plant(tmp_path / "planted", edges, n), store).ok


def test_other_cells_than_the_source(tmp_path, cases):
    out_dir = plant(tmp_path / "out", [(0, 1)], 31)
    outcome = run("verify", out_dir, "--source", cases["symmetric"])
    assert outcome.exit_code == 3
    assert "n_cells is 31, but obsp/connectivities of" in outcome.stderr


def test_the_command_line(tmp_path):
    matrix = directed_graph(50, 5)
    store = write_store(tmp_path / "s.zarr", matrix, key="distances")
    out_dir, scratch = tmp_path / "out", tmp_path / "scratch" / "deep"
    export_connectivities(store, out_dir, key="distances", compression=6)
    outcome = run(
        "verify", out_dir, "--source", store, "--key", "distances", "--scratch-dir", scratch,
        "--memory-limit", "4GB", "--threads", 1,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome
    assert f"exactly those of obsp/distances of {store}" in outcome.stdout
    assert not scratch.parent.exists()
    report = verify_export(out_dir, source=store, key="distances")
    assert (report.source, report.key, report.proof) == (
        str(store), "obsp/distances", "comparison",
    )  # fmt: skip
    edges = edges_of(out_dir)
    plant(out_dir, edges[1:], 50)
    outcome = run("verify", out_dir, "--source", store, "--key", "distances")
    assert outcome.exit_code == 3
    assert f"there is no edge {edges[0]}; it would be edge 0 (byte 0)" in outcome.stderr


def test_a_source_by_its_neighbors_key(tmp_path):
    store = write_store(tmp_path / "s.zarr", directed_graph(50, 5), key="tissue_connectivities")
    named = zarr.open_group(store).require_group("uns/tissue")
    named["connectivities_key"] = np.array(["tissue_connectivities"])
    export_connectivities(store, tmp_path / "out", neighbors_key="tissue")
    outcome = run("verify", tmp_path / "out", "--source", store, "--neighbors-key", "tissue")
    assert outcome.exit_code == 0, outcome
    assert "exactly those of obsp/tissue_connectivities" in outcome.stdout
    report = verify_export(
        tmp_path / "out", source=store, neighbors_key="tissue", storage_options={}
    )
    assert report.ok
    outcome = run(
        "verify", tmp_path / "out", "--source", store, "--neighbors-key", "tissue", "--key", "x"
    )
    assert outcome.exit_code == 2
    assert "give --key or --neighbors-key, not both" in outcome.stderr


def test_a_damaged_source_is_an_error_and_leaves_nothing(tmp_path):
    matrix = directed_graph(50, 5)
    store = write_store(tmp_path / "s.zarr", matrix, chunk=20)
    export_connectivities(store, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    chunk_file(store, "indices", 5).write_bytes(b"no chunk")
    with pytest.raises(DamagedGraphError, match="does not decode"):
        verify_export(tmp_path / "out", source=store)
    assert run("verify", tmp_path / "out", "--source", store).exit_code == 1
    assert snapshot(tmp_path / "out") == before


def test_a_scratch_folder_that_cannot_be_made(tmp_path):
    store = write_store(tmp_path / "s.zarr", directed_graph(50, 5))
    export_connectivities(store, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        verify_export(tmp_path / "out", source=store, scratch_dir=tmp_path / "file" / "scratch")


def test_a_limit_that_is_too_small_is_refused(tmp_path):
    store = write_store(tmp_path / "s.zarr", directed_graph(50, 5))
    export_connectivities(store, tmp_path / "out")
    for options in ({}, {"source": store}):
        with pytest.raises(MemoryLimitError, match="too small for this verification") as refused:
            verify_export(tmp_path / "out", memory_limit="50MB", **options)
        least = re.search(r"will do is (\d+MB)", str(refused.value))[1]
        assert verify_export(tmp_path / "out", memory_limit=least, **options).ok


@pytest.mark.parametrize("kind", ["sums", "comparison", "signed"])
def test_plans_keep_to_their_memory(tmp_path, kind):
    source = open_source(write_store(tmp_path / "s.zarr", directed_graph(2_000, 20), chunk=1_000))
    smallest = proof_bytes(source, ProofPlan(1 << 16, 1 << 16, 1 << 16, 1), kind)
    for available in np.geomspace(smallest, 100 * smallest, 12).astype(int):
        plan = plan_proof(source, int(available), 4, kind)
        assert plan is not None
        assert proof_bytes(source, plan, kind) + plan.room <= available
    assert plan_proof(source, 10**5, 4, kind) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symmetric", "directed"])
def test_peak_memory_stays_below_the_limit(tmp_path, kind):
    """Of 150,000 cells, in a process of its own."""
    from tests.benchmarks.make_store import make_store

    store = make_store(tmp_path / "s.zarr", n_cells=150_000, n_neighbors=15, kind=kind)
    export_connectivities(store, tmp_path / "out")
    outcome = run_process(
        "verify", tmp_path / "out", "--source", store, "--memory-limit", "400MB", "--json"
    )
    assert outcome.exit_code == 0, outcome
    report = json.loads(outcome.stdout)
    assert report["proof"] == ("sums" if kind == "symmetric" else "comparison")
    assert report["peak_memory_bytes"] <= report["memory_limit_bytes"] == 400_000_000


def dense(matrix):
    """Return a matrix as it means: repeats added up."""
    indptr, indices, data, shape, layout = stored(matrix)
    out = np.zeros(shape, np.float64)
    np.add.at(out, (np.repeat(np.arange(shape[0]), np.diff(indptr)), indices), data)
    return out if layout == "csr" else out.T
