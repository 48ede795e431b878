"""Rules give the weights that scipy gives, however a matrix is stored, cut and worked on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellgraph_dask import check_connectivities, export_connectivities, open_export, verify_export
from cellgraph_dask.delivery.products import EdgePairs
from cellgraph_dask.errors import SourceError
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.rules import RULES, narrowed
from cellgraph_dask.verify.checks import verify
from tests.helpers.differential import LIMIT, TINY
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store


def combined(matrix, rule):
    """Return the upper triangle of the pairs' weights, dense."""
    a = np.zeros(matrix.shape)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    np.add.at(a, (rows, matrix.indices), matrix.data.astype(np.float64))
    b = a.T
    return np.triu(
        {
            "max": np.maximum(a, b), "min": np.minimum(a, b), "mean": (a + b) / 2, "sum": a + b,
            "fuzzy": a + b - a * b, "ones": (a + b != 0) * 1.0,
        }[rule],
        1,
    )  # fmt: skip


def assert_weights(out_dir, matrix, rule):
    expected = combined(matrix, rule)
    src, dst = np.nonzero(expected)
    with open_export(out_dir) as graph:
        assert graph.src.tolist() == src.tolist()
        assert graph.dst.tolist() == dst.tolist()
        assert graph.weights is not None
        assert graph.weights.tolist() == expected[src, dst].tolist()
        assert (graph.to_scipy().toarray() == expected + expected.T).all()


@st.composite
def cases(draw):
    """Draw a matrix whose sums are exact in any order, a rule, and how it is cut."""
    n = draw(st.sampled_from([1, 2, 5, 12, 300]))
    cells = st.integers(0, min(n, 12) - 1).map(lambda k: k if n < 300 else k * 27)
    rows = sorted(draw(st.lists(cells, max_size=60)))
    columns = [draw(cells) for _ in rows]
    rule = draw(st.sampled_from(RULES))
    dtype = draw(st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u1", "?"]))
    most = st.sampled_from([0, 0.25, 0.5, 1, 0.125] if np.dtype(dtype).kind == "f" else [0, 1, 1])
    weights = np.array([draw(most) for _ in rows])
    if rule == "fuzzy" and np.dtype(dtype).kind == "f":  # repeats are added up before
        weights = weights / 64
    indptr = np.searchsorted(rows, np.arange(n + 1))
    stored = (weights.astype(dtype), np.array(columns, np.int32), indptr.astype(np.int32))
    matrix = sparse.csr_matrix(stored, shape=(n, n))
    if draw(st.booleans()):
        both_ways = matrix.astype(np.float64) / 2
        matrix = sparse.csr_matrix(both_ways + both_ways.T)
        if rule == "fuzzy":  # repeats have been added up; of pairs beyond 1 the test knows
            at = matrix.tocoo().row == matrix.indices
            matrix.data[at] = np.minimum(matrix.data[at], 1)
    tuning = Tuning(
        draw(st.sampled_from([3, 10, 1000])), draw(st.sampled_from([3, 1000])),
        draw(st.sampled_from([2, 8, 1000])), draw(st.sampled_from([1, 8])),
        threads=draw(st.sampled_from([1, 3])), count_degrees=draw(st.booleans()),
    )  # fmt: skip
    return matrix, rule, tuning, draw(st.sampled_from([None, 6]))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), method=st.sampled_from([None, "general"]), seed=st.integers(0, 99))
