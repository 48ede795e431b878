"""Names of sources and outputs: what looks like a URL and is none, and the other way round."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cellgraph_dask import (
    export_connectivities,
    inspect_path,
    open_export,
    plan_export,
    verify_export,
)
from cellgraph_dask.errors import CellgraphError, SourceError
from cellgraph_dask.machine import remote
from cellgraph_dask.source import hdf5_datasets
from tests.helpers.command import run
from tests.helpers.outputs import URL
from tests.helpers.stores import symmetric_graph, write_store
from tests.oracle import assert_exported

GRAPH = symmetric_graph()
NAMES = [
    "zip::a", "s3::b/c", "a b", "a#b", "a?b=c", "a%20b", "a%b", "~a", "é", "a&b;'\"", "a\\b",
    "細胞", "a\nb", "http:", "-a", "$HOME", os.fsdecode(b"\xe9tude"),
]  # fmt: skip


class FakeUPath:
    """A path of universal_pathlib, as far as it is looked at."""

    protocol = ""

    def __init__(self, url: str, **options: object) -> None:
        self.url, self.storage_options = url, options

    def __str__(self) -> str:
        return self.url


class Named:
    """A path-like object whose path is bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "s.zarr", GRAPH)


@pytest.fixture(scope="module")
def files(tmp_path_factory, store):
    """Return the same graph as a folder, a zip archive and an HDF5 file."""
    import h5py
    import zarr

    folder = tmp_path_factory.mktemp("files")
    archive = shutil.make_archive(str(folder / "a"), "zip", store)
    with h5py.File(folder / "a.h5ad", "w") as file:
        file["obs/_index"] = list(range(GRAPH.shape[0]))
        group = file.create_group("obsp/connectivities")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": GRAPH.shape})
        for name in ("indptr", "indices", "data"):
            group[name] = zarr.open_array(store / "obsp/connectivities" / name, mode="r")[:]
    return {"zarr": store, "zip": Path(archive), "h5ad": folder / "a.h5ad"}


@pytest.mark.parametrize("kind", ["zarr", "zip", "h5ad"])
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_on_this_machine(tmp_path, files, monkeypatch, name, kind):
    source, out_dir = tmp_path / name / f"{name}.{kind}", tmp_path / name / f"{name}.out"
    source.parent.mkdir(parents=True)
    source.symlink_to(files[kind])
    monkeypatch.chdir(source.parent)
    export_connectivities(source.name, out_dir.name, scratch_dir=f"scratch {name}")
    assert_exported(out_dir, GRAPH)
    assert verify_export(out_dir, source=str(source)).ok
    assert json.loads(plan_export(source, out_dir).to_json())["source"] == str(source)
    with open_export(out_dir.name) as graph:
        assert graph.n_cells == 40


@pytest.mark.parametrize("form", ["file://{}", "FILE://{}", "file:{}", "local://{}"])
def test_urls_of_this_machine(tmp_path, store, form):
    for name in ("a b%23#?.zarr", "plain"):
        (tmp_path / name).symlink_to(store)
    for name in ("a b%23#?.zarr", "plain", "pl%61in"):
        out_dir = tmp_path / "out"
        export_connectivities(form.format(tmp_path / name), form.format(out_dir), force=True)
        assert_exported(out_dir, GRAPH)
    assert verify_export(form.format(out_dir), source=form.format(store)).ok
    assert inspect_path(form.format(out_dir)).kind == "export"


def test_urls_of_other_machines(tmp_path, store):
    for call in (
        lambda: plan_export("file://host/s.zarr"),
        lambda: plan_export(store, "file://relative/out"),
        lambda: plan_export(store, tmp_path / "out", scratch_dir="file://x"),
    ):
        with pytest.raises(CellgraphError, match=r"names the machine '.*'; a file on this one"):
            call()


def test_home(tmp_path, store, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.zarr").symlink_to(store)
    export_connectivities("~/s.zarr", "~/out", scratch_dir="~/scratch")
    assert verify_export(Path("~/out"), source=Path("~/s.zarr")).ok
    assert inspect_path("~/s.zarr").kind == "store"
    assert_exported(tmp_path / "out", GRAPH)
    assert not (tmp_path / "~").exists()
    (tmp_path / "~").mkdir()
    (tmp_path / "~/other").symlink_to(store)
    plan_export("~/other")  # what is there by that name comes first
    assert remote.local_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_path_like_objects(tmp_path, store):
    sources = [
        Named(store),
        os.fsencode(store),
        FakeUPath(str(store)),
        FakeUPath(f"file://{store}"),
    ]
    for source in sources:
        export_connectivities(source, Named(tmp_path / "out"), force=True)
        assert_exported(tmp_path / "out", GRAPH)
        assert verify_export(FakeUPath(str(tmp_path / "out")), source=source).ok
    with pytest.raises(ValueError, match="storage options are for URLs"):
        plan_export(store, storage_options={"anon": True})


def test_options_of_a_upath():
    assert remote.options_of(FakeUPath("s3://b/a", anon=True), None) == {"anon": True}
    assert remote.options_of(FakeUPath("s3://b/a", anon=True), {}) == {}
    assert remote.options_of(FakeUPath("/a", auto_mkdir=True), None) is None
    given = remote.default_options("s3://b/out", None, FakeUPath("s3://b/a", anon=True), None)
    assert given == {"anon": True}
    assert str(remote.find_path(FakeUPath("memory://bucket/a/"))) == "memory://bucket/a"


def test_queries_of_web_addresses_go_with_each_request():
    found = remote.address("HTTPS://host/a.zarr/?b=c%2Fd&e", {"x": 1})
    assert found == ("https://host/a.zarr", {"x": 1, "params": [("b", "c/d"), ("e", "")]})
    assert remote.address("s3://bucket/a?b", None) == ("s3://bucket/a?b", {})
    assert remote.address("memory://", None).url == "memory://"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "linked fifo"])
