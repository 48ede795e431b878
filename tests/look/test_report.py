"""Reports of real exports: their facts, their verdicts, and the file that they go to."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import sparse

import cellgraph_dask
from cellgraph_dask import export_connectivities, symmetrize_connectivities
from cellgraph_dask.edge_pairs.format import read_manifest
from cellgraph_dask.edge_pairs.reader import Slab
from cellgraph_dask.errors import DiskSpaceError, InvalidExportError, OutputError
from cellgraph_dask.look import report as report_module
from cellgraph_dask.look import target
from cellgraph_dask.look.report_facts import Seen
from cellgraph_dask.look.report_verdicts import ceilings, verdicts
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.verify.checks import VerifyReport
from cellgraph_dask.verify.scan import SurveyPlan, survey
from cellgraph_dask.verify.statistics import Degrees
from tests.helpers.command import run
from tests.helpers.stores import write_store
from tests.oracle import oracle_edges

# Pictures are slow.
report_export = partial(cellgraph_dask.report_export, picture=False)
command = partial(run, "report", "--no-picture")

FORMATS = {
    "plain": {},
    "gzip": {"compression": 1},
    "weights": {"weights": True},
    "parquet": {"format": "parquet", "weights": True, "directions": "both"},
}


def graph(seed: int = 0) -> sparse.csr_matrix:
    """Return a symmetric graph of points on a line, in pieces, with a hub and isolated cells."""
    rng = np.random.default_rng(seed)
    n = 300
    i = np.arange(n - 60)
    pairs = np.concatenate([np.stack([i, i + step]) for step in (1, 2, 5)], axis=1)
    pairs = np.concatenate([pairs, [np.full(80, 7), np.arange(20, 100)]], axis=1)
    pairs = pairs[:, (pairs[0] // 50 == pairs[1] // 50) & (pairs[0] != pairs[1])]
    weights = (2.0 ** rng.uniform(-9, 1, pairs.shape[1])).astype(np.float32)
    upper = sparse.coo_matrix((weights, pairs), (n, n)).tocsr()
    return (upper + upper.T).tocsr()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Give a store with that graph and the points."""
    points = np.stack([np.arange(300.0), np.zeros(300)], axis=1).astype(np.float32)
    folder = tmp_path_factory.mktemp("store")
    return write_store(folder / "cells.zarr", graph(), obsm={"X_umap": points})


@pytest.fixture(scope="module")
def exports(store):
    """Give the folder of an export in each format."""
    folders = {}
    for name, options in FORMATS.items():
        folders[name] = store.parent / name
        export_connectivities(store, folders[name], **options)
    return folders


def binned(values, histogram):
    """Return what a histogram of whole numbers should hold, by its own bins."""
    counts = [0] * len(histogram.starts)
    for value in values:
        (at,) = [
            k
            for k, (a, b) in enumerate(zip(histogram.starts, histogram.stops, strict=True))
            if a <= value < b
        ]
        counts[at] += 1
    return tuple(counts)


@pytest.mark.parametrize("name", FORMATS)
def test_facts_are_those_of_scipy(exports, store, name):
    report = report_export(exports[name], source=store)
    matrix = graph()
    degrees = np.diff(matrix.indptr)
    n, labels = sparse.csgraph.connected_components(matrix)
    src, dst = oracle_edges(matrix)
    assert report.ok
    assert report.verification.n_components == n
    assert report.degrees.counts == binned(degrees, report.degrees)
    assert sum(report.degrees.counts) == 300
    assert report.degrees.stops[-1] == degrees.max() + 1
    assert report.component_sizes.counts == binned(np.bincount(labels), report.component_sizes)
    assert report.component_sizes.starts[:2] == (1, 2)
    lengths = report.lengths
    bounds = [*lengths.starts, lengths.stops[-1]]
    true, _ = np.histogram(np.abs(dst - src).astype(float), bounds)
    assert sum(lengths.edges) == sum(lengths.random) == report.verification.alignment.n_sampled
    assert (true >= lengths.edges).all()  # a few have no random pair that is another one
    assert sum(lengths.edges) > 0.9 * src.size
    assert [verdict.level for verdict in report.verdicts[:3]] == ["good"] * 3
    assert report.verdicts[3].level == "warning"
    if not FORMATS[name].get("weights"):
        assert report.weights is None
        return
    weights = np.asarray(matrix[src, dst]).ravel().astype(np.float64)
    assert (report.weights.least, report.weights.largest) == (weights.min(), weights.max())
    assert report.weights.mean == pytest.approx(weights.mean(), rel=1e-5)
    assert report.weights.histogram.counts == binned(weights, report.weights.histogram)
    assert 10 < len(report.weights.histogram.counts) <= 40


