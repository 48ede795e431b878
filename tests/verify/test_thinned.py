"""`verify --source` of thinned graphs: right ones are proved, and every wrong edge is found."""

from __future__ import annotations

import json
import re
import tempfile
from itertools import combinations
from pathlib import Path
from random import Random

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellgraph_dask import export_connectivities, symmetrize_connectivities, verify_export
from cellgraph_dask.errors import MemoryLimitError
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.verify import difference, pair_file, ranking, thinned
from cellgraph_dask.verify.checks import verify
from cellgraph_dask.verify.element import verify_element
from cellgraph_dask.verify.proof import ProofPlan
from tests.helpers.command import run
from tests.helpers.effort import part_of
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.helpers.thinning import combined, plant_weighted, strong_edges

TINY = ProofPlan(block_entries=7, block_rows=3, piece_entries=4, threads=1)
RULES = (None, "ones", "max", "min", "mean", "sum", "fuzzy")


def check(out_dir, source, proof_plan=None, threads=1):
    return verify(
        Path(out_dir), Progress(), source=open_source(source), limit=4 * 10**9, threads=threads,
        proof_plan=proof_plan,
    )  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """Let all that is held at once be a few pairs, ends and cells."""
    make_tiny(monkeypatch)


def make_tiny(monkeypatch):
    monkeypatch.setattr(thinned, "STRETCH_PAIRS", 9)
    monkeypatch.setattr(thinned, "_MOST_RANKED", 5)
    monkeypatch.setattr(thinned, "_CELL_BYTES", 3 * 10**8)
    monkeypatch.setattr(thinned, "_LEAST_CELLS", 2)
    monkeypatch.setattr(ranking, "LEAST_SHIFT", 2)
    monkeypatch.setattr(ranking, "PART", 2)


def graph(n_cells=40, n_neighbors=5, *, rule="max", seed=0):
    """Return a graph in which many weights are the same."""
    matrix = (symmetric_graph if rule is None else directed_graph)(n_cells, n_neighbors, seed=seed)
    rng = np.random.default_rng(seed)
    if rule is None:
        upper = sparse.triu(matrix, 1, format="csr")
        upper.data = rng.integers(1, 6, upper.nnz) / np.float32(5)
        return (upper + upper.T).tocsr()
    matrix.data = (rng.integers(1, 6, matrix.nnz) / 5).astype(np.float32)
    return matrix


THINNINGS = [
    {"min_weight": 0.6},
    {"top_k": 2},
    {"max_edges": 31},
    {"min_weight": 0.4, "top_k": 3, "max_edges": 40, "strongest": "smallest"},
    {"top_k": 1, "strongest": "largest"},
    {"top_k": 39, "max_edges": 10**6},  # which keep all
]


def slow_but_one(thinnings, fast):
    return [t if t == fast else pytest.param(t, marks=pytest.mark.slow) for t in thinnings]


@st.composite
def cases(draw):
    """Draw a matrix whose cells meet often, a rule and a thinning that leaves something."""
    n = draw(st.integers(2, 9))
    rule = draw(st.sampled_from(RULES))
    weight = st.sampled_from([0.125, 0.25, 0.25, 0.3, 0.5, 0.5, 0.0])
    entry = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), weight)
    entries = draw(st.lists(entry, min_size=1, max_size=30))
    if rule in (None, "fuzzy"):  # which take no repeats that add up to more than 1, or differ
        entries = list({(min(i, j), max(i, j)): (i, j, w) for i, j, w in entries}.values())
    if rule is None:
        entries = [entry for i, j, w in entries if i != j and w for entry in ((i, j, w), (j, i, w))]
    rows, columns, weights = zip(*entries, strict=True) if entries else ((), (), ())
    dtype = draw(st.sampled_from(["f4", "f8"]))
    matrix = sparse.csr_matrix(
        sparse.coo_matrix((np.array(weights, dtype), (rows, columns)), shape=(n, n))
    )
    thinning = {
        "min_weight": draw(st.sampled_from([None, None, 0.25, 0.3, 0])),
        "top_k": draw(st.sampled_from([None, 1, 2, 3, n, 10**30])),
        "max_edges": draw(st.sampled_from([None, 1, 3, 6, 10**30])),
        "strongest": draw(st.sampled_from([None, "largest", "smallest"])),
    }
    return matrix, rule, {name: value for name, value in thinning.items() if value is not None}


