"""Large sources of every kind stay within the limit, by the operating system, or are refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numcodecs
import pytest
import zarr

from cellgraph_dask import plan_export
from cellgraph_dask.errors import MemoryLimitError
from tests.benchmarks.cgroup import CgroupUnavailableError, memory_cgroup
from tests.benchmarks.convert_store import write_h5ad, write_zarr, write_zip
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import Run, run_measured
from tests.helpers.stores import symmetric_graph, write_store
from tests.oracle import read_export

MB = 10**6
OBSP = "obsp/connectivities"

# Reads the graph as blocks, drops weak edges, and exports the rest; a user's script.
DASK = """
import sys
from cellgraph_dask import export_connectivities, read_connectivities

def drop_weak(block):
    strong = block.copy()
    strong.data[strong.data < 0] = 0
    return strong

source, out_dir, limit, layout = sys.argv[1:]
graph = read_connectivities(source, layout=layout)
strong = graph.map_blocks(drop_weak, dtype=graph.dtype, meta=graph._meta)
report = export_connectivities(strong, out_dir, memory_limit=limit)
print(report.to_json())
"""


def run_limited(command: list[str | Path], limit: int) -> Run:
    """Run a command where more memory than the limit gets it killed, if that can be had."""
    try:
        with memory_cgroup(limit * MB) as cgroup:
            run = run_measured(command, cgroup=cgroup)
    except CgroupUnavailableError:
        run = run_measured(command)
    assert run.returncode == 0, run.stderr
    assert not run.oom_killed
    assert run.peak_rss_bytes <= limit * MB
    return run


def export(source: Path, out_dir: Path, limit: int) -> Run:
    command = [sys.executable, "-m", "cellgraph_dask", "export", source, out_dir, "--json"]
    run = run_limited([*command, "--memory-limit", f"{limit}MB"], limit)
    report = json.loads(run.stdout)
    assert run.peak_rss_bytes <= report["projected_memory_bytes"] <= limit * MB
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 2 M cells, beside an export of it."""
    folder = tmp_path_factory.mktemp("large")
    store = make_store(
        folder / "s.zarr", n_cells=2_000_000, n_neighbors=15, kind="directed", order="random"
    )
    small = write_store(folder / "small.zarr", symmetric_graph())
    run_measured([sys.executable, "-c", DASK, small, folder / "small", "2GB", "gcxs"])  # compiles
    export(store, folder / "out", 512)
    return store


def assert_same_edges(out_dir: Path, store: Path) -> None:
    found, expected = read_export(out_dir), read_export(store.parent / "out")
    assert found.manifest == expected.manifest
    assert (found.src == expected.src).all()
    assert (found.dst == expected.dst).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "h5ad"])
def test_two_million_cells_in_512_mb(tmp_path, store, kind):
    if kind == "zip":
        source = write_zip(store, tmp_path / "s.zarr.zip")
    else:
        source = write_h5ad(store, tmp_path / "s.h5ad")
    export(source, tmp_path / "out", 512)
    source.unlink()
    assert_same_edges(tmp_path / "out", store)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("layout", ["gcxs", "csr"])
def test_two_million_cells_of_a_dask_array_in_512_mb(tmp_path, store, layout):
    out_dir = tmp_path / "out"
    run = run_limited([sys.executable, "-c", DASK, store, out_dir, "512MB", layout], 512)
    report = json.loads(run.stdout)
    assert report["scratch_bytes"] > 8 * 30_000_000  # the spooled entries among them
    assert_same_edges(out_dir, store)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["sharded", "not compressed", "zstd", "small chunks"])
def test_thirty_million_entries_in_unusual_chunks(tmp_path, store, kind):
    options = {
        "sharded": {"zarr_format": 3, "chunk": 500_000, "shard": 8_000_000},
        "not compressed": {"zarr_format": 3, "chunk": 1_000_000, "compressors": None},
        "zstd": {"zarr_format": 2, "chunk": 1_000_000, "compressors": numcodecs.Zstd(1)},
        "small chunks": {"zarr_format": 2, "chunk": 10_000},
    }[kind]
    settings = {"shard": None, "compressors": "auto", **options}
    source = write_zarr(store, tmp_path / "s.zarr", **settings)
    export(source, tmp_path / "out", 512)
    assert_same_edges(tmp_path / "out", store)


def with_chunks_of(path: Path, n_bytes: int) -> Path:
    """Write a store that says that its chunks are as large; none is there."""
    write_store(path, symmetric_graph())
    for name in ("indices", "data"):
        file = path / OBSP / name / ".zarray"
        metadata = json.loads(file.read_text())
        file.write_text(json.dumps(metadata | {"chunks": [n_bytes // 4], "shape": [10**9]}))
    zarr.consolidate_metadata(path)
    return path


def test_a_chunk_of_a_gigabyte_and_a_half_is_refused_before_it_is_read(tmp_path):
    source = with_chunks_of(tmp_path / "s.zarr", 1_500 * MB)
    with pytest.raises(MemoryLimitError, match=r"chunks of 375,000,000 entries") as told:
        plan_export(source, memory_limit="512MB")
    least = int(re.search(r"will do is (\d+)MB", str(told.value))[1])
    assert 3_000 < least < 8_000
    assert "smaller chunks" in str(told.value)
