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
from cellgraph_dask.publish.output import local_folder
from tests.conftest import scratch_below
from tests.helpers import outputs
from tests.helpers.command import run
from tests.helpers.effort import PART
from tests.helpers.flaky import Flaky
from tests.helpers.outputs import EDGES, GZIP, INSIDE, PLAIN, URL, Files, Made, identity_of

MANIFEST, IDENTITY = f"{INSIDE}{outputs.MANIFEST}", f"{INSIDE}{outputs.IDENTITY}"


def inside(exports: Made, name: str, compression: int | None) -> Files:
    """Return the objects of an export in the storage."""
    return {INSIDE + path: text for path, text in exports.files[name, compression].items()}


def graph_shown() -> str:
    """Return which graph a viewer finds in the storage, or "nothing"; fail if it is a mixture."""
    Flaky.restart()
    told = json.loads(Flaky.objects[IDENTITY])["stats"]["n_edges"]
    if MANIFEST not in Flaky.objects:
        assert told is None
        return "nothing"
    with open_export(URL) as opened:
        assert told in (None, opened.n_edges)
        for name, expected in EDGES.items():
            if expected[0].size == opened.n_edges:
                assert np.array_equal([opened.src, opened.dst], expected)
                return name
    raise AssertionError(f"an export of {opened.n_edges} edges is neither graph")


def test_a_slash_at_the_end_changes_nothing(exports):
    export_connectivities(exports.stores["new"], f"{URL}/")
    assert Flaky.objects == inside(exports, "new", PLAIN)


def test_memory_and_file_urls(exports, tmp_path):
    for url in ("memory://exports/m", f"file://{tmp_path}/with%20space"):
        export_connectivities(exports.stores["new"], url)
        assert verify_export(url).ok
        with open_export(url) as opened:
            assert np.array_equal([opened.src, opened.dst], EDGES["new"])
        with pytest.raises(OutputError, match="already holds an export"):
            export_connectivities(exports.stores["new"], url)
    assert (tmp_path / "with space/connectivity_manifest.json").exists()


CASES = [  # what was there, what comes, and whether failing steps are carried out all the same
    (PLAIN, PLAIN, False),
    (PLAIN, GZIP, False),
    ("nothing", GZIP, False),
    pytest.param(PLAIN, PLAIN, True, marks=pytest.mark.slow),
    pytest.param("nothing", PLAIN, True, marks=pytest.mark.slow),
]


def prepare(exports: Made, before) -> Files:
    """Put an earlier export (or none) and an identity into the storage, and other files."""
    Flaky.objects.clear()
    if before != "nothing":
        Flaky.objects |= inside(exports, "old", before)
    identity = identity_of("nothing" if before == "nothing" else "old")
    Flaky.objects[IDENTITY] = json.dumps(identity).encode()
    Flaky.objects[f"{INSIDE}connectivity/edges.txt"] = b"mine"
    Flaky.objects[f"{INSIDE}points.bin"] = b"mine too"
    Flaky.restart()
    return dict(Flaky.objects)


def export_new(exports, tmp_path: Path, after, monkeypatch, **more) -> str | None:
    """Export the new graph; return what was wrong, if anything."""
    monkeypatch.setattr(upload, "_PART_BYTES", 200)  # several parts
    scratch = tmp_path / "scratch"
    try:
        export_connectivities(
            exports.stores["new"], URL, compression=after, force=True, scratch_dir=scratch, **more
        )
    except (OutputError, InvalidExportError) as error:
        return str(error)
    finally:
        assert Flaky.uploads == set()
    assert not scratch_below(tmp_path)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "late"), CASES)