def test_any_matrix(case, method, seed):
    matrix, rule, tuning, compression = case
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder) / "out"

        def export():
            run_export(
                open_source(matrix), out_dir, weights=True, rule=rule, compression=compression,
                method=method, tuning=tuning, memory_limit=LIMIT,
            )  # fmt: skip

        # Repeats add up to more than 1, or the pass over a symmetric graph does not see them.
        if rule == "fuzzy" and combined(matrix, "max").max(initial=0) > 1:
            with pytest.raises(SourceError, match="the rule fuzzy takes weights from 0 to 1"):
                export()
            return
        export()
        assert_weights(out_dir, matrix, rule)
        for plan in (None, replace(TINY, threads=1)):
            report = verify(
                out_dir, Progress(), source=open_source(matrix), limit=LIMIT, threads=2,
                proof_plan=plan,
            )  # fmt: skip
            assert report.problems == ()
            assert report.proof == "weights"
        path = out_dir / "connectivity/edges.weights.f64.bin"
        if compression is None and path.stat().st_size:
            weights = np.fromfile(path)
            at = seed % weights.size
            weights[at] = np.nextafter(weights[at], 9)
            weights.tofile(path)
            report = verify(out_dir, Progress(), source=open_source(matrix), limit=LIMIT, threads=2)
            assert f"the weight of edge {at}, " in report.problems[0]


@pytest.mark.parametrize("rule", RULES)
def test_real_looking_graphs(tmp_path, rule):
    matrix = directed_graph(3000, 12)
    matrix.data = np.random.default_rng(1).random(matrix.nnz).astype(np.float32)
    source = write_store(tmp_path / "s.zarr", matrix)
    report = export_connectivities(source, tmp_path / "out", weights=True, rule=rule)
    assert not report.symmetric
    assert_weights(tmp_path / "out", matrix, rule)
    assert verify_export(tmp_path / "out", source=source).ok


def test_a_rule_without_weights_chooses_the_edges(tmp_path):
    matrix = directed_graph(300, 12)
    source = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(source, tmp_path / "out", rule="min")
    with open_export(tmp_path / "out") as graph:
        assert graph.weights is None
        assert graph.n_edges == np.count_nonzero(combined(matrix, "min")) > 0
    assert verify_export(tmp_path / "out", source=source).ok


