"""Publishing, on disk and in storage alike: all or nothing, no stale twin, and the identity."""

from __future__ import annotations

import errno
import json
import os
import sys
from functools import partial
from typing import Any

import pytest

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.edge_pairs.format import Manifest
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.publish import Target, publish
from cellgraph_dask.runtime.progress import Progress
from tests.helpers.command import run
from tests.helpers.outputs import (
    GZIP,
    IDENTITY,
    MANIFEST,
    N_CELLS,
    N_EDGES,
    PLAIN,
    DiskPlace,
    Files,
    Made,
    graph_in,
    identity_of,
)
from tests.helpers.stores import snapshot


def export(exports: Made, place: DiskPlace, name: str = "new", **options: Any) -> Any:
    return export_connectivities(exports.stores[name], place.out_dir, **place.more, **options)


def command(exports: Made, place: DiskPlace, *options: object) -> Any:
    where = [word for key in place.more for word in ("--scratch-dir", place.more[key])]
    return run("export", exports.stores["new"], place.out_dir, *where, *options)


def test_plain_and_gzip_replace_each_other(exports, place):
    for compression, name in [
        (PLAIN, "old"), (GZIP, "new"), (GZIP, "old"), (PLAIN, "old"), (PLAIN, "new"),
    ]:  # fmt: skip
        report = export(exports, place, name, compression=compression, force=True)
        assert report.out_dir == str(place.out_dir)
        assert place.files() == exports.files[name, compression]
        assert graph_in(place.files()) == name
        assert verify_export(place.out_dir).ok


def test_an_export_that_is_there_stays_without_force(exports, place, tmp_path):
    place.restore(exports.files["old", PLAIN])
    before = snapshot(tmp_path)
    outcome = command(exports, place)
    assert outcome.exit_code == 1
    assert f"{place.out_dir} already holds an export" in outcome.stderr
    assert place.files() == exports.files["old", PLAIN]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
def test_identity_is_updated_and_the_rest_of_it_kept(exports, place, compression):
    before = identity_of("nothing")
    place.restore({IDENTITY: json.dumps(before).encode()})
    export(exports, place, compression=compression)
    files = place.files()
    after = json.loads(files.pop(IDENTITY))
    stats = before["stats"] | {"has_connectivity": True, "n_edges": N_EDGES["new"]}
    assert after == before | {"stats": stats}
    assert list(after) == list(before)
    assert list(after["stats"]) == list(stats)
    assert files == exports.files["new", compression]
    assert verify_export(place.out_dir).ok


def test_an_identity_that_is_right_already_keeps_its_bytes(exports, place):
    text = json.dumps(identity_of("new"), indent=7).encode()
    place.restore({IDENTITY: text})
    export(exports, place)
    assert place.files()[IDENTITY] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            json.dumps({"stats": {"n_cells": 41}}),
            "of a dataset with 41 cells, but the graph has 40",
        ),
        (json.dumps({"stats": {}}), "of a dataset with None cells"),
        ("{", "cannot be read as JSON"),
        ("\xff\xfe", "cannot be read as JSON"),
        ("[]", "is not a Cellucid identity: it has no stats"),
        ('{"stats": 3}', "is not a Cellucid identity: it has no stats"),
    ],
)
def test_identity_that_does_not_fit_is_refused(exports, place, tmp_path, text, message):
    place.restore({IDENTITY: text.encode("latin-1")})
    before = snapshot(tmp_path)
    outcome = command(exports, place)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert place.files() == {IDENTITY: text.encode("latin-1")}
    assert snapshot(tmp_path) == before


def test_no_identity_is_made(exports, place):
    export(exports, place)
    assert place.files() == exports.files["new", PLAIN]


def test_other_files_in_the_folder_stay(exports, place):
    others = {
        name: name.encode()
        for name in ("connectivity/edges.txt", "connectivity/edges.src.bin.bak", "points_2d.bin")
    }
    place.restore(others)
    export(exports, place)
    assert place.files() == exports.files["new", PLAIN] | others


