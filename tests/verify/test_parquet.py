"""Every change in a folder of Parquet files is found, those with right checksums too."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import scipy.sparse as sp

from cellgraph_dask import verify_export
from cellgraph_dask.delivery import parquet
from cellgraph_dask.edge_pairs import parquet_io
from cellgraph_dask.edge_pairs.parquet import TableFile, edges_name, read_graph_table
from cellgraph_dask.errors import InvalidExportError, MemoryLimitError
from tests.helpers.stores import snapshot, write_store
from tests.helpers.tables import make_table, wanted

pytest.importorskip("pyarrow.parquet")
N = 120
DIRECTED = sp.random(N, N, density=0.05, format="csr", random_state=0, dtype=np.float32)


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "s.zarr", DIRECTED)


@pytest.mark.parametrize("rule", [None, "max", "min", "fuzzy"])
@pytest.mark.parametrize("both", [False, True])
def test_sound_folders_are_proved(tmp_path, store, monkeypatch, rule, both):
    monkeypatch.setattr(parquet, "FILE_ROWS", 200)
    rule = "ones" if rule is None and both else rule
    out_dir = tmp_path / "out"
    table = make_table(store, out_dir, rule=rule, both=both, weighted=rule is not None)
    report = verify_export(out_dir, source=store)
    assert report.ok, report.problems
    assert report.proof == ("comparison" if rule is None else "weights")
    assert (report.n_cells, report.n_edges) == (N, table.n_edges)
    assert report.provenance == table.made_from
    assert len(table.files) > 1 or rule == "min"
    assert verify_export(out_dir).ok


@pytest.mark.slow
def test_every_byte_matters(tmp_path, store, monkeypatch):
    monkeypatch.setattr(parquet, "FILE_ROWS", 100)
    out_dir = tmp_path / "out"
    make_table(store, out_dir, rule="max", both=True, weighted=True, row_group=64)
    files = {name: data for name, data in snapshot(out_dir).items() if data is not None}
    assert len(files) > 3
    for name, data in files.items():
        step = 499 if name.startswith("edges") else 67
        damaged = [data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
                   for at in range(0, len(data), step)]  # fmt: skip
        for other in (*damaged, data[:-1], data + b"\n", b""):
            (out_dir / name).write_bytes(other)
            report = verify_export(out_dir)
            assert not report.ok, name
            assert report.problems
        (out_dir / name).unlink()
        if name == "_graph.json":
            with pytest.raises(InvalidExportError):
                verify_export(out_dir)
        else:
            assert "cannot be read" in verify_export(out_dir).problems[0]
        (out_dir / name).write_bytes(data)
    first, second = (out_dir / edges_name(k) for k in (0, 1))
    first.write_bytes(files[second.name])
    second.write_bytes(files[first.name])
    assert len(verify_export(out_dir).problems) == 2
    first.write_bytes(files[first.name])
    second.write_bytes(files[second.name])
    (out_dir / "more.parquet").write_bytes(files[first.name])
    assert "readers of the folder" in verify_export(out_dir).problems[0]
    (out_dir / "more.parquet").unlink()
    assert verify_export(out_dir).ok


def forge(out_dir, src, dst, weights=None, metadata=None, **changed):
    """Replace all rows by these, with a manifest that tells of them."""
    table = read_graph_table(out_dir)
    for file in table.files:
        (out_dir / file.name).unlink()
    src, dst = (np.asarray(side, np.int32) for side in (src, dst))
    n_edges = src.size // (2 if table.directions == "both" else 1)
    table = dataclasses.replace(table, **({"n_edges": n_edges} | changed))
    columns = [src, dst] if weights is None else [src, dst, np.asarray(weights, float)]
    path = out_dir / edges_name(0)
    groups = [
        [column[at : at + table.row_group] for column in columns]
        for at in range(0, src.size, table.row_group)
    ]
    written = parquet_io.write_table(path, table.columns, metadata or table.metadata, 2, groups)
    table = dataclasses.replace(table, files=(TableFile(path.name, src.size, *written),))
    (out_dir / "_graph.json").write_text(table.to_json())


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", None),
        ("swapped", "must rise"),
        ("repeated", "must rise"),
        ("high", "must rise"),
        ("negative", "must rise"),
        ("loop", "must rise"),
        ("gone", "are not the same edges|no edge"),
        ("more", "are not the same edges|has no nonzero"),
        ("other weight", "are not the same edges|but the matrix gives"),
        ("zero", "above zero|are not the same edges"),
        ("nan", "above zero|are not the same edges"),
        ("degree", "largest degree"),
        ("metadata", "of another graph"),
        ("rule", "of another graph|rule is"),
    ],
)
def test_rows_that_are_wrong_are_found_whatever_the_checksums(
    tmp_path, store, both, change, message
):
    out_dir = tmp_path / "out"
    make_table(store, out_dir, rule="max", both=both, weighted=True, row_group=100)
    src, dst, weights = (column.copy() for column in wanted(DIRECTED, "max", both=both))
    changed: dict = {}
    at = 103
    if change == "swapped":
        dst[[at, at + 1]] = dst[[at + 1, at]]
        src[[at, at + 1]] = src[[at + 1, at]]
    elif change == "repeated":
        src[at], dst[at] = src[at - 1], dst[at - 1]
    elif change == "high":
        dst[-1] = N
    elif change == "negative":
        src[0] = -1
    elif change == "loop":
        dst[at] = src[at]
    elif change == "gone":
        kept = np.delete(np.arange(src.size), at)
        src, dst, weights = src[kept], dst[kept], weights[kept]
    elif change == "more":
        pairs = set(zip(src.tolist(), dst.tolist(), strict=True))
        new = next((0, d) for d in range(1, N) if (0, d) not in pairs)
        order = np.lexsort((np.append(dst, new[1]), np.append(src, new[0])))
        src, dst = np.append(src, new[0])[order], np.append(dst, new[1])[order]
        weights = np.append(weights, 0.5)[order]
    elif change == "other weight":
        weights[at] = np.nextafter(weights[at], 1)
    elif change in ("zero", "nan"):
        weights[at] = 0 if change == "zero" else np.nan
    elif change == "degree":
        changed = {"max_neighbors": read_graph_table(out_dir).max_neighbors + 1}
    elif change == "metadata":
        changed = {"metadata": {"n_cells": "5"}}
    elif change == "rule":
        changed = {"rule": "min"}
    if both and src.size % 2:  # as many rows as the manifest says
        table = read_graph_table(out_dir)
        text = json.loads(table.to_json())
        assert text["n_edges"] * 2 != src.size
        src, dst, weights = src[:-1], dst[:-1], weights[:-1]
    forge(out_dir, src, dst, weights, **changed)
    report = verify_export(out_dir, source=store)
    if message is None:
        assert report.ok, report.problems
        return
    assert not report.ok
    assert any(re.search(message, text) for text in report.problems), report.problems
    assert not any("byte" in text for text in report.problems)


def test_another_matrix_is_told(tmp_path, store):
    out_dir = tmp_path / "out"
    make_table(store, out_dir, rule="max", weighted=True)
    other = DIRECTED.copy()
    other.data[5] += 0.5
    second = write_store(tmp_path / "t.zarr", other)
    report = verify_export(out_dir, source=second)
    assert not report.ok
    assert "was made from" in report.problems[0]
    third = write_store(tmp_path / "u.zarr", sp.csr_matrix((N + 1, N + 1)))
    assert "n_cells is 120" in verify_export(out_dir, source=third).problems[-1]
    assert "_graph.json" in verify_export(out_dir, source=third).problems[-1]


def test_a_limit_that_is_too_small_is_named(tmp_path, store):
    out_dir = tmp_path / "out"
    make_table(store, out_dir)
    with pytest.raises(MemoryLimitError) as refused:
        verify_export(out_dir, memory_limit=10**6)
    report = verify_export(out_dir, memory_limit=refused.value.needed_bytes)
    assert report.ok
    assert report.peak_memory_bytes <= refused.value.needed_bytes