def altered(random, edges, matrix, rule):
    """Yield edges that are not right any more, and what was done to them."""
    n = matrix.shape[0]
    pairs = sorted(edges)
    others = sorted(set(combinations(range(n), 2)) - set(edges))
    weights = combined(matrix, rule)
    if pairs:
        lost = random.choice(pairs)
        yield "lost", {pair: edges[pair] for pair in pairs if pair != lost}
        away = random.choice([0.0, 9.0])
        other = float(np.nextafter(edges[lost], away))
        yield "an ulp off", edges | {lost: other}
    if others:
        gained = random.choice(others)
        yield "gained", edges | {gained: float(weights[gained]) or 0.5}
    if pairs and others:
        moved = {pair: edges[pair] for pair in pairs if pair != lost}
        yield "exchanged", moved | {gained: float(weights[gained]) or edges[lost]}


@pytest.mark.slow
@settings(max_examples=part_of(150), suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.booleans(), st.integers(0, 2**32))
def test_right_edges_are_proved_and_wrong_ones_found(case, is_tiny, seed):
    matrix, rule, thinning = case
    edges = strong_edges(matrix, rule, **thinning)
    random = Random(seed)
    weighted = random.random() < 0.7
    options = {"weights": weighted, "rule": rule} | thinning
    n = matrix.shape[0]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        if is_tiny:
            make_tiny(monkeypatch)
        folder = Path(name)
        source = write_store(folder / "s.zarr", matrix, chunk=5, write_empty_chunks=True)
        plan = TINY if is_tiny else None
        out_dir = plant_weighted(folder / "out", source, edges, n, options, weighted=weighted)
        report = check(out_dir, source, plan, random.choice([1, 1, 3]))
        assert report.ok, report.problems
        for kind, wrong in altered(random, edges, matrix, rule):
            plant_weighted(out_dir, source, wrong, n, options, weighted=weighted)
            assert check(out_dir, source, plan).ok == (kind == "an ulp off" and not weighted), kind


@pytest.mark.parametrize("rule", [None, "mean"])
@pytest.mark.parametrize("thinning", slow_but_one(THINNINGS, THINNINGS[1]), ids=str)
def test_exports_of_every_kind_are_proved(tmp_path, rule, thinning):
    matrix = graph(rule=rule)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=60)
    edges = strong_edges(matrix, rule, **thinning)
    kinds = [{}, {"compression": 1}, {"weights": True}, {"weights": True, "compression": 6}]
    for number, options in enumerate(kinds):
        out_dir = tmp_path / f"out-{number}"
        export_connectivities(source, out_dir, rule=rule, **options, **thinning)
        before = snapshot(out_dir)
        report = verify_export(out_dir, source=source, threads=2)
        assert report.ok, report.problems
        assert (report.n_edges, report.proof) == (len(edges), "weights")
        assert report.thinning == thinning
        assert snapshot(out_dir) == before
        assert verify_export(out_dir).thinning == thinning  # as it says itself


@pytest.mark.parametrize("thinning", slow_but_one(THINNINGS[:4], THINNINGS[3]), ids=str)
def test_parquet_and_elements_are_proved(tmp_path, thinning):
    pytest.importorskip("pyarrow.parquet")
    matrix = graph(rule="sum")
    matrix.data /= np.float32(1.5)  # so that rounding to float32 matters
    source = write_store(tmp_path / "s.zarr", matrix, chunk=60)
    for both in ("one", "both"):
        for weights in (False, True):
            out_dir = tmp_path / f"{both}-{weights}"
            export_connectivities(
                source, out_dir, format="parquet", directions=both, weights=weights, rule="sum",
                **thinning,
            )  # fmt: skip
            report = verify_export(out_dir, source=source)
            assert report.ok, report.problems
            assert report.thinning == thinning
    for dtype in ("float32", "float64"):
        dest = tmp_path / f"{dtype}.zarr"
        symmetrize_connectivities(source, dest, rule="sum", dtype=dtype, **thinning)
        report = verify_element(dest, source=source, rule="sum", **thinning)
        assert report.ok, report.problems
        assert report.thinning == thinning
        assert not verify_element(dest, source=source, rule="sum").ok
        other = thinning | {"top_k": 1, "max_edges": 30}
        assert not verify_element(dest, source=source, rule="sum", **other).ok


