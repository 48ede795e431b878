"""Exports to remote storage: the same bytes, all or nothing, whatever the storage refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from cellgraph_dask import export_connectivities, open_export, plan_export, verify_export
from cellgraph_dask.errors import InvalidExportError, OutputError
from cellgraph_dask.machine import remote
from cellgraph_dask.publish import upload
from cellgraph_dask.publish.output import local_folder, open_output
from tests.conftest import scratch_below
from tests.helpers.command import run
from tests.helpers.flaky import Flaky
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.oracle import oracle_edges

OLD, NEW = symmetric_graph(40, 3, seed=1), directed_graph(40, 5)
PLAIN, GZIP = None, 6
URL = "flaky://bucket/exports/a"
INSIDE = "bucket/exports/a/"
MANIFEST = f"{INSIDE}connectivity_manifest.json"
IDENTITY = {"id": "pbmc", "stats": {"n_cells": 40, "n_edges": None, "x": 1}, "name": "細胞"}


@pytest.fixture(autouse=True)
def _empty_storage():
    Flaky.objects.clear()
    Flaky.restart()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a store of each graph, and the files of their exports on disk."""
    folder = tmp_path_factory.mktemp("made")
    stores, files = {}, {}
    for name, matrix in (("old", OLD), ("new", NEW)):
        stores[name] = write_store(folder / f"{name}.zarr", matrix)
        for compression in (PLAIN, GZIP):
            out_dir = folder / f"{name}-{compression}"
            export_connectivities(stores[name], out_dir, compression=compression)
            found = snapshot(out_dir)
            files[name, compression] = {
                INSIDE + path: content for path, content in found.items() if content is not None
            }
    return stores, files


def graph_shown() -> str:
    """Return which graph a viewer finds in the storage, or "nothing"; fail if it is a mixture."""
    Flaky.restart()
    if MANIFEST not in Flaky.objects:
        return "nothing"
    with open_export(URL) as opened:
        for name, matrix in (("old", OLD), ("new", NEW)):
            expected = oracle_edges(matrix)
            if expected[0].size == opened.n_edges:
                assert np.array_equal([opened.src, opened.dst], expected)
                return name
    raise AssertionError(f"an export of {opened.n_edges} edges is neither graph")


def test_plain_and_gzip_replace_each_other_with_the_bytes_of_an_export_on_disk(made):
    stores, files = made
    for compression, name in [
        (PLAIN, "old"), (GZIP, "new"), (GZIP, "old"), (PLAIN, "old"), (PLAIN, "new"),
    ]:  # fmt: skip
        report = export_connectivities(stores[name], URL, compression=compression, force=True)
        assert report.out_dir == URL
        assert Flaky.objects == files[name, compression]
        assert Flaky.uploads == set()
        assert verify_export(URL).ok
        assert graph_shown() == name


def test_a_slash_at_the_end_changes_nothing(made):
    stores, files = made
    export_connectivities(stores["new"], f"{URL}/")
    assert Flaky.objects == files["new", PLAIN]


def test_memory_and_file_urls(made, tmp_path):
    stores, _ = made
    for url in ("memory://exports/m", f"file://{tmp_path}/with%20space"):
        export_connectivities(stores["new"], url)
        assert verify_export(url).ok
        with open_export(url) as opened:
            assert np.array_equal([opened.src, opened.dst], oracle_edges(NEW))
        with pytest.raises(OutputError, match="already holds an export"):
            export_connectivities(stores["new"], url)
    assert (tmp_path / "with space/connectivity_manifest.json").exists()


def test_an_export_that_is_there_stays_without_force(made):
    stores, files = made
    Flaky.objects |= files["old", PLAIN]
    outcome = run("export", stores["new"], URL)
    assert outcome.exit_code == 1
    assert f"{URL} already holds an export" in outcome.stderr
    assert Flaky.objects == files["old", PLAIN]
    assert not any(step.startswith(("put", "open", "remove")) for step in Flaky.steps)


