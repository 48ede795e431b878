"""Whole exports in which the n-th system call fails or is the last: the old export or the new one.

Every call on a path of the store, the output or the scratch counts, on all threads, in their order.
CI tries some of them in each way, others try fewer; with ``CELLGRAPH_EVERY_POINT=1`` in the
environment all are tried in every way.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cellgraph_dask import export_connectivities, verify_export
from tests.helpers.effort import PART
from tests.helpers.fault_server import (
    READS,
    TAKES_SPACE,
    Call,
    FaultServer,
    Run,
    needs_watching,
)
from tests.helpers.power_loss import Disk, File, State
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store

EVERY_POINT = os.environ.get("CELLGRAPH_EVERY_POINT") == "1"
N_CELLS = 40
GRAPHS = {"directed": directed_graph(N_CELLS), "symmetric": symmetric_graph(N_CELLS, 4, seed=2)}
OLD = symmetric_graph(N_CELLS, 3, seed=1)
MANIFEST, IDENTITY = "connectivity_manifest.json", "dataset_identity.json"

# What makes, changes or shows files; and opening them, which also reads them.
CHANGES = (
    "open", "openat", "creat", "write", "pwrite64", "pwritev", "sendfile", "copy_file_range",
    "fsync", "fdatasync", "truncate", "ftruncate", "fallocate", "rename", "renameat", "renameat2",
    "link", "linkat", "symlink", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "chmod",
    "fchmod", "fchmodat",
)  # fmt: skip
REMOVES = {"unlink", "unlinkat", "rmdir"}

pytestmark = [pytest.mark.slow, needs_watching]


class Case(NamedTuple):
    """What is exported, how, and over what."""

    graph: str
    compression: int | None
    before: int | str | None
    scratch: bool = False
    more: tuple[object, ...] = ()
    every: int = 1  # of so many calls that fail for other cases, one fails

    @property
    def options(self) -> list[object]:
        compression = [] if self.compression is None else ["--compression", self.compression]
        return [*compression, *self.more]


CASES = {
    "directed": Case("directed", None, None),
    "directed gzip, scratch": Case("directed", 6, 6, scratch=True),
    "symmetric for gzip": Case("symmetric", None, 6),
    "symmetric gzip": Case("symmetric", 6, 6),
    "first": Case("directed", None, "nothing"),
    "thinned": Case(
        "directed", None, None, more=("--rule", "max", "--top-k", 2, "--max-edges", 50), every=4
    ),
}


class World:
    """A folder with a store and an output folder that is put back before each run."""

    def __init__(self, root: Path, case: Case) -> None:
        self.root, self.case = root, case
        self.source = write_store(root / "s.zarr", GRAPHS[case.graph], chunk=100)
        self.out_dir = root / "out"
        old = write_store(root / "old.zarr", OLD)
        if case.before == "nothing":
            self.out_dir.mkdir()
        else:
            export_connectivities(old, self.out_dir, compression=case.before)
        # What a dataset's identity says of the old export, and must say of the new one.
        n_edges = None if case.before == "nothing" else self.manifest["n_edges"]
        stats = {"n_cells": N_CELLS, "has_connectivity": n_edges is not None, "n_edges": n_edges}
        identity = {"version": 2, "name": "細胞", "stats": stats}
        (self.out_dir / IDENTITY).write_text(json.dumps(identity))
        self.before = snapshot(self.out_dir)
        shutil.rmtree(old)
        self.old = self.shown()
        self.new: Any = None

    @property
    def manifest(self) -> Any:
        return json.loads((self.out_dir / MANIFEST).read_text())

    @property
    def arguments(self) -> list[object]:
        where = ["--scratch-dir", self.root / "scratch"] if self.case.scratch else []
        return ["export", self.source, self.out_dir, "--force", *self.case.options, *where]

    def shown(self) -> Any:
        """Return what a reader finds by following the manifest, bytes and all; None for nothing."""
        if not (self.out_dir / MANIFEST).exists():
            return None
        paths = ("sourcesPath", "destinationsPath")
        manifest = self.manifest
        files = [(self.out_dir / manifest.pop(name)).read_bytes() for name in paths]
        return manifest, files

    def restore(self) -> None:
        """Put everything back as it was."""
        shutil.rmtree(self.root / "scratch", ignore_errors=True)
        shutil.rmtree(self.out_dir, ignore_errors=True)
        self.out_dir.mkdir()
        for name, content in self.before.items():
            if content is None:
                (self.out_dir / name).mkdir()
            else:
                (self.out_dir / name).write_bytes(content)

    def state(self) -> str:
        """Return "old" or "new", failing for a mixture of any kind."""
        shown = self.shown()
        assert shown in (self.old, self.new), "neither export is whole"
        name = "old" if shown == self.old else "new"
        stats = json.loads((self.out_dir / IDENTITY).read_text())["stats"]
        assert stats["n_cells"] == N_CELLS
        # The identity never names the edges of the other graph; it may say nothing for a moment.
        n_edges = None if shown is None else shown[0]["n_edges"]
        assert stats["n_edges"] in (n_edges, None)
        return name

    def left(self) -> list[str]:
        """Return temporary files, here or in the scratch folder."""
        names = snapshot(self.root)
        return [n for n in names if "cellgraph-dask" in n or n.startswith("scratch")]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def world(request, tmp_path_factory, server) -> tuple[World, list[Call]]:
    """Return a world and the calls of an undisturbed export in it."""
    here = World(tmp_path_factory.mktemp("world"), request.param)
    run = server.run(*here.arguments, root=here.root)
    assert run.exit_code == 0, run.stderr
    here.new = here.shown()
    assert here.new != here.old
    assert here.left() == []
    assert verify_export(here.out_dir).ok
    return here, run.calls


def points(world: World, calls: list[Call], every: int = 1, first: int = 0) -> list[int]:
    """Return which calls are to fail: all, or some; of those that only read the store, few."""
    every *= world.case.every
    counted = [call for call in calls if call.name in CHANGES]
    assert len(counted) > 40
    if EVERY_POINT:
        return list(range(1, len(counted) + 1))
    places: dict[str, list[int]] = {"store": [], "work": [], "shown": []}
    for n, call in enumerate(counted, 1):
        if call.path.startswith(str(world.source)):
            places["store"].append(n)
        else:
            # From the first that readers could see on, none is left out.
            begun = places["shown"] or call.path == str(world.out_dir / "connectivity")
            places["shown" if begun else "work"].append(n)
    return sorted(
        places["store"][first :: 12 * every * PART]
        + places["work"][first :: 3 * every * PART]
        + places["shown"][first :: every * max(1, PART // 2)]
    )


def check_failed(world: World, run: Run) -> str:
    """Check a run that met an error, and return which export is there."""
    assert run.exit_code in (0, 1), run.stderr
    assert "Traceback" not in run.stderr
    state = world.state()
    if run.exit_code == 0:
        assert state == "new"
    else:
        assert run.stderr.startswith("Error: "), run.stderr
    if not any(call.name in REMOVES or Path(call.path).is_dir() for call in run.hit):
        assert world.left() == []
        if state == "old" and run.exit_code:
            assert snapshot(world.out_dir) == world.before
    return state


def check_rerun(server: FaultServer, world: World, *, resume: bool = False) -> None:
    """Export again, undisturbed, from the beginning or with what there is."""
    how = ["--resume"] if resume else []
    run = server.run(*world.arguments, *how, root=world.root)
    assert run.exit_code == 0, run.stderr
    assert world.state() == "new"
    identity = json.loads((world.out_dir / IDENTITY).read_text())
    assert identity["stats"]["n_edges"] == world.manifest["n_edges"]
    assert identity["stats"]["has_connectivity"] is True
    # A folder that the dead run has made for --scratch-dir may stay, but nothing is in it.
    assert world.left() in ([], ["scratch"])
    files = {n for n, content in snapshot(world.out_dir).items() if content is not None}
    assert files == {
        MANIFEST, IDENTITY, "connectivity/provenance.json",
        world.manifest["sourcesPath"], world.manifest["destinationsPath"],
    }  # fmt: skip


def test_killed_at_any_call(server, world):
    here, calls = world
    states = []
    for n in points(here, calls):
        here.restore()
        run = server.run(*here.arguments, root=here.root, names=CHANGES, n=n, action="KILL")
        assert run.exit_code == -9, (n, run.stderr)
        states.append(here.state())
        resume = n % 2 == 0
        check_rerun(server, here, resume=resume)
        if EVERY_POINT:  # and the other way to go on
            here.restore()
            server.run(*here.arguments, root=here.root, names=CHANGES, n=n, action="KILL")
            check_rerun(server, here, resume=not resume)
    # One call turns the old export into the new one.
    switch = states.index("new")
    assert switch * here.case.every * PART > 10
    assert switch < len(states)
    assert states == ["old"] * switch + ["new"] * (len(states) - switch)


@pytest.mark.parametrize("action", ["SIGTERM", "SIGINT SIGTERM"])
def test_signals_at_any_call(server, world, action):
    """Once the export is shown it has succeeded; before, nothing is left but what is resumed.

    Of two signals at once, the second may be met first, as another thread may get it.
    """
    here, calls = world
    states = []
    for n in points(here, calls, every=3, first=" " not in action):
        here.restore()
        run = server.run(*here.arguments, root=here.root, names=CHANGES, n=n, action=action)
        assert "Traceback" not in run.stderr
        states.append(here.state())
        if states[-1] == "old":
            assert run.exit_code in {128 + getattr(signal, name) for name in action.split()}
            assert run.stderr.startswith("Interrupted. ")
            assert ("--resume" in run.stderr) == bool(here.left())
            if here.left():
                check_rerun(server, here, resume=True)
            else:
                assert snapshot(here.out_dir) == here.before
        else:
            assert run.exit_code == 0, run.stderr
            assert "Interrupted" not in run.stderr
            assert "--resume" not in run.stderr
            if "only tidying up" not in run.stderr:  # it came after all that
                assert n > len(calls) - 5
            assert here.left() == [] or " " in action
            check_rerun(server, here)
    assert set(states) == {"old", "new"}


@pytest.mark.parametrize(("action", "first"), [("EIO", 0), ("ENOSPC", 1)])
def test_any_call_fails(server, world, action, first):
    here, calls = world
    states = set()
    for n in points(here, calls, every=2, first=first):
        here.restore()
        run = server.run(*here.arguments, root=here.root, names=CHANGES, n=n, action=action)
        assert len(run.hit) == 1
        states.add(check_failed(here, run))
        if EVERY_POINT or n % 3 == 0:
            check_rerun(server, here, resume=n % 2 == 0)
    assert states == {"old", "new"}


def test_the_disk_is_full_from_any_call_on(server, world):
    here, calls = world
    takers = [call for call in calls if call.name in TAKES_SPACE]
    for n in range(1, len(takers) + 1, 1 if EVERY_POINT else 4 * here.case.every * PART):
        here.restore()
        run = server.run(
            *here.arguments, root=here.root, names=TAKES_SPACE, n=n, action="ENOSPC", on=True
        )
        assert run.hit
        check_failed(here, run)
        if run.exit_code:
            assert "is full" in run.stderr
        check_rerun(server, here)


def durable(state: State, world: World) -> str:
    """Return which export a reader finds on a disk that lost its power, failing for a mixture."""

    def content(name: str) -> bytes:
        file = state[str(world.out_dir / name)]
        assert isinstance(file, File)
        assert file.safe, f"{name} may have lost bytes"
        return file.content

    shown = None
    if str(world.out_dir / MANIFEST) in state:
        manifest = json.loads(content(MANIFEST))
        files = [content(manifest.pop(name)) for name in ("sourcesPath", "destinationsPath")]
        shown = manifest, files
    assert shown in (world.old, world.new)
    if str(world.out_dir / IDENTITY) in state:
        stats = json.loads(content(IDENTITY))["stats"]
        assert stats["n_edges"] in (None if shown is None else shown[0]["n_edges"], None)
    return "old" if shown == world.old else "new"


def test_the_power_fails_between_any_two_calls(server, world):
    here, _ = world
    here.restore()
    check_power_loss(server, here)
    if here.case.before == "nothing":  # and into folders that are not there either
        deeper = copy.copy(here)
        deeper.out_dir = here.root / "a/b/out"
        check_power_loss(server, deeper)
        shutil.rmtree(here.root / "a")


def check_power_loss(server: FaultServer, here: World) -> None:
    """Export, and look at what a power loss after each call may leave."""
    disk = Disk(here.root)
    run = server.run(*here.arguments, root=here.root)
    assert run.exit_code == 0

    def concerns(path: str) -> bool:
        return ".cellgraph-dask" not in path and not path.startswith(str(here.root / "scratch"))

    order: list[str] = []
    for k, call in enumerate(run.calls):
        disk.apply(call)
        try:
            found = {durable(state, here) for state in disk.states(concerns)}
        except (AssertionError, KeyError) as error:
            before = "\n".join(f"{c.name} {c.path} {c.other}" for c in run.calls[: k + 1][-40:])
            raise AssertionError(f"a mixture, or less, after\n{before}") from error
        order.append("or".join(sorted(found)))
    # Old, then one or the other, then new for good before the command says so.
    assert list(dict.fromkeys(order)) == ["old", "neworold", "new"]
    assert order == sorted(order, key=["old", "neworold", "new"].index)


def test_any_read_fails(server, world):
    here, _ = world
    here.restore()
    run = server.run(*here.arguments, root=here.root, names=READS)
    n_reads = sum(call.name in READS for call in run.calls)
    assert n_reads > 7
    for n in range(1, n_reads + 1, 1 if EVERY_POINT else 2 * here.case.every * PART):
        here.restore()
        run = server.run(*here.arguments, root=here.root, names=READS, n=n, action="EIO")
        assert len(run.hit) == 1
        check_failed(here, run)
