"""Slabs of edge files: all edges in order, and the first bad one wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgraph_dask.edge_pairs import reader
from cellgraph_dask.edge_pairs.format import read_manifest
from cellgraph_dask.edge_pairs.reader import first_bad_edge, stream_slabs, unpack
from cellgraph_dask.errors import InvalidExportError
from tests.edge_pairs.test_graph import write_export

N_CELLS = 5
MOST = 2**64 - 1


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@settings(deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6),
    before=st.sampled_from([(-1, -1), (0, 1), (1, 3)]),
    ordered=st.booleans(),
)
def test_the_first_bad_edge_is_found(dtype, edges, before, ordered):
    edges = sorted(edges) if ordered else edges
    expected = -1
    for k in reversed(range(len(edges))):
        last = edges[k - 1] if k else before
        if not (edges[k][0] < edges[k][1] < N_CELLS and edges[k] > last):
            expected = k
    src, dst = (np.array([edge[side] for edge in edges], dtype) for side in (0, 1))
    assert first_bad_edge(src, dst, *before, N_CELLS) == expected


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("bad", [(MOST, 5), (3, MOST), (2**63, 2**63 + 1), (MOST - 1, MOST)])
def test_cells_are_compared_as_unsigned(place, bad):
    edges = [(0, 1), (0, 2), (4, 5)]
    edges[place] = bad
    src, dst = (np.array([edge[side] for edge in edges], np.uint64) for side in (0, 1))
    assert first_bad_edge(src, dst, -1, -1, 2**40) == place


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("compression", [None, 6])
def test_slabs_hold_all_edges_in_order(tmp_path, monkeypatch, compression, ahead):
    monkeypatch.setattr(reader, "SLAB_EDGES", 7)
    pairs = [(k, k + 1) for k in range(20)]
    out_dir = write_export(tmp_path / "out", 30, pairs, compression)
    found, at = [], 0
    for position, src, dst, _ in stream_slabs(out_dir, read_manifest(out_dir), ahead=ahead):
        assert position == at
        at += src.size
        found += zip(src.tolist(), dst.tolist(), strict=True)
    assert found == pairs
    plain = unpack(out_dir, read_manifest(out_dir), tmp_path, ahead=ahead)
    assert [plain.edge(k) for k in range(20)] == pairs
    plain.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_slabs_end_with_what_is_wrong_and_close_their_files(tmp_path, ahead):
    out_dir = write_export(tmp_path / "out", 30, [(0, 1), (0, 2)], 6)
    path = out_dir / "connectivity" / "edges.dst.bin.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InvalidExportError, match=r"edges\.dst\.bin\.gz is not sound gzip"):
        list(stream_slabs(out_dir, read_manifest(out_dir), ahead=ahead))
    out_dir = write_export(tmp_path / "other", 30, [(0, 1), (0, 2)], 6)
    next(stream_slabs(out_dir, read_manifest(out_dir), ahead=ahead))
    # The fixture that looks for open files does the rest.