def test_what_a_report_says_of_the_files(exports):
    kinds = {}
    for name, folder in exports.items():
        report = report_export(folder)
        kinds[name] = (report.format, report.weighted, report.compression)
        for file in report.files:
            assert file.n_bytes == (folder / file.name).stat().st_size
    assert kinds == {
        "plain": ("edge files", False, None),
        "gzip": ("edge files", False, 1),
        "weights": ("edge files", True, None),
        "parquet": ("Parquet", True, None),
    }


def test_edges_are_looked_at_once_however_often_degrees_are_counted(exports):
    seen = Seen()
    manifest = read_manifest(exports["weights"])
    plan = SurveyPlan(2, ahead=True, range_cells=10, n_forests=2, observer=seen)
    found = survey(exports["weights"], manifest, plan, Progress())
    seen.found(found.degrees, found.component_sizes)
    assert sum(seen.weights().histogram.counts) == manifest.n_edges


def test_without_a_source_it_says_so(exports):
    report = report_export(exports["plain"])
    assert report.ok
    assert [verdict.answer for verdict in report.verdicts[1:3]] == ["Not checked"] * 2
    assert report.lengths is None
    assert "no source was named" in report.to_html().lower()


def test_a_shuffled_graph_is_called_so(tmp_path, exports):
    points = np.random.default_rng(0).permutation(300).repeat(2).reshape(300, 2)
    other = write_store(
        tmp_path / "s.zarr", graph(), obsm={"X_umap": points.astype(np.float32)}
    )  # fmt: skip
    report = report_export(exports["plain"], source=other)
    assert report.verdicts[2].answer == "They look shuffled"
    assert report.verdicts[0].level == "warning"
    assert "The graph is sound, but look at the warnings." in report.to_html()


def damaged(exports, folder):
    """Return a copy of an export with two edges exchanged."""
    shutil.copytree(exports["plain"], folder)
    path = folder / "connectivity/edges.dst.bin"
    edges = np.fromfile(path, "<u2")
    edges[[0, -1]] = edges[[-1, 0]]
    path.write_bytes(edges.tobytes())
    return folder


def test_a_damaged_export_is_reported_and_exits_with_3(exports, store, tmp_path):
    folder, page = damaged(exports, tmp_path / "export"), tmp_path / "report.html"
    outcome = command(folder, "--source", store, "-o", page)
    assert outcome.exit_code == 3
    assert "Wrong: edge " in outcome.stderr
    assert "Something is wrong with this graph." in page.read_text()
    assert "What is wrong" in page.read_text()
    outcome = command(folder, "--json")
    assert outcome.exit_code == 3
    found = json.loads(outcome.stdout)
    assert found["verdicts"][0]["answer"] == "No"
    assert found["degrees"] is None
    assert found["verification"]["problems"]


def test_edges_of_another_matrix_are_told_apart(exports, tmp_path):
    other = graph()
    other[0, 1] = other[1, 0] = 0
    other.eliminate_zeros()
    source = write_store(tmp_path / "s.zarr", other)
    report = report_export(exports["plain"], source=source)
    assert not report.ok
    assert (report.verdicts[1].level, report.verdicts[1].answer) == ("bad", "No")
    assert report.degrees is not None
    source = write_store(tmp_path / "s.zarr", graph()[:200, :200])
    report = report_export(exports["plain"], source=source)
    assert report.verdicts[1].answer == "Not shown"


