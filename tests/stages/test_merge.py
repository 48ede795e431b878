"""Hubs: partitions, sources and edges with more entries than one task can merge."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from cellgraph_dask.source.blocks import cut_blocks
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import loops, merge
from cellgraph_dask.stages.job import Job, Tuning
from cellgraph_dask.stages.pieces import cut_pieces
from cellgraph_dask.stages.runs import Scratch
from cellgraph_dask.stages.split import SplitRuns, split
from tests.helpers.command import run_process
from tests.helpers.exporting import run_export
from tests.helpers.stores import Stored, stored, write_store
from tests.oracle import assert_exported


def hubs(n=3000, seed=0):
    """Return a directed graph in which nearly every cell names cell 0 or 300, which name others."""
    rng = np.random.default_rng(seed)
    rows = [np.arange(1, n), np.arange(n), np.full(500, 300), np.full(700, 1)]
    columns = [
        np.zeros(n - 1, int),
        np.full(n, 300),
        rng.choice(n, 500, replace=False),
        rng.choice(n, 700, replace=False),
    ]
    rows.append(rng.integers(0, n, 4000))
    columns.append(rng.integers(0, n, 4000))
    matrix = sp.coo_matrix(
        (np.ones(sum(map(len, rows))), (np.concatenate(rows), np.concatenate(columns))), (n, n)
    )
    return matrix.tocsr()


@pytest.mark.parametrize("capacity", [50, 400, 2500])
@pytest.mark.parametrize("method", ["general", "signed"])
def test_hubs_are_merged_in_parts(tmp_path, capacity, method):
    matrix = hubs()
    write_store(tmp_path / "s.zarr", stored(matrix), chunk=500)
    tuning = Tuning(1000, 1000, capacity, 8, threads=2)
    run_export(open_source(tmp_path / "s.zarr"), tmp_path / "out", tuning=tuning, method=method)
    assert_exported(tmp_path / "out", stored(matrix))


def test_pieces_hold_every_contribution_once_and_no_more_than_fit(tmp_path):
    matrix, capacity = hubs(), 200
    write_store(tmp_path / "s.zarr", stored(matrix), chunk=500)
    source = open_source(tmp_path / "s.zarr")
    folder = tmp_path / "runs"
    folder.mkdir()
    job = Job(source, Scratch(str(folder)), 8, "general")
    blocks = cut_blocks(source, 1000, 1000)
    runs = SplitRuns.of(job, blocks)
    contributions = sum(split(runs, block).contributions for block in blocks)
    off_diagonal = int((matrix.nonzero()[0] != matrix.nonzero()[1]).sum())
    assert contributions.sum() == off_diagonal
    pieces = cut_pieces(runs, contributions, capacity, 4)
    assert sum(piece.n_contributions for piece in pieces) == off_diagonal
    assert max(piece.n_contributions for piece in pieces) <= capacity
    assert all(piece.last - piece.first <= 4 for piece in pieces)
    keys = [(piece.first, piece.low or (0, 0)) for piece in pieces]
    assert keys == sorted(set(keys))


def test_an_unsorted_hub_row_in_many_blocks(tmp_path):
    n = 2000
    rng = np.random.default_rng(1)
    columns = rng.permutation(n)[:1500]
    matrix = sp.csr_matrix((n, n))
    matrix.indptr = np.concatenate(([0, 0, 0], np.full(n - 2, 1500))).astype(np.int32)
    matrix.indices, matrix.data = columns.astype(np.int32), np.ones(1500, np.float32)
    write_store(tmp_path / "s.zarr", stored(matrix), chunk=100)
    for capacity in (70, 5000):
        tuning = Tuning(100, 1000, capacity, 8, threads=2)
        run_export(open_source(tmp_path / "s.zarr"), tmp_path / "out", tuning=tuning, force=True)
        assert_exported(tmp_path / "out", stored(matrix))


@pytest.mark.parametrize("method", ["general", "signed"])
@pytest.mark.parametrize("count_degrees", [True, False])
def test_blocks_of_more_rows_than_a_band_has(tmp_path, method, count_degrees):
    n = 150_000
    rng = np.random.default_rng(2)
    pairs = rng.integers(0, n, (2, 40_000))
    pairs[:, :20_000] = rng.integers(0, 3000, (2, 20_000))  # some of them in both directions
    matrix = sp.coo_matrix((np.ones(40_000), pairs), (n, n)).tocsr()
    write_store(tmp_path / "s.zarr", stored(matrix), chunk=7_000)
    tuning = Tuning(14_000, n, 9_000, 14, threads=2, count_degrees=count_degrees)
    run_export(open_source(tmp_path / "s.zarr"), tmp_path / "out", tuning=tuning, method=method)
    assert_exported(tmp_path / "out", stored(matrix))


def repeated(n_cells, pairs, weights, dtype):
    """Return a matrix that stores each pair (row, column) over and over, between other entries."""
    rng = np.random.default_rng(3)
    rows = [np.full(len(w), i) for (i, _), w in zip(pairs, weights, strict=True)]
    columns = [np.full(len(w), j) for (_, j), w in zip(pairs, weights, strict=True)]
    rows.append(rng.integers(0, n_cells, 300))
    columns.append(rng.integers(0, n_cells, 300))
    data = np.concatenate([*weights, np.ones(300)]).astype(dtype)
    row, column = np.concatenate(rows), np.concatenate(columns)
    order = np.argsort(row, kind="stable")
    indptr = np.searchsorted(row[order], np.arange(n_cells + 1)).astype(np.int64)
    return Stored(indptr, column[order].astype(np.int32), data[order], (n_cells, n_cells))


@pytest.mark.parametrize(  # with destinations in bins of their own, and not
    ("n_cells", "dtype"), [(300, np.float32), (300, np.int64), (70_000, np.float64)]
)
def test_pairs_that_are_stored_over_and_over(tmp_path, monkeypatch, n_cells, dtype):
    """They are merged in parts: buffers are no longer than what a piece may hold."""
    capacity, n, far = 200, 1000, n_cells - 1
    rng = np.random.default_rng(4)
    up = rng.integers(1, 9, n // 2)
    cancelling = np.concatenate([up, -up[::-1]]).astype(float)
    pairs = [(0, 1), (far, 2), (5, far), (far, 5), (7, 8), (8, 7)]
    weights = [np.ones(n), np.ones(n), cancelling.copy(), cancelling, np.ones(n), -np.ones(n)]
    weights[2][-1] += 1  # so the two directions together are not zero
    for method, count in (("general", 2), ("signed", 6)):
        matrix = repeated(n_cells, pairs[:count], weights[:count], dtype)
        write_store(tmp_path / method, matrix, chunk=500)
        taken: dict[str, int] = {}
        take = merge.buffers.take

        def noting(name, size, dtype, take=take, taken=taken):
            taken[name] = max(taken.get(name, 0), size)
            return take(name, size, dtype)

        monkeypatch.setattr(merge.buffers, "take", noting)
        tuning = Tuning(2000, n_cells, capacity, 16 if n_cells > 300 else 8, threads=1)
        out_dir = tmp_path / f"{method}-out"
        run_export(open_source(tmp_path / method), out_dir, tuning=tuning, method=method)
        monkeypatch.undo()
        assert_exported(out_dir, matrix)
        assert max(taken["merged src"], taken.get("range dst", 0)) <= capacity


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_repeats_stay_within_the_projected_memory(tmp_path, sign):
    n = 6_000_000
    indptr = np.array([0, n, n + 1, n + 1], np.int64)
    indices, data = np.ones(n + 1, np.int32), np.ones(n + 1, np.float32)
    indices[-1], data[-1] = 2, sign
    write_store(tmp_path / "s.zarr", Stored(indptr, indices, data, (3, 3)), chunk=100_000)
    outcome = run_process(
        "export", tmp_path / "s.zarr", tmp_path / "out", "--json", "--threads", 1,
        "--memory-limit", "420MB",
    )  # fmt: skip
    report = json.loads(outcome.stdout)
    assert report["n_edges"] == 2
    assert report["peak_memory_bytes"] <= report["projected_memory_bytes"]


@pytest.mark.parametrize("rest", [0, 1])
def test_integer_weights_cancel_exactly_however_often_they_repeat(rest):
    n = 3_000_000  # the halves of these add up to more than a float64 holds exactly
    keys = np.full(n, 7, np.int64)
    weights = np.full(n, 2**62 + 1, np.int64)
    mirrored = -weights
    mirrored[-1] += rest
    upper, lower = ((keys, w >> 32, w & 0xFFFFFFFF) for w in (weights, mirrored))
    src, dst = np.zeros((2, 1), np.uint32)
    assert loops.merge_signed(*upper, *lower, 0, 4, src, dst) == rest
