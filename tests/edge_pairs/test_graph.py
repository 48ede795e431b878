"""Exports read back: the edges that are in the files, and no more of the files than is needed."""

from __future__ import annotations

import gzip
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgraph_dask import export_connectivities, open_export
from cellgraph_dask.edge_pairs import graph as edge_graph
from cellgraph_dask.edge_pairs.format import SIDES, Manifest, index_dtype
from cellgraph_dask.errors import DiskSpaceError, InvalidExportError, OutputError
from tests.helpers.stores import directed_graph, write_store
from tests.oracle import oracle_edges

PLAIN, GZIP = None, 6
Pairs = set[tuple[int, int]]


def write_export(folder: Path, n_cells: int, pairs: Any, compression: int | None) -> Path:
    """Write an export by hand; `pairs` are the edges, in order if they are to be."""
    degrees = np.bincount(np.array([*pairs], np.int64).ravel(), minlength=1)
    manifest = Manifest(n_cells, len(pairs), int(degrees.max()), compression)
    (folder / "connectivity").mkdir(parents=True, exist_ok=True)
    (folder / "connectivity_manifest.json").write_text(manifest.to_json())
    for column, side in enumerate(SIDES):
        raw = np.array([pair[column] for pair in pairs], index_dtype(n_cells)).tobytes()
        path = folder / manifest.path(side)
        path.write_bytes(gzip.compress(raw, mtime=0) if compression else raw)
    return folder


