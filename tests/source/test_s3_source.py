"""A matrix that lies in an S3 on loopback: the same edges, or a named error and nothing half."""

from __future__ import annotations

import json

import pytest

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.errors import CellgraphError, DamagedGraphError, SourceError
from cellgraph_dask.source import zarr_objects
from tests.helpers.command import run_process
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store

pytestmark = pytest.mark.slow

GRAPHS = {"symmetric": symmetric_graph(400, 6), "directed": directed_graph(400, 6)}
ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}}}  # so that lasting faults end soon
LAYOUTS = {
    "zarr 2": {"zarr_format": 2, "chunk": 300},
    "zarr 3": {"zarr_format": 3, "chunk": 300},
    "shards": {"zarr_format": 3, "chunk": 100, "shard": 1000},
}


@pytest.fixture(scope="module")
def stored(s3, tmp_path_factory):
    """Put stores of all layouts into a bucket; return their URLs, and exports of their twins."""
    folder, bucket = tmp_path_factory.mktemp("stores"), s3.make_bucket()
    urls, exports = {}, {}
    for name, graph in GRAPHS.items():
        for layout, how in LAYOUTS.items():
            path = write_store(folder / f"{name}-{layout}.zarr".replace(" ", ""), graph, **how)
            s3.file_system().put(str(path), f"{bucket}/{path.name}", recursive=True)
            urls[name, layout] = f"s3://{bucket}/{path.name}"
        export_connectivities(path, folder / name)
        exports[name] = snapshot(folder / name, but="provenance.json")
    return urls, exports


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_same_bytes_as_from_disk(s3, stored, tmp_path, graph, layout):
    urls, exports = stored
    export_connectivities(urls[graph, layout], tmp_path / "out", storage_options=s3.options())
    assert snapshot(tmp_path / "out", but="provenance.json") == exports[graph]


def test_from_bucket_to_bucket_on_the_command_line(s3, stored):
    urls, exports = stored
    bucket = s3.make_bucket()
    outcome = run_process(
        "export", urls["directed", "zarr 2"], f"s3://{bucket}/a",
        "--storage-options", json.dumps(s3.options()),
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    objects = s3.objects(bucket)
    assert json.loads(objects.pop("a/connectivity/provenance.json"))["source"].startswith("s3://")
    assert objects == {
        f"a/{name}": content for name, content in exports["directed"].items() if content is not None
    }
    assert verify_export(f"s3://{bucket}/a", output_storage_options=s3.options()).ok


@pytest.mark.parametrize(
    ("layout", "actions"),
    [("zarr 2", (500, "slow", "drop")), ("shards", (503, "lost", "slow")), ("zarr 3", ("drop",))],
)
def test_faults_that_pass(s3, stored, tmp_path, proxy, layout, actions):
    urls, exports = stored
    for action in actions:
        for k, text in enumerate(("indptr", "indices", "indices", "data")):
            proxy.inject(action, "GET", f"connectivities/{text}", skip=k)
    options = s3.options(proxy.port)
    export_connectivities(urls["directed", layout], tmp_path / "out", storage_options=options)
    assert snapshot(tmp_path / "out", but="provenance.json") == exports["directed"]
    assert {fault.action for fault in proxy.faults if fault.hits} == set(actions)


@pytest.mark.parametrize(
    ("layout", "action"), [("zarr 2", 500), ("shards", 403), ("shards", "drop")]
)
def test_faults_that_last(s3, stored, tmp_path, proxy, monkeypatch, layout, action):
    monkeypatch.setattr(zarr_objects, "_WAITS", (0.05,))
    urls, _ = stored
    chunk = "connectivities/indices/c/0" if layout == "shards" else "connectivities/indices/2"
    fault = proxy.inject(action, "GET", chunk, times=10**9)
    options = s3.options(proxy.port, **ONCE)
    with pytest.raises(SourceError, match=r"obsp/connectivities/indices/.* cannot be read from"):
        export_connectivities(urls["directed", layout], tmp_path / "out", storage_options=options)
    assert fault.hits
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("action", [500, 403])
def test_metadata_that_cannot_be_read(s3, stored, tmp_path, proxy, action):
    proxy.inject(action, "GET", "", times=10**9)
    options = s3.options(proxy.port, **ONCE)
    with pytest.raises(CellgraphError, match="s3://"):
        export_connectivities(
            stored[0]["directed", "zarr 2"], tmp_path / "out", storage_options=options
        )
    assert snapshot(tmp_path) == {}


def test_no_such_store(s3, stored, tmp_path):
    for url in (f"{stored[0]['directed', 'zarr 2']}/nothing", "s3://nobody-has-made-this/a.zarr"):
        with pytest.raises(SourceError, match=f"{url} is not a zarr store that can be opened"):
            export_connectivities(url, tmp_path / "out", storage_options=s3.options())
    assert snapshot(tmp_path) == {}


def test_a_chunk_that_is_missing(s3, stored, tmp_path):
    files = s3.file_system()
    url = stored[0]["directed", "zarr 2"]
    bucket = s3.make_bucket()
    files.copy(url, f"{bucket}/a.zarr", recursive=True)
    files.rm_file(f"{bucket}/a.zarr/obsp/connectivities/data/2")
    with pytest.raises(DamagedGraphError, match=r"chunk data/2|chunk .*2 of .*is missing"):
        export_connectivities(
            f"s3://{bucket}/a.zarr", tmp_path / "out", storage_options=s3.options()
        )
    assert snapshot(tmp_path) == {}
