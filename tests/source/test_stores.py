"""The helpers of the tests: their stores are AnnData's, and their oracle can be wrong."""

import anndata
import numpy as np
import pytest
import zarr
from scipy import sparse

from tests.helpers.stores import Stored, chunk_file, directed_graph, symmetric_graph, write_store
from tests.oracle import oracle_edges, oracle_max_neighbors


@pytest.mark.parametrize(
    ("zarr_format", "chunk", "shard"), [(2, None, None), (2, 7, None), (3, 7, None), (3, 7, 28)]
)
@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("consolidated", [True, False])
def test_anndata_reads_the_stores(tmp_path, zarr_format, chunk, shard, layout, consolidated):
    matrix = directed_graph().asformat(layout)
    points = np.zeros((40, 2), np.float32)
    path = write_store(
        tmp_path / "s.zarr", matrix, zarr_format=zarr_format, chunk=chunk, shard=shard,
        consolidated=consolidated, obsm={"X_umap": points},
    )  # fmt: skip
    adata = anndata.read_zarr(path)
    assert adata.n_obs == 40
    assert adata.obsm["X_umap"].shape == (40, 2)
    assert (adata.obsp["connectivities"] != matrix).nnz == 0
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == zarr_format
    assert (group.metadata.consolidated_metadata is not None) == consolidated
    assert chunk_file(path, "indices").is_file()


def test_oracle():
    # Cells 0-1 cancel; 0-2 are repeats that do not; 1-2 stored once below; 3 has a self-edge.
    matrix = Stored(
        np.array([0, 4, 5, 6, 7]),
        np.array([2, 1, 0, 2, 0, 1, 3]),
        np.array([1, 5, 9, 1, -5, 1, 1]),
        (4, 4),
    )
    src, dst = oracle_edges(matrix)
    assert list(zip(src.tolist(), dst.tolist(), strict=True)) == [(0, 2), (1, 2)]
    assert oracle_max_neighbors(matrix) == 2


def test_oracle_agrees_with_scipy():
    for matrix in (directed_graph(), symmetric_graph(), directed_graph().tocsc()):
        expected = sparse.triu(matrix + matrix.T, k=1, format="csr").tocoo()
        src, dst = oracle_edges(matrix)
        assert src.tolist() == expected.row.tolist()
        assert dst.tolist() == expected.col.tolist()


def test_oracle_sums_exactly():
    matrix = Stored(np.array([0, 2, 2]), np.array([1, 1]), np.array([128, 128], np.uint8), (2, 2))
    assert oracle_edges(matrix)[0].tolist() == [0]
