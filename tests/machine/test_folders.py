"""Folders of this user alone: what others have put in their place, and disks without owners."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import dask.array as da
import pytest

from cellgraph_dask import export_connectivities
from cellgraph_dask.errors import OutputError
from cellgraph_dask.export.record import _scratch_name
from cellgraph_dask.machine import folders
from cellgraph_dask.machine.files import write_aside
from cellgraph_dask.publish.output import local_folder
from cellgraph_dask.publish.work_folder import WORK_FOLDER
from tests.helpers.flaky import Flaky
from tests.helpers.outputs import URL
from tests.helpers.stores import directed_graph, snapshot, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph()
OTHER = 12345  # a user
pytestmark = pytest.mark.usefixtures("leaves_scratch")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")


@pytest.fixture(autouse=True)
def _empty_storage():
    """Other tests may have left an export at the same URL."""
    Flaky.objects.clear()


@pytest.fixture
def victim(tmp_path):
    """Return a folder of the user with names that a run makes and deletes."""
    folder = tmp_path / "mine"
    for name in ("spool", "run-00000000", WORK_FOLDER):
        (folder / name).mkdir(parents=True)
        (folder / name / "precious").write_text("x")
    return folder


def sources(tmp_path):
    """Return a source that needs runs in scratch, and one that is spooled there."""
    return write_store(tmp_path / "s.zarr", GRAPH), da.from_array(GRAPH.toarray(), chunks=(9, 9))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("place", ["scratch", "work", "upload"])
def test_links_of_others_are_not_followed(tmp_path, victim, place, kind):
    source, scratch = sources(tmp_path)[kind], tmp_path / "shared"
    scratch.mkdir()
    out_dir: Path | str = tmp_path / "out"
    if place == "scratch":
        planted = scratch / _scratch_name(out_dir / WORK_FOLDER)
    elif place == "work":
        planted = out_dir / WORK_FOLDER
        out_dir.mkdir()
    else:
        out_dir = URL
        planted = local_folder(out_dir, scratch)
    planted.symlink_to(victim)
    before = snapshot(victim)
    with pytest.raises(OutputError, match="is a symbolic link; nothing outside"):
        export_connectivities(source, out_dir, scratch_dir=scratch, force=True)
    assert snapshot(victim) == before
    assert planted.is_symlink()


@root_only
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("place", ["scratch", "work", "upload"])
def test_folders_of_other_users_are_left_alone(tmp_path, place, kind):
    source, scratch = sources(tmp_path)[kind], tmp_path / "shared"
    out_dir: Path | str = URL if place == "upload" else tmp_path / "out"
    planted = {
        "scratch": lambda: scratch / _scratch_name(out_dir / WORK_FOLDER),
        "work": lambda: out_dir / WORK_FOLDER,
        "upload": lambda: local_folder(out_dir, scratch),
    }[place]()
    (planted / "spool").mkdir(parents=True)
    (planted / "spool/theirs").write_text("x")
    planted.chmod(0o777)
    os.chown(planted, OTHER, OTHER)
    before = snapshot(planted)
    with pytest.raises(OutputError, match="belongs to another user"):
        export_connectivities(source, out_dir, scratch_dir=scratch, resume=kind == 0)
    assert snapshot(planted) == before


@root_only
def test_a_run_of_another_user_is_not_believed(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    assert folders.read_own(folder / "run.json") == b"{}"
    os.chown(folder, OTHER, OTHER)
    with pytest.raises(OutputError, match="another user"):
        folders.read_own(folder / "run.json")


@root_only
def test_a_disk_without_owners_and_modes(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    folder = tmp_path / "own"
    folder.mkdir(mode=0o755)
    folders.make_own(folder)  # no more than that is asked of it
    os.chown(folder, OTHER, OTHER)
    monkeypatch.setattr(folders, "_owner_of_new", lambda _: OTHER)
    folders.make_own(folder)
    (folder / "x").write_text("")
    folders.clear(folder)
    assert not any(folder.iterdir())
    source = write_store(tmp_path / "s.zarr", GRAPH)
    export_connectivities(source, tmp_path / "out", scratch_dir=tmp_path / "scratch")
    assert_exported(tmp_path / "out", GRAPH)


def test_new_files_tell_who_owns_what_is_made(tmp_path):
    assert folders._owner_of_new(tmp_path) == os.geteuid()
    assert folders._owner_of_new(tmp_path / "gone") is None
    assert not any(tmp_path.iterdir())


def test_folders_for_temporary_files_are_closed_to_others(tmp_path):
    out_dir, scratch = tmp_path / "out", tmp_path / "scratch"
    (out_dir / WORK_FOLDER).mkdir(parents=True, mode=0o777)
    before = os.umask(0)
    try:
        export_connectivities(
            write_store(tmp_path / "s.zarr", GRAPH), out_dir, scratch_dir=scratch, keep_scratch=True
        )
    finally:
        os.umask(before)
    made = [*scratch.iterdir(), *scratch.glob("*/*"), out_dir / WORK_FOLDER]
    made += [path for path in (out_dir / WORK_FOLDER).iterdir() if path.is_dir()]
    assert len(made) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


def test_only_plain_files_are_read_and_links_are_not_deleted_through(tmp_path, victim):
    folder = tmp_path / "own"
    folders.make_own(folder)
    (folder / "a").symlink_to(victim)
    (folder / "b").symlink_to(victim / "spool/precious")
    os.mkfifo(folder / "c")
    (folder / "d/e").mkdir(parents=True)
    for name in "abcd":
        with pytest.raises(OSError, match=r"not a file|symbolic|Not a directory"):
            folders.read_own(folder / name)
    before = snapshot(victim)
    folders.remove(folder / "a")
    folders.clear(folder, keep=["c"])
    assert [path.name for path in folder.iterdir()] == ["c"]
    folders.remove(folder / "gone")
    assert snapshot(victim) == before


def test_texts_are_not_written_through_links(tmp_path, victim):
    aside = tmp_path / "aside"
    aside.symlink_to(victim / "spool/precious")
    write_aside(tmp_path / "text", "new", aside=aside)
    assert (victim / "spool/precious").read_text() == "x"
    assert aside.read_text() == "new"
    assert not aside.is_symlink()
