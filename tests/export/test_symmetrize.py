"""`symmetrize`: the matrix it writes, against scipy; what it refuses; the store around it."""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from scipy import sparse

from cellgraph_dask import symmetrize_connectivities
from cellgraph_dask.delivery.element import Element
from cellgraph_dask.delivery.store_copy import StoreCopy
from cellgraph_dask.errors import OutputError, SourceError
from cellgraph_dask.export.run import run_export
from cellgraph_dask.plan.options import Options
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.rules import RULES
from tests.helpers.command import run
from tests.helpers.stores import (
    Stored,
    directed_graph,
    snapshot,
    symmetric_graph,
    write_anndata,
    write_store,
)


def combined(matrix, rule: str, dtype: str = "f4") -> sparse.csr_matrix:
    """Return what a rule makes of a matrix, by scipy and in float64, rounded once."""
    a = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    a.sum_duplicates()
    a.setdiag(0)
    a.eliminate_zeros()
    b = a.T.tocsr()
    found = {
        "ones": lambda: ((a + b) != 0).astype(float), "max": lambda: a.maximum(b),
        "min": lambda: a.minimum(b), "mean": lambda: (a + b) * 0.5, "sum": lambda: a + b,
        "fuzzy": lambda: a + b - a.multiply(b),
    }[rule]().tocsr()  # fmt: skip
    found.eliminate_zeros()
    found.sort_indices()
    return found.astype(dtype)


def element_of(store: Path, key: str = "connectivities") -> sparse.csr_matrix:
    """Return the three arrays of an element as they are stored."""
    group = zarr.open_group(store, mode="r", use_consolidated=True)["obsp"][key]
    assert dict(group.attrs)["encoding-type"] == "csr_matrix"
    indptr, indices, data = (group[name][:] for name in ("indptr", "indices", "data"))
    assert (indptr.dtype, indices.dtype) == (np.int32, np.int32)
    return sparse.csr_matrix((data, indices, indptr), shape=group.attrs["shape"])


