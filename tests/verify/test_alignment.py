"""A shuffled embedding is called out, a true one is not."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.demo import make_demo_store
from cellgraph_dask.source.embeddings import stored_embeddings
from tests.helpers.command import run
from tests.helpers.servers import serving
from tests.helpers.stores import symmetric_graph, write_store


def pbmc():
    import scanpy as sc

    return sc.datasets.pbmc68k_reduced()


def digits():
    import scanpy as sc
    from sklearn.datasets import load_digits

    adata = anndata.AnnData(load_digits().data.astype(np.float32))
    sc.pp.pca(adata, n_comps=30)
    sc.pp.neighbors(adata)
    sc.tl.umap(adata)
    return adata


def bare(adata):
    """Return what the check looks at, without what anndata would warn of on writing."""
    left = anndata.AnnData(obs=pd.DataFrame(index=adata.obs_names.astype(str)))
    left.obsp["connectivities"] = adata.obsp["connectivities"]
    for name in adata.obsm:
        left.obsm[name] = np.asarray(adata.obsm[name])
    return left


SLOW = pytest.param("digits", marks=pytest.mark.slow)  # its neighbors are computed


@pytest.fixture(scope="module", params=["pbmc", SLOW, "demo"])
def store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "cells.zarr"
    if request.param == "demo":
        make_demo_store(path, n_cells=3_000)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scanpy's own
            adata = pbmc() if request.param == "pbmc" else digits()
        bare(adata).write_zarr(path)
    return path


def points_of(store, name="X_umap"):
    return np.asarray(zarr.open_group(store, mode="r")[f"obsm/{name}"][:], "<f4")


def shuffle(points, seed=0):
    return points[np.random.default_rng(seed).permutation(len(points))]


def test_the_embedding_of_the_source(store, tmp_path):
    export_connectivities(store, tmp_path / "out")
    report = verify_export(tmp_path / "out", source=store)
    assert report.ok
    assert report.warnings == ()
    assert report.alignment.embedding == "obsm/X_umap"
    assert report.alignment.value > 0.9
    assert not report.alignment.shuffled


@pytest.mark.parametrize("name", ["points_2d.bin", "points_2d.bin.gz", "points_3d.bin"])
def test_points_beside_the_export(store, tmp_path, name):
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir)
    points = points_of(store)
    if "3d" in name:
        points = np.column_stack([points, np.zeros(len(points), "<f4")])
    pack = gzip.compress if name.endswith(".gz") else bytes
    (out_dir / name).write_bytes(pack(points.tobytes()))
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 0
    assert f"random pair in {name}" in outcome.stdout
    assert outcome.stderr == ""
    for seed in range(5):
        (out_dir / name).write_bytes(pack(shuffle(points, seed).tobytes()))
        outcome = run("verify", out_dir, "--json")
        assert outcome.exit_code == 0  # worth a look, but the files are sound
        assert f"looks shuffled against {name}" in outcome.stderr
        alignment = json.loads(outcome.stdout)["alignment"]
        assert alignment["shuffled"]
        assert alignment["value"] == pytest.approx(0.5, abs=0.05)


def test_a_graph_in_another_order_than_its_store(store, tmp_path):
    """The footgun itself: rows of the matrix permuted, obs and obsm not."""
    root = zarr.open_group(store, mode="r")
    group = root["obsp/connectivities"]
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(tuple(group[k][:] for k in ("data", "indices", "indptr")))
    order = np.random.default_rng(1).permutation(matrix.shape[0])
    shuffled = matrix[order][:, order]
    path = write_store(tmp_path / "s.zarr", shuffled, obsm={"X_umap": points_of(store)})
    export_connectivities(path, tmp_path / "out")
    report = verify_export(tmp_path / "out", source=path)
    assert report.ok
    (warning,) = report.warnings
    assert "looks shuffled against obsm/X_umap" in warning


def test_files_of_other_cells_and_damaged_ones(tmp_path):
    store = write_store(tmp_path / "s.zarr", symmetric_graph(200, 5))
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir)
    of_other_cells = [b"\0" * 8 * 199, b"\0" * 8 * 201, b""]
    packed = [gzip.compress(content) for content in of_other_cells]
    cases = [("points_2d.bin", content, "200 cells") for content in of_other_cells]
    cases += [("points_2d.bin.gz", content, "200 cells") for content in packed]
    cases += [("points_2d.bin.gz", content, "") for content in (b"no gzip", packed[0][:-9])]
    for name, content, text in cases:
        (out_dir / name).write_bytes(content)
        report = verify_export(out_dir)
        (out_dir / name).unlink()
        assert report.ok
        assert report.alignment is None
        (warning,) = report.warnings
        assert warning.startswith(f"{name} cannot be used: ")
        assert text in warning


def test_too_few_edges_tell_nothing(tmp_path):
    store = write_store(
        tmp_path / "s.zarr", symmetric_graph(12, 3), obsm={"X_umap": np.zeros((12, 2), "f4")}
    )
    export_connectivities(store, tmp_path / "out")
    assert verify_export(tmp_path / "out", source=store).alignment is None


def test_points_that_are_not_finite_do_not_count(tmp_path):
    points = np.full((300, 2), np.nan, np.float32)
    store = write_store(tmp_path / "s.zarr", symmetric_graph(300, 5), obsm={"X_umap": points})
    export_connectivities(store, tmp_path / "out")
    assert verify_export(tmp_path / "out", source=store).alignment is None


def test_which_embedding_is_taken(tmp_path):
    obsm = {
        "X_pca": np.zeros((40, 20), "f4"), "X_tsne": np.zeros((40, 2)), "spatial": np.ones((40, 2)),
        "X_spatial": np.ones((40, 2)), "X_umap3": np.zeros((40, 3)), "X_umap": np.zeros((40, 2)),
        "X_short": np.zeros((39, 2)), "X_one": np.zeros((40, 1)), "X_new": np.zeros((40, 2), "i4"),
    }  # fmt: skip
    store = write_store(tmp_path / "s.zarr", symmetric_graph(40, 5), obsm=obsm)
    names = [embedding.name for embedding in stored_embeddings(str(store), 40)[0]]
    assert names == [f"obsm/{k}" for k in ("X_umap", "X_tsne", "X_new", "X_umap3", "X_pca")]
    cells = np.array([0, 7, 39])
    assert stored_embeddings(str(store), 40)[0][-1].take(cells).shape == (3, 10)
    found, why = stored_embeddings(str(tmp_path), 40)
    assert found == []
    assert "not a zarr store" in why


def neighbors_in_a_plane(n_cells=300):
    """Return points, and the graph of those that lie next to each other on a circle."""
    angles = np.linspace(0, 2 * np.pi, n_cells, endpoint=False)
    matrix = sparse.lil_matrix((n_cells, n_cells), dtype=np.float32)
    for step in (1, 2, n_cells - 1, n_cells - 2):
        matrix[np.arange(n_cells), (np.arange(n_cells) + step) % n_cells] = 1
    return np.column_stack([np.cos(angles), np.sin(angles)]), matrix.tocsr()


def of_every_kind(tmp_path, points, matrix):
    """Yield a source of each kind, and the key of its matrix."""
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": points})
    shutil.make_archive(str(tmp_path / "s.zarr"), "zip", store)
    yield tmp_path / "s.zarr.zip", "connectivities"
    yield zarr.open_group(store, mode="r"), "connectivities"
    adata = anndata.read_zarr(store)
    yield adata, "connectivities"
    adata.write_h5ad(tmp_path / "s.h5ad")
    yield tmp_path / "s.h5ad", "connectivities"
    yield anndata.read_h5ad(tmp_path / "s.h5ad", backed="r"), "connectivities"
    shutil.copytree(store, tmp_path / "sd.zarr/tables/table")
    zarr.open_group(tmp_path / "sd.zarr", mode="a", zarr_format=2).require_group("tables")
    yield tmp_path / "sd.zarr", "tables/table/obsp/connectivities"
    lazily = anndata.AnnData(
        obs=adata.obs, obsp={"connectivities": matrix}, obsm={"X_umap": da.from_array(points)}
    )
    yield lazily, "connectivities"


def test_the_embedding_of_sources_of_every_kind(tmp_path):
    points, matrix = neighbors_in_a_plane()
    export_connectivities(matrix, tmp_path / "out")
    for source, key in of_every_kind(tmp_path, points, matrix):
        report = verify_export(tmp_path / "out", source=source, key=key)
        assert report.ok
        assert report.alignment is not None, (source, report.unchecked)
        assert report.alignment.value > 0.9
        assert report.unchecked == ()
    with serving(tmp_path) as url:
        report = verify_export(tmp_path / "out", source=f"{url}/s.zarr")
        assert report.alignment.value > 0.9


def test_what_is_not_checked_is_said(tmp_path):
    points, matrix = neighbors_in_a_plane()
    out_dir = tmp_path / "out"
    export_connectivities(matrix, out_dir)
    store = write_store(
        tmp_path / "s.zarr", matrix, obsm={"X_umap": points[:-1], "spatial": points}
    )
    damaged = write_store(tmp_path / "d.zarr", matrix, obsm={"X_umap": points})
    (damaged / "obsm/X_umap/.zarray").write_text("{}")
    cases = {
        None: "no points_2d.bin or points_3d.bin is beside the export; no source with embeddings",
        "matrix": "the matrix was given without the embeddings",
        "store": "obsm/X_umap has 299 rows for 300 cells",
        "damaged": "obsm/X_umap",
    }
    sources = {None: None, "matrix": matrix, "store": store, "damaged": damaged}
    for name, words in cases.items():
        report = verify_export(out_dir, source=sources[name])
        assert report.ok
        assert report.alignment is None
        (said,) = report.unchecked
        assert said.startswith("alignment: ")
        assert words in said
    outcome = run("verify", out_dir)
    assert "not checked" in outcome.stdout
    assert "no source with embeddings was named" in outcome.stdout
