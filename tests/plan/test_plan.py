"""A plan covers every entry once, and its memory never passes the limit."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellgraph_dask import plan_export
from cellgraph_dask.delivery.products import EdgePairs
from cellgraph_dask.errors import MemoryLimitError
from cellgraph_dask.plan.plan import Disks, make_plan
from cellgraph_dask.plan.tuning import Budget, projected_bytes, smallest_limit, tune
from cellgraph_dask.source.blocks import cut_blocks
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Job, partition_shift
from cellgraph_dask.stages.runs import Scratch
from cellgraph_dask.stages.wishes import Thinning
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, write_store

MB = 10**6


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.sampled_from([0, 0, 0, 1, 2, 9, 40]), min_size=1, max_size=60),
    block_entries=st.integers(1, 50),
    block_rows=st.integers(1, 20),
)
def test_blocks_cover_every_entry_and_row_once(
    tmp_path_factory, lengths, block_entries, block_rows
):
    n = len(lengths)
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    nnz = int(indptr[-1])
    matrix = sp.csr_matrix((n, n))
    matrix.indptr, matrix.indices = indptr.astype(np.int32), np.zeros(nnz, np.int32)
    matrix.data = np.ones(nnz, np.float32)
    path = tmp_path_factory.mktemp("plan") / "s.zarr"
    write_store(path, matrix, chunk=7, write_empty_chunks=True)
    blocks = cut_blocks(open_source(path), block_entries, block_rows)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    at = 0
    for block in blocks:
        assert block.start == at
        assert block.start < block.stop
        assert block.stop - block.start <= block_entries
        # Its rows hold its entries, and no more rows than allowed, but for the one cut at its end.
        assert indptr[block.first_row] <= block.start
        assert block.stop <= indptr[block.last_row]
        assert block.last_row - block.first_row <= block_rows + 1
        at = block.stop
    assert at == nnz


class _Sized:
    """A source of any size that is never read."""

    def __init__(self, n_cells, n_entries, chunk_size):
        self.n_cells, self.n_entries, self.chunk_size = n_cells, n_entries, chunk_size
        self.data = np.empty(0, np.float32)
        self.notes, self.spool_bytes = (), 0

    def block_bytes(self, n_entries, n_rows, *, signed):
        return n_entries * (12 if signed else 4) + n_rows * 16 + 4 * self.chunk_size * 4


@settings(deadline=None)
@given(
    n_cells=st.integers(1, 200_000_000),
    degree=st.integers(1, 60),
    chunk=st.sampled_from([1000, 100_000, 586_000, 4_000_000]),
    limit=st.integers(384, 4000),
    threads=st.integers(1, 64),
    method=st.sampled_from(["symmetric", "general", "signed"]),
    compression=st.sampled_from([None, 6]),
)
def test_projected_memory_stays_within_the_limit(
    n_cells, degree, chunk, limit, threads, method, compression
):
    source = _Sized(n_cells, n_cells * degree, chunk)
    job = Job(source, Scratch(""), partition_shift(n_cells), method)
    budget = Budget(limit * MB, 200 * MB, threads, True, EdgePairs(compression))
    try:
        tuning = tune(job, budget)
    except MemoryLimitError:
        assert smallest_limit(job, budget) > limit * MB
        return
    assert 1 <= tuning.threads <= threads
    job = replace(job, shift=tuning.shift)
    assert projected_bytes(job, tuning, budget) <= limit * MB
    # Tasks stay in the hundreds to thousands, if the threads do not share a small limit.
    if chunk >= 100_000 and limit >= max(500, 150 * threads):
        assert source.n_entries / tuning.block_entries < 20_000


@settings(deadline=None)
@given(
    n_cells=st.integers(1, 500_000_000),
    degree=st.integers(0, 60),
    chunk=st.sampled_from([1, 1000, 65_537, 586_000, 9_000_000]),
    limit=st.integers(1, 400),
    threads=st.sampled_from([1, 2, 7, 64, 10**8]),
    fewer=st.booleans(),
    method=st.sampled_from(["symmetric", "general", "signed"]),
    compression=st.sampled_from([None, 1, 9]),
)
def test_the_limit_that_a_refusal_names_is_accepted(
    n_cells, degree, chunk, limit, threads, fewer, method, compression
):
    whole = job = Job(
        _Sized(n_cells, n_cells * degree, chunk), Scratch(""), partition_shift(n_cells), method
    )
    budget = Budget(limit * MB, 200 * MB, threads, fewer, EdgePairs(compression))
    with pytest.raises(MemoryLimitError, match=r"smallest limit that will do is (\d+)MB") as caught:
        tune(job, budget._replace(limit=1))
    least = int(str(caught.value).rsplit("is ", 1)[1].split("MB")[0])
    assert caught.value.needed_bytes == least * MB
    assert pickle.loads(pickle.dumps(caught.value)).needed_bytes == least * MB
    accepted = budget._replace(limit=least * MB)
    tuning = tune(job, accepted)
    job = replace(job, shift=tuning.shift)
    assert projected_bytes(job, tuning, accepted) <= least * MB
    with pytest.raises(MemoryLimitError):
        tune(whole, budget._replace(limit=smallest_limit(whole, budget) - 1))


@pytest.mark.parametrize(
    ("n_cells", "degree", "limit"), [(10_000_000, 17, 400), (100_000_000, 24, 600)]
)
def test_a_piece_has_room_for_two_partitions(n_cells, degree, limit):
    """One that does not fit would be read anew for each part of it."""
    source = _Sized(n_cells, n_cells * degree, 586_000)
    job = Job(source, Scratch(""), partition_shift(n_cells), "general", "max", True, True)
    tuning = tune(job, Budget(limit * MB, 200 * MB, 2, True, EdgePairs()))
    assert tuning.shift < partition_shift(n_cells)
    assert tuning.piece_entries > 2 * 2 * degree * 2**tuning.shift
    assert tuning.threads == 2


@pytest.mark.parametrize("thinning", [Thinning(top_k=10), Thinning(max_edges=10**6)])
def test_what_thinning_holds_leaves_the_merge_its_room(thinning):
    """Stages follow each other."""
    n_cells = 10_000_000
    source = _Sized(n_cells, n_cells * 15, 586_000)
    plain = Job(source, Scratch(""), partition_shift(n_cells), "general", "max")
    thinned = replace(plain, thinning=thinning)
    budget = Budget(512 * MB, 126 * MB, 2, True, EdgePairs())
    tuning = tune(thinned, budget)
    assert tuning.count_components
    assert tuning.block_entries > 3_000_000  # as of a plain export
    assert tuning.piece_entries > 1_500_000
    assert tuning.thinned[0] < tuning.block_entries
    assert projected_bytes(thinned, tuning, budget) <= 512 * MB


@pytest.mark.parametrize("threads", [0, -1, 2**31, int("9" * 400), -int("9" * 400), 2.0, "2"])
def test_threads_that_cannot_be(tmp_path, threads):
    with pytest.raises(ValueError, match="threads must be"):
        plan_export(directed_graph(20), threads=threads)


def test_isolated_cells_make_few_blocks():
    job = Job(_Sized(50_000_000, 1000, 1000), Scratch(""), partition_shift(50_000_000), "general")
    tuning = tune(job, Budget(2000 * MB, 200 * MB, 2, True, EdgePairs()))
    assert tuning.block_rows == 2**20


def test_a_limit_that_is_too_small_is_refused_with_one_that_will_do(tmp_path):
    path = tmp_path / "s.zarr"
    write_store(path, directed_graph(200))
    with pytest.raises(MemoryLimitError, match=r"smallest limit that will do is (\d+)MB") as caught:
        plan_export(path, memory_limit="100MB")
    least = str(caught.value).rsplit("is ", 1)[1].split(" ")[0]
    out_dir = tmp_path / "out"
    with pytest.raises(MemoryLimitError):
        run_export(open_source(path), out_dir, memory_limit="100MB")
    assert not out_dir.exists()
    plan = plan_export(path, memory_limit=least)
    assert plan.projected_memory_bytes <= plan.memory_limit_bytes
    assert run_export(open_source(path), out_dir, memory_limit=least).n_edges > 0


@pytest.mark.parametrize(
    ("n_cells", "n_entries", "warns"),
    [
        (1_000_000, 100_000_000, False),
        (1_000_000, 101_000_000, True),
        (1_000_000, 900_000_000, True),  # large, but no denser than its neighbors
        (60, 60 * 59, True),
        (60, 60 * 25, False),
        (30, 30 * 29, False),
    ],
)
def test_very_dense_graphs_are_warned_of(n_cells, n_entries, warns):
    source = _Sized(n_cells, n_entries, 100_000)
    source.path, source.key = "s.zarr", "obsp/connectivities"
    job = Job(source, Scratch(""), 10, "general")
    budget = Budget(10**9, 2 * 10**8, 1, True, EdgePairs())
    plan = make_plan(job, tune(job, budget), budget, 10, Disks(10**12, 10**12, True))
    assert any("very dense" in warning for warning in plan.warnings) == warns
    assert not any("cellucid" in warning for warning in plan.warnings)