def assert_same(found: sparse.csr_matrix, wanted: sparse.csr_matrix) -> None:
    """Compare all three arrays bit by bit."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    for name in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name


def assert_equal(found, wanted) -> None:
    """Compare what anndata holds, whatever it is."""
    if isinstance(wanted, AnnData):
        assert_equal(found.X, wanted.X)
        assert_equal(found.var, wanted.var)
    elif isinstance(wanted, Mapping):
        names = {name for name in wanted if name is not None}  # anndata 0.13: X, among layers
        assert {name for name in found if name is not None} == names
        for name in names:
            assert_equal(found[name], wanted[name])
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted, check_dtype=False, check_column_type=False)
    elif sparse.issparse(wanted):
        assert_equal(found.toarray(), wanted.toarray())
    elif isinstance(wanted, np.ndarray):
        assert found.tolist() == wanted.tolist()
    else:
        assert found == wanted


def weights(matrix: sparse.csr_matrix, seed: int = 0) -> sparse.csr_matrix:
    """Return a matrix with weights from 0 to 1 that are no short fractions."""
    matrix = matrix.astype(np.float32)
    matrix.data = np.random.default_rng(seed).random(matrix.nnz, np.float32)
    return matrix


repeated = Stored(
    np.array([0, 3, 4, 4]), np.array([1, 1, 2, 0]), np.array([0.25, 0.5, 0.125, 0.5]), (3, 3)
)
GRAPHS = {
    "directed": weights(directed_graph(60, 6)),
    "row-normalized": sparse.csr_matrix(sparse.diags(1 / (1 + np.arange(60))) @ directed_graph(60)),
    "repeated": repeated,
    "no entries": sparse.csr_matrix((5, 5), dtype=np.float32),
    "one cell": sparse.csr_matrix((1, 1), dtype=np.float32),
    "stored zeros": Stored(
        np.array([0, 2, 3, 3]), np.array([1, 2, 0]), np.array([0.0, 0.5, 0.25]), (3, 3)
    ),
}


def matrix_of(graph) -> sparse.csr_matrix:
    if isinstance(graph, Stored):
        return sparse.csr_matrix((graph.data, graph.indices, graph.indptr), graph.shape)
    return graph


@pytest.mark.parametrize(("name", "zarr_format"), [*zip(GRAPHS, [2, 3] * 3, strict=True)])
def test_each_rule_as_scipy_has_it(tmp_path, name, zarr_format):
    graph = GRAPHS[name]
    source = write_store(tmp_path / "s.zarr", graph, zarr_format=zarr_format)
    for rule in RULES:
        dest = tmp_path / f"{rule}.zarr"
        if rule == "fuzzy" and matrix_of(graph).data.max(initial=0) > 1:
            continue
        report = symmetrize_connectivities(source, dest, rule=rule)
        wanted = combined(matrix_of(graph), rule)
        assert_same(element_of(dest), wanted)
        assert report.n_edges * 2 == wanted.nnz
        assert_equal(anndata.read_zarr(dest).obsp["connectivities"], wanted)


def test_double_precision(tmp_path):
    graph = directed_graph(50, dtype=np.float64) / 3
    source = write_store(tmp_path / "s.zarr", graph)
    symmetrize_connectivities(source, tmp_path / "d.zarr", rule="mean", dtype="float64")
    assert_same(element_of(tmp_path / "d.zarr"), combined(graph, "mean", "f8"))


def test_the_same_bytes_however_the_work_is_cut(tmp_path):
    graph = weights(symmetric_graph(700, 9))
    graph = graph.maximum(graph.T).tocsr()
    source = write_store(tmp_path / "s.zarr", graph, chunk=100)
    found = []
    for k, (method, block, piece, threads) in enumerate(
        [("symmetric", 10_000, 10_000, 1), ("symmetric", 300, 99, 3), ("general", 900, 700, 2),
         ("general", 10_000, 10_000, 1)]
    ):  # fmt: skip
        dest = tmp_path / f"{k}.zarr"
        element = Element(rule_of(method), copy=StoreCopy.of(source, "", 2, None))
        tuning = Tuning(block, block, piece, 8, threads)
        options = Options(dest, threads=threads, made=element)
        run_export(open_source(source), options, method=method, tuning=tuning)
        found.append(snapshot(dest))
    assert all(other == found[0] for other in found)
    assert_same(element_of(tmp_path / "0.zarr"), graph.astype("f4"))


def rule_of(method: str) -> str | None:
    return None if method == "symmetric" else "max"


# What is refused -----------------------------------------------------------------------------


def test_without_a_rule_only_what_is_symmetric(tmp_path):
    graph = weights(symmetric_graph(40))
    graph = graph.maximum(graph.T).tocsr()
    source = write_store(tmp_path / "s.zarr", graph)
    assert symmetrize_connectivities(source, tmp_path / "d.zarr").symmetric
    assert_same(element_of(tmp_path / "d.zarr"), graph)
    graph.data[7] = np.nextafter(graph.data[7], np.float32(1))  # one ulp
    row = int(np.searchsorted(graph.indptr, 7, side="right")) - 1
    pair = sorted((row, int(graph.indices[7])))
    source = write_store(tmp_path / "ulp.zarr", graph)
    with pytest.raises(SourceError, match="different weights both ways") as caught:
        symmetrize_connectivities(source, tmp_path / "e.zarr")
    assert f"row {pair[0]}, column {pair[1]}" in str(caught.value)
    assert "ones, max, min, mean, sum, fuzzy" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.zarr", "s.zarr", "ulp.zarr"]


def test_repeats_that_add_up_to_a_symmetric_matrix_are_taken(tmp_path):
    graph = Stored(np.array([0, 2, 3]), np.array([1, 1, 0]), np.array([0.25, 0.5, 0.75]), (2, 2))
    source = write_store(tmp_path / "s.zarr", graph)
    symmetrize_connectivities(source, tmp_path / "d.zarr")
    assert element_of(tmp_path / "d.zarr").toarray().tolist() == [[0, 0.75], [0.75, 0]]


@pytest.mark.parametrize("rule", [None, "max"])
def test_the_diagonal_is_dropped_if_that_is_asked_for(tmp_path, rule):
    graph = symmetric_graph(30).tolil()
    graph[4, 4] = 2
    source = write_store(tmp_path / "s.zarr", graph.tocsr())
    with pytest.raises(SourceError, match=r"cells \(4, 4\) in obsp/connectivities is 2.*own neigh"):
        symmetrize_connectivities(source, tmp_path / "d.zarr", rule=rule)
    symmetrize_connectivities(source, tmp_path / "d.zarr", rule=rule, drop_diagonal=True)
    assert_same(element_of(tmp_path / "d.zarr"), combined(graph.tocsr(), "max"))


@pytest.mark.parametrize(
    ("weight", "rule", "told"),
    [
        (-0.5, "max", "weights must not be negative"),
        (1.5, "fuzzy", "fuzzy takes weights from 0 to 1"),
        (1e-60, "max", r"cells \(0, 1\) is 1e-60, which would become 0 as float32"),
        (1e60, "max", r"cells \(0, 1\) is 1e\+60, which would become infinite as float32"),
        (1e308, "sum", "float64 does not hold"),
        (np.inf, "max", "must be finite"),
    ],
)
def test_weights_that_cannot_be_taken(tmp_path, weight, rule, told):
    graph = sparse.csr_matrix(np.array([[0, weight], [weight, 0]]))
    source = write_store(tmp_path / "s.zarr", graph)
    with pytest.raises(Exception, match=told):
        symmetrize_connectivities(source, tmp_path / "d.zarr", rule=rule)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_repeats_beyond_fuzzy(tmp_path):
    graph = Stored(np.array([0, 2, 2]), np.array([1, 1]), np.array([0.75, 0.5]), (2, 2))
    source = write_store(tmp_path / "s.zarr", graph)
    with pytest.raises(SourceError, match="add up to more than 1"):
        symmetrize_connectivities(source, tmp_path / "d.zarr", rule="fuzzy")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rule": "maximum"}, "rule must be one of"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"zarr_format": 1}, "zarr_format must be 2 or 3"),
        ({"to_key": "a/b"}, "to_key must be a name"),
        ({"to_key": ".hidden"}, "to_key must not begin with a dot"),
        ({"to_key": ""}, "to_key must be a name"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, told):
    source = write_store(tmp_path / "s.zarr", symmetric_graph(9, 2))
    with pytest.raises(ValueError, match=told):
        symmetrize_connectivities(source, tmp_path / "d.zarr", **options)


def test_sources_and_places_that_cannot_be(tmp_path, cells):
    graph = symmetric_graph(9, 2)
    with pytest.raises(SourceError, match="has no cells beside it"):
        symmetrize_connectivities(graph, tmp_path / "d.zarr")
    source = write_store(tmp_path / "s.zarr", graph)
    with pytest.raises(OutputError, match="remote storage"):
        symmetrize_connectivities(source, "s3://bucket/d.zarr")
    with pytest.raises(OutputError, match="inside the store"):
        symmetrize_connectivities(source, source / "d.zarr")
    file = stored_cells(cells, tmp_path, "h5ad")
    with pytest.raises(OutputError, match="is one file"):
        symmetrize_connectivities(file, file, rule="max")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="nothing that may be replaced"):
        symmetrize_connectivities(source, tmp_path / "notes", force=True)


# The store around it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Return an AnnData with about all that one can hold."""
    n, rng = 90, np.random.default_rng(0)
    adata = AnnData(
        X=sparse.random(n, 12, 0.2, "csr", np.float32, random_state=0),
        obs=pd.DataFrame(
            {
                "group": pd.Categorical(rng.choice(["x", "y"], n)),
                "text": [f"t{k}" for k in range(n)],
                "float": rng.random(n),
                "bool": rng.random(n) < 0.5,
                "nullable": pd.array([None, *rng.integers(0, 5, n - 1)], dtype="Int64"),
            },
            index=[f"é{k}" for k in range(n)],
        ),
        var=pd.DataFrame(index=[f"g{k}" for k in range(12)]),
    )
    adata.obsm["X_umap"] = rng.random((n, 2)).astype(np.float32)
    adata.obsm["frame"] = pd.DataFrame({"a": rng.random(n)}, index=adata.obs_names)
    adata.varm["PCs"] = rng.random((12, 3))
    adata.layers["dense"] = rng.random((n, 12))
    adata.obsp["connectivities"] = weights(directed_graph(n, 5))
    adata.obsp["distances"] = directed_graph(n, 5)
    adata.uns = {
        "neighbors": {"connectivities_key": "connectivities", "params": {"n_neighbors": 5}},
        "texts": np.array(["a", "bcd"], object), "empty": np.zeros(0), "none": None,
        "ranked": np.array([("a", 1.5), ("b", 2.5)], [("name", "O"), ("score", "f4")]),
    }  # fmt: skip
    adata.raw = adata
    return adata


