"""Disks of every size from nothing to enough, and without room for another file.

Whatever the size, it is the right export, or one message with path, needed and free, the earlier
export whole and nothing left behind.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import export_connectivities
from cellgraph_dask.export import run as export_run
from cellgraph_dask.verify.element import verify_element
from tests.helpers.command import run
from tests.helpers.disks import Disks
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.oracle import Export, oracle_edges, read_export

N_CELLS = 3000
STEP = 12 * 1024
PAGE = 4096  # what a tmpfs of "no" bytes is rounded up to would be no limit at all
TOLD = r"the disk of \S+ is full: [\d.]+ \w+ are free, but [\d.]+ \w+ or more are needed \(\S+\)"
FORESEEN = (
    r"the (scratch|output) disk has [\d.]+ \w+ free, but (at least )?[\d.]+ \w+ (may be|are) "
    r"needed in \S+\."
)
NO_FILES = (
    r"the disk of \S+ is full: [\d.]+ \w+ are free, and room for \d+ more files \(inodes\), but "
    r"another file is needed \(\S+\)"
)


class World(NamedTuple):
    """A store, the edges that are right, and an earlier export."""

    kind: str
    source: Path
    edges: tuple[np.ndarray, np.ndarray]
    earlier: Path


def graph(kind: str) -> sparse.csr_matrix:
    rng = np.random.default_rng(5)
    if kind == "symmetric":
        return symmetric_graph(N_CELLS, 6, seed=5)
    matrix = directed_graph(N_CELLS, 9, seed=5)
    matrix.data[:] = rng.random(matrix.nnz)
    return matrix


@pytest.fixture(scope="module", params=["directed", "symmetric"])
def world(request, tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    matrix = graph(request.param)
    source = write_store(folder / "s.zarr", matrix, chunk=20_000)
    old = write_store(folder / "old.zarr", symmetric_graph(N_CELLS, 1, seed=1))
    earlier = folder / "earlier"
    export_connectivities(old, earlier, memory_limit="4GB")
    identity = {"stats": {"n_cells": N_CELLS, "n_edges": 7, "has_connectivity": False}}
    (earlier / "dataset_identity.json").write_text(json.dumps(identity))
    return World(request.param, source, oracle_edges(matrix), earlier)


def assert_right(out_dir: Path, world: World) -> None:
    found: Export = read_export(out_dir)
    assert np.array_equal([found.src, found.dst], world.edges)
    n_edges = json.loads((out_dir / "dataset_identity.json").read_text())["stats"]["n_edges"]
    assert n_edges == found.src.size == found.manifest["n_edges"]
    assert {p.name for p in out_dir.iterdir()} == {p.name for p in world.earlier.iterdir()}


def assert_refused(outcome: Any, folders: list[Path]) -> None:
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr.count("Error: ") == 1
    assert "Traceback" not in outcome.stderr
    message = outcome.stderr
    assert re.search(f"{TOLD}|{FORESEEN}|{NO_FILES}", message), message
    assert any(str(folder) in message for folder in folders), message


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, 6], ids=["plain", "gzip"])
@pytest.mark.parametrize("small", ["output", "scratch"])
@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "filled meanwhile"])
def test_every_size(tmp_path, monkeypatch, world, compression, small, foreseen):
    if not foreseen:  # as if others had filled the disk after it was looked at
        monkeypatch.setattr(export_run, "check_disk", lambda *_: None)
    options = [] if compression is None else ["--compression", compression]
    refused = 0
    for step in count():
        with Disks(tmp_path) as disks:
            disk = disks.mount("disk", f"size={max(PAGE, step * STEP)}")
            out_dir = (disk if small == "output" else tmp_path) / "out"
            scratch = (disk if small == "scratch" else tmp_path) / "scratch"
            shutil.rmtree(out_dir, ignore_errors=True)
            try:
                shutil.copytree(world.earlier, out_dir)
            except (shutil.Error, OSError):  # not even that has room
                shutil.rmtree(out_dir, ignore_errors=True)
            before, elsewhere = snapshot(disk), snapshot(tmp_path)
            outcome = run(
                "export", world.source, out_dir, "--force", "--scratch-dir", scratch, *options
            )
            if outcome.exit_code == 0:
                if not before and small == "output":
                    continue  # it fits without the earlier export, which it did not replace
                assert_right(out_dir, world)
                assert list(disk.iterdir()) == ([out_dir] if small == "output" else [])
                assert not scratch.exists()
                break
            assert_refused(outcome, [disk, out_dir, scratch])
            assert snapshot(disk) == before
            assert snapshot(tmp_path) == elsewhere
            refused += 1
    # A symmetric graph needs no scratch.
    assert (refused > 3) == (small == "output" or world.kind == "directed")


@pytest.mark.parametrize("compression", [None, 6], ids=["plain", "gzip"])
@pytest.mark.parametrize("small", ["output", "scratch"])
def test_every_number_of_files(tmp_path, world, compression, small):
    options = [] if compression is None else ["--compression", compression]
    refused = 0
    for files in count(2):
        with Disks(tmp_path) as disks:
            disk = disks.mount("disk", f"size=32m,nr_inodes={files}")
            out_dir = (disk if small == "output" else tmp_path) / "out"
            scratch = (disk if small == "scratch" else tmp_path) / "scratch"
            shutil.rmtree(out_dir, ignore_errors=True)
            try:
                shutil.copytree(world.earlier, out_dir)
            except (shutil.Error, OSError):
                shutil.rmtree(out_dir, ignore_errors=True)
                continue
            before, elsewhere = snapshot(disk), snapshot(tmp_path)
            outcome = run(
                "export", world.source, out_dir, "--force", "--scratch-dir", scratch, *options
            )
            if outcome.exit_code == 0:
                assert_right(out_dir, world)
                break
            assert_refused(outcome, [disk, out_dir, scratch])
            assert re.search(NO_FILES, outcome.stderr), outcome.stderr
            assert snapshot(disk) == before
            assert snapshot(tmp_path) == elsewhere
            refused += 1
    assert refused


THINNING = ["--rule", "mean", "--top-k", "4", "--max-edges", "9000"]


class Command(NamedTuple):
    """A command on a world, and which disk is small."""

    words: list[Any]
    small: str
    step: int  # bytes


EXPORT = ["export", "{source}", "{output}", "--force", *THINNING]
SYMMETRIZE = ["symmetrize", "{source}", "{output}", *THINNING]
COMMANDS = {
    "thinned": Command(EXPORT, "output", PAGE),
    "thinned, scratch": Command(EXPORT, "scratch", 4 * STEP),
    "symmetrize": Command(SYMMETRIZE, "output", STEP),
    "symmetrize, scratch": Command(SYMMETRIZE, "scratch", 4 * STEP),
    "inside": Command(
        ["symmetrize", "{copy}", "{copy}", "--to-key", "thin", *THINNING], "output", STEP
    ),
    "verify": Command(["verify", "{thinned}", "--source", "{source}"], "scratch", 4 * STEP),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_thinned_graphs_and_elements(tmp_path, monkeypatch, world, name):
    if world.kind == "symmetric":
        pytest.skip("takes no rule, so less room")
    monkeypatch.setattr(export_run, "check_disk", lambda *_: None)  # they fill up meanwhile
    command = COMMANDS[name]
    thinned = tmp_path / "thinned"
    export_connectivities(world.source, thinned, rule="mean", top_k=4, max_edges=9000)
    refused = 0
    for step in count(1):
        with Disks(tmp_path) as disks:
            disk = disks.mount("disk", f"size={step * command.step}")
            place = {small: disk if command.small == small else tmp_path
                     for small in ("output", "scratch")}  # fmt: skip
            output, scratch = place["output"] / "out", place["scratch"] / "scratch"
            shutil.rmtree(output, ignore_errors=True)
            copy = place["output"] / "copy.zarr"
            if name == "inside":
                try:
                    shutil.copytree(world.source, copy, dirs_exist_ok=True)
                except (shutil.Error, OSError):
                    continue
            before, elsewhere = snapshot(disk), snapshot(tmp_path)
            paths = {"source": world.source, "output": output, "copy": copy, "thinned": thinned}
            words = [str(word).format(**paths) for word in command.words]
            outcome = run(*words, "--scratch-dir", scratch, "--memory-limit", "4GB")
            if outcome.exit_code == 0:
                made = {"inside": copy, "verify": thinned}.get(name, output)
                if name.startswith("thinned"):
                    assert snapshot(made) == snapshot(thinned)
                elif name != "verify":
                    key = "thin" if name == "inside" else "connectivities"
                    report = verify_element(
                        made, to_key=key, source=world.source, rule="mean", top_k=4, max_edges=9000
                    )
                    assert report.ok, report.problems
                assert not scratch.exists() or not list(scratch.iterdir())
                break
            assert_refused(outcome, [disk, output, scratch])
            assert snapshot(disk) == before
            assert snapshot(tmp_path) == elsewhere
            refused += 1
    assert refused > 2