def test_each_step_fails_once(exports, tmp_path, monkeypatch, caplog, before, after, late):
    prepare(exports, before)
    assert export_new(exports, tmp_path, after, monkeypatch) is None
    steps = list(Flaky.steps)
    assert len(steps) > 20
    expected = dict(Flaky.objects)
    for k, step in list(enumerate(steps))[::PART]:
        started = prepare(exports, before)
        Flaky.restart(k, k + 1, late=late)
        problem = export_new(exports, tmp_path, after, monkeypatch)
        left = dict(Flaky.objects)
        shown = graph_shown()
        if problem is None:
            # Tidying up is tried once and left to the next export; the names may have tags yet.
            assert shown == "new"
            assert verify_export(URL).ok
            assert left == expected or "cut short" in caplog.text or step.startswith("cat")
        else:
            assert URL in problem
            assert f"step {k} fails" in problem
            extra = {name for name in set(left) - set(started) if ".cellgraph-dask-" not in name}
            assert extra == set(), step
            assert {name: left[name] for name in started} == started, step
        caplog.clear()
        assert export_new(exports, tmp_path, after, monkeypatch) is None
        left = {name for name in Flaky.objects if ".cellgraph-dask-" not in name}
        assert left == set(expected)
        assert graph_shown() == "new"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "late"), CASES)
def test_the_connection_is_lost_for_good_at_each_step(
    exports, tmp_path, monkeypatch, before, after, late
):
    old = "nothing" if before == "nothing" else "old"
    prepare(exports, before)
    assert export_new(exports, tmp_path, after, monkeypatch) is None
    expected = set(Flaky.objects)
    found, told = [], []
    for k in range(len(Flaky.steps)):
        prepare(exports, before)
        Flaky.restart(k, sys.maxsize, late=late)
        problem = export_new(exports, tmp_path, after, monkeypatch)
        found.append(graph_shown())
        # Lost at the very step that shows it, it may be there, but who knows?
        assert problem is not None or found[-1] == "new"
        told.append(problem is None)
        if before != "nothing":
            assert verify_export(URL).n_edges is not None
        assert export_new(exports, tmp_path, after, monkeypatch, resume=k % 2 == 0) is None
        left = {name for name in Flaky.objects if ".cellgraph-dask-" not in name}
        assert left == expected
        assert graph_shown() == "new"
    # It was lost before and after the one step that counts.
    switch = found.index("new")
    assert 8 < switch < len(found) - 3
    assert set(found[:switch]) == {old}
    assert set(found[switch:]) == {"new"}
    assert told == sorted(told)
    assert told[-1]


def test_an_answer_that_is_lost(exports, tmp_path, monkeypatch):
    """The upload was completed, but its answer did not come."""
    prepare(exports, PLAIN)
    commit = upload._Upload.complete

    def complete(self):
        self._file.commit()
        self._file.commit = lambda: (_ for _ in ()).throw(FileNotFoundError("no such upload"))
        commit(self)

    monkeypatch.setattr(upload._Upload, "complete", complete)
    assert export_new(exports, tmp_path, PLAIN, monkeypatch) is None
    assert graph_shown() == "new"


@pytest.mark.parametrize("before", ["nothing", PLAIN])
def test_a_manifest_that_arrives_in_spite_of_an_error_is_taken_back(
    exports, tmp_path, monkeypatch, before
):
    prepare(exports, before)
    assert export_new(exports, tmp_path, PLAIN, monkeypatch) is None
    k = Flaky.steps.index(f"put {MANIFEST}")
    started = prepare(exports, before)
    Flaky.restart(k, k + 1, late=True)
    assert f"step {k} fails" in export_new(exports, tmp_path, PLAIN, monkeypatch)
    assert Flaky.objects == started
    Flaky.restart()
    assert export_new(exports, tmp_path, PLAIN, monkeypatch, resume=True) is None
    assert graph_shown() == "new"


