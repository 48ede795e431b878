"""The same bytes as cellucid 0.0.9's own exporter; folders of 0.9.4's are left alone."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cellgraph_dask import export_connectivities, plan_export, verify_export
from cellgraph_dask.errors import OutputError
from tests.helpers.cellucid import install, run_with
from tests.helpers.stores import (
    directed_graph,
    snapshot,
    symmetric_graph,
    write_anndata,
    write_store,
)

SIDES = ("src", "dst")

# cellucid 0.0.9 calls it; pandas has deprecated it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:is_categorical_dtype is deprecated"),
    pytest.mark.slow,
]


def cellucid_export(
    matrix, out_dir: Path, compression: int | None, n_cells: int | None = None
) -> Path:
    """Let cellucid export a graph as its users do, with everything else it insists on."""
    from cellucid import prepare

    n_cells = n_cells or matrix.shape[0]
    points = np.random.default_rng(0).normal(size=(n_cells, 2)).astype(np.float32)
    prepare(
        latent_space=points,
        obs=pd.DataFrame({"cluster": pd.Categorical(["a"] * n_cells)}),
        X_umap_2d=points,
        connectivities=matrix,
        out_dir=out_dir,
        compression=compression,
    )
    return out_dir


def assert_same_bytes(ours: Path, theirs: Path, *, but: tuple[str, ...] = ()) -> None:
    name = "connectivity_manifest.json"
    our_manifest, their_manifest = (json.loads((d / name).read_text()) for d in (ours, theirs))
    assert list(our_manifest) == list(their_manifest)
    for key in their_manifest:
        if key not in but:
            assert our_manifest[key] == their_manifest[key]
    if not but:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    for side in SIDES:
        files = [next(d.glob(f"connectivity/edges.{side}.bin*")) for d in (ours, theirs)]
        assert files[0].name == files[1].name
        raw, expected = (file.read_bytes() for file in files)
        if our_manifest["compression"] is not None:
            raw, expected = gzip.decompress(raw), gzip.decompress(expected)
        assert len(raw) == our_manifest["n_edges"] * our_manifest["index_bytes"]
        assert raw == expected


def digits_graph() -> AnnData:
    import scanpy
    from sklearn.datasets import load_digits

    adata = AnnData(load_digits().data.astype(np.float32))
    scanpy.pp.neighbors(adata, n_neighbors=15, use_rep="X", random_state=0)
    return adata


@pytest.fixture(scope="module")
def real_graphs():
    """Return {name: matrix} of graphs made by scanpy."""
    import scanpy

    graphs = {}
    for name, adata in (("pbmc", scanpy.datasets.pbmc68k_reduced()), ("digits", digits_graph())):
        for key in ("connectivities", "distances"):
            graphs[f"{name} {key}"] = adata.obsp[key]
    return graphs


def test_it_is_the_version_we_promise():
    assert version("cellucid") == "0.0.9"


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, 6])
@pytest.mark.parametrize(
    "name", ["pbmc connectivities", "pbmc distances", "digits connectivities", "digits distances"]
)
def test_real_graphs(tmp_path, real_graphs, name, compression):
    matrix = real_graphs[name]
    assert matrix.nnz > 6000
    key = name.split()[1]
    source = write_anndata(tmp_path / "s.zarr", **{key: matrix})
    theirs = cellucid_export(matrix, tmp_path / "theirs", compression)
    report = export_connectivities(source, tmp_path / "ours", key=key, compression=compression)
    assert_same_bytes(tmp_path / "ours", theirs)
    assert report.n_edges > 3000


def test_into_the_folder_that_cellucid_has_prepared(tmp_path, real_graphs):
    matrix = real_graphs["digits connectivities"]
    source = write_anndata(tmp_path / "s.zarr", connectivities=matrix)
    with_graph = cellucid_export(matrix, tmp_path / "with", None)
    without = cellucid_export(None, tmp_path / "without", None, n_cells=matrix.shape[0])
    name = "dataset_identity.json"
    export_connectivities(source, without)
    ours, theirs = (json.loads((d / name).read_text()) for d in (without, with_graph))
    assert ours["stats"] == theirs["stats"]
    assert list(ours) == list(theirs)
    assert_same_bytes(without, with_graph)
    assert verify_export(without).ok
    assert verify_export(with_graph).ok


def random_matrix(seed: int) -> sparse.csr_matrix:
    """Return a matrix of signed entries and stored zeros, anywhere but on the diagonal."""
    rng = np.random.default_rng(seed)
    n_cells = int(rng.integers(2, 300))
    matrix = sparse.random(n_cells, n_cells, density=0.05, format="csr", random_state=rng)
    matrix.data = rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0], matrix.nnz)
    matrix.setdiag(0)
    return matrix.tocsr()


@pytest.mark.parametrize("compression", [None, 1])
@pytest.mark.parametrize("seed", range(5))
def test_random_graphs(tmp_path, seed, compression):
    matrix = random_matrix(seed)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=int(seed * 37 + 5),
                         write_empty_chunks=True, zarr_format=2 + seed % 2)  # fmt: skip
    theirs = cellucid_export(matrix, tmp_path / "theirs", compression)
    export_connectivities(source, tmp_path / "ours", compression=compression)
    assert_same_bytes(tmp_path / "ours", theirs)


@pytest.mark.parametrize("n_cells", [65_535, 65_536])
def test_where_the_dtype_changes(tmp_path, n_cells):
    rows = np.array([0, 5, 5, n_cells - 2])
    columns = np.array([n_cells - 1, 3, n_cells - 1, 0])
    matrix = sparse.csr_matrix((np.ones(4, np.float32), (rows, columns)), (n_cells, n_cells))
    source = write_store(tmp_path / "s.zarr", matrix)
    theirs = cellucid_export(matrix, tmp_path / "theirs", None)
    export_connectivities(source, tmp_path / "ours")
    assert_same_bytes(tmp_path / "ours", theirs)


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("graph", [directed_graph(60, 7), symmetric_graph(60, 7)])
def test_both_layouts(tmp_path, graph, layout):
    matrix = graph.asformat(layout)
    source = write_store(tmp_path / "s.zarr", matrix)
    theirs = cellucid_export(matrix, tmp_path / "theirs", None)
    export_connectivities(source, tmp_path / "ours")
    assert_same_bytes(tmp_path / "ours", theirs)


def test_the_diagonal_counts_as_no_neighbor_here(tmp_path):
    # The one difference in the manifest: cellucid 0.0.9 counts a self-edge as a neighbor.
    matrix = symmetric_graph(30, 4).tolil()
    degrees = np.diff(matrix.tocsr().indptr)
    matrix[degrees.argmax(), degrees.argmax()] = 1
    matrix = matrix.tocsr()
    source = write_store(tmp_path / "s.zarr", matrix)
    theirs = cellucid_export(matrix, tmp_path / "theirs", None)
    report = export_connectivities(source, tmp_path / "ours")
    assert_same_bytes(tmp_path / "ours", theirs, but=("max_neighbors",))
    assert report.max_neighbors == degrees.max()
    manifest = json.loads((theirs / "connectivity_manifest.json").read_text())
    assert manifest["max_neighbors"] == degrees.max() + 1


def test_small_integers_do_not_overflow_here(tmp_path):
    # The one difference in the edges: 128 + 128 is 0 in uint8, and cellucid 0.0.9 loses the edge.
    matrix = sparse.csr_matrix((np.full(3, 128, np.uint8), ([0, 1, 1], [1, 0, 2])), shape=(3, 3))
    source = write_store(tmp_path / "s.zarr", matrix)
    theirs = cellucid_export(matrix, tmp_path / "theirs", None)
    assert export_connectivities(source, tmp_path / "ours").n_edges == 2
    assert json.loads((theirs / "connectivity_manifest.json").read_text())["n_edges"] < 2


# What 0.9.4 does, in a process that finds it before 0.0.9.
_PREPARE = """
import sys
import numpy as np, pandas as pd
from cellucid import __version__, prepare
from scipy import sparse
assert __version__ == "0.9.4"
out_dir, graph = sys.argv[1:]
n = 30
points = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
ring = sparse.csr_matrix((np.ones(n), (range(n), [*range(1, n), 0])), shape=(n, n))
prepare(
    latent_space=points, obs=pd.DataFrame({"cluster": pd.Categorical(["a"] * n)}),
    connectivities=ring + ring.T if graph == "graph" else None, out_dir=out_dir,
    obs_categorical_dtype="uint8", dataset_name="d", dataset_id="d", embeddings={"X_umap": points},
)
"""
_SERVE = """
import sys
from pathlib import Path
from cellucid.server._artifacts import _build_prepared_artifact_inventory
from cellucid.server._datasets import _list_exported_datasets
folder = Path(sys.argv[1])
print(len(_build_prepared_artifact_inventory(folder, _list_exported_datasets(folder))), "files")
"""


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """Return a function that runs a script with cellucid 0.9.4, which pip brings."""
    return partial(run_with, install("0.9.4", tmp_path_factory.mktemp("cellucid-0.9.4")))


@pytest.mark.parametrize("graph", ["graph", "none"])
def test_datasets_of_0_9_4_stay_readable(tmp_path, weighted, graph):
    folder = tmp_path / "d"
    made = weighted(_PREPARE, folder, graph)
    assert made.returncode == 0, made.stderr
    assert weighted(_SERVE, folder).stdout == f"{9 if graph == 'graph' else 5} files\n"
    source = write_store(tmp_path / "s.zarr", symmetric_graph(30, 4))
    before = snapshot(folder)
    for function in (export_connectivities, plan_export):
        with pytest.raises(OutputError, match=r"cellucid_data_version '0\.9\.4'"):
            function(source, folder)
    with pytest.raises(OutputError, match="Prepare the folder with cellucid"):
        export_connectivities(source, folder, force=True)
    assert snapshot(folder) == before
    # Why: with our files in it, 0.9.4 refuses the whole dataset, and verify knows.
    ours = tmp_path / "ours"
    export_connectivities(source, ours)
    shutil.copytree(ours, folder, dirs_exist_ok=True)
    refused = weighted(_SERVE, folder)
    assert refused.returncode == 1
    assert "connectivity" in refused.stderr
    report = verify_export(folder)
    assert not report.ok
    assert "was prepared by cellucid 0.9.1 to 0.9.4" in report.problems[0]
