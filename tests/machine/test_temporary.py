"""Private temporary folders, and those of dead processes."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from cellgraph_dask.errors import OutputError
from cellgraph_dask.machine.temporary import clear_dead, temporary_folder


def test_it_is_private_and_goes_with_all_that_was_made(tmp_path):
    parent = tmp_path / "a/b"
    with temporary_folder(parent) as folder, temporary_folder(parent, hidden=True) as other:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert other.name.startswith(".")
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text("text")
        clear_dead(parent)  # both are alive
        assert (folder / "sub/file").exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("leaves_scratch")
def test_only_dead_folders_of_ours_are_cleared(tmp_path):
    names = {"cellgraph-dask-tmp-abc_1": True, ".cellgraph-dask-tmp-x": True, "data": False,
             "cellgraph-dask-tmp-": False, "my-cellgraph-dask-tmp-abc": False}  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    (tmp_path / "cellgraph-dask-tmp-file").write_text("text")
    (tmp_path / "cellgraph-dask-tmp-link").symlink_to(tmp_path / "data")
    clear_dead(tmp_path)
    kept = {name for name, goes in names.items() if not goes}
    kept |= {"cellgraph-dask-tmp-file", "cellgraph-dask-tmp-link"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (tmp_path / "data/file").exists()
    clear_dead(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of others")
@pytest.mark.usefixtures("leaves_scratch")
def test_those_of_others_stay(tmp_path):
    folder = tmp_path / "cellgraph-dask-tmp-abc"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    clear_dead(tmp_path)
    assert folder.exists()


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with temporary_folder(tmp_path) as folder:
        clear_dead(tmp_path)
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("leaves_scratch")
def test_a_new_folder_that_is_taken_for_dead(tmp_path, monkeypatch):
    """Another process clears it before it is locked; another one is made."""
    true, cleared = fcntl.flock, []

    def clearing_first(fd, how):
        if len(cleared) < 3:
            (folder,) = tmp_path.iterdir()
            cleared.append(folder)
            monkeypatch.setattr(fcntl, "flock", true)
            clear_dead(tmp_path)
            monkeypatch.setattr(fcntl, "flock", clearing_first)
        true(fd, how)

    monkeypatch.setattr(fcntl, "flock", clearing_first)
    with temporary_folder(tmp_path) as folder:
        assert len(cleared) == 3
        assert folder not in cleared
        assert folder.exists()

    def held(*_):
        raise BlockingIOError(errno.EWOULDBLOCK, "held")

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(OutputError, match="come and go"), temporary_folder(tmp_path):
        pass
