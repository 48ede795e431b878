"""The one pass for symmetric matrices: taken when it may be, never trusted when it must not be."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st

from cellgraph_dask.source.blocks import looks_symmetric
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import loops
from cellgraph_dask.stages.job import Tuning
from tests.helpers.exporting import run_export
from tests.helpers.stores import stored, write_store
from tests.oracle import assert_exported

N = 40


def symmetric_matrix(seed=0, n=N, density=0.15):
    """Return a symmetric CSR matrix with positive weights and an empty diagonal."""
    rng = np.random.default_rng(seed)
    upper = sp.triu(sp.random(n, n, density, random_state=rng, format="csr"), k=1)
    upper.data += 0.5
    matrix = sp.csr_matrix(upper + upper.T)
    matrix.sort_indices()
    return matrix


def tuning(block_entries):
    return Tuning(block_entries, 1000, 1000, 8, threads=2)


def export(tmp_path, matrix, block_entries=16, **kwargs):
    write_store(tmp_path / "s.zarr", stored(matrix), chunk=8, write_empty_chunks=True)
    report = run_export(
        open_source(tmp_path / "s.zarr"),
        tmp_path / "out",
        force=True,
        tuning=tuning(block_entries),
        **kwargs,
    )
    assert_exported(tmp_path / "out", stored(matrix))
    return report


@pytest.mark.parametrize("block_entries", [1, 3, 16, 10_000])
def test_a_symmetric_matrix_takes_one_pass_without_scratch(tmp_path, block_entries):
    matrix = symmetric_matrix()
    report = export(tmp_path, matrix, block_entries)
    assert report.symmetric
    assert report.scratch_bytes == 0
    assert report.max_neighbors == np.diff(matrix.indptr).max()


def test_rows_need_not_be_sorted(tmp_path):
    matrix = symmetric_matrix()
    for row in range(N):
        begin, end = matrix.indptr[row], matrix.indptr[row + 1]
        matrix.indices[begin:end] = matrix.indices[begin:end][::-1]
    matrix.has_sorted_indices = False
    assert export(tmp_path, matrix, 10_000, method="symmetric").symmetric
    # Cut inside rows, the parts no longer follow each other: another way has to do.
    assert not export(tmp_path, matrix, 3, method="symmetric").symmetric


@pytest.mark.slow
def test_a_difference_in_any_single_entry_is_caught(tmp_path):
    """Whatever entry is moved, zeroed or repeated: the proof fails, and the edges are right."""
    matrix = symmetric_matrix(n=9, density=0.3)
    n_tried = 0
    for entry in range(matrix.nnz):
        row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
        begin, end = matrix.indptr[row], matrix.indptr[row + 1]
        taken = set(matrix.indices[begin:end]) | {row}
        free = [c for c in range(9) if c not in taken]
        changes = {"zeroed": (matrix.indices.copy(), matrix.data.copy())}
        changes["zeroed"][1][entry] = 0
        if free:
            changes["moved"] = (matrix.indices.copy(), matrix.data.copy())
            changes["moved"][0][entry] = free[0]
        other = begin if entry > begin else begin + 1
        if other < end:
            changes["repeated"] = (matrix.indices.copy(), matrix.data.copy())
            changes["repeated"][0][entry] = matrix.indices[other]
        for indices, data in changes.values():
            changed = sp.csr_matrix((9, 9))
            changed.indptr, changed.indices, changed.data = matrix.indptr, indices, data
            report = export(tmp_path, changed, 8, method="symmetric")
            assert not report.symmetric
            n_tried += 1
    assert n_tried > 40


def test_an_even_number_of_repeats_cannot_hide(tmp_path):
    """Both directions stored twice: symmetric, but each upper entry is there twice."""
    entries = [(0, 1), (0, 1), (0, 2), (1, 0), (1, 0), (2, 0)]
    rows, columns = map(np.array, zip(*entries, strict=True))
    matrix = sp.csr_matrix((3, 3))
    matrix.indptr = np.searchsorted(rows, np.arange(4)).astype(np.int32)
    matrix.indices, matrix.data = columns.astype(np.int32), np.ones(6)
    for block_entries in (1, 2, 100):
        assert not export(tmp_path, matrix, block_entries, method="symmetric").symmetric


def test_cancelling_weights_take_the_signed_way(tmp_path):
    matrix = symmetric_matrix()
    matrix = matrix.tolil()
    row, column = (int(c[0]) for c in sp.triu(matrix).nonzero())
    matrix[column, row] = -matrix[row, column]
    report = export(tmp_path, matrix.tocsr())
    assert not report.symmetric


def test_what_looks_symmetric(tmp_path):
    write_store(tmp_path / "s.zarr", symmetric_matrix(), chunk=8)
    assert looks_symmetric(open_source(tmp_path / "s.zarr"))
    directed = sp.random(N, N, 0.1, random_state=0, format="csr")
    write_store(tmp_path / "d.zarr", directed, chunk=8)
    assert not looks_symmetric(open_source(tmp_path / "d.zarr"))
    write_store(tmp_path / "e.zarr", sp.csr_matrix((N, N)))
    assert not looks_symmetric(open_source(tmp_path / "e.zarr"))


SEEDS = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
MASK = 2**64 - 1


def hashed(low, high):
    """Return the two hashes of an edge: SplitMix64's finaliser, and a product of what it gives."""
    x = ((low << 32 | high) + int(SEEDS[0])) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    x ^= x >> 31
    again = ((x ^ int(SEEDS[1])) * 0xD6E8FEB86659FD93) & MASK
    return x, again ^ again >> 32


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 15, 16, 17, 33, 40]), min_size=1, max_size=8),
    first_row=st.sampled_from([0, 3, 2**31 - 10, 2**32 - 60]),
    ordered=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(lengths=[16], first_row=0, ordered=True, wide=False, seed=0)
@example(lengths=[40, 0, 1], first_row=3, ordered=False, wide=True, seed=1)
def test_a_streamed_block_is_what_python_makes_of_it(lengths, first_row, ordered, wide, seed):
    rng = np.random.default_rng(seed)
    dtype = np.int64 if wide or first_row > 2**31 - 60 else np.int32
    rows = []
    for r, n in enumerate(lengths):  # columns around the row itself: above, below, on the diagonal
        around = max(first_row + r - 25, 0) + np.arange(50)
        columns = rng.choice(around, n, replace=not ordered)
        rows.append(np.sort(columns) if ordered else columns)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.concatenate(rows).astype(dtype)
    src, dst = np.empty((2, indices.size), np.uint64 if wide else np.uint32)
    imbalance, degrees = np.array([5, 7], np.uint64), np.full(3, -1)
    n_edges, repeats = loops.stream_block(
        indices, indptr, first_row, SEEDS, src, dst, imbalance, degrees
    )

    edges, sums, counts, twice = [], [5, 7], [], False
    for i, columns in enumerate(rows, first_row):
        upper = sorted(int(j) for j in columns if j > i)
        edges += [(i, j) for j in upper]
        twice |= len(set(upper)) < len(upper)
        counts.append(int((columns != i).sum()))
        for j in map(int, columns):
            if i != j:
                sign = 1 if j > i else -1
                sums = [s + sign * h for s, h in zip(sums, hashed(*sorted((i, j))), strict=True)]
    assert list(zip(src[:n_edges].tolist(), dst[:n_edges].tolist(), strict=True)) == edges
    assert repeats == twice
    assert imbalance.tolist() == [s & MASK for s in sums]
    assert degrees.tolist() == [max(counts), counts[0], counts[-1]]