def test_what_is_no_file_does_not_hang(tmp_path, kind):
    path, bound = tmp_path / "s.h5ad", socket.socket(socket.AF_UNIX)
    if kind == "socket":
        bound.bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        os.mkfifo(tmp_path / "f")
        path = tmp_path / "f"
        if kind != "fifo":
            path = tmp_path / "link"
            path.symlink_to("f")
    bound.close()
    for call in (plan_export, inspect_path, lambda p: verify_export(tmp_path, source=p)):
        with pytest.raises(SourceError, match="is a pipe, a socket or a device"):
            call(path)
    with pytest.raises(CellgraphError):
        verify_export(path)
    with pytest.raises(CellgraphError):
        plan_export(path, path)


def test_a_pipe_as_source_on_the_command_line(tmp_path):
    read, write = os.pipe()
    try:
        outcome = run("export", f"/dev/fd/{read}", tmp_path / "out")
    finally:
        os.close(read)
        os.close(write)
    assert outcome.exit_code == 1
    assert "is a pipe, a socket or a device" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_are_not_text_are_printed_as_they_are(tmp_path, store, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", f"{encoding}:strict")
    folder = tmp_path / os.fsdecode(b"\xe9tude")
    folder.mkdir()
    (folder / "s.zarr").symlink_to(store)
    command = [sys.executable, "-m", "cellgraph_dask", "export", folder / "s.zarr", folder / "out"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"tude/out" in done.stdout
    assert (b"\xe9tude" in done.stdout) or encoding == "ascii"
    command[4:] = [folder / "none.zarr", folder / "other", "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_a_working_directory_that_is_gone(tmp_path, store, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments in (
        ("export", store, "out"), ("plan", store), ("plan", "s.zarr"), ("verify", "out"),
        ("export", store, tmp_path / "out", "--scratch-dir", "scratch"), ("inspect", "x"),
        ("demo", "--cells", 50), ("export", store, URL, "--scratch-dir", "s"),
    ):  # fmt: skip
        outcome = run(*arguments)
        assert outcome.exit_code in (1, 3), arguments
        assert "Traceback" not in outcome.stderr
        assert outcome.stderr.count("\n") == 1
    export_connectivities(store, tmp_path / "out", scratch_dir=tmp_path / "scratch")
    assert verify_export(tmp_path / "out", source=store).ok


# Becomes another user after everything was imported, as they may not be able to read this Python.
ANOTHER_USER = """
import json, os, sys
from pathlib import Path
from tests.helpers.command import run

store, warm, *rest = sys.argv[1:]
for arguments in (["export", store, warm], ["verify", warm], ["inspect", warm], ["plan", store]):
    assert run(*arguments).exit_code == 0
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
print(json.dumps([run(*arguments) for arguments in json.loads(rest[0])]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_folders_that_may_not_be_entered(tmp_path, store):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(folder.stat().st_mode | 0o055)
    commands = [
        ("plan", store, locked / "out"), ("export", store, locked / "out"),
        ("export", store, tmp_path / "out", "--scratch-dir", locked / "s"),
        ("inspect", locked / "x"), ("verify", locked / "out"), ("plan", locked / "s.zarr"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_USER, store, tmp_path / "warm",
         json.dumps(commands, default=str)],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == len(commands)
    for exit_code, _, stderr in outcomes:
        assert exit_code in (1, 3), stderr
        assert "Traceback" not in stderr
        assert "Permission denied" in stderr


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_an_hdf5_file_on_a_disk_without_locks(tmp_path, files, monkeypatch, caplog, number):
    import h5py

    opened = h5py.File

    def no_locks(path, mode, locking=None):
        if locking is not False:
            raise OSError(number, "unable to lock file")
        return opened(path, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", no_locks)
    monkeypatch.setattr(hdf5_datasets, "_without_locks", set())  # paths may come again
    source = tmp_path / "a.h5ad"
    source.symlink_to(files["h5ad"])
    export_connectivities(source, tmp_path / "out")
    assert caplog.text.count("has no locks") == 1
    assert_exported(tmp_path / "out", GRAPH)


def test_an_hdf5_file_that_is_being_written(files, tmp_path):
    path = shutil.copy(files["h5ad"], tmp_path)
    program = (
        "import sys, h5py; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, path], **pipes) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(SourceError, match="is open for writing in another program"):
            plan_export(path)
        writer.communicate(b"\n")
    plan_export(path)
