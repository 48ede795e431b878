"""Servers that are not object stores by the book: right edges, or an error that says what they do.

Other manners: fewer rights than the storage has, web pages for what is not there, no parts.
"""

from __future__ import annotations

import json
import shutil

import pytest

from cellgraph_dask import (
    errors,
    export_connectivities,
    inspect_path,
    open_export,
    plan_export,
    verify_export,
)
from cellgraph_dask.errors import (
    CellgraphError,
    DamagedGraphError,
    InvalidExportError,
    SourceError,
)
from cellgraph_dask.export.record import RUN
from cellgraph_dask.machine import remote
from cellgraph_dask.publish.work_folder import WORK_FOLDER
from cellgraph_dask.runtime.stage import Journal
from cellgraph_dask.source import zarr_objects
from tests.helpers.command import run
from tests.helpers.flaky import Flaky
from tests.helpers.servers import serving
from tests.helpers.stores import chunk_file, directed_graph, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph(300)
KINDS = {
    "format 2": {"zarr_format": 2, "chunk": 100},
    "format 3": {"zarr_format": 3, "chunk": 100},
    "shards": {"zarr_format": 3, "chunk": 100, "shard": 400},
    "raw": {"zarr_format": 2, "chunk": 200, "codec": "none"},
}
MANNERS = [
    {},
    {"absent": 403},
    {"absent": 401},
    {"absent": 200},
    {"parts": "none"},
    {"parts": "no ends"},
    {"query": "token=abcdef%2F12&x"},
    {"parts": "none", "absent": 200, "query": "a=b"},
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(zarr_objects, "_WAITS", ())
    monkeypatch.setattr(errors, "_secrets", set())


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name, kind in KINDS.items():
        for consolidated in (True, False):
            write_store(folder / f"{name} {consolidated}", GRAPH, consolidated=consolidated, **kind)
    return folder


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manners", MANNERS, ids=str)
def test_right_edges(tmp_path, stores, manners, kind, consolidated):
    with serving(stores, **manners) as url:
        source = f"{url}/{kind} {consolidated}".replace(" ", "%20")
        if "query" in manners:
            source += f"?{manners['query']}"
        export_connectivities(source, tmp_path / "out", memory_limit="4GB")
    assert_exported(tmp_path / "out", GRAPH)


@pytest.mark.parametrize(
    ("manners", "text"),
    [
        ({"absent": 403}, "access to .* was denied"),
        ({"absent": 200}, "the server sent a web page for zarr.json"),
        ({"query": "token=secret"}, "access to .* was denied"),
    ],
    ids=str,
)
def test_what_is_no_store_is_refused(tmp_path, stores, manners, text):
    name = "raw True" if "query" in manners else "gone"
    with serving(stores, **manners) as url, pytest.raises(SourceError, match=text):
        plan_export(f"{url}/{name}?token=wrong")


@pytest.mark.parametrize(
    ("absent", "text"),
    [
        (403, "access was denied .* of objects that do not exist"),
        (200, "the server sent a web page"),
    ],
)
@pytest.mark.parametrize("codec", ["none", "blosc"])
def test_a_chunk_that_may_or_may_not_be_there(tmp_path, absent, text, codec):
    store = write_store(tmp_path / "s", GRAPH, chunk=100, codec=codec)
    chunk_file(store, "indices", 3).unlink()
    with (
        serving(tmp_path, absent=absent) as url,
        pytest.raises(CellgraphError, match=f"indices/3 cannot be read .*{text}"),
    ):
        export_connectivities(f"{url}/s", tmp_path / "out", memory_limit="4GB")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["shards", "raw"])
def test_answers_that_are_too_long(tmp_path, stores, monkeypatch, kind):
    with serving(stores, long=True) as url:  # seen with the first small object
        export_connectivities(f"{url}/{kind}%20True", tmp_path / "out", memory_limit="4GB")
    assert_exported(tmp_path / "out", GRAPH)
    monkeypatch.setattr(zarr_objects.RemoteObjects, "try_parts", lambda *_: True)
    with (
        serving(stores, long=True) as url,
        pytest.raises(DamagedGraphError, match=r"the server sent .* does not give parts"),
    ):
        export_connectivities(f"{url}/{kind}%20True", tmp_path / "other", memory_limit="4GB")