def test_identity_is_updated_and_the_rest_of_it_kept(made):
    stores, files = made
    Flaky.objects[f"{INSIDE}dataset_identity.json"] = json.dumps(IDENTITY).encode()
    report = export_connectivities(stores["new"], URL)
    found = json.loads(Flaky.objects.pop(f"{INSIDE}dataset_identity.json"))
    stats = {"n_cells": 40, "n_edges": report.n_edges, "x": 1, "has_connectivity": True}
    assert found == IDENTITY | {"stats": stats}
    assert Flaky.objects == files["new", PLAIN]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"stats": {"n_cells": 41}}', OutputError, "of a dataset with 41 cells"),
        ("{", InvalidExportError, "cannot be read as JSON"),
    ],
)
def test_identity_that_does_not_fit_is_refused(made, text, error, message):
    stores, _ = made
    before = {f"{INSIDE}dataset_identity.json": text.encode()}
    Flaky.objects |= before
    with pytest.raises(error, match=message):
        export_connectivities(stores["new"], URL)
    assert Flaky.objects == before


CASES = [  # what was there, what comes, and whether failing steps are carried out all the same
    (PLAIN, PLAIN, False),
    (PLAIN, GZIP, False),
    ("nothing", GZIP, False),
    (PLAIN, PLAIN, True),
    ("nothing", PLAIN, True),
]


def prepare(made, before) -> dict[str, bytes]:
    """Put an earlier export (or none) and an identity into the storage, and other files."""
    Flaky.objects.clear()
    if before != "nothing":
        Flaky.objects |= made[1]["old", before]
    Flaky.objects[f"{INSIDE}dataset_identity.json"] = json.dumps(IDENTITY).encode()
    Flaky.objects[f"{INSIDE}connectivity/edges.txt"] = b"mine"
    Flaky.objects[f"{INSIDE}points.bin"] = b"mine too"
    Flaky.restart()
    return dict(Flaky.objects)


def export_new(made, tmp_path: Path, after, monkeypatch, **more) -> str | None:
    """Export the new graph; return what was wrong, if anything."""
    monkeypatch.setattr(upload, "_PART_BYTES", 200)  # several parts
    scratch = tmp_path / "scratch"
    try:
        export_connectivities(
            made[0]["new"], URL, compression=after, force=True, scratch_dir=scratch, **more
        )
    except (OutputError, InvalidExportError) as error:
        return str(error)
    finally:
        assert Flaky.uploads == set()
    assert not scratch_below(tmp_path)
    return None


@pytest.mark.parametrize(("before", "after", "late"), CASES)
def test_each_step_fails_once(made, tmp_path, monkeypatch, before, after, late):
    prepare(made, before)
    assert export_new(made, tmp_path, after, monkeypatch) is None
    steps = list(Flaky.steps)
    assert len(steps) > 20
    expected = dict(Flaky.objects)
    for k, step in enumerate(steps):
        started = prepare(made, before)
        Flaky.restart(k, k + 1, late=late)
        problem = export_new(made, tmp_path, after, monkeypatch)
        left = dict(Flaky.objects)
        shown = graph_shown()
        if problem is None:
            # Clearing up is tried once and left to the next export.
            extra = set(left) - set(expected)
            assert shown == "new"
            assert not extra or step.startswith(("remove", "ls", "info", "cat")), step
            assert {name: left[name] for name in expected} == expected
        elif shown != "new":
            assert URL in problem
            assert f"step {k} fails" in problem
            extra = {name for name in set(left) - set(started) if ".cellgraph-dask-" not in name}
            assert extra == set(), step
            assert {name: left[name] for name in started} == started, step
        else:  # after the new export had been shown, under tagged names perhaps
            assert f"step {k} fails" in problem
            assert verify_export(URL).ok
        assert export_new(made, tmp_path, after, monkeypatch) is None
        left = {name for name in Flaky.objects if ".cellgraph-dask-" not in name}
        assert left == set(expected)
        assert graph_shown() == "new"


@pytest.mark.parametrize(("before", "after", "late"), CASES)
def test_the_connection_is_lost_for_good_at_each_step(
    made, tmp_path, monkeypatch, before, after, late
):
    old = "nothing" if before == "nothing" else "old"
    prepare(made, before)
    assert export_new(made, tmp_path, after, monkeypatch) is None
    expected = set(Flaky.objects)
    found = []
    for k in range(len(Flaky.steps)):
        prepare(made, before)
        Flaky.restart(k, sys.maxsize, late=late)
        problem = export_new(made, tmp_path, after, monkeypatch)
        assert problem is not None
        found.append(graph_shown())
        if before != "nothing":
            assert verify_export(URL).n_edges is not None
        assert export_new(made, tmp_path, after, monkeypatch, resume=k % 2 == 0) is None
        left = {name for name in Flaky.objects if ".cellgraph-dask-" not in name}
        assert left == expected
        assert graph_shown() == "new"
    # It was lost before and after the one step that counts.
    switch = found.index("new")
    assert 8 < switch < len(found) - 3
    assert set(found[:switch]) == {old}
    assert set(found[switch:]) == {"new"}