def test_a_graph_without_edges(tmp_path):
    source = write_store(tmp_path / "s.zarr", sparse.csr_matrix((5, 5), dtype=np.float32))
    export_connectivities(source, tmp_path / "export", weights=True)
    report = report_export(tmp_path / "export", tmp_path / "report.html", source=source)
    assert report.ok
    assert (report.degrees.starts, report.degrees.counts) == ((0,), (5,))
    assert (report.component_sizes.starts, report.component_sizes.counts) == ((1,), (5,))
    assert report.weights is None
    assert report.lengths is None


def test_a_store_that_symmetrize_has_written(store, tmp_path):
    made = tmp_path / "viewer.zarr"
    symmetrize_connectivities(store, made, to_key="new")
    report = report_export(made, tmp_path / "report.html", source=store, to_key="new")
    edges = report_export(tmp_path / "viewer.zarr", to_key="new")
    export_connectivities(store, tmp_path / "export", weights=True)
    export = report_export(tmp_path / "export", source=store)
    for found in (report, edges):
        assert (found.ok, found.format, found.weighted, found.files) == (True, "store", True, ())
        for fact in ("degrees", "component_sizes", "lengths", "weights"):
            assert getattr(found, fact) == getattr(export, fact)
        assert found.verification.alignment == export.verification.alignment
    assert [v.answer for v in report.verdicts] == ["Yes", "Yes", "Yes", "No", "Yes"]
    assert edges.verdicts[1].answer == "Not checked"
    assert "a matrix in a store" in (tmp_path / "report.html").read_text()
    outcome = run(
        "report",
        "--no-picture",
        made,
        "--to-key",
        "new",
        "--source",
        store,
        "--rule",
        "max",
        "--json",
    )
    assert outcome.exit_code == 0
    assert command(made, "--to-key", "none", "--json").exit_code == 1
    assert command(tmp_path / "export", "--to-key", "new", "--json").exit_code == 2
    with pytest.raises(ValueError, match="symmetrize"):
        report_export(tmp_path / "export", rule="max")


def test_what_is_thinned_is_told(store, tmp_path):
    thinning = {"top_k": 3, "max_edges": 40}
    export_connectivities(store, tmp_path / "export", weights=True, **thinning)
    symmetrize_connectivities(store, tmp_path / "thin.zarr", **thinning)
    for report in (
        report_export(tmp_path / "export", source=store),
        report_export(tmp_path / "thin.zarr", source=store, **thinning),
    ):
        assert report.ok, report.verification.problems
        assert "that are kept by top_k 3, max_edges 40" in report.verdicts[1].text
    assert not report_export(tmp_path / "thin.zarr", source=store).ok
    with pytest.raises(ValueError, match="top_k: for stores that symmetrize has written"):
        report_export(tmp_path / "export", top_k=3)
    assert command(tmp_path / "export", "--top-k", 3, "--json").exit_code == 2


def test_a_matrix_that_is_not_symmetric(store, tmp_path):
    other = write_store(tmp_path / "s.zarr", sparse.triu(graph()).tocsr())
    report = report_export(other, source=store)
    assert not report.ok
    assert report.verdicts[0].answer == "No"
    assert report.degrees is None


@pytest.mark.slow
def test_an_export_at_a_url(exports, store):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(exports["weights"]), "/bucket/export", recursive=True)
    report = report_export("memory://bucket/export", source=store)
    files.rm("/bucket", recursive=True)
    local = report_export(exports["weights"], source=store)
    assert report.path == "memory://bucket/export"
    assert [file.n_bytes for file in report.files] == [None] * 4
    assert "not known" in report.to_html()
    assert (report.ok, report.weights, report.lengths) == (True, local.weights, local.lengths)