def stored_cells(cells: AnnData, folder: Path, kind: str) -> Path | AnnData:
    if kind == "memory":
        return cells
    if kind == "zip":
        path = stored_cells(cells, folder, "2")
        shutil.make_archive(str(path), "zip", path)
        shutil.rmtree(path)
        return path.with_name("s.zarr.zip")
    path = folder / ("s.h5ad" if kind == "h5ad" else "s.zarr")
    if kind == "h5ad":
        cells.write_h5ad(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # records have no specification in zarr 3
            with anndata.settings.override(zarr_write_format=int(kind)):
                cells.write_zarr(path)
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["h5ad", "2", "3", "memory", "zip"])
def test_the_rest_of_the_anndata_is_copied(tmp_path, cells, kind, zarr_format):
    source, dest = stored_cells(cells, tmp_path, kind), tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max", zarr_format=zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = anndata.read_zarr(dest)
    assert list(found.obsp) == ["connectivities"]
    assert_same(element_of(dest), combined(cells.obsp["connectivities"], "max"))
    del found.obsp["connectivities"]
    for part in ("X", "obs", "var", "obsm", "varm", "layers", "uns"):
        assert_equal(getattr(found, part), getattr(cells, part))
    assert_equal(found.raw.to_adata(), cells.raw.to_adata())
    assert zarr.open_group(dest).metadata.zarr_format == zarr_format
    listed = zarr.open_group(dest, use_consolidated=True)
    assert sorted(listed) == sorted(zarr.open_group(dest, use_consolidated=False))