def test_a_server_without_parts_is_counted_in_the_plan(stores):
    plans = []
    for manners in ({}, {"parts": "none"}):
        with serving(stores, **manners) as url:
            plans.append(plan_export(f"{url}/shards%20True", memory_limit="4GB"))
    assert plans[0].projected_memory_bytes <= plans[1].projected_memory_bytes


def test_a_resumed_run_knows_its_url_by_another_token(tmp_path, stores, monkeypatch):
    add = Journal.add

    def interrupt(self, *line):
        add(self, *line)
        raise KeyboardInterrupt

    out_dir = tmp_path / "out"
    with serving(stores) as url:
        place = url.removeprefix("http://")
        source = f"http://me:hunter22@{place}/format%202%20True?sig=abcdef"
        monkeypatch.setattr(Journal, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_connectivities(source, out_dir, memory_limit="4GB")
        monkeypatch.setattr(Journal, "add", add)
        record = (out_dir / WORK_FOLDER / RUN).read_text()
        assert not any(secret in record for secret in ("hunter22", "abcdef"))
        assert json.loads(record)["source"] == f"http://…@{place}/format%202%20True"
        source = source.replace("abcdef", "ghijkl")
        report = export_connectivities(source, out_dir, memory_limit="4GB", resume=True)
        assert report.kept_tasks == 1
        plan = plan_export(source, memory_limit="4GB")
        verified = verify_export(out_dir, source=source, memory_limit="4GB")
        inspected = inspect_path(source)
        words = run("verify", source, "--source", source).stderr
    assert_exported(out_dir, GRAPH)
    assert verified.ok
    told = f"{plan!r} {plan.to_json()} {report!r} {verified!r} {inspected!r} {words}"
    assert not any(secret in told for secret in ("hunter22", "ghijkl"))


def test_errors_keep_the_secrets_of_their_url(tmp_path, stores):
    shutil.copytree(stores / "raw True", tmp_path / "raw")
    path = chunk_file(tmp_path / "raw", "indices", 0)
    path.write_bytes(path.read_bytes()[:-4])
    with serving(tmp_path) as url:
        source = f"{url.replace('://', '://me:hunter22@')}/raw?sig=abcdef"
        for bad in (source, source.replace("/raw", "/gone"), source.replace("/raw", "/a.h5ad")):
            with pytest.raises((SourceError, DamagedGraphError)) as caught:
                export_connectivities(bad, tmp_path / "out", memory_limit="4GB")
            assert not any(secret in str(caught.value) for secret in ("hunter22", "abcdef"))


@pytest.mark.parametrize("compression", [None, 6])
@pytest.mark.parametrize("manners", [*MANNERS, {"long": True}], ids=str)
def test_exports_are_read_from_any_server(tmp_path, manners, compression, monkeypatch):
    monkeypatch.setattr(remote, "_READ_BYTES", 500)
    out_dir = tmp_path / "out"
    export_connectivities(GRAPH, out_dir, compression=compression, memory_limit="4GB")
    query = f"?{manners['query']}" if "query" in manners else ""
    with serving(tmp_path, **manners) as url:
        report = verify_export(f"{url}/out{query}", source=GRAPH, memory_limit="4GB")
        with open_export(f"{url}/out{query}") as graph:
            assert graph.n_edges == report.n_edges
        with pytest.raises(InvalidExportError, match="holds no connectivity_manifest"):
            verify_export(f"{url}/none{query}")
    assert report.problems == ()


def test_an_identity_that_may_not_be_read_may_not_be_there(tmp_path, monkeypatch):
    export_connectivities(GRAPH, tmp_path / "out", memory_limit="4GB")
    for path in (tmp_path / "out").rglob("*.*"):
        Flaky.objects[f"bucket/{path.relative_to(tmp_path)}"] = path.read_bytes()
    get = Flaky._get

    def denied(self, path):
        if path.endswith(denied.name):
            raise PermissionError("Forbidden")
        return get(self, path)

    monkeypatch.setattr(Flaky, "_get", denied)
    denied.name = "identity.json"
    assert verify_export("flaky://bucket/out", memory_limit="4GB").ok
    denied.name = "src.bin"
    report = verify_export("flaky://bucket/out", memory_limit="4GB")
    assert "access was denied" in report.problems[0]
    Flaky.objects.clear()
