"""Output folders that mean harm: nothing outside them is written, removed or read."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellgraph_dask import export_connectivities, open_export, verify_export
from cellgraph_dask.errors import InvalidExportError, OutputError, SourceError
from cellgraph_dask.publish.output import Output, open_output
from cellgraph_dask.publish.work_folder import WORK_FOLDER
from cellgraph_dask.source.opening import open_source
from tests.helpers.command import run
from tests.helpers.fault_server import FaultServer, supported
from tests.helpers.planting import plant
from tests.helpers.stores import directed_graph, symmetric_graph, write_store
from tests.oracle import assert_exported

MANIFEST, IDENTITY = "connectivity_manifest.json", "dataset_identity.json"
OLD, NEW = symmetric_graph(40, 3, seed=1), directed_graph(40, 5)
EDGES = "connectivity/edges.src.bin"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Return an export and a store that is to replace it."""
    folder = tmp_path_factory.mktemp("made")
    export_connectivities(write_store(folder / "old.zarr", OLD), folder / "out")
    return folder / "out", write_store(folder / "new.zarr", NEW)


@pytest.fixture
def out_dir(tmp_path, made) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "out"))


@pytest.fixture
def elsewhere(tmp_path, made) -> Path:
    """Return a folder of somebody else's, full of names that we would write or remove."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(made[0] / "connectivity", folder / "connectivity")
    for name in ("lock", "edges.src.bin", MANIFEST, IDENTITY, "precious"):
        (folder / name).write_text(f"mine: {name}")
    (folder / IDENTITY).write_text(json.dumps({"stats": {"n_cells": 40, "n_edges": 7}}))
    (folder / "edges.src.0123abcd.bin").write_text("mine")
    shutil.copy(folder / "edges.src.0123abcd.bin", folder / "connectivity")
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Return every path below a folder with its bytes, or where it links to."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    """Put a link to something elsewhere in the place of something in the folder."""

    def change(out_dir: Path, elsewhere: Path) -> None:
        path = out_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(elsewhere / target)

    return change


# What is a link, and what an export says of it; None if it just puts its own file there.
LINKS: dict[str, tuple[Callable[[Path, Path], None], str | None]] = {
    "the edge folder": (link("connectivity", "connectivity"), r"connectivity is a symbolic link"),
    "the edge folder, to nothing": (link("connectivity", "none"), r"is a symbolic link"),
    "the work folder": (link(WORK_FOLDER, "."), r"\.cellgraph-dask is a symbolic link"),
    "the work folder, to nothing": (link(WORK_FOLDER, "none"), r"is a symbolic link"),
    "the lock": (link(f"{WORK_FOLDER}/lock", "lock"), r"lock"),
    "the identity": (link(IDENTITY, IDENTITY), r"links that leave the folder are not followed"),
    "an edge file": (link(EDGES, "edges.src.bin"), None),
    "an edge file, to nothing": (link(EDGES, "none"), None),
    "the manifest": (link(MANIFEST, MANIFEST), None),
    "a file of the work folder": (link(f"{WORK_FOLDER}/{MANIFEST}", "precious"), None),
    "an edge file of the work folder": (link(f"{WORK_FOLDER}/edges.src.bin", "precious"), None),
    "a folder of the work folder": (link(f"{WORK_FOLDER}/cellgraph-dask-x", "."), None),
}


@pytest.mark.parametrize("name", LINKS)
def test_no_link_is_followed_when_replacing(made, out_dir, elsewhere, name):
    change, message = LINKS[name]
    change(out_dir, elsewhere)
    before, theirs = contents(out_dir), contents(elsewhere)
    outcome = run("export", made[1], out_dir, "--force")
    assert contents(elsewhere) == theirs
    if message is None:
        assert outcome.exit_code == 0, outcome.stderr
        assert_exported(out_dir, NEW)
        assert verify_export(out_dir).ok
        assert not any(path.is_symlink() for path in out_dir.rglob("*"))
    else:
        assert outcome.exit_code == 1
        assert outcome.stderr.startswith("Error: ")
        assert "Traceback" not in outcome.stderr
        assert re.search(message, outcome.stderr), outcome.stderr
        assert contents(out_dir) == before
    shutil.rmtree(out_dir)


@pytest.mark.parametrize("name", ["connectivity", EDGES, MANIFEST, IDENTITY])
def test_no_link_out_of_the_folder_is_read(tmp_path, out_dir, name):
    if name == IDENTITY:
        n_edges = json.loads((out_dir / MANIFEST).read_text())["n_edges"]
        stats = {"n_cells": 40, "n_edges": n_edges, "has_connectivity": True}
        (out_dir / name).write_text(json.dumps({"stats": stats}))
    assert verify_export(out_dir).ok
    # The very bytes that are right, but somewhere else.
    shutil.move(out_dir / name, tmp_path / "moved")
    (out_dir / name).symlink_to(tmp_path / "moved")
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert "links that leave the folder are not followed" in outcome.stderr


def test_links_inside_the_folder_are_read(out_dir):
    (out_dir / "kept").mkdir()
    shutil.move(out_dir / EDGES, out_dir / "kept/src")
    (out_dir / EDGES).symlink_to("../kept/src")
    assert verify_export(out_dir).ok


def test_an_output_folder_that_is_a_link_is_the_users_wish(tmp_path, made, out_dir):
    (tmp_path / "link").symlink_to(out_dir)
    assert run("export", made[1], tmp_path / "link", "--force").exit_code == 0
    assert_exported(out_dir, NEW)
    assert verify_export(tmp_path / "link").ok


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../elsewhere/edges.src.bin", "connectivity/../../elsewhere/edges.src.bin",
     "connectivity/edges.src.0123abcd.bin/../../../x", "connectivity//edges.src.bin",
     "./connectivity/edges.src.bin", "connectivity/edges.src.0123abcdef.bin", "", None, 5, ["x"]],
)  # fmt: skip
@pytest.mark.parametrize("key", ["sourcesPath", "destinationsPath"])
def test_paths_in_a_manifest_are_not_followed(made, out_dir, elsewhere, key, path):
    manifest = json.loads((out_dir / MANIFEST).read_text())
    (out_dir / MANIFEST).write_text(json.dumps(manifest | {key: path}))
    theirs = contents(elsewhere)
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert f"{MANIFEST}: " in outcome.stderr
    assert run("export", made[1], out_dir, "--force").exit_code == 0
    assert_exported(out_dir, NEW)
    assert contents(elsewhere) == theirs


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", [EDGES, MANIFEST])
def test_a_pipe_is_not_waited_for(out_dir, name):
    pipe(out_dir / name)
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert "is not a file inside" in outcome.stderr


@pytest.mark.parametrize("name", [MANIFEST, IDENTITY])
def test_deep_json(out_dir, name):
    (out_dir / name).write_text("[" * 200_000)
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert f"{name} cannot be read as JSON" in outcome.stderr


def test_what_is_temporary_is_private(tmp_path, made):
    seen: dict[str, int] = {}
    source = made[1]
    out_dir, scratch = tmp_path / "out", tmp_path / "scratch"
    umask = os.umask(0)
    real = Output.publish

    def look(self: Output, *arguments: Any, **options: Any) -> None:
        for top in (out_dir / WORK_FOLDER, scratch):
            for path in (top, *top.rglob("*")):
                seen[str(path.relative_to(tmp_path))] = stat.S_IMODE(path.stat().st_mode)
        real(self, *arguments, **options)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Output, "publish", look)
            export_connectivities(source, out_dir, scratch_dir=scratch, compression=1)
    finally:
        os.umask(umask)
    assert any(name.endswith(".run") for name in seen)
    # A folder that is closed to others hides what is in it; the user's own scratch folder is not.
    private = [name for name, mode in seen.items() if mode & 0o077 == 0]
    for name in seen:
        assert name == "scratch" or any(f"{name}/".startswith(f"{p}/") for p in private), name
    assert all(seen[name] == 0o600 for name in seen if name.endswith(".run"))


def test_an_open_work_folder_is_closed(tmp_path, made, out_dir):
    (out_dir / WORK_FOLDER).mkdir(mode=0o777)
    (out_dir / WORK_FOLDER).chmod(0o777)
    with open_output(out_dir, force=True) as output:
        assert stat.S_IMODE(output.work.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_work_folder_of_another_user(made):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o777)
        (folder / WORK_FOLDER).mkdir()
        (folder / WORK_FOLDER).chmod(0o777)
        os.seteuid(65534)
        try:
            with (
                pytest.raises(OutputError, match="belongs to another user"),
                open_output(folder, force=False),
            ):
                pass
            with pytest.raises(SourceError, match="cannot be opened: Permission denied"):
                open_source(made[1])
        finally:
            os.seteuid(0)


def interrupted(tmp_path: Path, source: Path, *options: object) -> Path:
    """Return a folder in which an export was killed as it made the second edge file durable."""
    out_dir = tmp_path / "out"
    with FaultServer() as server:
        run = server.run(
            "export", source, out_dir, *options, root=out_dir, names=["fsync"], n=3, action="KILL"
        )
    assert run.exit_code == -9
    assert (out_dir / WORK_FOLDER / "run.json").exists()
    return out_dir


def renamed(**fields: Any) -> Callable[[Path, Path], None]:
    """Change the record of a run; "@" stands for a folder elsewhere."""

    def change(work: Path, elsewhere: Path) -> None:
        path = work / "run.json"
        record = json.loads(path.read_text())
        for name, value in fields.items():
            record[name] = str(value).replace("@", str(elsewhere))
        path.write_text(json.dumps(record))

    return change


def linked(pattern: str, target: str) -> Callable[[Path, Path], None]:
    """Put a link to something elsewhere in the place of what a run has left."""

    def change(work: Path, elsewhere: Path) -> None:
        (path,) = work.glob(pattern)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        path.symlink_to(elsewhere / target)

    return change


RESUMES: dict[str, Callable[[Path, Path], None]] = {
    "scratch elsewhere": renamed(scratch="@/connectivity"),
    "scratch above": renamed(scratch="@/../run-0"),
    "an id that climbs": renamed(id="x/../../../elsewhere"),
    "another folder": renamed(out_dir="@"),
    "another way": renamed(method="../x"),
    "a linked journal": linked("journal-*", "precious"),
    "a linked run folder": linked("run-????????", "connectivity"),
    "a linked run": linked("run-????????/*.run", "precious"),
    "a linked edge folder": linked("edges-*", "connectivity"),
    "a linked edge file": linked("edges-*/edges.src.bin", "edges.src.bin"),
    "a linked record": linked("run.json", "precious"),
    "a deep record": lambda work, _: (work / "run.json").write_text("[" * 200_000),
}


@pytest.mark.skipif(not supported(), reason="the kernel does not let us watch calls")
@pytest.mark.parametrize("name", RESUMES)
def test_a_run_that_means_harm_is_not_gone_on_with(tmp_path, made, elsewhere, name):
    out_dir = interrupted(tmp_path, made[1])
    RESUMES[name](out_dir / WORK_FOLDER, elsewhere)
    theirs = contents(elsewhere)
    outcome = run("export", made[1], out_dir, "--resume")
    assert outcome.exit_code == 0, outcome.stderr
    assert_exported(out_dir, NEW)
    assert not (out_dir / WORK_FOLDER).exists()
    assert contents(elsewhere) == theirs


@pytest.mark.skipif(not supported(), reason="the kernel does not let us watch calls")
def test_a_scratch_folder_that_is_a_link_is_refused(tmp_path, made, elsewhere):
    scratch = tmp_path / "scratch"
    out_dir = interrupted(tmp_path, made[1], "--scratch-dir", scratch)
    (ours,) = scratch.iterdir()
    shutil.rmtree(ours)
    ours.symlink_to(elsewhere)
    theirs = contents(elsewhere)
    for options in ([], ["--resume"]):
        outcome = run("export", made[1], out_dir, "--scratch-dir", scratch, *options)
        assert outcome.exit_code == 1
        assert "is a symbolic link" in outcome.stderr
        assert contents(elsewhere) == theirs
    ours.unlink()


@pytest.mark.parametrize(
    "edge", [(2**64 - 1, 5), (2**63, 2**63 + 1), (5, 2**64 - 1), (2**33, 2**33)]
)
def test_cells_are_compared_without_a_sign(tmp_path, edge):
    out_dir = plant(tmp_path / "out", [(0, 1)], 2**33)
    for side, cell in zip(("src", "dst"), edge, strict=True):
        (out_dir / f"connectivity/edges.{side}.bin").write_bytes(cell.to_bytes(8, "little"))
    (problem,) = verify_export(out_dir).problems
    assert f"edge 0 (byte 0) is ({edge[0]}, {edge[1]}) after" in problem
    with open_export(out_dir) as graph, pytest.raises(InvalidExportError, match="edge 0 is out of"):
        graph._count_degrees(np.zeros(8, np.int64))


@pytest.mark.parametrize("compression", [None, 6])
@pytest.mark.parametrize("n_cells", [2**31, 2**32 + 5, 2**40, 2**62, 2**63 - 1])
def test_nothing_is_made_as_large_as_a_claim(tmp_path, n_cells, compression):
    out_dir = plant(tmp_path / "out", [(0, 1), (0, 2)], 3, compression)
    pairs = [(0, 1), (0, 2)] if n_cells > 2**32 else []
    plant(out_dir, pairs, n_cells, compression)
    store = write_store(tmp_path / "s.zarr", NEW)
    for options in ({}, {"components": True}, {"source": store}):
        tracemalloc.start()
        try:
            report = verify_export(out_dir, memory_limit="4GB", threads=2, **options)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 60 * 2**20
        if "source" in options:
            (problem,) = report.problems  # and no edge was looked at
            assert f"n_cells is {n_cells}, but" in problem
            assert report.n_isolated is None
        else:
            assert report.ok
            assert report.n_isolated == n_cells - (3 if pairs else 0)