@pytest.mark.parametrize("at", ["write", "commit", "put"])
def test_ctrl_c_leaves_what_was_there(exports, tmp_path, monkeypatch, at):
    started = prepare(exports, PLAIN)
    step, seen = Flaky.step, []

    def interrupt(name, path):
        if name == at and at not in seen and "cellgraph-dask" not in path:
            seen.append(at)
            raise KeyboardInterrupt
        return step(name, path)

    monkeypatch.setattr(Flaky, "step", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        export_new(exports, tmp_path, PLAIN, monkeypatch)
    assert Flaky.objects == started
    monkeypatch.setattr(Flaky, "step", step)
    assert export_new(exports, tmp_path, PLAIN, monkeypatch, resume=True) is None
    assert graph_shown() == "new"


def test_nothing_is_removed_while_the_manifest_cannot_be_read(
    exports, tmp_path, monkeypatch, caplog
):
    """The copies to the usual names fail, and what the manifest names cannot be found out."""
    prepare(exports, PLAIN)
    step, seen = Flaky.step, []

    def fail(name, path):
        if name == "copy" or (seen and name == "cat"):
            seen.append(name)
            raise ConnectionError(name)
        return step(name, path)

    monkeypatch.setattr(Flaky, "step", staticmethod(fail))
    assert export_new(exports, tmp_path, PLAIN, monkeypatch) is None
    assert "cut short (copy)" in caplog.text
    assert seen == ["copy", "cat", "cat"]
    monkeypatch.setattr(Flaky, "step", step)
    assert graph_shown() == "new"
    assert export_new(exports, tmp_path, PLAIN, monkeypatch, resume=True) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_another_user_is_not_used(exports, tmp_path, monkeypatch):
    folder = local_folder(URL, tmp_path / "scratch")
    folder.mkdir(parents=True)
    os.chown(folder, 12345, -1)
    problem = export_new(exports, tmp_path, PLAIN, monkeypatch)
    assert f"{folder} belongs to another user" in problem
    assert Flaky.objects == {}
    folder.rmdir()


def test_another_export_at_the_same_time_is_told(exports, tmp_path, monkeypatch):
    prepare(exports, PLAIN)
    put = upload.StorageTarget.put_texts

    def overwrite(self, texts):
        put(self, texts)
        Flaky.objects.update(inside(exports, "old", GZIP))

    monkeypatch.setattr(upload.StorageTarget, "put_texts", overwrite)
    problem = export_new(exports, tmp_path, PLAIN, monkeypatch)
    assert "does not hold what was written to it: another export" in problem
    monkeypatch.undo()
    assert export_new(exports, tmp_path, PLAIN, monkeypatch) is None


def test_a_short_object_is_told(exports, tmp_path, monkeypatch):
    started = prepare(exports, PLAIN)
    size = remote.RemotePath.size
    monkeypatch.setattr(
        remote.RemotePath, "size", lambda self: (size(self) or 0) - 1 if "src" in self.url else 0
    )
    problem = export_new(exports, tmp_path, PLAIN, monkeypatch)
    assert "bytes after the upload instead of" in problem
    monkeypatch.undo()
    assert Flaky.objects[MANIFEST] == started[MANIFEST]
    assert export_new(exports, tmp_path, PLAIN, monkeypatch, resume=True) is None


# What cannot be used


def test_unknown_protocols_and_bad_options(exports, monkeypatch):
    store = exports.stores["new"]
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


def test_the_extra_is_named_where_it_is_missing(exports, monkeypatch):
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(known, "s3", raising=False)
    outcome = run("export", exports.stores["new"], "s3://bucket/export")
    assert outcome.exit_code == 1
    assert "the package for s3:// is not installed" in outcome.stderr
    assert "extra `remote`" in outcome.stderr


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"a"'])
def test_options_on_the_command_line_are_json_objects(exports, text):
    outcome = run("export", exports.stores["new"], URL, "--output-storage-options", text)
    assert outcome.exit_code == 2
    assert "not JSON" in outcome.stderr or "not a JSON object" in outcome.stderr
    assert Flaky.objects == {}


def test_secrets_in_options_are_not_repeated(exports):
    outcome = run(
        "export", exports.stores["new"], "s3://bucket/a", "--output-storage-options",
        json.dumps({"secret": "hunter2", "key": "k", "endpoint_url": "nonsense"}),
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert "cannot write to s3://bucket/a: " in outcome.stderr
    assert "hunter2" not in outcome.stderr


def test_damage_in_remote_storage_is_found(exports):
    export_connectivities(exports.stores["new"], URL)
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


def test_the_upload_is_in_the_projected_memory(exports, tmp_path):
    here = plan_export(exports.stores["new"], tmp_path / "out")  # first, as it imports more
    there = plan_export(exports.stores["new"], URL)
    more = there.reserved_memory_bytes - here.reserved_memory_bytes
    assert more >= upload.StorageTarget.upload_bytes == 2 * 4 * 8 * 2**20
    assert there.output_free_bytes > 0
    assert Flaky.objects == {}