def test_what_no_manifest_names_is_removed(exports, place):
    """Of an export that was killed, or whose clearing up failed."""
    stale = {
        f"connectivity/{name}": b"stale"
        for name in ("edges.src.bin", "edges.dst.bin.gz", "edges.src.0123abcd.bin")
    }
    for before in ({}, exports.files["old", PLAIN]):
        place.restore({**stale, **before})
        export(exports, place, compression=GZIP, force=True)
        assert place.files() == exports.files["new", GZIP]


@pytest.mark.parametrize("text", [b"{", b"\xff", b'{"format": "edges of another kind"}'])
def test_a_manifest_of_another_kind_is_replaced(exports, place, text):
    place.restore(exports.files["old", PLAIN] | {MANIFEST: text})
    export(exports, place, force=True)
    assert place.files() == exports.files["new", PLAIN]


def test_exports_into_one_folder_exclude_each_other(exports, place, tmp_path):
    place.restore(exports.files["old", PLAIN])
    with place.open(force=True):
        outcome = command(exports, place, "--force")
        assert outcome.exit_code == 1
        running = f"another export into {place.out_dir} is running (process {os.getpid()} on"
        assert running in outcome.stderr
    assert place.files() == exports.files["old", PLAIN]
    assert not (tmp_path / "scratch").exists()


def test_an_exception_leaves_nothing_behind(place, tmp_path):
    def fail() -> None:
        with place.open(force=False) as output:
            (output.work / "runs").mkdir()
            (output.work / "runs/a").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert snapshot(tmp_path) == {}
    assert place.files() == {}


# Every step of `publish` fails


class Faulty:
    """A target of which some calls fail, before or after what they do; counts all calls."""

    def __init__(
        self, target: Target, broken: range, error: BaseException | None = None, *, late: bool
    ) -> None:
        self._target, self._broken, self._error, self._late = target, broken, error, late
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._target, name))

    @property
    def path(self) -> Any:
        return self._target.path

    def put_texts(self, texts: Any) -> None:
        for text in texts:  # each is a step
            self._call(self._target.put_texts, [text])

    def _call(self, function: Any, *arguments: Any) -> Any:
        k = len(self.calls)
        self.calls.append(function.__name__)
        if k in self._broken and not self._late:
            raise self._error
        result = function(*arguments)
        if k in self._broken:
            raise self._error
        return result


CASES = [(PLAIN, PLAIN), (PLAIN, GZIP), (GZIP, GZIP), ("nothing", PLAIN)]


def started(exports: Made, place: DiskPlace, before: Any) -> Files:
    """Put an earlier export (or none) in place, its identity, and a stale file."""
    name = "nothing" if before == "nothing" else "old"
    identity = json.dumps(identity_of(name), separators=(",\r\n", ":")).encode()
    files = {} if before == "nothing" else exports.files["old", before]
    files = files | {IDENTITY: identity, "connectivity/edges.txt": b"mine"}
    place.restore(files)
    return files


def publish_new(
    exports: Made,
    place: DiskPlace,
    after: Any,
    broken: range = range(0),
    error: BaseException | None = None,
    *,
    late: bool = False,
    wrapper: type[Faulty] = Faulty,
) -> list[str]:
    """Publish the new graph, some steps raising `error`; return the calls that were made."""
    files = exports.files["new", after]
    found = json.loads(files[MANIFEST])
    manifest = Manifest(N_CELLS, found["n_edges"], found["max_neighbors"], after)
    with place.target() as (target, work):
        for name in (*manifest.files, "provenance.json"):
            (work / name).write_bytes(files[f"connectivity/{name}"])
        faulty: Any = wrapper(target, broken, error, late=late)
        try:
            publish(faulty, manifest, work, Progress())
        except BaseException as raised:
            if raised is not error:
                raise
    return faulty.calls


