"""Exports of some of the cells: their edges, their numbers, and their names beside."""

from __future__ import annotations

import json
import shutil
import tempfile

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellgraph_dask import (
    export_connectivities,
    open_export,
    plan_export,
    verify_export,
)
from cellgraph_dask.errors import InvalidExportError, SourceError
from cellgraph_dask.machine.remote import find_path
from cellgraph_dask.publish import publish
from tests.helpers.command import run
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.helpers.thinning import thinned_edges

N = 60
NAMES = np.array([f"cell-{k}" for k in range(N)])
EVERY_THIRD = np.arange(N) % 3 == 0
TEXT = "connectivity/cells.txt"


@pytest.fixture(scope="module")
def adata():
    made = anndata.AnnData(obs=pd.DataFrame({"kind": EVERY_THIRD}, index=NAMES))
    made.obsp["connectivities"] = symmetric_graph(N, 20)
    made.obsp["distances"] = directed_graph(N, 20)
    made.obsm["X_umap"] = np.random.default_rng(0).normal(size=(N, 2)).astype("f4")
    return made


@pytest.fixture(scope="module")
def store(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s.h5ad"
    adata.write_h5ad(path)
    return path


def edges_in(folder):
    with open_export(folder) as graph:
        return graph.to_scipy()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"weights": True, "compression": 6}, {"format": "parquet"},
        {"format": "parquet", "directions": "both", "weights": True},
        {"key": "distances", "rule": "mean", "weights": True},
    ],
)  # fmt: skip
def test_the_graph_of_some_cells(adata, store, tmp_path, options):
    out_dir, key = tmp_path / "out", options.get("key", "connectivities")
    for source, cells in (
        (store, "obs:kind=true"), (adata, EVERY_THIRD), (store, NAMES[EVERY_THIRD][::-1].tolist()),
    ):  # fmt: skip
        plan = plan_export(source, out_dir, cells=cells, **options)
        report = export_connectivities(source, out_dir, cells=cells, force=True, **options)
        assert plan.n_cells == report.n_cells == 20
        matrix = adata.obsp[key][EVERY_THIRD][:, EVERY_THIRD]
        expected = matrix + matrix.T if key == "distances" else matrix
        assert ((edges_in(out_dir) != 0) != (expected != 0)).nnz == 0
        if "format" in options:
            table = pq.read_table(out_dir / "cells.parquet").to_pandas()
            assert table["cell"].tolist() == list(range(20))
            found = table["name"].tolist()
            places = adata.obsm["X_umap"][EVERY_THIRD]
            assert np.array_equal(table[["x", "y"]].to_numpy(), places)
        else:
            found = (out_dir / TEXT).read_text().splitlines()
        assert found == NAMES[EVERY_THIRD].tolist()
        assert verify_export(out_dir).ok
        verified = verify_export(out_dir, source=source, key=key)
        assert verified.ok, verified.problems
        assert verified.proof is not None
        assert verified.alignment is not None


