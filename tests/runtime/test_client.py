"""Exports that are called from inside other programs, and workers that are not like us."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import pytest
from distributed import Client, LocalCluster, get_client, worker_client

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import ClusterError
from cellgraph_dask.runtime import cluster, versions
from cellgraph_dask.source.opening import open_source
from tests.helpers.stores import directed_graph, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph(40)
QUIET = {"processes": False, "dashboard_address": ":0"}


@pytest.fixture
def source(tmp_path) -> Path:
    return write_store(tmp_path / "s.zarr", GRAPH)


def export(source: Path, out_dir: Path, **options: Any) -> int:
    return export_connectivities(source, out_dir, **options).n_edges


def inside(source: Path, out_dir: Path) -> int:
    """Export from a task, on the workers of its own cluster."""
    with worker_client() as client:
        return export(source, out_dir, client=client)


def waiting(source: Path) -> None:
    """Do the same without leaving the pool of threads."""
    plan_export(source, client=get_client())


@pytest.fixture(scope="module")
def client():
    """Give a client of a cluster in this process, with one thread."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="10GB", **QUIET) as running,
        Client(running) as connected,
    ):
        yield connected


def test_inside_a_task(tmp_path, source, client):
    """On the only thread there is; the first export may have to compile its loops."""
    assert client.submit(export, source, tmp_path / "own", pure=False).result(120)
    assert_exported(tmp_path / "own", GRAPH)
    with pytest.raises(ClusterError, match=r"inside a task.*Give no client.*worker_client"):
        client.submit(waiting, source, pure=False).result(120)
    assert client.submit(inside, source, tmp_path / "workers", pure=False).result(120)
    assert_exported(tmp_path / "workers", GRAPH)


def test_inside_a_task_of_threads(tmp_path, source):
    task = dask.delayed(export)(source, tmp_path / "out")
    dask.compute(task, scheduler=dask.threaded.get, num_workers=1)  # by name, old Dask warns
    assert_exported(tmp_path / "out", GRAPH)


@pytest.mark.parametrize(
    "config",
    [{"scheduler": "synchronous"}, {"scheduler": "processes"}, {"array.query-planning": True},
     {"num_workers": 1}],
    ids=str,
)  # fmt: skip
def test_what_dask_is_configured_to(tmp_path, source, config):
    with dask.config.set(config):
        export(source, tmp_path / "out")
        assert_exported(tmp_path / "out", GRAPH)
        import dask.array as da

        whole = da.from_array(GRAPH.toarray(), chunks=(10, 40))
        export(whole, tmp_path / "array")
        assert_exported(tmp_path / "array", GRAPH)


def test_an_asynchronous_client(tmp_path, source, caplog):
    import dask.array as da

    async def run() -> None:
        async with (
            LocalCluster(n_workers=1, threads_per_worker=1, asynchronous=True, **QUIET) as here,
            Client(here, asynchronous=True) as running,
        ):
            export(source, tmp_path / "own")
            assert "the active Dask client is asynchronous" in caplog.text
            export(da.from_array(GRAPH.toarray(), chunks=(10, 40)), tmp_path / "array")
            with pytest.raises(ClusterError, match=r"is asynchronous.*asyncio\.to_thread"):
                plan_export(source, client=running)
            await asyncio.to_thread(export, source, tmp_path / "workers")

    asyncio.run(run())
    for name in ("own", "array", "workers"):
        assert_exported(tmp_path / name, GRAPH)


def test_clients_that_are_none(source, client):
    other = Client(client.scheduler.address, set_as_default=False)
    other.close()
    with pytest.raises(ClusterError, match="the Dask client is closed"):
        plan_export(source, client=other)
    with pytest.raises(ValueError, match=r"must be a distributed\.Client, not str"):
        plan_export(source, client="tcp://127.0.0.1:1")


def test_what_differs_is_named(source, client, monkeypatch):
    here = versions.versions()
    assert versions.difference(here, dict(here)) is None
    assert versions.difference(here, here | {"hdf5plugin": None}) is None
    for name, value in (("code of cellgraph_dask", "0123"), ("numpy", "1.0"), ("isal", None)):
        monkeypatch.setattr(cluster, "versions", lambda n=name, v=value: here | {n: v})
        problem = versions.difference(here | {name: value}, here)
        assert f"{name} {here[name]} instead of {value or '(none)'}" == problem


@pytest.mark.parametrize("changed", ["numpy", "code of cellgraph_dask"])
def test_a_worker_that_differs_is_refused(source, client, monkeypatch, changed):
    answers = iter([versions.versions() | {changed: "other"}, versions.versions()])
    monkeypatch.setattr(cluster, "versions", lambda: next(answers))  # the worker's are first
    with pytest.raises(ClusterError, match=rf"worker inproc://\S+ has {changed} other instead of"):
        plan_export(source, client=client)


def test_the_digest_is_of_the_sources_that_were_imported(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(versions, "_PACKAGE", package)
    with pytest.raises(ClusterError, match=r"a\.py has changed since this process imported"):
        versions._digest()
    monkeypatch.setattr(versions, "_imported", 2**63)
    before = versions._digest()
    (package / "a.py").write_text("x = 2\n")
    assert versions._digest() != before


def test_one_store_has_one_name(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    names = [str(source), "s.zarr", "./s.zarr", "s.zarr/", "link/s.zarr", f"file://{source}"]
    opened = [open_source(name) for name in names]
    assert {one.origin.name for one in opened} == {os.path.realpath(source)}
    assert len({one.fingerprint() for one in opened}) == 1
