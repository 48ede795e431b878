"""Hubs: partitions, and sources, with more edges than one task can merge."""

import numpy as np
import pytest
import scipy.sparse as sp

from cellgraph_dask.source.blocks import cut_blocks
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import loops
from cellgraph_dask.stages.job import Job, Tuning
from cellgraph_dask.stages.pieces import cut_pieces
from cellgraph_dask.stages.runs import Scratch
from cellgraph_dask.stages.split import SplitRuns, split
from tests.helpers.exporting import run_export
from tests.helpers.stores import stored, write_store
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