@st.composite
def cases(draw):
    n = draw(st.integers(2, 40))
    cells = st.integers(0, n - 1)
    pairs = draw(st.sets(st.tuples(cells, cells), max_size=80))
    weights = draw(st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0]), min_size=len(pairs),
                            max_size=len(pairs)))  # fmt: skip
    rows, columns = np.array(sorted(pairs), int).reshape(-1, 2).T
    matrix = sparse.csr_matrix((np.array(weights, "f4"), (rows, columns)), shape=(n, n))
    mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    mask[draw(cells)] = True
    options = {"rule": draw(st.sampled_from(["max", "min", "sum"])), "weights": True}
    options |= draw(st.sampled_from([{}, {"top_k": 1}, {"top_k": 3, "max_edges": 4}]))
    if draw(st.booleans()):
        options |= {"format": "parquet"}
    return matrix.asformat(draw(st.sampled_from(["csr", "csc"]))), mask, options


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(cases())
def test_selecting_comes_before_rule_and_thinning(case):
    matrix, mask, options = case
    made = anndata.AnnData(obs=pd.DataFrame(index=[f"c{k}" for k in range(matrix.shape[0])]))
    made.obsp["connectivities"] = matrix
    expected = thinned_edges(
        matrix.tocsr()[mask][:, mask], options["rule"],
        **{name: options[name] for name in ("top_k", "max_edges") if name in options},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        export_connectivities(made, f"{folder}/out", cells=mask, **options)
        with open_export(f"{folder}/out") as graph:
            found = [np.array(column) for column in (graph.src, graph.dst, graph.weights)]
    assert all(map(np.array_equal, found, expected))


def test_one_cell_is_a_graph_without_edges(store, tmp_path):
    report = export_connectivities(store, tmp_path / "out", cells=["cell-7"])
    assert (report.n_cells, report.n_edges) == (1, 0)
    assert (tmp_path / "out" / TEXT).read_text() == "cell-7\n"
    assert verify_export(tmp_path / "out", source=store).ok


def test_names_come_and_go_with_their_edges(store, tmp_path):
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir, cells="obs:kind=True")
    first = snapshot(out_dir)
    for options in ({"compression": 1}, {}):
        export_connectivities(store, out_dir, force=True, **options)
        assert not (out_dir / TEXT).exists()
        assert verify_export(out_dir, source=store).ok
        export_connectivities(store, out_dir, force=True, cells="obs:kind=True", **options)
        assert verify_export(out_dir, source=store).ok
    assert snapshot(out_dir) == first


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.slow
@pytest.mark.parametrize("cells", [None, "obs:kind=False"])
@pytest.mark.parametrize("compression", [None, 6])
def test_names_are_those_of_the_edges_whenever_an_export_is_killed(
    store, tmp_path, monkeypatch, cells, compression
):
    before = tmp_path / "before"
    export_connectivities(store, before, cells="obs:kind=True")
    steps = ("bring", "copy", "put_texts", "remove")
    kept = {name: getattr(publish.DiskTarget, name) for name in steps}
    for fatal in range(40):
        out_dir, count = tmp_path / f"out{fatal}", [0]
        shutil.copytree(before, out_dir)

        def step(name, count=count, fatal=fatal):
            def run_step(self, items, *rest):
                singles = zip(items, *rest[:1], strict=True) if name in ("bring", "copy") else items
                for single in [items] if name == "remove" else singles:
                    if count[0] >= fatal:
                        raise Killed
                    count[0] += 1
                    if name == "remove":
                        kept[name](self, single)
                    elif name == "put_texts":
                        kept[name](self, [single])
                    else:
                        kept[name](self, [single[0]], [single[1]], *rest[1:])

            return run_step

        for name in steps:
            monkeypatch.setattr(publish.DiskTarget, name, step(name))
        try:
            export_connectivities(store, out_dir, force=True, cells=cells, compression=compression)
        except Killed:
            done = False
        else:
            done = True
        for name in steps:
            monkeypatch.setattr(publish.DiskTarget, name, kept[name])
        shutil.rmtree(out_dir / ".cellgraph-dask", ignore_errors=True)
        report = verify_export(out_dir, source=store)
        n_cells = {None: N, "obs:kind=False": 40}[cells]
        assert report.n_cells in (20, n_cells)
        if report.provenance is not None:
            assert report.ok, (fatal, report.problems)
        named = json.loads((out_dir / "connectivity_manifest.json").read_text())["sourcesPath"]
        names = out_dir / named.replace("edges.src", "cells").replace(".gz", "").replace(
            ".bin", ".txt"
        )  # fmt: skip
        found = names.read_text().splitlines() if names.exists() else None
        expected = EVERY_THIRD if report.n_cells == 20 else ~EVERY_THIRD
        wanted = None if report.n_cells == N else NAMES[expected].tolist()
        assert found == wanted, fatal
        shutil.rmtree(out_dir)
        if done:
            break
    assert done


def test_what_verification_finds(adata, store, tmp_path):
    out_dir, source = tmp_path / "out", tmp_path / "s.h5ad"
    shutil.copy(store, source)
    (tmp_path / "names.txt").write_text("cell-3\ncell-9\ncell-12\n")
    export_connectivities(source, out_dir, cells=tmp_path / "names.txt")
    (tmp_path / "names.txt").unlink()
    assert verify_export(out_dir, source=source).ok  # the file is not needed
    text = (out_dir / TEXT).read_text()
    for changed in (text.replace("cell-9", "cell-8"), text[:-1], text + "x\n", ""):
        (out_dir / TEXT).write_text(changed)
        for named in (None, source):
            report = verify_export(out_dir, source=named)
            assert not report.ok
            assert "cells.txt has been changed" in " ".join(report.problems)
    (out_dir / TEXT).unlink()
    assert "cells.txt" in " ".join(verify_export(out_dir).problems)
    (out_dir / TEXT).write_text(text)
    other = adata.copy()
    other.obs_names = NAMES[::-1]
    other.write_h5ad(source)
    (problem,) = verify_export(out_dir, source=source).problems
    assert "now chooses other cells of" in problem
    other.obs_names = [f"other-{name}" for name in NAMES]
    other.write_h5ad(source)
    (problem,) = verify_export(out_dir, source=source).problems
    assert "cannot be found in" in problem
    assert "'cell-3', line 1 of" in problem
    export_connectivities(source, out_dir, cells="obs:kind=False", force=True)
    other.obs["kind"] = np.roll(EVERY_THIRD, 1)
    other.write_h5ad(source)
    (problem,) = verify_export(out_dir, source=source).problems
    assert "obs:kind=False now chooses other cells" in problem


