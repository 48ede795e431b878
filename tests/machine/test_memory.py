"""Sizes in and out, and the promise: measured ≤ projected ≤ limit, by the operating system."""

import json
import sys

import pytest

from cellgraph_dask.machine import memory
from cellgraph_dask.machine.memory import SLACK_BYTES, format_bytes, machine_memory, parse_bytes
from tests.benchmarks.cgroup import CgroupUnavailableError, memory_cgroup
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import run_measured

MB = 10**6


@pytest.mark.parametrize(
    ("text", "n"),
    [("512MB", 512 * MB), ("512 mb", 512 * MB), ("1GiB", 2**30), ("1.5G", 1_500_000_000),
     ("384M", 384 * MB), ("7", 7), (1234, 1234)],
)  # fmt: skip
def test_sizes_are_read(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-1MB", "0", "12 parsecs", "1e9", "9" * 400, int("9" * 400), -int("9" * 400), 2**63,
     -1, 2.5, "0.2", b"5", "9" * 400 + "TB"],
)  # fmt: skip
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


def test_sizes_are_written_for_people():
    assert [format_bytes(n) for n in (7, 1234, 512 * MB, 1_230_000_000, 5 * 10**12)] == [
        "7 bytes", "1.2 kB", "512 MB", "1.2 GB", "5.0 TB"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("membership", "folder", "file"),
    [("0::/a/job\n", "a", "memory.max"),
     ("9:cpu:/x\n3:memory:/a/job\n", "memory/a", "memory.limit_in_bytes")],
)  # fmt: skip
def test_a_cgroup_lowers_what_the_machine_has(tmp_path, monkeypatch, membership, folder, file):
    before = machine_memory()
    (tmp_path / "self").write_text(membership)
    (tmp_path / folder / "job").mkdir(parents=True)
    (tmp_path / folder / "job" / file).write_text("max\n")
    (tmp_path / folder / file).write_text("700000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "self")
    assert before > 700_000_000
    assert machine_memory() == 700_000_000


def exported_in(tmp_path, limit, *options, cells=2_000_000, **shape):
    """Export a store in a process of its own and return the report and how it went."""
    store = tmp_path / "s.zarr"
    make_store(store, n_cells=cells, **shape)
    command = [sys.executable, "-m", "cellgraph_dask", "export", str(store), str(tmp_path / "out"),
               "--memory-limit", f"{limit}MB", "--json", *options]  # fmt: skip
    run_measured(command)  # compiles what is not compiled yet
    try:
        with memory_cgroup(limit * MB) as cgroup:
            run = run_measured([*command, "--force"], cgroup=cgroup)
    except CgroupUnavailableError:
        run = run_measured([*command, "--force"])
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directed", "symmetric"])
def test_two_million_cells_in_384_mb(tmp_path, kind):
    """The page cache counts too where a cgroup can be made; the kernel would kill the process."""
    report, run = exported_in(
        tmp_path, 384, n_neighbors=15, kind=kind, order="random", zarr_format=2
    )
    assert report["symmetric"] == (kind == "symmetric")
    assert run.peak_rss_bytes <= report["projected_memory_bytes"] <= 384 * MB
    assert report["peak_memory_bytes"] <= report["projected_memory_bytes"]
    assert not run.oom_killed


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("options", [("--compression", "6"), ("--threads", "4")])
def test_gzip_and_more_threads_stay_within_the_limit(tmp_path, options):
    report, run = exported_in(
        tmp_path, 450, *options,
        cells=600_000, n_neighbors=15, kind="directed", order="random", zarr_format=3,
    )  # fmt: skip
    assert run.peak_rss_bytes <= report["projected_memory_bytes"] <= 450 * MB


STAGE = """
import numpy as np
from cellgraph_dask.machine import buffers
from cellgraph_dask.machine.memory import resident_bytes
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.stage import Stage
from cellgraph_dask.runtime.threads import Threads

def task(k):
    for size in (1, 2, 4, 8, 16, 24, 24, 24):
        buffers.take(f"{k} {size}", size << 20, np.uint8)[:] = 1
        np.ones(size << 20, np.uint8)
    kept.append(np.ones(1 << 16, np.uint8))

kept, keys = [], list(range(8))
before = resident_bytes()
Threads(2, Progress()).run(Stage("take", task, keys, keys, "keys"))
print(resident_bytes() - before)
"""


def test_a_stage_leaves_its_memory_to_the_next():
    """Also what the allocator would keep of threads that have ended."""
    run = run_measured([sys.executable, "-c", STAGE])
    assert run.returncode == 0, run.stderr
    assert run.peak_rss_bytes > 400 * MB
    assert int(run.stdout) < SLACK_BYTES  # the end of a thread's memory, which its next one gets
