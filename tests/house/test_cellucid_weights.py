"""The same bytes, and the same refusals, as cellucid 0.9.4 for graphs with weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import check_connectivities, export_connectivities, open_export, verify_export
from cellgraph_dask.errors import OutputError, SourceError
from tests.helpers.cellucid import install, run_with
from tests.helpers.stores import snapshot, symmetric_graph, write_store

pytestmark = pytest.mark.slow

# What 0.9.4 does, in a process that finds it before 0.0.9: a folder for each graph in a folder.
_PREPARE = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from cellucid import __version__, prepare
from scipy import sparse
assert __version__ == "0.9.4"
for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    graph = sparse.load_npz(path)
    n = graph.shape[0]
    points = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    def make(name, graph, compression):
        prepare(
            latent_space=points, obs=pd.DataFrame({"cluster": pd.Categorical(["a"] * n)}),
            connectivities=graph, out_dir=path.with_name(name), obs_categorical_dtype="uint8",
            dataset_name="d", dataset_id="d", embeddings={"X_umap": points},
            compression=compression,
        )
    try:
        make(path.stem, graph, 6 if "gzip" in path.stem else None)
    except ValueError as error:
        path.with_suffix(".refused").write_text(str(error))
    make(path.stem + " without", None, None)
"""
_SERVE = """
import sys
from pathlib import Path
from cellucid.server._artifacts import _build_prepared_artifact_inventory
from cellucid.server._datasets import _list_exported_datasets
for name in sys.argv[1:]:
    folder = Path(name)
    print(len(_build_prepared_artifact_inventory(folder, _list_exported_datasets(folder))))
"""


def ring(n, dtype="f4"):
    """Return a graph of few edges, whose weights differ, up to its last cell."""
    rows, columns = np.array([0, 1, 2, n // 2]), np.array([1, 2, n - 1, n - 1])
    weights = np.array([1, 2, 3, 4]).astype(dtype)
    one_way = sparse.csr_matrix((weights, (rows, columns)), (n, n))
    return sparse.csr_matrix(one_way + one_way.T)


def changed(row, column, weight):
    graph = symmetric_graph(30, 4).tolil()
    graph[row, column] = weight
    return graph.tocsr()


def with_zero():
    graph = symmetric_graph(30, 4)
    graph.data[0] = 0
    return graph


def repeated():
    indptr, indices = np.array([0, 2, 4]), np.array([1, 1, 0, 0])
    return sparse.csr_matrix((np.ones(4, "f4"), indices, indptr), (2, 2))


TAKEN = {
    "symmetric": symmetric_graph(), "symmetric gzip": symmetric_graph(),
    "one edge": sparse.csr_matrix([[0, 0.1], [0.1, 0]]),
    "float64": symmetric_graph(200, 9).astype("f8") / 3,
    "uint8": ring(40, "u1"), "int64": ring(9, "i8") * 10**12, "no edge": sparse.csr_matrix((5, 5)),
    "bool": ring(6).astype(bool), "65535": ring(65_535), "65536": ring(65_536),
    "65537": ring(65_537), "65537 gzip": ring(65_537),
}  # fmt: skip
REFUSED = {
    "one way": (changed(3, 17, 0.5), "one-sided"), "unequal": (changed(5, 6, 0.25), None),
    "diagonal": (changed(4, 4, 1), "diagonal"), "zero": (with_zero(), "zero"),
    "negative": (symmetric_graph(30, 4) * -1, "negative"), "repeated": (repeated(), "repeated"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cellucid(tmp_path_factory):
    """Return a function that runs a script with cellucid 0.9.4, which pip brings."""
    site = install("0.9.4", tmp_path_factory.mktemp("cellucid-0.9.4"))

    def run_script(script: str, *arguments: object) -> str:
        done = run_with(site, script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_script


@pytest.fixture(scope="module")
def theirs(cellucid, tmp_path_factory):
    """Return a folder of what 0.9.4 makes of all graphs."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, graph in (TAKEN | {name: graph for name, (graph, _) in REFUSED.items()}).items():
        sparse.save_npz(folder / f"{name}.npz", graph)
    cellucid(_PREPARE, folder)
    return folder


def read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("name", TAKEN)
def test_the_bytes_are_those_of_0_9_4(theirs, tmp_path, name):
    source = write_store(tmp_path / "s.zarr", TAKEN[name])
    compression = 6 if "gzip" in name else None
    out_dir = tmp_path / "out"
    export_connectivities(source, out_dir, weights=True, compression=compression)
    manifest = "connectivity_manifest.json"
    assert (out_dir / manifest).read_bytes() == (theirs / name / manifest).read_bytes()
    for file in (theirs / name / "connectivity").iterdir():
        assert read(out_dir / "connectivity" / file.name) == read(file), file
    assert verify_export(out_dir, source=source).ok
    assert verify_export(theirs / name, source=source).ok  # what they made, too
    with open_export(out_dir) as graph:
        assert (graph.to_scipy() != TAKEN[name].astype("f8")).nnz == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_0_9_4_refuses_is_refused_by_rule_and_place(theirs, tmp_path, name):
    assert (theirs / f"{name}.refused").exists()
    graph, rule = REFUSED[name]
    source = write_store(tmp_path / "s.zarr", graph)
    report = check_connectivities(source, target="cellucid-0.9.4")
    assert not report.ok
    if rule is not None:
        assert rule in {broken.rule for broken in report.broken}
    out_dir = tmp_path / "out"
    with pytest.raises(SourceError, match=r"row \d+, column \d+|must not be negative"):
        export_connectivities(source, out_dir, weights=True)
    assert not out_dir.exists()
    if name != "negative":
        export_connectivities(source, out_dir, weights=True, rule="max")
        assert verify_export(out_dir, source=source).ok


def test_a_folder_of_0_9_4_takes_a_graph_with_weights(cellucid, theirs, tmp_path):
    graph = TAKEN["symmetric"]
    source = write_store(tmp_path / "s.zarr", graph)
    folder = theirs / "symmetric without"
    before = snapshot(folder)
    with pytest.raises(OutputError, match="`weights=True`"):
        export_connectivities(source, folder)
    assert snapshot(folder) == before
    export_connectivities(source, folder, weights=True)
    for cells in (None, np.ones(graph.shape[0], bool)):  # names of cells beside are no artifact
        export_connectivities(source, folder, weights=True, cells=cells, force=True)
        assert (folder / "connectivity/cells.txt").exists() == (cells is not None)
        counts = [int(n) for n in cellucid(_SERVE, folder, theirs / "symmetric").split()]
        assert counts[0] == counts[1]
    assert verify_export(folder, source=source).ok
    manifest = "connectivity_manifest.json"
    assert (folder / manifest).read_bytes() != b""
    # A dataset of 0.0.9 takes none.
    other = tmp_path / "other"
    other.mkdir()
    stats = {"n_cells": graph.shape[0], "has_connectivity": False, "n_edges": None}
    (other / "dataset_identity.json").write_text(json.dumps({"version": 2, "stats": stats}))
    with pytest.raises(OutputError, match=r"was prepared by cellucid 0\.0\.9"):
        export_connectivities(source, other, weights=True)