def test_parquet_without_rule_or_weights(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    source = write_store(tmp_path / "s.zarr", graph(rule=None))
    export_connectivities(source, tmp_path / "out", format="parquet", top_k=2)
    report = verify_export(tmp_path / "out", source=source)
    assert report.ok, report.problems


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("thinning", slow_but_one(THINNINGS, THINNINGS[3]), ids=str)
def test_any_number_of_pairs_at_once_will_do(tmp_path, thinning):
    matrix = graph(rule="mean")
    matrix = sparse.vstack([np.full((1, 40), 0.5, "f4"), matrix[1:]]).tocsr()  # a hub
    source = write_store(tmp_path / "s.zarr", matrix, chunk=9)
    options = {"weights": True, "rule": "mean"} | thinning
    edges = strong_edges(matrix, "mean", **thinning)
    out_dir = plant_weighted(tmp_path / "out", source, edges, 40, options)
    report = check(out_dir, source, TINY, threads=2)
    assert report.ok, report.problems
    random = Random(0)
    for kind, wrong in altered(random, edges, matrix, "mean"):
        plant_weighted(out_dir, source, wrong, 40, options)
        assert not check(out_dir, source, TINY).ok, kind


@pytest.mark.slow
@pytest.mark.parametrize("strongest", ["largest", "smallest"])
def test_every_edge_and_its_reason(tmp_path, strongest):
    """Each edge lost, each pair gained, each weight an ulp off, and each tie decided otherwise."""
    matrix = graph(10, 3)
    thinning = {"min_weight": 0.4, "top_k": 2, "max_edges": 9, "strongest": strongest}
    options = {"weights": True, "rule": "max"} | thinning
    source = write_store(tmp_path / "s.zarr", matrix)
    edges, weights = strong_edges(matrix, "max", **thinning), combined(matrix, "max")
    enough = strong_edges(matrix, "max", min_weight=0.4)
    by_cell = strong_edges(matrix, "max", **(thinning | {"max_edges": None}))
    assert len(edges) == 9 < len(by_cell) < len(enough) < np.count_nonzero(weights) // 2

    def problem_of(wrong):
        plant_weighted(tmp_path / "out", source, wrong, 10, options)
        report = check(tmp_path / "out", source)
        return report.problems[0] if report.problems else None

    assert problem_of(edges) is None
    for number, pair in enumerate(sorted(edges)):
        rest = {other: edges[other] for other in edges if other != pair}
        assert re.search(
            rf"in row \d+, column \d+, which is kept \(weight {edges[pair]!r}; min_weight 0.4, "
            rf"top_k 2, max_edges 9, strongest {strongest}\), but there is no edge "
            rf"{re.escape(str(pair))}; it would be edge {number} \(byte {2 * number}\)",
            problem_of(rest),
        )
        ulp = float(np.nextafter(edges[pair], 9))
        assert problem_of(edges | {pair: ulp}) == (
            f"the weight of edge {number}, {pair}, is {ulp!r} (byte {8 * number}), but the matrix "
            f"gives {edges[pair]!r}."
        )
        for other in set(by_cell) - set(edges):  # as strong as that one, at times
            assert problem_of(rest | {other: by_cell[other]})
    for pair in set(combinations(range(10), 2)) - set(edges):
        wrong = edges | {pair: float(weights[pair]) or 0.5}
        number = sorted(wrong).index(pair)
        said = problem_of(wrong)
        assert f"edge {number} (byte {2 * number}) is {pair}, but " in said
        if pair in by_cell:
            why = f"its weight {by_cell[pair]!r} is not one of the 9 strongest of all"
        elif pair in enough:
            why = f"its weight {enough[pair]!r} is not one of the 2 strongest of either cell"
        else:
            why = "the matrix has no weight of at least 0.4 for these cells"
        assert why in said


@pytest.mark.parametrize("options", [{}, {"format": "parquet", "directions": "both"}], ids=str)
def test_some_cells_that_are_thinned(tmp_path, options):
    if options:
        pytest.importorskip("pyarrow.parquet")
    matrix, names = graph(), [f"cell-{k}" for k in range(40)]
    made = anndata.AnnData(obs=pd.DataFrame(index=names), obsp={"connectivities": matrix})
    made.write_zarr(tmp_path / "s.zarr")
    chosen = np.arange(40) % 3 > 0
    thinning = {"top_k": 2, "max_edges": 20}
    cells = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    expected = strong_edges(matrix[chosen][:, chosen], "sum", **thinning)
    options = options | {"cells": cells, "rule": "sum"} | thinning
    export_connectivities(tmp_path / "s.zarr", tmp_path / "out", **options, weights=True)
    report = verify_export(tmp_path / "out", source=tmp_path / "s.zarr")
    assert report.ok, report.problems
    assert (report.n_edges, report.thinning) == (len(expected), thinning)
    if "format" not in options:
        symmetrize_connectivities(
            tmp_path / "s.zarr", tmp_path / "d.zarr", cells=cells, rule="sum", **thinning
        )
        report = verify_element(
            tmp_path / "d.zarr", source=tmp_path / "s.zarr", rule="sum", **thinning
        )
        assert report.ok, report.problems
        assert report.n_edges == len(expected)


@pytest.mark.parametrize("bits", [23, 32, 46])
def test_keys_of_any_width(tmp_path, monkeypatch, bits):
    """As those of 2**bits cells are."""
    for module in (difference, pair_file, ranking):
        monkeypatch.setattr(module, "cell_bits", lambda _: bits)
    matrix = graph(20, 4)
    source = write_store(tmp_path / "s.zarr", matrix)
    edges = strong_edges(matrix, "max", top_k=2, max_edges=20)
    options = {"weights": True, "rule": "max", "top_k": 2, "max_edges": 20}
    out_dir = plant_weighted(tmp_path / "out", source, edges, 20, options)
    for plan in (TINY, None):
        assert check(out_dir, source, plan).problems == ()


def test_what_the_report_says(tmp_path):
    source = write_store(tmp_path / "s.zarr", graph())
    export_connectivities(source, tmp_path / "out", rule="max", top_k=2, max_edges=30)
    outcome = run("verify", tmp_path / "out", "--source", source)
    assert outcome.exit_code == 0
    said = f"exactly those of obsp/connectivities of {source} that --top-k 2 --max-edges 30 keeps,"
    assert said in outcome.stdout
    for command in ("verify", "inspect"):
        said = run(command, tmp_path / "out").stdout
        assert re.search(r"thinned by: +--top-k 2 --max-edges 30\n", said)
    outcome = run("verify", tmp_path / "out", "--json")
    assert json.loads(outcome.stdout)["thinning"] == {"top_k": 2, "max_edges": 30}


@pytest.mark.parametrize("change", ["missing", "changed", "other options"])
def test_what_it_was_made_by_is_not_known(tmp_path, change):
    matrix = graph()
    source = write_store(tmp_path / "s.zarr", matrix)
    out_dir = tmp_path / "out"
    export_connectivities(source, out_dir, rule="max", weights=True, top_k=2)
    path = out_dir / "connectivity" / "provenance.json"
    if change == "missing":
        path.unlink()
    elif change == "changed":
        path.write_text(path.read_text().replace('"top_k": 2', '"top_k": 3'))
    else:
        edges = strong_edges(matrix, "max", top_k=2)
        plant_weighted(out_dir, source, edges, 40, {"rule": "max", "weights": True, "top_k": 3})
    report = verify_export(out_dir, source=source)
    assert not report.ok
    if change == "other options":
        assert "which is kept (weight" in report.problems[0]
        return
    assert report.thinning is None
    assert any("or thinned, it cannot be proved" in text for text in report.warnings)
    assert ("is not as an export has written it" in report.problems[0]) == (change == "changed")


HOSTILE = [
    ("rule", "strongest"), ("rule", 3), ("rule", ["max"]), ("min_weight", "0.5"),
    ("min_weight", -1), ("min_weight", float("nan")), ("min_weight", float("inf")),
    ("min_weight", 10**400), ("min_weight", True), ("top_k", 0), ("top_k", -(10**500)),
    ("top_k", 2.0), ("top_k", True), ("top_k", {}), ("max_edges", "viewer"), ("max_edges", 0),
    ("max_edges", [1]), ("strongest", "x" * 10**4), ("strongest", 1), ("strongest", {"a": []}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=lambda value: str(value)[:20])
def test_options_that_cannot_be(tmp_path, name, value):
    source = write_store(tmp_path / "s.zarr", graph(6, 2))
    options = {"rule": "max", "weights": True, "top_k": 2, name: value}
    out_dir = tmp_path / "out"
    plant_weighted(out_dir, source, strong_edges(graph(6, 2), "max", top_k=2), 6, options)
    for given_source in (None, source):
        report = verify_export(out_dir, source=given_source)
        assert not report.ok
        (problem,) = report.problems
        assert re.match(f"the export says of itself that {name} is |.* is not as an", problem)
        assert len(problem) < 300


@pytest.mark.parametrize("options", [[], "text", None, 3])
def test_options_that_are_none(tmp_path, options):
    source = write_store(tmp_path / "s.zarr", graph(6, 2))
    out_dir = plant_weighted(tmp_path / "out", source, {(0, 1): 1.0}, 6, options)
    report = verify_export(out_dir)
    assert "is not as an export has written it" in report.problems[0]


def test_weights_that_are_none(tmp_path):
    source = write_store(tmp_path / "s.zarr", graph(12, 3))
    out_dir = plant_weighted(tmp_path / "out", source, {(0, 1): 1.0}, 12, {"top_k": 2})
    report = check(out_dir, source)
    assert re.search(r"different weights in the two directions of cells \(\d+, \d+\)",
                     report.problems[0])  # fmt: skip
    negative = graph(12, 3)
    negative.data *= -1
    source = write_store(tmp_path / "t.zarr", negative)
    plant_weighted(out_dir, source, {(0, 1): 1.0}, 12, {"top_k": 2, "rule": "sum"})
    assert "only positive numbers" in check(out_dir, source).problems[0]


def test_nothing_is_left_or_there_is_no_edge(tmp_path):
    source = write_store(tmp_path / "s.zarr", graph(12, 3))
    out_dir = plant_weighted(tmp_path / "out", source, {}, 12, {"rule": "max", "min_weight": 7})
    assert check(out_dir, source).ok
    plant_weighted(out_dir, source, {(3, 5): 7.0}, 12, {"rule": "max", "min_weight": 7})
    assert "edge 0 (byte 0) is (3, 5), but" in check(out_dir, source).problems[0]
    empty = write_store(tmp_path / "t.zarr", sparse.csr_matrix((5, 5), dtype=np.float32))
    plant_weighted(out_dir, empty, {}, 5, {"rule": "max", "top_k": 1, "max_edges": 3})
    assert check(out_dir, empty).ok


@pytest.mark.slow
def test_a_limit_for_many_neighbors_is_named(tmp_path):
    """To rank a cell's neighbors, those that it keeps must be held."""
    n = 3 * 10**5
    hub = sparse.csr_matrix(
        (np.ones(n - 1, "f4"), (np.zeros(n - 1, int), np.arange(1, n))), shape=(n, n)
    )
    source = write_store(tmp_path / "s.zarr", hub, chunk=10**5)
    top = n // 2
    options = {"rule": "max", "top_k": top}
    edges = {(0, j): 1.0 for j in range(1, n)}  # of these cells 0 is the only neighbor
    out_dir = plant_weighted(tmp_path / "out", source, edges, n, options, weighted=False)
    limit = 10**6
    for _ in range(3):
        try:
            report = verify_export(out_dir, source=source, memory_limit=limit)
            break
        except MemoryLimitError as refused:
            limit = refused.needed_bytes
    assert report.ok, report.problems
    assert report.peak_memory_bytes <= limit