def test_remote_exports(store, tmp_path):
    options = {"scratch_dir": tmp_path / "scratch", "force": True}
    url = "memory://some-cells/out"
    names = find_path(f"{url}/{TEXT}")
    for cells in ("obs:kind=True", None, "obs:kind=False"):
        export_connectivities(store, url, cells=cells, **options)
        assert verify_export(url, source=store).ok
        assert names.exists() == (cells is not None)
    assert names.read_text() == "".join(f"{name}\n" for name in NAMES[~EVERY_THIRD])


def test_what_is_recorded(store, tmp_path):
    out_dir = tmp_path / "out"
    export_connectivities(store, out_dir, cells="obs:kind=True")
    told = json.loads((out_dir / "connectivity/provenance.json").read_text())
    cells = told["options"]["cells"]
    assert (cells["given"], cells["n_selected"], cells["of"]) == ("obs:kind=True", 20, N)
    assert told["source"] == str(store)


def test_names_that_no_line_can_hold(adata, tmp_path):
    other = adata.copy()
    other.obs_names = ["a\nb", "", *NAMES[2:]]
    for cell in (0, 1):
        with pytest.raises(SourceError, match=f"the cell number {cell} is called"):
            export_connectivities(other, tmp_path / "out", cells=np.arange(N) == cell)
    assert not (tmp_path / "out").exists()
    export_connectivities(other, tmp_path / "out", cells=np.arange(N) < 9, format="parquet")


def test_on_the_command_line(store, tmp_path):
    (tmp_path / "names.txt").write_text("cell-3\r\ncell-4\r\n")
    done = run("export", store, tmp_path / "out", "--cells", tmp_path / "names.txt")
    assert done.exit_code == 0, done.stderr
    assert "of 2 cells" in done.stdout
    assert run("verify", tmp_path / "out", "--source", store).exit_code == 0
    done = run("plan", store, "--cells", "obs:kind=maybe")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "no cell has kind=maybe; there are 'False', 'True'." in done.stderr


def test_an_interrupted_export_starts_again(store, tmp_path, monkeypatch, caplog):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cellgraph_dask.delivery.products.EdgePairs.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_connectivities(store, tmp_path / "out", cells="obs:kind=True")
    caplog.set_level("INFO", "cellgraph_dask")
    export_connectivities(store, tmp_path / "out", cells="obs:kind=True", resume=True)
    assert "starting from the beginning" in caplog.text
    assert verify_export(tmp_path / "out", source=store).ok


def test_a_source_that_changes_is_seen(tmp_path, monkeypatch):
    source = write_store(tmp_path / "s.zarr", symmetric_graph(N), chunk=16)
    from cellgraph_dask.source import selected

    taken = selected._take_rows

    def change(*arguments):
        found = taken(*arguments)
        write_store(source, symmetric_graph(N, seed=1), chunk=16)
        return found

    monkeypatch.setattr(selected, "_take_rows", change)
    with pytest.raises(SourceError, match="changed while it was being read"):
        export_connectivities(source, tmp_path / "out", cells=NAMES[:30].tolist())
    assert not (tmp_path / "out").exists()


def test_an_export_without_its_provenance(store, tmp_path):
    export_connectivities(store, tmp_path / "out", cells="obs:kind=True")
    (tmp_path / "out/connectivity/provenance.json").unlink()
    report = verify_export(tmp_path / "out", source=store)
    assert "n_cells is 20" in " ".join(report.problems)
    with pytest.raises(InvalidExportError):
        verify_export(tmp_path / "none", source=store)
