"""Degrees and components, against scipy."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cellgraph_dask import verify_export
from cellgraph_dask.edge_pairs import components
from cellgraph_dask.edge_pairs.components import forest_bytes
from cellgraph_dask.edge_pairs.format import read_manifest
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.verify.scan import SurveyPlan, plan_survey, survey, survey_bytes
from cellgraph_dask.verify.statistics import Degrees
from tests.helpers.command import run
from tests.helpers.planting import plant


def random_edges(n_cells, n_edges, seed=0):
    pairs = np.sort(np.random.default_rng(seed).integers(0, n_cells, (n_edges, 2)), axis=1)
    src, dst = divmod(np.unique(pairs[:, 0] * n_cells + pairs[:, 1]), n_cells)
    return list(zip(src[src < dst].tolist(), dst[src < dst].tolist(), strict=True))


def hub_edges():
    """Cells 0 and 3 have more neighbors than a byte can count, several times over."""
    return sorted({(0, k) for k in range(1, 1800)} | {(3, k) for k in range(4, 1000)})


def wide_hub_edges():
    """Two cells have about as many neighbors as two bytes can count: one fewer, and more."""
    return [(0, k) for k in range(1, 66_000)] + [(2, k) for k in range(3, 65_537)]


def chain_edges():
    """Two long chains that meet in the end only, and isolated cells."""
    chains = {(k, k + 2) for k in range(3000)}
    return sorted(chains | {(3000, 3001)})


GRAPHS = {
    "none": (7, []),
    "no cells": (0, []),
    "sparse": (5_000, random_edges(5_000, 3_000)),
    "connected": (300, random_edges(300, 3_000)),
    "dense": (60, random_edges(60, 100_000)),  # mean degree 59
    "complete": (200, random_edges(200, 400_000)),  # mean degree 199: wide counters
    "hub": (2_000, hub_edges()),
    "wide hub": (66_000, wide_hub_edges()),
    "chains": (3_100, chain_edges()),
    "32 bits": (70_000, random_edges(70_000, 60_000)),
}


def expected(n_cells, edges):
    """Return sorted degrees, the number of components and the size of the largest."""
    src, dst = np.array(edges, int).reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(src.size), (src, dst)), shape=(n_cells, n_cells))
    degrees = np.bincount(np.concatenate([src, dst]), minlength=n_cells)
    if n_cells == 0:
        return degrees, 0, 0
    n, labels = connected_components(graph, directed=False)
    return degrees, n, int(np.bincount(labels).max())


@pytest.mark.parametrize("compression", [None, 6])
@pytest.mark.parametrize("name", GRAPHS)
def test_against_scipy(tmp_path, name, compression):
    n_cells, edges = GRAPHS[name]
    out_dir = plant(tmp_path, edges, n_cells, compression)
    degrees, n_components, largest = expected(n_cells, edges)
    manifest = read_manifest(out_dir)
    for plan in (
        SurveyPlan(threads=1, ahead=False, range_cells=10**6, n_forests=1),
        SurveyPlan(threads=3, ahead=True, range_cells=10**6, n_forests=3),
        SurveyPlan(threads=3, ahead=True, range_cells=max(1, n_cells // 3), n_forests=1),
    ):
        found = survey(out_dir, manifest, plan, Progress())
        assert found.problem is None
        assert found.degrees.counts == dict(
            zip(*(v.tolist() for v in np.unique(degrees, return_counts=True)), strict=True)
        )
        assert (found.components.n_components, found.components.largest) == (n_components, largest)


def test_stretches_and_settling(tmp_path, monkeypatch):
    """Large graphs are cut into stretches, and most of their edges are answered by settled bits."""
    monkeypatch.setattr("cellgraph_dask.verify.scan._STRETCH_EDGES", 1_000)
    monkeypatch.setattr("cellgraph_dask.edge_pairs.reader.SLAB_EDGES", 64)
    monkeypatch.setattr("cellgraph_dask.edge_pairs.components._FIRST_SETTLING", 200)
    edges = random_edges(3_000, 12_000)
    degrees, n_components, largest = expected(3_000, edges)
    manifest = read_manifest(plant(tmp_path, edges, 3_000))
    for n_forests in (1, 2, 4):
        plan = SurveyPlan(threads=4, ahead=True, range_cells=900, n_forests=n_forests, n_samples=50)
        found = survey(tmp_path, manifest, plan, Progress())
        assert (found.components.n_components, found.components.largest) == (n_components, largest)
        assert found.degrees.largest == degrees.max()
        samples = set(zip(*found.samples.tolist(), strict=True))
        assert samples <= set(edges)
        assert 40 <= len(samples) <= 50


def test_the_first_bad_edge_is_named_wherever_stretches_end(tmp_path, monkeypatch):
    monkeypatch.setattr("cellgraph_dask.verify.scan._STRETCH_EDGES", 100)
    monkeypatch.setattr("cellgraph_dask.edge_pairs.reader.SLAB_EDGES", 30)
    edges = random_edges(500, 1_000)
    plant(tmp_path, edges, 500)
    path = tmp_path / "connectivity/edges.dst.bin"
    sound = np.fromfile(path, "<u2")
    for at in (0, 1, 29, 30, 99, 100, 101, 130, len(edges) - 1):
        damaged = sound.copy()
        damaged[at:] = 500
        damaged.tofile(path)
        (problem,) = verify_export(tmp_path).problems
        assert f"edge {at} (byte {2 * at}) is ({edges[at][0]}, 500)" in problem
    for at in (1, 30, 100, 101):  # equal to its predecessor, perhaps across a border
        damaged, src = sound.copy(), np.array([a for a, _ in edges], "<u2")
        damaged[at], src[at] = damaged[at - 1], src[at - 1]
        damaged.tofile(path)
        src.tofile(tmp_path / "connectivity/edges.src.bin")
        assert (
            f"edge {at} (byte {2 * at}) is {edges[at - 1]} after"
            in (verify_export(tmp_path).problems[0])
        )


@pytest.mark.parametrize("n_cells", [2_000_000, 10**15, 2**63 - 1])
def test_few_edges_among_very_many_cells(tmp_path, n_cells):
    """A manifest may say anything; neither time nor memory follow."""
    edges = [(0, 1), (0, 999_999), (1, 1_999_999)]
    for compression in (None, 6):
        report = verify_export(plant(tmp_path / f"{compression}", edges, n_cells, compression))
        assert report.ok
        assert report.n_isolated == n_cells - 4
        assert report.degree_quantiles == (0, 0, 0, 0, 0, 0, 2)


@pytest.mark.parametrize("figures", [{"n_cells": 2**63}, {"n_cells": 10**40}, {"n_edges": 10**18}])
@pytest.mark.parametrize("compression", [None, 6])
def test_absurd_figures_are_told_as_such(tmp_path, figures, compression):
    edges = [(0, 1), (0, 2)]
    n_cells = figures.get("n_cells", 5)
    out_dir = plant(tmp_path, edges, n_cells, compression)
    manifest = replace(read_manifest(out_dir), **figures)
    (out_dir / "connectivity_manifest.json").write_text(manifest.to_json())
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert outcome.stderr.startswith("Wrong: ")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, ((0, 0),)),
        ({7: 3}, ((7, 3),)),
        ({2: 1, 3: 5, 5: 2}, ((2, 1), (3, 5), (4, 0), (5, 2))),
        ({0: 500, 1: 500, 9000: 1}, ((0, 500), (1, 501))),  # a hub does not flatten the rest
        ({d: 1 for d in range(100)}, tuple((5 * k, 5) for k in range(20))),
    ],
)
def test_histogram(counts, expected):
    assert Degrees(counts).histogram() == expected


def test_quantiles():
    degrees = Degrees({0: 1, 2: 2, 5: 1})  # 0, 2, 2, 5
    assert degrees.quantiles(0, 0.25, 0.5, 0.75, 1) == (0, 0, 2, 2, 5)
    assert (degrees.largest, degrees.isolated) == (5, 1)
    assert Degrees({}).quantiles(0, 1) == (0, 0)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("settling", [1, 300, 10**9])
def test_components_of_rows_in_pieces_of_any_order(monkeypatch, name, settling):
    """Rows in the largest tree are passed over, once one has a sixteenth of all cells."""
    monkeypatch.setattr(components, "_FIRST_SETTLING", settling)
    n_cells, edges = GRAPHS[name]
    src, dst = np.array(edges, np.uint32).reshape(-1, 2).T
    rows, columns = np.r_[src, dst], np.r_[dst, src]
    order = np.lexsort((columns, rows))
    pieces = np.array_split(order, 50)  # rows are in several of them
    np.random.default_rng(settling).shuffle(pieces)
    forests = components.Forests(n_cells, 1)
    for piece in pieces:
        forests.add_rows(rows[piece], columns[piece], np.ones(piece.size, np.uint8))
    found = forests.components()
    assert (found.n_components, found.largest) == expected(n_cells, edges)[1:]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("settling", [1, 300])
def test_components_after_a_sample_that_threads_took_at_once(monkeypatch, name, settling):
    """Whatever of the sample was lost, all edges come by rows; a copy goes on without the rest."""
    monkeypatch.setattr(components, "_FIRST_SETTLING", settling)
    n_cells, edges = GRAPHS[name]
    src, dst = np.array(edges, np.uint32).reshape(-1, 2).T
    rng = np.random.default_rng(settling)
    pieces = [rng.permutation(src.size // 2) for _ in range(20)]  # the first half, again and again
    forests = components.Forests(n_cells, 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: forests.sample_rows(src[piece], dst[piece]), pieces))
    half = forests.copy()
    for which, n in ((forests, src.size), (half, src.size // 2)):
        rows, columns = np.r_[src[:n], dst[:n]], np.r_[dst[:n], src[:n]]
        for piece in np.array_split(np.lexsort((columns, rows)), 7):
            which.add_rows(rows[piece], columns[piece], np.ones(piece.size, np.uint8))
        found = which.components()
        assert (found.n_components, found.largest) == expected(n_cells, edges[:n])[1:]


def test_memory_is_shared_out(tmp_path):
    """Components go first, then the number of passes grows, and all stays within bounds."""
    manifest = read_manifest(plant(tmp_path, [(0, 1)], 2))
    big = type(manifest)(100_000_000, 1_200_000_000, 60, None)
    seen = set()
    for available in np.geomspace(60e6, 4e9, 40).astype(int):
        plan = plan_survey(big, int(available), 2, components=True)
        if plan is None:
            continue
        assert survey_bytes(plan, big) <= available
        seen.add((plan.n_forests, -(-big.n_cells // plan.range_cells) > 1))
    assert seen - {(1, False)} == {(0, True), (0, False), (2, False)}
    assert plan_survey(big, 10**6, 2, components=True) is None
    assert forest_bytes(10**8, 2) >= 8 * 10**8


def test_what_is_said_of_the_graph(tmp_path):
    out_dir = plant(tmp_path / "out", [(0, 1), (0, 2), (3, 4)], 7)
    outcome = run("verify", out_dir)
    assert "components:     4, the largest of 3 cells" in outcome.stdout
    assert "isolated:       2 cells" in outcome.stdout
    report = json.loads(run("verify", out_dir, "--json").stdout)
    assert report["n_components"] == 4
    assert report["largest_component"] == 3
    assert report["n_isolated"] == 2
    assert report["degree_quantiles"] == [0, 0, 0, 1, 1, 2, 2]
    assert report["mean_degree"] == pytest.approx(6 / 7, abs=1e-3)
    assert "not counted" in run("verify", out_dir, "--no-components").stdout
    connected = plant(tmp_path / "connected", [(0, 1), (1, 2)], 3)
    assert "components:     1: the graph is connected" in run("inspect", connected).stdout
