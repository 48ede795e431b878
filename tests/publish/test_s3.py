"""An S3 on loopback: the right bytes in spite of faults, or a named error and nothing half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import export_connectivities, open_export, verify_export
from cellgraph_dask.errors import InvalidExportError, OutputError
from cellgraph_dask.machine import remote
from cellgraph_dask.publish import upload
from tests.helpers.command import run, run_process
from tests.helpers.stores import snapshot, write_store

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]

MANIFEST = "exports/a/connectivity_manifest.json"
ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}}}  # so that lasting faults end soon
PLAIN, GZIP = None, 1


def band_graph(n_cells: int, step: int) -> sparse.csr_matrix:
    """Return a graph of 15 edges a cell, to cells a few places further on."""
    offsets = np.arange(1, 16) * step
    columns = np.arange(n_cells)[:, None] + offsets
    kept = columns < n_cells
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))])
    return sparse.csr_matrix(
        (np.ones(kept.sum(), np.float32), columns[kept].astype(np.int32), indptr),
        shape=(n_cells, n_cells),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return stores of two graphs with edge files of 7 MB, and their exports' files."""
    folder = tmp_path_factory.mktemp("made")
    stores, files = {}, {}
    for name, step in (("old", 1), ("new", 2)):
        stores[name] = write_store(folder / f"{name}.zarr", band_graph(120_000, step))
        for compression in (PLAIN, GZIP):
            out_dir = folder / f"{name}-{compression}"
            export_connectivities(stores[name], out_dir, compression=compression)
            found = snapshot(out_dir)
            files[name, compression] = {
                f"exports/a/{path}": content
                for path, content in found.items()
                if content is not None
            }
    return stores, files


@pytest.fixture
def bucket(s3) -> str:
    return s3.make_bucket()


@pytest.fixture
def url(bucket) -> str:
    return f"s3://{bucket}/exports/a"


@pytest.fixture
def put_old(s3, bucket, made):
    """Put the old export there, plain."""
    files = s3.file_system()
    for name, content in made[1]["old", PLAIN].items():
        files.pipe_file(f"{bucket}/{name}", content)


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch):
    monkeypatch.setattr(upload, "_PART_BYTES", 5 * 2**20)  # the least that S3 takes
    monkeypatch.setattr(remote, "_READ_BYTES", 2**20)