@pytest.mark.parametrize("weight", [np.nextafter(np.float32(1), np.float32(2)), 0.5])
def test_one_ulp_is_too_much(tmp_path, weight):
    matrix = symmetric_graph(2000, 9)
    matrix.data[:] = 1
    matrix.data[matrix.nnz // 2] = weight
    source = write_store(tmp_path / "s.zarr", matrix)
    with pytest.raises(SourceError, match=r"1 .* different weights|different weights both ways"):
        export_connectivities(source, tmp_path / "out", weights=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_asymmetry_is_seen_in_the_first_block(tmp_path, monkeypatch):
    from cellgraph_dask.stages import pipeline

    matrix = symmetric_graph(4000, 9).tolil()
    rng = np.random.default_rng(0)
    for row, column in zip(*matrix.nonzero(), strict=True):
        if row < column and rng.random() < 0.15:
            matrix[row, column] = 0
    matrix = matrix.tocsr()
    matrix.eliminate_zeros()
    streamed = []
    true = pipeline.stream
    monkeypatch.setattr(pipeline, "stream", lambda *a: streamed.append(1) or true(*a))
    tuning = Tuning(4000, 4000, 4000, 8, threads=1)
    run_export(
        open_source(matrix), tmp_path / "out", weights=True, rule="max", method="symmetric",
        tuning=tuning, threads=1,
    )  # fmt: skip
    assert len(streamed) == 1
    assert_weights(tmp_path / "out", matrix, "max")


def one_pair(*weights, dtype="f8"):
    indptr = np.array([0, len(weights), len(weights)])
    stored = (np.array(weights, dtype), np.ones(len(weights), np.int32), indptr)
    return sparse.csr_matrix(stored, shape=(2, 2))


@pytest.mark.parametrize(("matrix", "rule", "message"), [
    (one_pair(-1), "max", r"cells \(0, 1\) in .* is -1\.0; weights must not be negative"),
    (one_pair(1.5), "fuzzy", r"is 1\.5; the rule fuzzy takes weights from 0 to 1"),
    (one_pair(2**53 + 1, dtype="i8"), "max", "float64 does not hold this number exactly"),
    (one_pair(1e308, 1e308), "sum", "come to a number that float64 does not hold"),
])  # fmt: skip
def test_weights_that_a_rule_does_not_take(tmp_path, matrix, rule, message):
    with pytest.raises(SourceError, match=message):
        export_connectivities(matrix, tmp_path / "out", weights=True, rule=rule)
    assert not (tmp_path / "out").exists()


def test_a_pair_that_is_stored_too_often_to_be_held(tmp_path):
    matrix = one_pair(*[0.25] * 5000)
    tuning = Tuning(1000, 1000, 500, 8, threads=2)
    for rule, weight in (("max", 1250), ("mean", 625), ("ones", 1)):
        run_export(
            open_source(matrix), tmp_path / rule, weights=True, rule=rule, method="general",
            tuning=tuning,
        )  # fmt: skip
        with open_export(tmp_path / rule) as graph:
            assert graph.weights.tolist() == [weight]
        report = verify(
            tmp_path / rule, Progress(), source=open_source(matrix), limit=LIMIT, threads=2,
            proof_plan=TINY,
        )  # fmt: skip
        assert report.problems == ()


def test_an_interrupted_run_is_resumed_with_its_weights(tmp_path, monkeypatch):
    source = write_store(tmp_path / "s.zarr", directed_graph(3000, 9))
    options = {"weights": True, "rule": "mean", "memory_limit": "4GB"}
    tuning = Tuning(2000, 3000, 1500, 8, threads=2)
    run_export(open_source(source), tmp_path / "whole", tuning=tuning, **options)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EdgePairs, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_export(open_source(source), tmp_path / "out", tuning=tuning, **options)
    report = run_export(open_source(source), tmp_path / "out", resume=True, **options)
    assert report.kept_tasks > 10
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.slow
def test_a_symmetric_graph_is_checked_in_one_pass(monkeypatch):
    from cellgraph_dask.export import check
    from cellgraph_dask.source.blocks import cut_blocks

    def compare(*_):
        raise AssertionError("both directions are compared")

    monkeypatch.setattr(check._Check, "_compare", compare)
    matrix = symmetric_graph(300, 9)
    assert check_connectivities(matrix).ok
    for size in (1, 7, 9, 10, 1000):  # blocks that end in rows, and with them
        monkeypatch.setattr(
            check, "cut_blocks", lambda source, *_, n=size: cut_blocks(source, n, 100)
        )
        assert check_connectivities(matrix).ok


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_check_counts_what_differs(tmp_path, layout):
    matrix = directed_graph(500, 9)
    matrix.data = np.random.default_rng(1).random(matrix.nnz).astype(np.float32)
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    a = matrix.toarray()
    source = write_store(tmp_path / "s.zarr", matrix.asformat(layout))
    report = check_connectivities(source, target="cellucid-0.9.5")
    upper = np.triu(np.ones_like(a), 1) > 0
    expected = {
        "one-sided": ((a != 0) != (a.T != 0)) & upper,
        "unequal": (a != 0) & (a.T != 0) & (a != a.T) & upper,
    }
    assert {rule.rule: rule.count for rule in report.broken} == {
        name: int(found.sum()) for name, found in expected.items()
    }
    for rule in report.broken:
        row, column = np.argwhere(expected[rule.rule])[0].tolist()
        assert (rule.row, rule.column) == ((row, column) if layout == "csr" else (column, row))
        found = [str(weight) for weight in (a[rule.row, rule.column], a[rule.column, rule.row])]
        for text in found:
            assert text == "0.0" or text[:6] in rule.text
    assert (report.ok, report.symmetric, report.symmetric_weights) == (False, False, False)


def test_a_weight_that_would_vanish_names_its_pair():
    src, dst = np.array([1, 1, 2], np.uint32), np.array([5, 6, 7], np.uint32)
    with pytest.raises(SourceError, match=r"\(1, 6\) is 1e-50.* become 0 as float32"):
        narrowed(src, dst, np.array([1, 1e-50, 1e50]))
    with pytest.raises(SourceError, match=r"\(2, 7\) is 1e\+50.* become infinite as float32"):
        narrowed(src, dst, np.array([1, 1, 1e50]))
    assert narrowed(src, dst, np.array([0.1, 1e-45, 3e38])).tolist() == [
        float(np.float32(weight)) for weight in (0.1, 1e-45, 3e38)
    ]