def test_files_of_the_same_format_are_copied_as_they_are(tmp_path, cells):
    source, dest = stored_cells(cells, tmp_path, "2"), tmp_path / "d.zarr"
    symmetrize_connectivities(source, dest, rule="max")
    before, after = snapshot(source), snapshot(dest)
    names = {p for p in before if "/_index/" in p}  # which anndata 0.13 writes as groups
    names |= {p for p in after if "/_index/" in p}
    changed = {p for p in before | after if p.startswith("obsp/")} | {".zmetadata"} | names
    assert {p: b for p, b in after.items() if p not in changed} == {
        p: b for p, b in before.items() if p not in changed
    }


def test_a_graph_of_a_modality_makes_a_store_of_that(tmp_path):
    source = write_store(tmp_path / "rna.zarr", symmetric_graph(20, 3))
    root = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=2)
    root.create_group("mod")
    source.rename(tmp_path / "m.zarr" / "mod" / "rna")
    key = "mod/rna/obsp/connectivities"
    symmetrize_connectivities(tmp_path / "m.zarr", tmp_path / "d.zarr", key=key)
    assert anndata.read_zarr(tmp_path / "d.zarr").n_obs == 20


def test_a_store_that_is_there_is_replaced_only_by_force(tmp_path):
    source = write_store(tmp_path / "s.zarr", symmetric_graph(20, 3))
    other = write_store(tmp_path / "o.zarr", symmetric_graph(30, 3))
    symmetrize_connectivities(source, tmp_path / "d.zarr")
    before = snapshot(tmp_path / "d.zarr")
    with pytest.raises(OutputError, match="force=True"):
        symmetrize_connectivities(other, tmp_path / "d.zarr")
    assert snapshot(tmp_path / "d.zarr") == before
    symmetrize_connectivities(other, tmp_path / "d.zarr", force=True)
    assert element_of(tmp_path / "d.zarr").shape == (30, 30)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.zarr", "o.zarr", "s.zarr"]