@st.composite
def graphs(draw) -> tuple[int, list[tuple[int, int]]]:
    n_cells = draw(st.sampled_from([1, 2, 7, 30, 65_535, 65_536, 70_000]))
    cells = st.integers(0, min(n_cells, 12) - 1) | st.integers(0, n_cells - 1)
    pairs = draw(st.lists(st.tuples(cells, cells), max_size=60))
    return n_cells, sorted({(min(p), max(p)) for p in pairs if p[0] != p[1]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_all_views_show_the_edges_of_the_files(folder, compression, graph):
    n_cells, pairs = graph
    out_dir = write_export(folder / f"out-{compression}", n_cells, pairs, compression)
    with pytest.MonkeyPatch.context() as patch, open_export(out_dir) as opened:
        patch.setattr(edge_graph, "_SCAN_EDGES", 3)
        assert (opened.n_cells, opened.n_edges) == (n_cells, len(pairs))
        assert opened.src.dtype == opened.dst.dtype == index_dtype(n_cells)
        assert list(zip(opened.src.tolist(), opened.dst.tolist(), strict=True)) == pairs

        lazy = opened.to_dask(chunk_edges=4)
        assert [max(side.chunks[0]) <= 4 for side in lazy] == [True, True]
        assert [side.dtype for side in lazy] == [opened.src.dtype] * 2
        src, dst = (side.compute(scheduler="sync").tolist() for side in lazy)
        assert list(zip(src, dst, strict=True)) == pairs

        both = sorted({*pairs, *((j, i) for i, j in pairs)})
        matrix = opened.to_scipy()
        matrix.check_format(full_check=True)
        assert matrix.shape == (n_cells, n_cells)
        assert matrix.dtype == np.float32
        assert matrix.data.tolist() == [1] * len(both)
        rows = np.repeat(np.arange(n_cells), np.diff(matrix.indptr)).tolist()
        assert list(zip(rows, matrix.indices.tolist(), strict=True)) == both
        assert opened.to_scipy(bool).dtype == bool

        touched = {cell for pair in pairs for cell in pair} | {0, n_cells - 1}
        for cell in touched:
            found = opened.neighbors(cell)
            assert found.dtype == np.int64
            assert found.tolist() == [j for i, j in both if i == cell]
        for cell in (-1, n_cells):
            with pytest.raises(IndexError, match=f"no cell {cell}; cells are 0 to {n_cells - 1}"):
                opened.neighbors(cell)


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
def test_an_export_of_ours(tmp_path, compression):
    graph = directed_graph(300, 6)
    export_connectivities(
        write_store(tmp_path / "s.zarr", graph), tmp_path / "out", compression=compression
    )
    with open_export(tmp_path / "out") as opened:
        assert np.array_equal([opened.src, opened.dst], oracle_edges(graph))
        together = graph + graph.T
        together.setdiag(0)
        together.eliminate_zeros()
        assert ((together != 0) != opened.to_scipy(bool)).nnz == 0
        degrees = [opened.neighbors(cell).size for cell in range(300)]
        assert max(degrees) == opened.max_neighbors == opened.manifest.max_neighbors
        assert repr(opened) == (
            f"ExportedGraph('{tmp_path}/out', n_cells=300, n_edges={opened.n_edges}, "
            f"max_neighbors={opened.max_neighbors})"
        )


@pytest.fixture(scope="module")
def long_path(folder) -> Path:
    """Return an export of a million edges, each cell linked to the next."""
    n = 1_000_001
    out_dir = folder / "path"
    (out_dir / "connectivity").mkdir(parents=True)
    (out_dir / "connectivity_manifest.json").write_text(Manifest(n, n - 1, 2, None).to_json())
    np.arange(n - 1, dtype="<u4").tofile(out_dir / "connectivity/edges.src.bin")
    np.arange(1, n, dtype="<u4").tofile(out_dir / "connectivity/edges.dst.bin")
    return out_dir


def test_neighbors_takes_little_memory_and_stops_at_the_cell(long_path, monkeypatch):
    monkeypatch.setattr(edge_graph, "_SCAN_EDGES", 1 << 12)
    with open_export(long_path) as opened:
        looked_at = []

        class Watched(np.memmap):
            def __getitem__(self, key):
                if isinstance(key, slice) and key.step is None:
                    looked_at.append(key.stop)
                return super().__getitem__(key)

        column = opened._columns[1]
        object.__setattr__(column, "values", column.values.view(Watched))
        tracemalloc.start()
        try:
            found = opened.neighbors(400_000)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found.tolist() == [399_999, 400_001]
    assert max(looked_at) == 400_001
    assert most < 200_000  # the files have 4 MB each


def test_maps_are_read_only_and_the_object_is_frozen(long_path):
    with open_export(long_path) as opened:
        assert isinstance(opened.src, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            opened.src[0] = 1
        for name in ("n_cells", "n_edges", "max_neighbors", "manifest", "src", "dst"):
            with pytest.raises(AttributeError):
                setattr(opened, name, 1)


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
def test_copies_have_no_name_and_go_with_the_last_array(tmp_path, compression):
    out_dir = write_export(tmp_path / "out", 9, [(0, 1), (3, 5)], compression)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    opened = open_export(out_dir, scratch_dir=scratch)
    assert list(scratch.iterdir()) == []
    src, (lazy, _) = opened.src, opened.to_dask()
    opened.close()
    with pytest.raises(ValueError, match=r"closed; open it again with open_export"):
        _ = opened.src
    assert src.tolist() == lazy.compute().tolist() == [0, 3]
    opened.close()  # the fixture that looks for open files does the rest


def test_dask_arrays_of_a_plain_export_travel_as_a_path(tmp_path, long_path):
    src, dst = open_export(long_path).to_dask()
    sent = pickle.dumps((src, dst))
    assert len(sent) < 20_000
    src, dst = pickle.loads(sent)
    assert int((dst - src).sum().compute()) == 1_000_000

    out_dir = write_export(tmp_path / "out", 9, [(0, 1), (3, 5)], PLAIN)
    sent = pickle.dumps(open_export(out_dir).to_dask()[0])
    write_export(out_dir, 9, [(0, 1), (3, 5), (4, 5)], PLAIN)
    with pytest.raises(InvalidExportError, match=r"edges\.src\.bin holds more than 4 bytes"):
        pickle.loads(sent)
    sent = pickle.dumps(open_export(out_dir).to_dask()[0])
    (out_dir / "connectivity/edges.src.bin").touch()
    with pytest.raises(InvalidExportError, match="has been replaced since it was opened"):
        pickle.loads(sent)


def test_dask_arrays_of_a_copy_do_not_travel(tmp_path):
    out_dir = write_export(tmp_path / "out", 9, [(0, 1), (3, 5)], GZIP)
    src, _ = open_export(out_dir).to_dask()
    with pytest.raises(TypeError, match="in a temporary file of this process"):
        pickle.dumps(src)


def test_names_of_dask_arrays_tell_their_content(tmp_path):
    first = write_export(tmp_path / "a", 9, [(0, 1), (3, 5)], PLAIN)
    second = write_export(tmp_path / "b", 9, [(0, 1), (3, 5)], GZIP)
    names = [open_export(out).to_dask()[0].name for out in (first, first, second, second)]
    assert names[0] == names[1]
    assert len(set(names)) == 3


# What is refused


def damage_manifest(**change):
    def damage(out_dir: Path) -> None:
        path = out_dir / "connectivity_manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


def cut(out_dir: Path) -> None:
    path = next(out_dir.glob("connectivity/edges.dst.bin*"))
    path.write_bytes(path.read_bytes()[:-1])


def append(out_dir: Path) -> None:
    path = next(out_dir.glob("connectivity/edges.dst.bin*"))
    path.write_bytes(path.read_bytes() + gzip.compress(b""))


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "connectivity_manifest.json").unlink(), "holds no connectivity_manifest"),
        (damage_manifest(sourcesPath="../edges.src.bin"), "sourcesPath is '../edges.src.bin'"),
        (damage_manifest(destinationsPath="/etc/passwd"), "destinationsPath is '/etc/passwd'"),
        (damage_manifest(n_edges=3), "edges"),
        (lambda d: next(d.glob("connectivity/edges.src*")).unlink(), "cannot be read: No such"),
        (cut, "(instead of 8 bytes|ends inside its gzip member)"),
        (append, "(more than 8 bytes|goes on after its gzip member)"),
    ],
)
def test_what_is_no_whole_export_is_refused(tmp_path, compression, damage, message):
    out_dir = write_export(tmp_path / "out", 9, [(0, 1), (0, 2), (3, 4), (3, 5)], compression)
    damage(out_dir)
    with pytest.raises(InvalidExportError, match=message):
        open_export(out_dir, scratch_dir=tmp_path)


