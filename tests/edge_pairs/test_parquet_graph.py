"""Parquet folders read back: the same surface and the same graph as of edge files."""

import numpy as np
import pytest
import scipy.sparse as sp

from cellgraph_dask import open_export, verify_export
from cellgraph_dask.delivery import parquet
from cellgraph_dask.errors import InvalidExportError
from tests.helpers.stores import write_store
from tests.helpers.tables import make_table, wanted

pq = pytest.importorskip("pyarrow.parquet")
DIRECTED = sp.random(300, 300, density=0.03, format="csr", random_state=0, dtype=np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_all_views_show_the_edges(tmp_path, monkeypatch, both, weighted):
    monkeypatch.setattr(parquet, "FILE_ROWS", 1000)
    make_table(DIRECTED, tmp_path, rule="mean", both=both, weighted=weighted, row_group=300)
    src, dst, weights = wanted(DIRECTED, "mean", both=False)
    symmetric = sp.csr_matrix((weights, (src, dst)), shape=(300, 300))
    symmetric = symmetric + symmetric.T
    with open_export(tmp_path) as graph:
        np.testing.assert_array_equal(graph.src, src)
        np.testing.assert_array_equal(graph.dst, dst)
        assert graph.src.dtype == np.int32
        assert (graph.n_cells, graph.n_edges) == (300, src.size)
        assert graph.max_neighbors == np.diff(symmetric.indptr).max()
        assert graph.manifest.directions == ("both" if both else "one")
        if weighted:
            np.testing.assert_array_equal(graph.weights, weights)
        else:
            assert graph.weights is None
            symmetric.data[:] = 1
        assert (graph.to_scipy() != symmetric).nnz == 0
        assert graph.neighbors(7).tolist() == symmetric[7].indices.tolist()
        for column, expected in zip(graph.to_dask(500), (src, dst, weights), strict=False):
            np.testing.assert_array_equal(column.compute(scheduler="sync"), expected)
        assert "300" in repr(graph)
    with pytest.raises(ValueError, match="closed"):
        _ = graph.src


def test_a_file_of_another_graph_is_told(tmp_path):
    for name, rule in (("a", "mean"), ("b", "max")):
        make_table(DIRECTED, tmp_path / name, rule=rule, weighted=True)
    name = "edges-00000.parquet"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(InvalidExportError, match="of another graph"):
        open_export(tmp_path / "a")


@pytest.mark.parametrize("damage", ["missing", "short", "page", "link"])
def test_damaged_files_are_told(tmp_path, damage):
    make_table(DIRECTED, tmp_path / "out", rule="max", weighted=True)
    path = tmp_path / "out" / "edges-00000.parquet"
    whole = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(whole[:-20])
    elif damage == "page":
        path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidExportError, match=r"edges-00000\.parquet"):
        open_export(tmp_path / "out")


@pytest.mark.slow
def test_a_folder_that_was_copied_to_a_url_is_read_there(tmp_path, s3):
    store = write_store(tmp_path / "s.zarr", DIRECTED)
    make_table(store, tmp_path / "out", rule="max", both=True, weighted=True, row_group=500)
    bucket = s3.make_bucket()
    for path in (tmp_path / "out").iterdir():
        s3.file_system().pipe_file(f"{bucket}/exports/a/{path.name}", path.read_bytes())
    url = f"s3://{bucket}/exports/a"
    src, _, weights = wanted(DIRECTED, "max", both=False)
    with open_export(url, storage_options=s3.options()) as graph:
        np.testing.assert_array_equal(graph.src, src)
        np.testing.assert_array_equal(graph.weights, weights)
    report = verify_export(url, source=store, output_storage_options=s3.options())
    assert report.ok, report.problems
    s3.file_system().pipe_file(f"{bucket}/exports/a/edges-00000.parquet", b"other")
    report = verify_export(url, output_storage_options=s3.options())
    assert url in report.problems[0]