def check_identity(files: Files, *, settled: bool) -> None:
    """Fail if the identity tells of another graph; of none at all only while that is settled."""
    n_edges = N_EDGES[graph_in(files)]
    told = json.loads(files[IDENTITY])["stats"]["n_edges"]
    assert told == n_edges or (told is None and not settled)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("before", "after"), CASES)
def test_any_step_fails(exports, place, before, after, late):
    """Once: then the old export is there to the last byte, or the new one, and so says its name."""
    old = started(exports, place, before)
    calls = publish_new(exports, place, after)
    new = place.files()
    assert len(calls) > 6
    states = []
    for k in range(len(calls)):
        error = (OSError(errno.EIO, f"step {k}"), KeyboardInterrupt())[k % 2]
        started(exports, place, before)
        publish_new(exports, place, after, range(k, k + 1), error, late=late)
        files = place.files()
        states.append(graph_in(files))
        if states[-1] != "new":
            assert files == old
        check_identity(files, settled=True)
        publish_new(exports, place, after)
        assert place.files() == new
    switch = states.index("new")
    assert 2 <= switch < len(states) - 1
    assert set(states[:switch]) == {"nothing" if before == "nothing" else "old"}
    assert set(states[switch:]) == {"new"}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("before", "after"), CASES)
def test_all_steps_fail_from_one_on(exports, place, before, after, late):
    """As if it had been killed: there is no mixture, and the next export puts all in order."""
    started(exports, place, before)
    calls = publish_new(exports, place, after)
    new = place.files()
    states = []
    for k in range(len(calls)):
        started(exports, place, before)
        error = ConnectionError(f"from step {k} on")
        publish_new(exports, place, after, range(k, sys.maxsize), error, late=late)
        states.append(graph_in(place.files()))
        check_identity(place.files(), settled=False)
        publish_new(exports, place, after)
        assert place.files() == new
    switch = states.index("new")
    assert 2 <= switch < len(states) - 1
    assert set(states[:switch]) == {"nothing" if before == "nothing" else "old"}
    assert set(states[switch:]) == {"new"}


def test_any_step_fails_over_a_manifest_of_another_kind(exports, place):
    """It may name any file but those with a tag, so all of them stay until ours is shown."""
    old = exports.files["old", PLAIN] | {MANIFEST: b'{"format": "another"}'}
    place.restore(old)
    calls = publish_new(exports, place, PLAIN)
    new = place.files()
    assert new == exports.files["new", PLAIN]
    states = []
    for k in range(len(calls)):
        place.restore(old)
        publish_new(exports, place, PLAIN, range(k, k + 1), OSError(errno.EIO, f"step {k}"))
        files = place.files()
        states.append("old" if files[MANIFEST] == old[MANIFEST] else graph_in(files))
        if states[-1] == "old":
            assert files == old
    switch = states.index("new")
    assert switch > 2
    assert states == ["old"] * switch + ["new"] * (len(states) - switch)


def test_the_order_of_steps(exports, place):
    """The same in both places."""
    started(exports, place, PLAIN)
    calls = [name for name in publish_new(exports, place, PLAIN) if name != "size"]
    assert calls == [
        "list", "bring", *5 * ["put_texts"], "copy", "put_texts", "list", "remove", "remove",
    ]  # fmt: skip
    started(exports, place, "nothing")
    calls = [name for name in publish_new(exports, place, GZIP) if name != "size"]
    assert calls == ["list", "bring", *3 * ["put_texts"], "list"]


def test_what_others_have_changed_meanwhile_is_told(exports, place):
    """Another machine shows its export between our manifest and the last look at it."""
    started(exports, place, PLAIN)

    class Overwritten(Faulty):
        def list(self) -> Any:
            if "copy" in self.calls:
                place.restore(place.files() | exports.files["old", GZIP])
            return self._target.list()

    with pytest.raises(OutputError, match="does not hold what was written to it: another export"):
        publish_new(exports, place, PLAIN, range(0), wrapper=Overwritten)
    publish_new(exports, place, PLAIN)
    assert graph_in(place.files()) == "new"