def test_on_the_command_line(tmp_path):
    source = write_anndata(tmp_path / "s.zarr", distances=directed_graph(30, 4))
    dest = tmp_path / "d.zarr"
    refused = run("symmetrize", source, dest, "--key", "distances")
    assert refused.exit_code == 1
    assert "--rule" in refused.stderr
    done = run("symmetrize", source, dest, "--key", "distances", "--rule", "max", "--zarr-format",
               "3", "--threads", "2")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "in both directions" in done.stdout
    assert_same(element_of(dest), combined(directed_graph(30, 4), "max"))
    done = run("symmetrize", source, source, "--key", "distances", "--rule", "sum", "--to-key",
               "both", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["n_edges"] == element_of(source, "both").nnz // 2
    verify = ("verify", dest, "--source", source, "--key", "distances", "--rule")
    assert run(*verify, "max").exit_code == 0
    assert run(*verify, "mean").exit_code == 3
    assert run("verify", source, "--to-key", "both").exit_code == 0
    assert run("verify", source, "--to-key", "distances").exit_code == 3


@pytest.mark.parametrize("stage", ["split", "write", "copy"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupted_run_is_resumed(tmp_path, monkeypatch, stage, inside):
    if inside and stage == "copy":
        return
    graph = weights(directed_graph(900, 6))
    umap = np.zeros((900, 2), np.float32)
    source = write_store(tmp_path / "s.zarr", graph, obsm={"X_umap": umap}, chunk=999)
    kept = write_store(tmp_path / "k.zarr", graph, obsm={"X_umap": umap}, chunk=999)
    dest, wanted = (source, kept) if inside else (tmp_path / "d.zarr", tmp_path / "w.zarr")
    more = {"rule": "mean", "to_key": "mean", "threads": 1}
    symmetrize_connectivities(kept, wanted, **more)

    task = {"split": "stages.pipeline.split", "write": "delivery.zarr_files.write_file",
            "copy": "delivery.store_copy.copy_files"}[stage]  # fmt: skip
    module, _, name = f"cellgraph_dask.{task}".rpartition(".")
    right = getattr(importlib.import_module(module), name)
    done = []

    def interrupted(*arguments):
        if len(done) == (2 if stage == "write" else 0) and stage != "split":
            raise KeyboardInterrupt
        found = right(*arguments)
        done.append(1)
        if stage == "split":
            monkeypatch.setattr(f"{module}.merge", interrupt)
        return found

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.{name}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        symmetrize_connectivities(source, dest, **more)
    assert inside or not dest.exists()
    assert "mean" not in anndata.read_zarr(source).obsp
    monkeypatch.undo()
    report = symmetrize_connectivities(source, dest, resume=True, **more)
    assert report.kept_tasks >= 1
    assert snapshot(dest) == snapshot(wanted)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"s.zarr", "k.zarr"} | ({"d.zarr", "w.zarr"} if not inside else set())
