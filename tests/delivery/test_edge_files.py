"""The edge files: one gzip member, the same bytes from any number of threads."""

import gzip
import zlib

import numpy as np
import pytest

from cellgraph_dask.delivery import edge_files
from cellgraph_dask.delivery.edge_files import EdgeFiles
from cellgraph_dask.edge_pairs.format import edge_columns
from cellgraph_dask.edge_pairs.gzip_member import deflate_part
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, stored, symmetric_graph, write_store
from tests.oracle import assert_exported


def written(folder, pieces, compression, order):
    """Write pieces of edges in an order; return the bytes of both files."""
    files = EdgeFiles(folder, edge_columns(100_000), compression)
    places = [files.place(k, piece) for k, piece in enumerate(pieces)]
    for k in order:
        files.write(places[k], pieces[k], pieces[k] + 1)
    n_bytes = files.finish([piece.size for piece in pieces])
    files.close()
    paths = sorted(folder.iterdir())
    assert len(paths) == 2, "the spool is gone"
    assert sum(path.stat().st_size for path in paths) == n_bytes
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("n_edges", [0, 1, 99, 100, 101, 1000, 1234])
@pytest.mark.parametrize("level", [1, 6, 9])
def test_gzip_is_one_member_and_the_same_however_it_is_cut(tmp_path, monkeypatch, n_edges, level):
    monkeypatch.setattr(edge_files, "PART_EDGES", 100)
    edges = np.random.default_rng(0).integers(0, 5000, n_edges).astype(np.uint32)
    results = []
    for k, cuts in enumerate(([], [n_edges // 3], [7, 8, 107, 350, 900])):
        folder = tmp_path / str(k)
        folder.mkdir()
        pieces = np.split(edges, [cut for cut in cuts if cut < n_edges])
        order = np.random.default_rng(k).permutation(len(pieces))
        results.append(written(folder, pieces, level, order))
    assert results[0] == results[1] == results[2]
    for data, expected in zip(results[0], (edges + 1, edges), strict=True):
        member = zlib.decompressobj(31)
        assert member.decompress(data) == expected.tobytes()
        assert member.eof
        assert member.unused_data == b""
        assert data[4:8] == bytes(4), "mtime 0"
        assert data[3] == 0, "no name"


@pytest.mark.slow
def test_every_level_is_about_as_small_as_zlib(tmp_path):
    rng = np.random.default_rng(0)
    n = 1 << 18
    kinds = {
        "sources": np.repeat(np.arange(n // 8), 8),
        "random": rng.integers(0, 10**6, n),
        "spatial": np.repeat(np.arange(n // 8), 8) + rng.integers(1, 60, n),
    }
    for level in range(1, 10):
        sizes = {"ours": 0, "zlib": 0}
        for values in kinds.values():
            raw = values.astype("<u4").tobytes()
            sizes["ours"] += len(deflate_part(memoryview(raw), level, last=True))
            sizes["zlib"] += len(gzip.compress(raw, level))
        assert sizes["ours"] <= 1.01 * sizes["zlib"], level


@pytest.mark.parametrize("graph", [directed_graph, symmetric_graph])
@pytest.mark.parametrize("compression", [None, 6])
def test_threads_blocks_and_formats_do_not_change_a_byte(tmp_path, graph, compression):
    matrix = graph(1000, 8, seed=3)
    results = set()
    for fmt, shard in ((2, None), (3, None), (3, 4000)):
        store = tmp_path / f"{fmt}-{shard}.zarr"
        write_store(store, stored(matrix), zarr_format=fmt, chunk=1000, shard=shard)
        for threads in (1, 2, 4):
            for block, piece in ((600, 800), (10**6, 10**6)):
                out_dir = tmp_path / "out"
                tuning = Tuning(block, 100_000, piece, 8, threads)
                run_export(
                    open_source(store), out_dir, tuning=tuning, compression=compression, force=True
                )
                files = (p for p in sorted(out_dir.rglob("*")) if p.is_file())
                results.add(tuple(p.read_bytes() for p in files if p.name != "provenance.json"))
    assert len(results) == 1
    assert_exported(tmp_path / "out", stored(matrix))
