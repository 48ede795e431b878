"""The same bytes from a cluster, whatever dies; what cannot work is refused before it starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from cellgraph_dask import export_connectivities, symmetrize_connectivities
from cellgraph_dask.errors import ClusterError, MemoryLimitError
from tests.benchmarks.make_store import make_store
from tests.helpers.stores import directed_graph, snapshot, stored, symmetric_graph, write_store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class HandStarted:
    """A scheduler and workers, started as a person would."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "cluster.log").open("ab")
        self.scheduler = self._start(
            "scheduler", "--scheduler-file", str(self.file), "--port", "0", "--no-dashboard",
            "--host", "127.0.0.1",
        )  # fmt: skip
        wait_until(self.file.exists)

    def _start(self, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [*before, sys.executable, "-m", "dask", *words]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def add_worker(
        self, *options: str, memory: str = "600MB", before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker with one thread, under a nanny unless told otherwise."""
        worker = self._start(
            "worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-dashboard",
            "--memory-limit", memory, *options, before=before,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def complete(self, n_workers: int = 2) -> None:
        """Replace workers that have died, and wait until the scheduler knows of exactly so many."""
        from distributed import Client

        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for _ in range(n_workers - len(self.workers)):
            self.add_worker()
        with Client(scheduler_file=str(self.file)) as client:
            wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == n_workers)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            kill_tree(process.pid)
            process.wait()
        self.log.close()


def kill_tree(pid: int) -> None:
    """Kill a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextmanager
def hand_started(folder: Path, n_workers: int, *options: str, **kwargs) -> Iterator[HandStarted]:
    cluster = HandStarted(folder)
    try:
        for _ in range(n_workers):
            cluster.add_worker(*options, **kwargs)
        cluster.complete(n_workers)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory) -> Iterator[HandStarted]:
    """Give a cluster that several tests use, with all that earlier ones have left in it."""
    with hand_started(tmp_path_factory.mktemp("cluster"), 2) as running:
        yield running


@pytest.fixture
def cluster(lasting) -> HandStarted:
    """Return that cluster with two workers alive."""
    lasting.complete()
    return lasting


def export_command(store: Path, out_dir: Path, cluster: HandStarted, *options: str) -> list[str]:
    return [sys.executable, "-m", "cellgraph_dask", "export", str(store), str(out_dir), "--json",
            "--scheduler-file", str(cluster.file), "--force", *options]  # fmt: skip


def contents(out_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out_dir)): p.read_bytes() for p in out_dir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """Return stores large enough that every stage has several tasks."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        kind: make_store(
            folder / f"{kind}.zarr", n_cells=250_000, n_neighbors=15, kind=kind, order="random",
            zarr_format=2, chunk=100_000,
        )
        for kind in ("directed", "symmetric")
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected(stores, tmp_path_factory) -> dict[tuple[str, int | None], dict[str, bytes]]:
    """Return what one thread writes, and see that two threads write the same."""
    folder = tmp_path_factory.mktemp("expected")
    result = {}
    for kind, store in stores.items():
        for compression in (None, 9):
            written = []
            for threads in (1, 2):
                out_dir = folder / f"{kind}-{compression}-{threads}"
                export_connectivities(store, out_dir, compression=compression, threads=threads)
                written.append(contents(out_dir))
            assert written[0] == written[1]
            result[kind, compression] = written[0]
    return result


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[object]:
    """Give a cluster of two processes with two threads each, started from Python."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=2, memory_limit="900MB", dashboard_address=":0"
    ) as running:
        yield running


@pytest.mark.parametrize("kind", ["directed", "symmetric"])
@pytest.mark.parametrize("compression", [None, 9])
def test_a_local_cluster_of_processes_gives_the_same_bytes(
    tmp_path, stores, expected, local_cluster, kind, compression
):
    from distributed import Client

    with Client(local_cluster):
        report = export_connectivities(stores[kind], tmp_path / "out", compression=compression)
    assert contents(tmp_path / "out") == expected[kind, compression]
    assert report.symmetric == (kind == "symmetric")
    assert report.peak_memory_bytes <= report.projected_memory_bytes <= 900e6


@pytest.mark.slow
def test_the_command_line_on_a_cluster_started_by_hand(tmp_path, stores, expected, cluster):
    for (kind, compression), files in expected.items():
        options = [] if compression is None else ["--compression", str(compression)]
        out_dir = tmp_path / f"{kind}-{compression}"
        command = export_command(stores[kind], out_dir, cluster, *options)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert contents(out_dir) == files
        assert json.loads(done.stdout)["peak_memory_bytes"] <= 600e6


def any_finished_in(out_dir: Path) -> bool:
    """Tell whether the client knows of a finished task."""
    return any(path.stat().st_size > 50 for path in out_dir.rglob("journal-*"))


# What shows in the scratch or work folder when a stage is under way.
STAGES = {
    "split": "split-*.run",
    "merge": "piece-*.run",
    "write": "deflated-*.run",
}