def test_nothing_of_an_export_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(InvalidExportError):
        report_export(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    assert command(tmp_path, "-o", tmp_path / "report.html").exit_code == 1


def test_the_command_needs_a_page_or_json(exports, store, tmp_path):
    assert command(exports["plain"]).exit_code == 2
    wrong = run(
        "report", "--no-picture", exports["plain"], "--json", "--key", "a", "--neighbors-key", "b"
    )
    assert wrong.exit_code == 2
    page = tmp_path / "report.html"
    outcome = command(exports["gzip"], "--source", store, "-o", page)
    assert outcome.exit_code == 0
    assert "Is it sound? Yes. " in outcome.stdout
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(command(exports["gzip"], "--json").stdout)["ok"]


# The picture


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "parquet"])
def test_a_report_has_the_picture(exports, name):
    pytest.importorskip("matplotlib")
    report = cellgraph_dask.report_export(exports[name], picture=True)
    assert report.no_picture is None
    assert report.picture.n_drawn == report.verification.n_edges
    assert report.picture.embedding == "obsm/X_umap"
    assert len(set(report.images)) == 2
    assert all(image.startswith(b"\x89PNG") for image in report.images)
    page = report.to_html()
    assert page.count("data:image/png;base64,") == 2
    assert report.picture.caption.replace("'", "&#x27;") in page
    found = json.loads(report.to_json())
    assert "images" not in found
    assert found["picture"]["n_drawn"] == report.verification.n_edges


@pytest.mark.slow
def test_what_keeps_from_drawing_is_told(exports, monkeypatch):
    pytest.importorskip("matplotlib")
    report = cellgraph_dask.report_export(exports["plain"], source=graph(), picture=True)
    assert report.picture is None
    assert "no embedding" in report.no_picture
    assert "There is no picture: " in report.to_html()


def test_without_the_extra_there_is_a_report_and_no_picture(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = cellgraph_dask.report_export(exports["plain"])
    assert report.ok
    assert "pip install" in report.no_picture
    assert "pip install" in report.to_html()
    with pytest.raises(OutputError, match="not installed"):
        cellgraph_dask.report_export(exports["plain"], picture=True)


def test_damaged_edges_are_not_drawn(exports, tmp_path):
    folder = damaged(exports, tmp_path / "export")
    assert "not well-formed" in cellgraph_dask.report_export(folder).no_picture


# The file


@pytest.fixture
def no_work(monkeypatch):
    """Let nothing be verified."""
    monkeypatch.setattr(report_module, "observe_export", None)


@pytest.mark.usefixtures("no_work")
def test_what_cannot_be_written_is_refused_before_the_work(exports, tmp_path):
    there = tmp_path / "there.html"
    there.write_text("old")
    (tmp_path / "link.html").symlink_to(there)
    (tmp_path / "nowhere.html").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.html").mkdir()
    for name, force, message in [
        ("there.html", False, "is there already"),
        ("report.txt", True, "is no report by its name, which has to end in .html or .htm"),
        ("no/report.html", True, "does not exist; make the folder"),
        ("link.html", False, "is there already"),
        ("nowhere.html", False, "is there already"),
        ("folder.html", True, "is not a file"),
    ]:
        with pytest.raises(OutputError, match=message):
            report_export(exports["plain"], tmp_path / name, force=force)
    with pytest.raises(OutputError, match="is a URL"):
        report_export(exports["plain"], "s3://bucket/report.html")
    assert there.read_text() == "old"


def test_force_replaces_a_page(exports, tmp_path):
    page = tmp_path / "report.HTML"
    page.write_text("old")
    page.chmod(0o640)
    report_export(exports["plain"], page, force=True)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert page.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [page]


def test_a_full_disk_leaves_the_old_page(exports, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = tmp_path / "report.html"
    page.write_text("old")
    monkeypatch.setattr(target.os, "fsync", fail)
    with pytest.raises(DiskSpaceError):
        report_export(exports["plain"], page, force=True)
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]


# Histograms of anything


def seen(*, degrees=None, sizes=None, weights=None, lengths=None):
    """Return what has seen such a graph."""
    found = Seen()
    if weights is not None:
        cells = np.zeros(len(weights), np.uint32)
        found.look(Slab(0, cells, cells, np.array(weights, np.float64)))
    found.found(Degrees(degrees or {}), sizes)
    if lengths is not None:
        found.measured(*(np.array(part, np.float64) for part in lengths))
    return found


@pytest.mark.parametrize(
    "degrees",
    [{0: 1}, {15: 3}, {1: 1000, 10**9: 1}, dict.fromkeys(range(100, 1000), 7), {0: 5, 40: 10**12}],
)
def test_any_degrees_are_in_few_bins(degrees):
    histogram = seen(degrees=degrees).degree_histogram()
    assert 1 <= len(histogram.counts) <= 40
    assert sum(histogram.counts) == sum(degrees.values())
    assert histogram.starts[0] <= min(degrees)
    assert histogram.stops[-1] == max(degrees) + 1
    assert histogram.stops[:-1] == histogram.starts[1:]


def test_a_hub_does_not_make_all_bins_wide():
    histogram = seen(degrees={10: 500, 12: 199, 5000: 1}).degree_histogram()
    assert (histogram.starts, histogram.stops) == ((10, 11, 12), (11, 12, 5001))


def test_no_cells_have_no_degrees():
    assert seen().degree_histogram() is None
    assert seen(sizes={}).component_histogram() is None
    assert seen().component_histogram() is None


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0] * 5, [5e-324, 1.7e308], [0.1, 0.11, 0.12], [1e-3, 1.0, 1e3], [3.0, 4.0, 8.0]],
)
def test_any_weights_are_in_few_bins(weights):
    found = seen(weights=weights).weights()
    histogram = found.histogram
    assert (found.least, found.largest) == (min(weights), max(weights))
    assert found.least <= found.mean <= found.largest
    assert 1 <= len(histogram.counts) <= 40
    assert sum(histogram.counts) == len(weights)
    assert histogram.starts[0] <= min(weights) <= max(weights) <= histogram.stops[-1]
    json.dumps(histogram.stops, allow_nan=False)


