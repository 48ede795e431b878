"""What `symmetrize` writes, as cellucid 0.9.5 takes it: its check, its own writer, its server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import zlib

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numcodecs import blosc
from scipy import sparse

from cellgraph_dask import check_connectivities, symmetrize_connectivities
from cellgraph_dask.stages.rules import RULES
from tests.helpers.cellucid import install, run_with
from tests.helpers.stores import chunk_file, snapshot, symmetric_graph, write_store

pytestmark = pytest.mark.slow

# Its own check of each element, and whether that changes anything.
_RESOLVE = """
import sys
import anndata, zarr
from cellucid.prepare_data._inputs import resolve_connectivities
for path in sys.argv[1:]:
    graph = anndata.io.read_elem(zarr.open_group(path, mode="r")["obsp/connectivities"])
    resolved = resolve_connectivities(graph, graph.shape[0])
    for name in ("indptr", "indices", "data"):
        ours, theirs = getattr(graph, name), getattr(resolved, name)
        assert ours.dtype == theirs.dtype, (path, name, ours.dtype, theirs.dtype)
        assert ours.tobytes() == theirs.tobytes(), (path, name)
print("taken", len(sys.argv) - 1)
"""
_WRITE = """
import sys
import anndata, zarr
from cellucid.prepare_data._store import _Writer
path, out, zarr_format = sys.argv[1], sys.argv[2], int(sys.argv[3])
graph = anndata.io.read_elem(zarr.open_group(path, mode="r")["obsp/connectivities"])
root = zarr.open_group(out, mode="w", zarr_format=zarr_format)
writer = _Writer(root, "zarr", zarr_format)
writer.sparse_entries(writer.sparse_pointers(root, "graph", graph), graph, sliced=False)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder with cellucid 0.9.5, which pip brings; what it needs is there."""
    return install("0.9.5", tmp_path_factory.mktemp("cellucid-0.9.5"))


def with_cellucid(site, script, *arguments) -> str:
    got = run_with(site, script, *arguments)
    assert got.returncode == 0, got.stderr
    return got.stdout


@pytest.fixture(scope="module")
def graphs() -> dict[str, sparse.csr_matrix]:
    """Return graphs as libraries make them, whose weights are not the same in both directions."""
    import scanpy
    from sklearn.neighbors import kneighbors_graph

    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 5)).astype(np.float32)
    adata = AnnData(points)
    scanpy.pp.neighbors(adata, n_neighbors=10, use_rep="X", random_state=0)
    umap = adata.obsp["connectivities"].tocsr()
    top = umap.copy()  # the strongest three of each row
    for row in range(top.shape[0]):
        part = top.data[top.indptr[row] : top.indptr[row + 1]]
        part[np.argsort(part)[:-3]] = 0
    top.eliminate_zeros()
    sums = np.asarray(umap.sum(axis=1)).ravel()
    tissue = kneighbors_graph(rng.random((300, 2)), 6, mode="connectivity")  # as squidpy's grids
    return {
        "distances": adata.obsp["distances"].tocsr(),
        "scikit-learn": kneighbors_graph(points, 8, mode="distance"),
        "top-k": top,
        "row-normalized": sparse.csr_matrix(sparse.diags(1 / sums) @ umap),
        "tissue": sparse.csr_matrix(tissue),
    }


def test_its_check_takes_every_rule_of_every_graph_unchanged(tmp_path, site, graphs):
    written = []
    for name, graph in graphs.items():
        source = write_store(tmp_path / f"{name}.zarr", graph)
        assert not check_connectivities(source).ok
        for k, rule in enumerate(RULES):
            if rule == "fuzzy" and graph.data.max() > 1:
                continue
            dest = tmp_path / f"{name}-{rule}.zarr"
            symmetrize_connectivities(source, dest, rule=rule, zarr_format=2 + k % 2)
            assert check_connectivities(dest).ok
            written.append(dest)
    assert with_cellucid(site, _RESOLVE, *written) == f"taken {len(written)}\n"
    assert len(written) == 28


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_all_files_are_as_it_writes_them(tmp_path, site, zarr_format):
    """Metadata are the same bytes; chunks, deflated by another library, the same values."""
    graph = symmetric_graph(30_000, 12)  # two chunks of weights
    source = write_store(tmp_path / "s.zarr", graph)
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, zarr_format=zarr_format)
    with_cellucid(site, _WRITE, dest, tmp_path / "theirs.zarr", zarr_format)
    ours = dest / "obsp" / "connectivities"
    assert chunk_file(dest, "data", 1).exists()
    found, wanted = snapshot(ours), snapshot(tmp_path / "theirs.zarr" / "graph")
    assert list(found) == list(wanted)
    for name, content in found.items():
        decode = zlib.decompress if zarr_format == 2 else blosc.decompress
        if content is not None and name.rpartition("/")[2].isdigit():
            assert decode(content) == decode(wanted[name])
            assert len(content) < 1.25 * len(wanted[name])
        else:
            assert content == wanted[name]


def test_its_server_opens_the_store(tmp_path, site):
    from sklearn.neighbors import kneighbors_graph

    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"a": ["x", "y"] * 30}, index=[f"c{k}" for k in range(60)])
    adata = AnnData(rng.random((60, 4), np.float32), obs=obs)
    adata.obsm["X_umap"] = rng.random((60, 2)).astype(np.float32)
    adata.obsp["distances"] = kneighbors_graph(adata.obsm["X_umap"], 5, mode="distance")
    adata.write_h5ad(tmp_path / "s.h5ad")
    dest = tmp_path / "d.zarr"
    symmetrize_connectivities(tmp_path / "s.h5ad", dest, key="distances", rule="min")
    assert list(anndata.read_zarr(dest).obsp) == ["connectivities"]
    script = "from cellucid.cli import main; import sys; sys.exit(main())"
    command = [sys.executable, "-u", "-c", script, "serve", str(dest), "--knn", "connectivities",
               "--no-browser", "--no-web-ui", "--dataset-name", "d", "--dataset-id", "d",
               "--port", "0"]  # fmt: skip
    server = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(site)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = ""
        deadline = time.monotonic() + 60
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", said)):
            line = server.stdout.readline()
            said += line
            assert line, said
            assert time.monotonic() < deadline, said
        url = f"http://127.0.0.1:{found[1]}/"
        with urllib.request.urlopen(f"{url}_cellucid/datasets", timeout=10) as answer:
            (dataset,) = json.load(answer)["datasets"]
        assert dataset["anndata"]["defaults"] == {"knn": "connectivities"}
        chunk = f"{dataset['anndata']['file']['url']}obsp/connectivities/data/0"
        with urllib.request.urlopen(url + chunk, timeout=10) as answer:
            assert answer.read() == chunk_file(dest, "data").read_bytes()
    finally:
        server.terminate()
        server.communicate(timeout=30)