def test_the_command_line_writes_what_an_export_on_disk_has(s3, bucket, url, made):
    stores, files = made
    options = "--output-storage-options", json.dumps(s3.options())
    command = "export", stores["new"], url, "--memory-limit", "512MB", "--json", *options
    for compression, more in ((PLAIN, ()), (PLAIN, ("--force",)), (GZIP, ("--force",))):
        level = () if compression is None else ("--compression", compression)
        outcome = run_process(*command, *more, *level)
        assert outcome.exit_code == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert s3.objects(bucket) == files["new", compression]
        assert s3.uploads(bucket) == []
        report = json.loads(outcome.stdout)
        assert report["out_dir"] == url
        assert report["peak_memory_bytes"] <= report["projected_memory_bytes"] <= 512_000_000
    outcome = run_process(*command)
    assert outcome.exit_code == 1
    assert "already holds an export" in outcome.stderr
    outcome = run_process("verify", url, *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{url} is sound" in outcome.stdout
    outcome = run("plan", stores["new"], url, *options, "--json")
    assert outcome.exit_code == 0
    assert s3.objects(bucket) == files["new", GZIP]


def test_reading_back(s3, bucket, url, made, put_old, tmp_path):
    edges = made[1]["old", PLAIN]
    with open_export(url, storage_options=s3.options(), scratch_dir=tmp_path) as opened:
        assert opened.src.tobytes() == edges["exports/a/connectivity/edges.src.bin"]
        assert opened.dst.tobytes() == edges["exports/a/connectivity/edges.dst.bin"]
        assert opened.neighbors(100).tolist() == [*range(85, 100), *range(101, 116)]
    assert list(tmp_path.iterdir()) == []


# What happens to which requests: of parts, of the end of an upload, of its start, and so on.
PASSING = [
    *((action, "PUT", "partNumber") for action in (500, 503, "slow", "drop", "lost")),
    *((action, "POST", "uploadId") for action in (500, "lost")),
    (500, "POST", "uploads"),
    *((action, "PUT", "manifest.json") for action in (503, "drop", "lost")),
    *((action, "DELETE", "edges") for action in (500, "lost")),
    ("lost", "HEAD", "edges"),
    (500, "GET", "manifest.json"),
]
LASTING = [
    (500, "PUT", "partNumber"),
    ("drop", "PUT", "partNumber"),
    (500, "POST", "uploads"),
    (403, "POST", "uploadId"),
    (500, "PUT", "manifest.json"),
]


def test_faults_that_pass(s3, bucket, url, made, put_old, proxy):
    """Many in one export, each kind once, at different parts."""
    stores, files = made
    faults = [
        proxy.inject(action, method, text, skip=k % 2)
        for k, (action, method, text) in enumerate(PASSING)
    ]
    options = s3.options(proxy.port)
    export_connectivities(stores["new"], url, force=True, output_storage_options=options)
    assert s3.objects(bucket) == files["new", PLAIN]
    assert s3.uploads(bucket) == []
    assert [fault for fault in faults if not fault.hits] == []
    proxy.faults.clear()
    assert verify_export(url, output_storage_options=options).ok


@pytest.mark.parametrize("before", ["nothing", "old"])
@pytest.mark.parametrize(("action", "method", "text"), LASTING)
def test_faults_that_last(
    s3, bucket, url, made, proxy, tmp_path, request, before, action, method, text
):
    stores, files = made
    expected = {}
    if before == "old":
        request.getfixturevalue("put_old")
        expected = files["old", PLAIN]
    fault = proxy.inject(action, method, text, skip=method == "PUT" and text[0] == "p", times=10**9)
    with pytest.raises(OutputError, match=f"cannot write to {url}: .+ Check the URL"):
        export_connectivities(
            stores["new"], url, force=True, scratch_dir=tmp_path,
            output_storage_options=s3.options(proxy.port, **ONCE),
        )  # fmt: skip
    assert fault.hits
    assert s3.objects(bucket) == expected
    assert s3.uploads(bucket) == []
    proxy.faults.clear()
    report = export_connectivities(
        stores["new"], url, force=True, scratch_dir=tmp_path, resume=True,
        output_storage_options=s3.options(proxy.port),
    )  # fmt: skip
    assert report.kept_tasks
    assert s3.objects(bucket) == files["new", PLAIN]
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_fails_leaves_the_new_export_whole(
    s3, bucket, url, made, put_old, proxy, tmp_path, caplog
):
    stores, files = made
    proxy.inject(500, "PUT", "edges.dst.bin", times=10**9)
    options = s3.options(proxy.port, **ONCE)
    export_connectivities(
        stores["new"], url, force=True, output_storage_options=options, scratch_dir=tmp_path
    )
    assert "was cut short" in caplog.text
    assert verify_export(url, output_storage_options=options).ok
    with open_export(url, storage_options=options) as opened:
        content = files["new", PLAIN]
        assert opened.manifest.tag
        assert opened.dst.tobytes() == content["exports/a/connectivity/edges.dst.bin"]
    proxy.faults.clear()
    export_connectivities(
        stores["new"], url, force=True, output_storage_options=options, scratch_dir=tmp_path
    )
    assert list(tmp_path.iterdir()) == []
    assert s3.objects(bucket) == files["new", PLAIN]


def test_killed_while_it_uploads(s3, bucket, url, made, put_old, proxy, tmp_path):
    stores, files = made
    started: list[subprocess.Popen[bytes]] = []
    proxy.inject(lambda: started[0].send_signal(signal.SIGKILL), "PUT", "partNumber", skip=1)
    command = [
        sys.executable, "-m", "cellgraph_dask", "export", str(stores["new"]), url, "--force",
        "--output-storage-options", json.dumps(s3.options(proxy.port)),
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
    assert started[0].wait(60) == -9
    assert s3.objects(bucket) == files["old", PLAIN]
    again = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=True
    )
    assert "finished tasks of the interrupted run were kept" in again.stdout
    assert s3.objects(bucket) == files["new", PLAIN]
    assert list(tmp_path.iterdir()) == []


# Reading


@pytest.mark.parametrize("action", [500, 503, "slow", "drop", "lost"])
def test_reading_past_faults(s3, url, made, put_old, proxy, action):
    for k in range(2):
        proxy.inject(action, "GET", "edges", skip=k)
    proxy.inject(action, "GET", "manifest.json")
    options = s3.options(proxy.port)
    assert verify_export(url, output_storage_options=options).ok
    assert all(fault.hits for fault in proxy.faults)


@pytest.mark.parametrize("action", [500, 403, "drop"])
def test_reading_what_cannot_be_read(s3, url, made, put_old, proxy, action, tmp_path):
    proxy.inject(action, "GET", "edges.dst", skip=1, times=10**9)
    options = s3.options(proxy.port, **ONCE)
    (problem,) = verify_export(url, output_storage_options=options).problems
    assert f"{url}/connectivity/edges.dst.bin cannot be read: " in problem
    if action == "drop":  # takes seconds, as it is tried again
        return
    with pytest.raises(InvalidExportError, match="cannot be read"):
        open_export(url, storage_options=options, scratch_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# What is refused before the work


def test_no_such_bucket(s3, made):
    url = "s3://nobody-has-made-this/a"
    outcome = run(
        "export", made[0]["new"], url, "--output-storage-options", json.dumps(s3.options())
    )
    assert outcome.exit_code == 1
    assert f"cannot write to {url}: it is not there, or the bucket is not" in outcome.stderr
    assert "nobody-has-made-this" not in s3.file_system().ls("")
    outcome = run("verify", url, "--output-storage-options", json.dumps(s3.options()))
    assert outcome.exit_code == 1
    assert "holds no connectivity_manifest.json" in outcome.stderr


@pytest.mark.parametrize(("method", "text"), [("PUT", ""), ("HEAD", "manifest"), ("DELETE", "")])
def test_no_permission(s3, bucket, url, made, proxy, tmp_path, method, text):
    proxy.inject(403, method, text, times=10**9)
    with pytest.raises(OutputError, match=f"cannot write to {url}: access was denied"):
        export_connectivities(
            made[0]["new"], url, scratch_dir=tmp_path / "scratch",
            output_storage_options=s3.options(proxy.port),
        )  # fmt: skip
    assert not any("edges" in request for request in proxy.requests)
    assert not (tmp_path / "scratch").exists()


def test_no_server(s3, url, made):
    options = s3.options(9, **ONCE)  # the discard port, on which nothing listens
    with pytest.raises(OutputError, match=r"Could not connect to the endpoint"):
        export_connectivities(made[0]["new"], url, output_storage_options=options)


@pytest.mark.cluster
def test_on_a_cluster(s3, bucket, url, made, tmp_path):
    from distributed import Client

    stores, files = made
    options = s3.options()
    with Client(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0",
        memory_limit="4GB",
    ) as client:  # fmt: skip
        with pytest.raises(OutputError, match="all workers must see it: name one"):
            export_connectivities(stores["new"], url, client=client, output_storage_options=options)
        export_connectivities(
            stores["new"], url, client=client, output_storage_options=options,
            scratch_dir=tmp_path / "shared",
        )  # fmt: skip
    assert s3.objects(bucket) == files["new", PLAIN]
    assert not (tmp_path / "shared").exists()