def test_weights_count_for_nothing_if_an_edge_is_not_sound():
    found = Seen()
    cells = np.zeros(3, np.uint32)
    found.look(Slab(0, cells, cells, np.array([-1.0, np.nan, np.inf])))
    assert found.weights() is None


def test_many_weights_are_counted_in_parts():
    weights = np.random.default_rng(0).uniform(0.5, 2, 100_000)
    histogram = seen(weights=weights).weights().histogram
    bounds = [*histogram.starts, histogram.stops[-1]]
    assert histogram.counts == tuple(np.histogram(weights, bounds)[0])


@pytest.mark.parametrize(
    "lengths", [([0.0, 0.0], [0.0, 0.0]), ([1e-9], [2e9]), ([1.0, np.inf], [np.inf, 2.0]), ([], [])]
)
def test_any_lengths_are_in_few_bins(lengths):
    found = seen(lengths=lengths).lengths()
    if not np.isfinite(lengths).all(axis=0).any():
        assert found is None
        return
    assert 1 <= len(found.edges) <= 41
    assert sum(found.edges) == sum(found.random) == np.isfinite(lengths).all(axis=0).sum()
    assert found.starts[0] == 0


def test_component_sizes_are_in_bins_that_double():
    histogram = seen(sizes=Counter([1, 1, 3, 4, 7, 100])).component_histogram()
    assert histogram.starts == (1, 2, 4, 8, 16, 32, 64)
    assert histogram.counts == (2, 1, 2, 0, 0, 0, 1)


# Verdicts


def test_the_ceiling_of_the_weighted_viewer():
    found = VerifyReport(True, (), n_cells=10**6, n_edges=12_000_000)
    for n_edges, answer in [(12_000_000, "Yes"), (13_000_000, "No")]:
        told = verdicts(replace(found, n_edges=n_edges), differences=None, source=None,
                        format="edge files", weighted=True)  # fmt: skip
        assert told[-1].answer == answer
    assert [limit.fits for limit in ceilings(2**32 + 1, 10)] == [True, False, False, False]
    told = verdicts(found, differences=None, source=None, format="edge files", weighted=False)
    assert told[-1].answer == "Yes"


def test_no_share_is_called_all_that_is_not():
    found = VerifyReport(
        True, (), n_cells=10**6, n_edges=10, n_components=2, largest_component=10**6 - 1,
        n_isolated=1,
    )  # fmt: skip
    told = verdicts(found, differences=None, source=None, format="edge files", weighted=False)
    assert "more than 99.9%" in told[3].text
    assert "1 cell has no neighbor" in told[3].text
