"""Parquet files: the rows of the matrix, the same bytes however the work was cut, resumable."""

import dataclasses
import io
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgraph_dask import verify_export
from cellgraph_dask.delivery import parquet
from cellgraph_dask.delivery.parquet import FileRange, Target, cut_files, file_holds, write_file
from cellgraph_dask.delivery.parts import PieceSink
from cellgraph_dask.edge_pairs import parquet_io
from cellgraph_dask.edge_pairs.parquet import metadata_of, read_graph_table, table_columns
from cellgraph_dask.errors import DiskSpaceError, InvalidExportError
from cellgraph_dask.machine.files import FullError
from cellgraph_dask.stages.runs import Scratch
from tests.helpers.stores import write_store
from tests.helpers.tables import make_table, wanted

pq = pytest.importorskip("pyarrow.parquet")
RULES = ("ones", "max", "min", "mean", "sum", "fuzzy")
DIRECTED = sp.random(300, 300, density=0.03, format="csr", random_state=0, dtype=np.float32)
SYMMETRIC = sp.csr_matrix(DIRECTED.maximum(DIRECTED.T))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(folder):
    """Return the columns of all files together."""
    # ParquetFile.read of pyarrow 19 fails where there are no rows; read_table does not.
    paths = sorted(folder.glob("edges-*.parquet"))
    tables = [pq.read_table(io.BytesIO(path.read_bytes())) for path in paths]
    return [
        np.concatenate([table[name].to_numpy() for table in tables])
        for name in tables[0].column_names
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("both", [False, True])
def test_rows_are_those_of_scipy(tmp_path, rule, both):
    table = make_table(DIRECTED, tmp_path, rule=rule, both=both, weighted=True)
    src, dst, weights = wanted(DIRECTED, rule, both=both)
    found = read(tmp_path)
    for column, expected in zip(found, (src, dst, weights), strict=True):
        np.testing.assert_array_equal(column, expected)
    assert [column.dtype for column in found] == [np.int32, np.int32, np.float64]
    assert table.n_rows == src.size
    degrees = np.bincount(np.concatenate([src, dst]))
    assert table.max_neighbors == degrees.max() // (1 + both)
    assert read_graph_table(tmp_path) == table


@pytest.mark.parametrize("both", [False, True])
def test_bytes_do_not_depend_on_how_the_work_was_cut(tmp_path, monkeypatch, both):
    monkeypatch.setattr(parquet, "FILE_ROWS", 700)
    results = []
    for k, (method, sizes, threads, pieces) in enumerate([
        ("general", (10**6, 10**6, 8), 1, False), ("general", (500, 900, 8), 3, False),
        ("symmetric", (700, 1, 8), 2, False), ("symmetric", (10**6, 1, 8), 1, False),
        ("general", (500, 900, 8), 3, True), ("symmetric", (700, 1, 8), 2, True),
    ]):  # fmt: skip
        folder = tmp_path / str(k)
        make_table(
            SYMMETRIC, folder, rule="max", both=both, weighted=True, method=method, sizes=sizes,
            threads=threads, row_group=256, pieces=pieces,
        )  # fmt: skip
        results.append(contents(folder))
    assert all(result == results[0] for result in results)
    assert len(results[0]) > 4


def test_files_end_between_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FILE_ROWS", 100)
    hub = sp.lil_matrix((400, 400))
    hub[5, 6:390] = 1
    hub[np.arange(399), np.arange(1, 400)] = 1
    table = make_table(hub.tocsr(), tmp_path, sizes=(150, 130, 8), row_group=64)
    ends = np.cumsum([file.rows for file in table.files])
    sources = np.split(read(tmp_path)[0], ends[:-1])
    assert all(a[-1] < b[0] for a, b in pairwise(sources))
    rows = [file.rows for file in table.files]
    assert rows[0] == 5 + 384, "the hub's edges are in one file"
    assert sum(rows) == table.n_edges


def test_a_graph_without_edges_has_one_file(tmp_path):
    table = make_table(sp.csr_matrix((9, 9)), tmp_path, weighted=True, rule="max")
    assert [(file.name, file.rows) for file in table.files] == [("edges-00000.parquet", 0)]
    assert [column.size for column in read(tmp_path)] == [0, 0, 0]
    assert read_graph_table(tmp_path) == table


def test_how_files_are_written(tmp_path):
    store = tmp_path / "x.zarr"
    write_store(store, DIRECTED)
    folder = tmp_path / "out"
    table = make_table(store, folder, rule="max", both=True, weighted=True, row_group=1000)
    with pq.ParquetFile(folder / table.files[0].name) as file:
        found, schema = file.metadata, file.schema_arrow
    assert [found.row_group(k).num_rows for k in range(found.num_row_groups)] == [
        *[1000] * (table.n_rows // 1000), table.n_rows % 1000
    ]  # fmt: skip
    group = found.row_group(0)
    assert [s.column_index for s in group.sorting_columns] == [0, 1]
    for k, encoding in enumerate(("DELTA_BINARY_PACKED",) * 2 + ("BYTE_STREAM_SPLIT",)):
        column = group.column(k)
        assert encoding in column.encodings
        assert column.compression == "ZSTD"
        assert column.statistics.has_min_max
    assert found.metadata == {
        b"n_cells": b"300", b"n_edges": str(table.n_edges).encode(), b"rule": b"max",
        b"directions": b"both", b"source": os.path.realpath(store).encode(),
        b"key": b"obsp/connectivities", b"version": table.made_from.version.encode(),
    }  # fmt: skip
    assert b"ARROW:schema" not in found.metadata
    assert all(field.nullable is False for field in schema)


def test_cells_are_signed_and_wide_enough(tmp_path):
    assert table_columns(2**31 - 1, weighted=False)["src"] == np.int32
    assert table_columns(2**31, weighted=False)["src"] == np.int64
    job = SimpleNamespace(
        source=SimpleNamespace(n_cells=3 * 10**9), scratch=Scratch(str(tmp_path)), weights=False,
        cell_dtype=np.dtype(np.uint32), edge_dtypes=[np.dtype(np.uint32)] * 2,
    )  # fmt: skip
    src, dst = np.array([7, 2**31], np.uint32), np.array([2**31 + 5, 2**31 + 6], np.uint32)
    PieceSink(job.scratch).write(0, src, dst)
    target = Target(job, tmp_path, positions=(0, 2))
    write_file(target, FileRange(0, 0, 2))
    for found, expected in zip(read(tmp_path), (src, dst), strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_what_is_finished_is_kept_and_what_is_damaged_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FILE_ROWS", 1000)
    scratch, folder = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    options = {"rule": "mean", "weighted": True, "scratch": scratch, "pieces": True}
    table = make_table(DIRECTED, folder, **options)
    before = contents(folder)
    path = folder / table.files[1].name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (folder / table.files[2].name).write_bytes(before[table.files[2].name] + b"longer")
    written = []
    original = parquet.write_file
    monkeypatch.setattr(
        parquet, "write_file", lambda t, rows: written.append(rows.number) or original(t, rows)
    )
    make_table(DIRECTED, folder, **options)
    assert contents(folder) == before
    assert sorted(written) == [1, 2]
    assert file_holds(
        Target(SimpleNamespace(), folder), (FileRange(9, 0, 0), (0, ""))
    ) is False  # fmt: skip


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def write_at(*_):
        raise FullError(28, "No space left on device")

    monkeypatch.setattr(parquet_io, "write_at", write_at)
    with pytest.raises(FullError):
        make_table(DIRECTED, tmp_path / "out", pieces=True)
    with pytest.raises(DiskSpaceError, match=str(tmp_path / "out")):
        make_table(DIRECTED, tmp_path / "out")


@pytest.mark.parametrize("change", ["n_edges", "rows", "rule", "digest", "spaces", "no JSON"])
def test_a_manifest_that_was_changed_is_not_taken(tmp_path, change):
    make_table(DIRECTED, tmp_path)
    path = tmp_path / "_graph.json"
    text = path.read_text()
    table = read_graph_table(tmp_path)
    other = {
        "n_edges": text.replace(f'"n_edges": {table.n_edges}', f'"n_edges": {table.n_edges + 1}'),
        "rows": text.replace('"rows": ', '"rows": 1'),
        "rule": text.replace('"ones"', '"none"'),
        "digest": text.replace(text[-8:-4], "0000"),
        "spaces": text.replace("{\n", "{ \n", 1),
        "no JSON": text[:-3],
    }[change]
    assert other != text
    path.write_text(other)
    with pytest.raises(InvalidExportError):
        read_graph_table(tmp_path)


def test_a_folder_of_an_unfinished_export_is_none(tmp_path):
    with pytest.raises(InvalidExportError, match="never finished"):
        read_graph_table(tmp_path)


def test_cuts_are_of_rows_and_sources_alone(tmp_path):
    rng = np.random.default_rng(0)
    src = np.sort(rng.integers(0, 40, 500)).astype(np.uint32)
    job = SimpleNamespace(
        source=SimpleNamespace(n_cells=900), scratch=Scratch(str(tmp_path)), weights=False,
        cell_dtype=np.dtype(np.uint32), edge_dtypes=[np.dtype(np.uint32)] * 2,
    )  # fmt: skip
    expected = None
    for pieces in ([500], [0, 100, 0, 3, 397], [250, 250, 0]):
        positions = (0, *np.cumsum(pieces).tolist())
        for k, (a, b) in enumerate(pairwise(positions)):
            PieceSink(job.scratch).write(k, src[a:b], src[a:b])
        target = dataclasses.replace(Target(job, tmp_path), positions=positions)
        parquet_rows, parquet.FILE_ROWS = parquet.FILE_ROWS, 100
        try:
            ranges = cut_files(target)
        finally:
            parquet.FILE_ROWS = parquet_rows
        expected = expected or ranges
        assert ranges == expected
    assert ranges[0].start == 0
    assert ranges[-1].stop == 500
    for a, b in pairwise(ranges):
        assert a.stop == b.start
        assert src[a.stop - 1] != src[a.stop]
        assert (a.stop - 1) // 100 >= 1


def test_metadata_hold_no_secrets():
    url = "s3://user:passw0rd@host/atlas.zarr?token=secret"
    told = metadata_of(3, 2, "max", "one", url, "obsp/x\n", "1")
    assert "passw0rd" not in str(told)
    assert "secret" not in str(told)
    assert told["key"] == "obsp/x\\n"


@st.composite
def graphs(draw):
    """Give a matrix with repeats, zeros and self-edges, of weights that add up to less than 1."""
    n = draw(st.sampled_from([1, 2, 9, 300]))
    size = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = np.sort(rng.integers(0, n, size))
    weights = rng.choice([0, 1 / 256, 1 / 128, 1 / 64], size).astype(np.float32)
    indptr = np.searchsorted(rows, np.arange(n + 1)).astype(np.int32)
    columns = rng.integers(0, n, size).astype(np.int32)
    matrix = sp.csr_matrix((weights, columns, indptr), shape=(n, n))
    if draw(st.booleans()):
        matrix.sum_duplicates()
        matrix = sp.csr_matrix(matrix.maximum(matrix.T))
    return matrix


@pytest.mark.slow
@settings(max_examples=40)
@given(
    graph=graphs(), rule=st.sampled_from(RULES), both=st.booleans(), weighted=st.booleans(),
    block=st.sampled_from([7, 1000]), piece=st.sampled_from([9, 1000]),
    file_rows=st.sampled_from([10, 10**6]), row_group=st.sampled_from([4, 1 << 20]),
)  # fmt: skip
def test_any_graph_by_any_rule_cut_in_any_way(
    graph, rule, both, weighted, block, piece, file_rows, row_group
):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(parquet, "FILE_ROWS", file_rows)
        table = make_table(
            graph, folder / "out", rule=rule, both=both, weighted=weighted,
            sizes=(block, piece, 3), row_group=row_group, threads=1,
        )  # fmt: skip
        expected = wanted(graph, rule, both=both)
        found = read(folder / "out")
        assert len(found) == 2 + weighted
        for column, values in zip(found, expected, strict=False):
            np.testing.assert_array_equal(column, values)
        report = verify_export(folder / "out", source=graph)
        assert report.ok, report.problems
        assert table.max_neighbors == report.degree_quantiles[-1]