@contextmanager
def caught_in(stage: str, command: list[str], out_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start an export and give it when the stage is under way and the client knows of some task."""
    export = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(
            lambda: (
                export.poll() is not None
                or (any(out_dir.rglob(STAGES[stage])) and any_finished_in(out_dir))
            )
        )
        yield export
    finally:
        export.kill()
        export.communicate()


ATTEMPTS = 5  # the export may be done before it is interrupted


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["worker", "worker and nanny"])
def test_a_killed_worker_costs_only_its_tasks(tmp_path, stores, expected, cluster, stage, victim):
    for attempt in range(ATTEMPTS):
        out_dir = tmp_path / str(attempt)
        cluster.complete()
        command = export_command(stores["directed"], out_dir, cluster, "--compression", "9")
        with caught_in(stage, command, out_dir) as export:
            nanny = psutil.Process(cluster.workers[0].pid)
            workers = [
                child
                for child in nanny.children(recursive=True)
                if "spawn_main" in " ".join(child.cmdline())
            ]
            assert workers
            if victim == "worker":
                for worker in workers:
                    worker.kill()
            else:
                kill_tree(nanny.pid)
            in_time = export.poll() is None
            _, errors = export.communicate(timeout=120)
            assert export.returncode == 0, errors.decode()
        assert contents(out_dir) == expected["directed", 9]
        if in_time:
            return
    pytest.fail("every export ended before the kill")


def interrupt(cluster: HandStarted, export: subprocess.Popen[bytes], victim: str) -> bool:
    """Interrupt an export and look at how it ends; False if it was done before."""
    if victim == "client":
        export.kill()
    elif victim == "client by Ctrl-C":
        export.send_signal(signal.SIGINT)
    else:
        cluster.scheduler.kill()
    _, errors = export.communicate(timeout=120)
    if export.returncode == 0:
        return False
    if victim == "client by Ctrl-C":
        assert export.returncode == 128 + signal.SIGINT
        assert errors.startswith(b"Interrupted. What is finished is kept. Resume with:"), errors
    elif victim == "scheduler":
        assert export.returncode == 1
        assert b"Error: the connection to the Dask scheduler was lost" in errors
        assert b"--resume continues it" in errors
        assert b"Traceback" not in errors, errors.decode()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["scheduler", "client", "client by Ctrl-C"])
def test_an_interrupted_export_leaves_the_earlier_one_and_goes_on(
    tmp_path, stores, expected, cluster, victim, stage
):
    write_store(tmp_path / "small.zarr", stored(directed_graph(50)))
    for attempt in range(ATTEMPTS):
        folder = tmp_path / str(attempt)
        out_dir = folder / "out"
        export_connectivities(tmp_path / "small.zarr", out_dir)
        before = contents(out_dir)
        # A scheduler that is to be killed is its own; workers outlive a client, with its tasks.
        doomed = hand_started(folder, 2) if victim == "scheduler" else nullcontext(cluster)
        with doomed as used:
            command = export_command(stores["directed"], out_dir, used, "--compression", "9")
            with caught_in(stage, command, out_dir) as export:
                in_time = interrupt(used, export, victim)
        if in_time:
            break
    else:
        pytest.fail("every export ended before it was interrupted")
    assert {name: data for name, data in contents(out_dir).items() if name in before} == before
    command = export_command(stores["directed"], out_dir, cluster, "--compression", "9")
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kept_tasks"] > 0
    assert contents(out_dir) == expected["directed", 9]


def test_a_cluster_without_workers_is_refused(tmp_path):
    from distributed import Client

    write_store(tmp_path / "s.zarr", stored(symmetric_graph()))
    with (
        Client(n_workers=0, processes=False, dashboard_address=":0") as client,
        pytest.raises(ClusterError, match="no workers"),
    ):
        export_connectivities(tmp_path / "s.zarr", tmp_path / "out", client=client)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_with_too_little_memory_are_named(tmp_path):
    from distributed import Client

    write_store(tmp_path / "s.zarr", stored(symmetric_graph()))
    with (
        hand_started(tmp_path, 1, memory="220MB") as small,
        Client(scheduler_file=str(small.file)) as client,
    ):
        for limit, message in ((None, "smallest limit"), ("4GB", "worker tcp://.* may use 220 MB")):
            with pytest.raises(MemoryLimitError, match=message):
                export_connectivities(
                    tmp_path / "s.zarr", tmp_path / "out", client=client, memory_limit=limit
                )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_worker_that_does_not_see_the_scratch_folder_is_named(tmp_path, cluster):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    own_mount = f'mount -t tmpfs none {scratch} && exec "$@"'
    probe = ["unshare", "-m", "sh", "-c", own_mount, "sh"]
    if subprocess.run([*probe, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    write_store(tmp_path / "s.zarr", stored(symmetric_graph()))
    blind = cluster.add_worker(before=tuple(probe))
    try:
        cluster.complete(3)
        command = export_command(
            tmp_path / "s.zarr", tmp_path / "out", cluster, "--scratch-dir", str(scratch)
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        kill_tree(blind.pid)
        blind.wait()
    assert done.returncode == 1
    assert "Error: worker tcp://" in done.stderr
    assert str(scratch) in done.stderr
    assert not (tmp_path / "out").exists()
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_another_version_on_a_worker_is_named(tmp_path, cluster, monkeypatch):
    from distributed import Client

    from cellgraph_dask.runtime import cluster as module

    write_store(tmp_path / "s.zarr", stored(symmetric_graph()))
    monkeypatch.setattr(module, "__version__", "9.9.9")
    with (
        Client(scheduler_file=str(cluster.file)) as client,
        pytest.raises(ClusterError, match=r"worker tcp://\S+ has cellgraph_dask .* but this is 9"),
    ):
        export_connectivities(tmp_path / "s.zarr", tmp_path / "out", client=client)


# The command, with a client that gives up sooner.
IMPATIENT = """
import distributed
Client = distributed.Client
distributed.Client = lambda **options: Client(**options | {"timeout": "1s"})
from cellgraph_dask.cli.commands import main
main()
"""


def test_no_scheduler_at_the_address(tmp_path):
    write_store(tmp_path / "s.zarr", stored(symmetric_graph()))
    command = [sys.executable, "-c", IMPATIENT, "plan", str(tmp_path / "s.zarr"),
               "--scheduler-address", "tcp://127.0.0.1:1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "no Dask scheduler answers" in done.stderr


def test_symmetrize_on_a_cluster_gives_the_bytes_of_threads(tmp_path, cluster):
    from distributed import Client

    source = write_store(tmp_path / "s.zarr", directed_graph(3000, 8), chunk=5000)
    symmetrize_connectivities(source, tmp_path / "t.zarr", rule="mean", zarr_format=3)
    with Client(scheduler_file=str(cluster.file)) as client:
        symmetrize_connectivities(
            source, tmp_path / "w.zarr", rule="mean", zarr_format=3, client=client
        )
        report = symmetrize_connectivities(
            source, source, rule="mean", to_key="mean", client=client
        )
    assert report.peak_memory_bytes > 0
    assert snapshot(tmp_path / "t.zarr") == snapshot(tmp_path / "w.zarr")
    symmetrize_connectivities(source, tmp_path / "u.zarr", rule="mean", to_key="mean")
    assert snapshot(source / "obsp" / "mean") == snapshot(tmp_path / "u.zarr" / "obsp" / "mean")


@pytest.mark.parametrize("kind", ["directed", "symmetric"])
def test_thinning_on_a_cluster_gives_the_bytes_of_threads(tmp_path, stores, local_cluster, kind):
    from distributed import Client

    options = {"rule": "mean", "weights": True, "top_k": 4, "max_edges": 300_000}
    here = export_connectivities(stores[kind], tmp_path / "t", **options)
    with Client(local_cluster):
        report = export_connectivities(stores[kind], tmp_path / "w", **options)
    assert contents(tmp_path / "t") == contents(tmp_path / "w")
    assert report.n_edges == 300_000
    assert report.thinned.n_dropped == here.thinned.n_dropped
    assert here.thinned.after is not None
    assert report.thinned.after is None
    assert report.peak_memory_bytes <= report.projected_memory_bytes <= 900e6


@pytest.mark.parametrize("kind", ["store", "memory", "dask"])
def test_selected_cells_on_a_cluster_give_the_bytes_of_threads(tmp_path, local_cluster, kind):
    import anndata
    import dask.array as da
    import numpy as np
    import pandas as pd
    from distributed import Client

    source = write_store(tmp_path / "s.zarr", directed_graph(300, 9), chunk=64)
    if kind != "store":
        adata = anndata.AnnData(obs=pd.DataFrame(index=[f"cell-{k}" for k in range(300)]))
        graph = directed_graph(300, 9)
        adata.obsp["connectivities"] = graph
        if kind == "dask":
            adata.obsp["connectivities"] = da.from_array(graph.toarray(), chunks=(90, 70))
        source = adata
    names = [f"cell-{k}" for k in range(0, 300, 2)]
    options = {"cells": names, "rule": "max", "weights": True, "top_k": 3}
    export_connectivities(source, tmp_path / "t", **options)
    with Client(local_cluster):
        report = export_connectivities(source, tmp_path / "w", **options)
        if kind == "store":
            symmetrize_connectivities(source, tmp_path / "w.zarr", cells=names, rule="max")
    assert report.n_cells == 150
    assert snapshot(tmp_path / "t") == snapshot(tmp_path / "w")
    if kind == "store":
        symmetrize_connectivities(source, tmp_path / "t.zarr", cells=names, rule="max")
        assert snapshot(tmp_path / "t.zarr") == snapshot(tmp_path / "w.zarr")
        found = anndata.read_zarr(tmp_path / "w.zarr")
        assert list(found.obs_names) == names
        a = directed_graph(300, 9)[::2][:, ::2]
        assert np.array_equal(found.obsp["connectivities"].toarray(), a.maximum(a.T).toarray())
