"""A graph as a Dask array of sparse blocks is the matrix, and can be exported again."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import sparse as pydata
from scipy import sparse

from cellgraph_dask import export_connectivities, plan_export, read_connectivities
from cellgraph_dask.errors import DamagedGraphError, SourceError
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.source.spool import spool
from tests.helpers.stores import (
    Stored,
    chunk_file,
    directed_graph,
    snapshot,
    stored,
    symmetric_graph,
    write_store,
)
from tests.oracle import assert_exported

GRAPH = directed_graph(200, 7)


def computed(graph: da.Array) -> sparse.csr_matrix:
    """Return a Dask array of sparse blocks as one matrix."""
    columns = graph.numblocks[1] > 1
    blocks = dask.compute(*graph.to_delayed().ravel(), scheduler="sync")
    parts = [b.to_scipy_sparse() if isinstance(b, pydata.GCXS) else b for b in blocks]
    return (sparse.hstack if columns else sparse.vstack)(parts, format="csr")


def assert_same_matrix(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert (found != expected).nnz == 0


@pytest.mark.parametrize("layout", ["gcxs", "csr"])
@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("block_entries", [50, 99, 100_000])
def test_blocks_are_the_matrix(tmp_path, layout, kind, block_entries):
    store = write_store(tmp_path / "s.zarr", GRAPH.asformat(kind), chunk=64)
    graph = read_connectivities(store, layout=layout, block_entries=block_entries)
    assert graph.shape == (200, 200)
    assert graph.dtype == np.float32
    expected = pydata.GCXS if layout == "gcxs" else sparse.spmatrix
    assert isinstance(graph._meta, expected)
    block = graph.blocks[0, 0].compute()
    assert isinstance(block, expected)
    assert block.nnz <= block_entries
    assert block.dtype == np.float32
    assert (graph.numblocks[0] > 1) == (kind == "csr" and block_entries < 100_000)
    assert_same_matrix(computed(graph), GRAPH)


def test_a_long_row_is_a_block_of_its_own(tmp_path):
    matrix = sparse.lil_matrix((300, 300), dtype=np.float32)
    matrix[100, :] = 1
    matrix[[3, 99, 101, 299], [7, 7, 7, 7]] = 1
    store = write_store(tmp_path / "s.zarr", matrix.tocsr())
    graph = read_connectivities(store, block_entries=10)
    assert graph.chunks[0] == (100, 1, 199)
    assert_same_matrix(computed(graph), matrix)


@pytest.mark.parametrize("n_cells", [0, 1, 5])
def test_graphs_without_edges(tmp_path, n_cells):
    store = write_store(tmp_path / "s.zarr", sparse.csr_matrix((n_cells, n_cells), dtype="f4"))
    graph = read_connectivities(store)
    assert graph.shape == (n_cells, n_cells)
    assert graph.blocks[0, 0].compute().nnz == 0


def test_repeats_are_added_without_overflow(tmp_path):
    matrix = Stored(
        np.array([0, 3, 3]), np.array([1, 0, 1]), np.array([100, 1, 100], np.int8), (2, 2)
    )
    graph = read_connectivities(write_store(tmp_path / "s.zarr", matrix))
    assert graph.blocks[0, 0].compute().todense().tolist() == [[1, 200], [0, 0]]
    export_connectivities(graph, tmp_path / "out")
    assert_exported(tmp_path / "out", matrix)


def test_weights_that_are_not_finite_can_be_mended(tmp_path):
    data = GRAPH.data.copy()
    data[[3, 500]] = np.nan
    store = write_store(tmp_path / "s.zarr", stored(GRAPH)._replace(data=data))
    with pytest.raises(DamagedGraphError, match="is nan"):
        export_connectivities(store, tmp_path / "out")

    def mend(block: pydata.GCXS) -> pydata.GCXS:
        mended = block.copy()
        mended.data[np.isnan(mended.data)] = 1
        return mended

    graph = read_connectivities(store, block_entries=100)
    with pytest.raises(DamagedGraphError, match="is nan"):
        export_connectivities(graph, tmp_path / "out")
    export_connectivities(graph.map_blocks(mend), tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)


@pytest.mark.parametrize("dtype", ["f2", ">f8", "?", "u1"])
def test_weights_keep_their_dtype(tmp_path, dtype):
    matrix = stored(GRAPH)._replace(data=GRAPH.data.astype(dtype))
    graph = read_connectivities(write_store(tmp_path / "s.zarr", matrix))
    expected = np.dtype("f4" if dtype == "f2" else dtype).newbyteorder("=")
    assert graph.dtype == graph.blocks[0, 0].compute().dtype == expected


def test_damage_is_named(tmp_path):
    store = write_store(tmp_path / "s.zarr", GRAPH, chunk=100)
    graph = read_connectivities(store, block_entries=200)
    chunk_file(store, "indices", 7).unlink()
    assert graph.blocks[0, 0].compute().nnz == 196
    with pytest.raises(DamagedGraphError, match=r"chunk 7 of \S*/indices is missing"):
        computed(graph)
    with pytest.raises(DamagedGraphError, match=r"chunk 7 of \S*/indices is missing"):
        export_connectivities(graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_blocks_is_refused():
    with pytest.raises(SourceError, match="has no sparse blocks"):
        read_connectivities(da.zeros((5, 5)))
    for wrong in ({"layout": "coo"}, {"block_entries": 0}):
        with pytest.raises(ValueError, match="must be"):
            read_connectivities(GRAPH, **wrong)


def test_a_matrix_in_memory_in_blocks():
    assert_same_matrix(computed(read_connectivities(GRAPH, block_entries=300)), GRAPH)


@pytest.mark.parametrize("graph", [GRAPH, symmetric_graph(200, 7)])
@pytest.mark.parametrize("layout", ["gcxs", "csr"])
def test_weak_edges_are_dropped_and_the_rest_exported(tmp_path, graph, layout):
    def drop_weak(block: Any) -> Any:
        strong = block.copy()
        strong.data[strong.data < 4] = 0
        return strong

    blocks = read_connectivities(
        write_store(tmp_path / "s.zarr", graph), block_entries=300, layout=layout
    )
    strong = blocks.map_blocks(drop_weak, dtype=blocks.dtype, meta=blocks._meta)
    export_connectivities(strong, tmp_path / "out")
    expected = graph.copy()
    expected.data[expected.data < 4] = 0
    assert_exported(tmp_path / "out", expected)


@pytest.mark.parametrize("chunks", [(60, -1), (-1, 60), (60, 90)])
def test_each_chunk_is_computed_once(tmp_path, chunks):
    lock, seen = threading.Lock(), Counter()

    def note(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        with lock:
            seen[block_info[0]["chunk-location"]] += 1
        return block

    array = da.from_array(GRAPH.toarray(), chunks=chunks).map_blocks(note, meta=np.zeros((0, 0)))
    export_connectivities(array, tmp_path / "out")
    assert_exported(tmp_path / "out", GRAPH)
    assert len(seen) == np.prod(array.numblocks)
    assert set(seen.values()) == {1}


def test_many_small_chunks_share_files(tmp_path):
    """Lazily read AnnData has a chunk for every thousand rows; a file each would be too many."""
    array = da.from_array(GRAPH.toarray(), chunks=(1, -1))
    folder = tmp_path / "spool"
    folder.mkdir()

    class Quiet:
        def start(self, stage: str, total: int, unit: str) -> None: ...
        def advance(self, n: int) -> None: ...

    def compute(tasks: Any, told: Any) -> Any:
        return list(dask.compute(*tasks, scheduler="sync"))

    source = spool(open_source(array), folder, compute, Quiet())
    assert sorted(p.name for p in folder.iterdir()) == ["indptr", "part-000000", "table.npz"]
    assert source.n_entries == GRAPH.nnz
    on_disk = (
        sum(p.stat().st_size for p in folder.iterdir()) - (folder / "table.npz").stat().st_size
    )
    assert source.spool_bytes == on_disk


def test_chunks_of_several_dtypes(tmp_path):
    def mixed(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        kinds = ["f4", "i2", "f8", "?", "f2"]
        return block.astype(kinds[block_info[0]["chunk-location"][0] % len(kinds)])

    whole = GRAPH.copy()
    whole.data[:] = 1
    array = da.from_array(whole.toarray(), chunks=(30, -1)).map_blocks(
        mixed, dtype="f4", meta=np.zeros((0, 0), "f4")
    )
    export_connectivities(array, tmp_path / "out")
    assert_exported(tmp_path / "out", whole)


@pytest.mark.usefixtures("leaves_scratch")
def test_a_kept_scratch_folder_holds_the_spool(tmp_path):
    array = da.from_array(GRAPH.toarray(), chunks=(60, 90))
    report = export_connectivities(
        array, tmp_path / "out", scratch_dir=tmp_path / "scratch", keep_scratch=True
    )
    names = sorted(p.name for p in (tmp_path / "scratch").glob("*/spool/part-*"))
    assert names == [f"part-{k:06d}" for k in range(4)]  # bands, and no pieces of them
    assert report.scratch_bytes > 8 * GRAPH.nnz
    export_connectivities(array, tmp_path / "out", scratch_dir=tmp_path / "scratch", force=True)
    assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").rglob("*"))


def test_a_dask_array_cannot_be_gone_on_with(tmp_path, caplog):
    array = da.from_array(GRAPH.toarray(), chunks=(60, -1))
    with caplog.at_level("INFO", "cellgraph_dask"):
        export_connectivities(array, tmp_path / "out", resume=True)
    assert "starting from the beginning" in caplog.text
    assert_exported(tmp_path / "out", GRAPH)


def test_a_plan_of_a_dask_array_is_an_estimate(tmp_path):
    computed_chunks = []

    def note(block: np.ndarray) -> np.ndarray:
        computed_chunks.append(block.shape)
        return block

    array = da.from_array(GRAPH.toarray(), chunks=(20, -1)).map_blocks(note, meta=np.zeros((0, 0)))
    before = snapshot(tmp_path)
    plan = plan_export(array, tmp_path / "out")
    assert plan.n_entries == GRAPH.nnz  # as many in each row
    assert plan.method == "general"
    assert any("an estimate, from 3 of the 10 chunks" in text for text in plan.warnings)
    assert computed_chunks == [(20, 200)] * 3
    assert plan.scratch_bytes > 8 * GRAPH.nnz
    assert snapshot(tmp_path) == before


def on_cluster(folder: Path) -> dict[str, Any]:
    import zarr

    matrix = symmetric_graph(900, 9)
    store = write_store(folder / "s.zarr", matrix, chunk=5000)
    return {
        "store": zarr.open_group(store, mode="r"),
        "memory": matrix,
        "dask": read_connectivities(store, block_entries=1500),
        "dask in memory": da.from_array(matrix.toarray(), chunks=(300, 200)),
    }


@pytest.mark.slow
@pytest.mark.cluster
def test_sources_on_a_cluster(tmp_path):
    """Workers in processes of their own see what they must: files, never this memory."""
    from distributed import Client, LocalCluster

    from tests.benchmarks.convert_store import write_h5ad, write_zip

    sources = on_cluster(tmp_path)
    sources["h5ad"] = write_h5ad(tmp_path / "s.zarr", tmp_path / "s.h5ad", compression="gzip")
    sources["zip"] = write_zip(tmp_path / "s.zarr", tmp_path / "s.zarr.zip")
    expected = symmetric_graph(900, 9)
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "1GB"}
    with (
        LocalCluster(**options, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for name, source in sources.items():
            report = export_connectivities(source, tmp_path / name, client=client)
            assert report.n_cells == 900
        assert plan_export(expected, client=client).n_workers == 2
    export_connectivities(expected, tmp_path / "here")
    for name in sources:
        files, same = (snapshot(tmp_path / n, but="provenance.json") for n in (name, "here"))
        assert files == same, name
