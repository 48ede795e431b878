"""The one pass for symmetric matrices: taken when it may be, never trusted when it must not be."""

import math
import struct

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st

from cellgraph_dask.source.blocks import looks_symmetric
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import loops, symmetry_loops, weighted_loops
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.rules import CODES
from cellgraph_dask.stages.symmetry import KINDS
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
    imbalance, degrees = np.array([5, 7], np.uint64), np.full(4, -1)
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
    n_rows = sum(count > 0 for count in counts)
    assert degrees.tolist() == [max(counts), counts[0], counts[-1], n_rows]


def weighed(i, j, weight, seeds):
    """Return the two hashes of an entry with its weight."""
    (bits,) = struct.unpack("<Q", struct.pack("<d", weight))

    def mixed(x):
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
        return x ^ x >> 31

    pair = (min(i, j) << 32 | max(i, j)) + mixed((bits + seeds[2]) & MASK)
    x = mixed((pair + seeds[0]) & MASK)
    again = ((x ^ seeds[1]) * 0xD6E8FEB86659FD93) & MASK
    return [h if j > i else -h for h in (x, again ^ again >> 32)]


WEIGHTS = (0.25, 1.0, 7.5)
ODD_WEIGHTS = (*WEIGHTS, 0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 9.0)


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 16, 33]), min_size=1, max_size=8),
    first_row=st.sampled_from([0, 3, 2**31 - 50]),
    ordered=st.booleans(),
    both=st.booleans(),
    diagonal=st.booleans(),
    odd=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_weighed_block_is_what_python_makes_of_it(
    lengths, first_row, ordered, both, diagonal, odd, seed
):
    rng = np.random.default_rng(seed)
    entries = []
    for i, n in enumerate(lengths, first_row):
        around = max(i - 25, 0) + np.arange(50)
        around = around if diagonal else around[around != i]
        columns = rng.choice(around, n, replace=not ordered)
        for j in map(int, np.sort(columns) if ordered else columns):
            entries.append((i, j, float(rng.choice(ODD_WEIGHTS if odd else WEIGHTS))))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.array([j for _, j, _ in entries], np.int32)
    weights = np.array([w for *_, w in entries], np.float64)
    seeds = rng.integers(0, 2**63, 3, dtype=np.uint64)
    told = list(map(int, seeds))
    whole = first_row + 1, first_row + len(lengths) - 1
    keys, rows = np.empty(indices.size, np.int64), np.empty(indices.size, np.uint32)

    sums, near = [5, 7], 0
    kinds = {kind: [] for kind in KINDS}
    seen = set()
    for i, j, w in entries:
        is_entry = math.isfinite(w) and w != 0 and i != j
        kinds["not finite"] += [(i, j)] * (not math.isfinite(w))
        kinds["zero"] += [(i, j)] * (w == 0)
        kinds["diagonal"] += [(i, j)] * (math.isfinite(w) and w != 0 and i == j)
        kinds["negative"] += [(i, j)] * (is_entry and w < 0)
        kinds["too large"] += [(i, j)] * (is_entry and w > 8)
        kinds["repeated"] += [(i, j)] * ((i, j) in seen)
        seen.add((i, j))
        if is_entry:
            hashes = weighed(i, j, w, told)
            sums = [a + b for a, b in zip(sums, hashes, strict=True)]
            near += hashes[0] * (whole[0] <= i < whole[1] and whole[0] <= j < whole[1])

    counts, firsts = np.zeros(len(KINDS), np.int64), np.full((len(KINDS), 2), -1)
    imbalance = np.array([5, 7, 0], np.uint64)
    symmetry_loops.look_at_entries(
        indices, weights, weights.view(np.uint64), np.array([8.0]), indptr, first_row, seeds, rows,
        keys, counts, firsts, imbalance,
    )  # fmt: skip
    assert imbalance.tolist()[:2] == [s & MASK for s in sums]
    for kind, count, first in zip(KINDS, counts.tolist(), firsts.tolist(), strict=True):
        assert count == len(kinds[kind]), kind
        if kind == "repeated":  # in the order of columns
            row = min((i for i, _ in kinds[kind]), default=-1)
            wanted = min((place for place in kinds[kind] if place[0] == row), default=(-1, -1))
        else:
            wanted = kinds[kind][0] if kinds[kind] else (-1, -1)
        assert tuple(first) == wanted, kind
    if odd:
        return

    out = [rows, np.empty_like(rows), np.empty(indices.size)]
    imbalance = np.array([5, 7, 0], np.uint64)
    diagonal, unsorted = weighted_loops.weigh_block(
        indices, weights, weights.view(np.uint64), np.array([np.inf]), indptr, first_row,
        np.array(whole), seeds, rows, imbalance,
    )  # fmt: skip
    assert diagonal == sum(i == j for i, j, _ in entries)
    seen = weighted_loops.look_at_block(indices, indptr, first_row, np.empty_like(rows))
    assert seen == (diagonal, unsorted)
    n, repeats = weighted_loops.place_entries(
        indices, weights, both, CODES.index("sum"), unsorted, keys, *out
    )
    wanted = [(i, j, 2 * w) for i, j, w in entries if j > i or (both and j != i)]
    wanted.sort(key=lambda edge: edge[:2])  # stable
    assert list(zip(*(column[:n].tolist() for column in out), strict=True)) == wanted
    assert repeats == (len({edge[:2] for edge in wanted}) < len(wanted))
    assert imbalance.tolist() == [s & MASK for s in (*sums, near)]
