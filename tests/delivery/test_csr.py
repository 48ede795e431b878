"""What writing the chunks of an element takes in memory, and chunks that are there already."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cellgraph_dask.delivery.csr import (
    _Target,
    chunk_holds,
    csr_bytes,
    cut_chunks,
    write_chunk,
)
from cellgraph_dask.delivery.parts import PieceSink
from cellgraph_dask.delivery.zarr_files import CHUNK_VALUES
from cellgraph_dask.machine import buffers
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Job
from cellgraph_dask.stages.runs import Scratch
from tests.helpers.stores import symmetric_graph


def target_of(folder, n_cells, n_edges, dtype, zarr_format, *, n_pieces=5):
    """Return a target whose pieces hold so many random edges, and its job."""
    scratch = Scratch(str(folder))
    job = Job(
        open_source(symmetric_graph(9, 2)), scratch, 8, "general", "max", True, True,
        delivered=np.dtype(dtype).name,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    src = np.sort(rng.integers(0, n_cells, n_edges)).astype(np.uint32)
    columns = src, rng.integers(0, n_cells, n_edges).astype(np.uint32), rng.random(n_edges)
    columns = *columns[:2], columns[2].astype(dtype)
    cuts = np.linspace(0, n_edges, n_pieces + 1).astype(int)
    sink = PieceSink(scratch)
    for k in range(n_pieces):
        sink.write(k, *(column[cuts[k] : cuts[k + 1]] for column in columns))
    target = _Target(
        scratch, folder / "element", zarr_format, n_cells, tuple(job.edge_dtypes), np.dtype(dtype),
        tuple(cuts.tolist()),
    )  # fmt: skip
    for name in ("indptr", "indices", "data"):
        target.array(name).write_metadata()
    return target, job, columns


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_takes_no_more_than_is_planned(tmp_path, dtype, zarr_format):
    n = CHUNK_VALUES + 1000
    target, job, _ = target_of(tmp_path, n, n, dtype, zarr_format)
    planned = csr_bytes(job, np.dtype(dtype))
    for task in cut_chunks(target):
        write_chunk(target, task)  # loads what it takes
        buffers.release()
        tracemalloc.start()
        write_chunk(target, task)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < planned
    assert planned < 2 * 10**7 * (1 if dtype == "f4" else 2)


def test_a_chunk_that_is_damaged_or_gone_is_written_again(tmp_path):
    target, _, _ = target_of(tmp_path, 50, 900, "f4", 2)
    for task in cut_chunks(target):
        written = write_chunk(target, task)
        assert chunk_holds(target, (task, written))
        path = target.array(task.array).path(task.chunk)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not chunk_holds(target, (task, written))
        path.unlink()
        assert not chunk_holds(target, (task, written))
        assert write_chunk(target, task) == written
        assert path.read_bytes() == content


def test_rows_start_where_they_do_whatever_the_pieces(tmp_path):
    target, _, (src, _, _) = target_of(tmp_path, 3000, 700, "f4", 2, n_pieces=90)
    wanted = np.searchsorted(src, np.arange(3001))
    from cellgraph_dask.delivery.csr import _row_starts

    for first, last in ((0, 3001), (0, 1), (3000, 3001), (7, 8), (1500, 3001), (10, 900)):
        assert _row_starts(target, first, last).tolist() == wanted[first:last].tolist()