def test_an_answer_that_is_lost(made, tmp_path, monkeypatch):
    """The upload was completed, but its answer did not come."""
    prepare(made, PLAIN)
    commit = upload._Upload.complete

    def complete(self):
        self._file.commit()
        self._file.commit = lambda: (_ for _ in ()).throw(FileNotFoundError("no such upload"))
        commit(self)

    monkeypatch.setattr(upload._Upload, "complete", complete)
    assert export_new(made, tmp_path, PLAIN, monkeypatch) is None
    assert graph_shown() == "new"


@pytest.mark.parametrize("at", ["write", "commit", "put"])
def test_ctrl_c_leaves_what_was_there(made, tmp_path, monkeypatch, at):
    started = prepare(made, PLAIN)
    step, seen = Flaky.step, []

    def interrupt(name, path):
        if name == at and at not in seen and "cellgraph-dask" not in path:
            seen.append(at)
            raise KeyboardInterrupt
        return step(name, path)

    monkeypatch.setattr(Flaky, "step", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        export_new(made, tmp_path, PLAIN, monkeypatch)
    assert Flaky.objects == started
    monkeypatch.setattr(Flaky, "step", step)
    assert export_new(made, tmp_path, PLAIN, monkeypatch, resume=True) is None
    assert graph_shown() == "new"


def test_nothing_is_removed_while_the_manifest_cannot_be_read(made, tmp_path, monkeypatch):
    """The copies to the usual names fail, and what the manifest names cannot be found out."""
    prepare(made, PLAIN)
    step, seen = Flaky.step, []

    def fail(name, path):
        if name == "copy" or (seen and name == "cat"):
            seen.append(name)
            raise ConnectionError(name)
        return step(name, path)

    monkeypatch.setattr(Flaky, "step", staticmethod(fail))
    assert "copy" in export_new(made, tmp_path, PLAIN, monkeypatch)
    assert seen == ["copy", "cat"]
    monkeypatch.setattr(Flaky, "step", step)
    assert graph_shown() == "new"
    assert export_new(made, tmp_path, PLAIN, monkeypatch, resume=True) is None


def test_exports_that_share_their_folder_exclude_each_other(made, tmp_path, monkeypatch):
    started = prepare(made, PLAIN)
    folder = local_folder(f"{URL}/", tmp_path / "scratch")
    assert folder.parent == tmp_path / "scratch"
    with open_output(folder, force=True):
        problem = export_new(made, tmp_path, PLAIN, monkeypatch)
        assert f"another export into {URL} is running (process {os.getpid()}" in problem
    assert Flaky.objects == started
    assert not (tmp_path / "scratch").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_another_user_is_not_used(made, tmp_path, monkeypatch):
    folder = local_folder(URL, tmp_path / "scratch")
    folder.mkdir(parents=True)
    os.chown(folder, 12345, -1)
    problem = export_new(made, tmp_path, PLAIN, monkeypatch)
    assert f"{folder} belongs to another user" in problem
    assert Flaky.objects == {}
    folder.rmdir()


def test_another_export_at_the_same_time_is_told(made, tmp_path, monkeypatch):
    prepare(made, PLAIN)
    put = upload.StorageTarget.put_texts

    def overwrite(self, texts):
        put(self, texts)
        Flaky.objects.update(made[1]["old", GZIP])

    monkeypatch.setattr(upload.StorageTarget, "put_texts", overwrite)
    problem = export_new(made, tmp_path, PLAIN, monkeypatch)
    assert "does not hold what was written to it: another export" in problem
    monkeypatch.undo()
    assert export_new(made, tmp_path, PLAIN, monkeypatch) is None


def test_a_short_object_is_told(made, tmp_path, monkeypatch):
    started = prepare(made, PLAIN)
    size = remote.RemotePath.size
    monkeypatch.setattr(
        remote.RemotePath, "size", lambda self: (size(self) or 0) - 1 if "src" in self.url else 0
    )
    problem = export_new(made, tmp_path, PLAIN, monkeypatch)
    assert "bytes after the upload instead of" in problem
    monkeypatch.undo()
    assert Flaky.objects[MANIFEST] == started[MANIFEST]
    assert export_new(made, tmp_path, PLAIN, monkeypatch, resume=True) is None


# What cannot be used


def test_unknown_protocols_and_bad_options(made, monkeypatch):
    store = made[0]["new"]
    for url, options, message in [
        ("nothing://bucket/a", {}, "nothing://bucket/a cannot be used: .*Protocol not known"),
        ("s3://", {}, "s3:// is not a folder; name one, such as s3://bucket/export"),
        ("s3://bucket/a", {"max_concurrency": 0}, "cannot be used: ValueError: max_concurrency"),
    ]:
        for call in (
            lambda: export_connectivities(store, url, output_storage_options=options),  # noqa: B023
            lambda: plan_export(store, url, output_storage_options=options),  # noqa: B023
            lambda: verify_export(url, output_storage_options=options),  # noqa: B023
            lambda: open_export(url, storage_options=options),  # noqa: B023
        ):
            with pytest.raises(OutputError, match=message):
                call()


def test_the_extra_is_named_where_it_is_missing(made, monkeypatch):
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(known, "s3", raising=False)
    outcome = run("export", made[0]["new"], "s3://bucket/export")
    assert outcome.exit_code == 1
    assert "the package for s3:// is not installed" in outcome.stderr
    assert "extra `remote`" in outcome.stderr


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"a"'])
def test_options_on_the_command_line_are_json_objects(made, text):
    outcome = run("export", made[0]["new"], URL, "--output-storage-options", text)
    assert outcome.exit_code == 2
    assert "not JSON" in outcome.stderr or "not a JSON object" in outcome.stderr
    assert Flaky.objects == {}


def test_secrets_in_options_are_not_repeated(made):
    outcome = run(
        "export", made[0]["new"], "s3://bucket/a", "--output-storage-options",
        json.dumps({"secret": "hunter2", "key": "k", "endpoint_url": "nonsense"}),
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert "cannot write to s3://bucket/a: " in outcome.stderr
    assert "hunter2" not in outcome.stderr


def test_damage_in_remote_storage_is_found(made):
    stores, _ = made
    export_connectivities(stores["new"], URL)
    name = f"{INSIDE}connectivity/edges.dst.bin"
    whole = Flaky.objects[name]
    Flaky.objects[name] = whole[:-1]
    assert "bytes of edges" in verify_export(URL).problems[0]
    del Flaky.objects[name]
    outcome = run("verify", URL)
    assert outcome.exit_code == 3
    assert f"{URL}/connectivity/edges.dst.bin cannot be read: No such" in outcome.stderr
    Flaky.objects[name] = whole + bytes(3_000_000)
    assert "holds more than" in verify_export(URL).problems[0]
    Flaky.objects[name] = whole
    for k, file in ((0, "connectivity_manifest.json"), (3, "connectivity/edges.src.bin")):
        Flaky.restart(k, 100)
        assert f"{URL}/{file} cannot be read" in verify_export(URL).problems[0]
    Flaky.restart()
    Flaky.objects[MANIFEST] = b"{"
    assert f"{MANIFEST} cannot be read as JSON" in verify_export(URL).problems[0]
    del Flaky.objects[MANIFEST]
    assert "holds no connectivity_manifest.json" in verify_export(URL).problems[0]


def test_places():
    assert remote.is_url("s3://b/a")
    assert not remote.is_url("file:///a")
    assert not remote.is_url("a/b")
    assert not remote.is_url(Path("s3://b/a"))
    assert remote.find_path("file:///a%20b") == Path("/a b")
    assert remote.find_path(Path("x")) == Path("x")
    mine, theirs = {"a": 1}, {"b": 2}
    choose = remote.default_options
    assert choose("s3://b/a", mine, "s3://c", theirs) == mine
    assert choose("s3://b/a", None, "s3://c", theirs) == theirs
    assert choose("s3://b/a", {}, "s3://c", theirs) == {}
    assert choose("s3://b/a", None, "gs://c", theirs) is None
    assert choose("out", None, "out.zarr", theirs) is None


def test_the_upload_is_in_the_projected_memory(made, tmp_path):
    there = plan_export(made[0]["new"], URL)
    here = plan_export(made[0]["new"], tmp_path / "out")
    more = there.reserved_memory_bytes - here.reserved_memory_bytes
    assert more >= upload.StorageTarget.upload_bytes == 2 * 4 * 8 * 2**20
    assert there.output_free_bytes > 0
    assert Flaky.objects == {}