@pytest.mark.parametrize("pairs", [[(3, 4), (0, 1)], [(0, 1), (0, 1)], [(4, 3)], [(0, 9)]])
def test_edges_that_are_not_sound_make_no_matrix(tmp_path, pairs):
    out_dir = write_export(tmp_path / "out", 9, pairs, PLAIN)
    with (
        open_export(out_dir) as opened,
        pytest.raises(InvalidExportError, match=r"out: edge \d is out of order or of no cell"),
    ):
        opened.to_scipy()


def test_no_room_for_a_copy(tmp_path, monkeypatch):
    out_dir = write_export(tmp_path / "out", 9, [(0, 1), (3, 5)], GZIP)
    with pytest.raises(OutputError, match=r"cannot write to .*nowhere"):
        open_export(out_dir, scratch_dir=tmp_path / "nowhere/deep")
    monkeypatch.setattr(edge_graph, "free_bytes", lambda _: 7)
    with pytest.raises(DiskSpaceError, match="takes 8 bytes, but 7 bytes are free"):
        open_export(out_dir, scratch_dir=tmp_path)


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
def test_an_export_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch, compression):
    out_dir = tmp_path / "out"
    open_columns = edge_graph._open_columns
    later = [[(1, 2), (1, 3)], [(0, 1), (0, 2), (0, 3)], [(1, 2), (1, 3)], [(0, 3)]]

    def replace_first(*arguments):
        if later:
            write_export(out_dir, 9, later.pop(0), compression)
        return open_columns(*arguments)

    monkeypatch.setattr(edge_graph, "_open_columns", replace_first)
    write_export(out_dir, 9, [(0, 3)], compression)
    with pytest.raises(InvalidExportError, match="is being replaced again and again"):
        open_export(out_dir)
    with open_export(out_dir) as opened:  # one replacement is left
        assert (opened.src.tolist(), opened.dst.tolist()) == ([0], [3])
