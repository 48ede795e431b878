"""Publishing: all or nothing, one run at a time, no stale twin, and the dataset's identity."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.output import open_output
from tests.helpers.command import run, run_process
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.oracle import assert_exported, oracle_edges, read_export

OLD, NEW = symmetric_graph(40, 3, seed=1), directed_graph(40, 5)
PLAIN, GZIP = None, 6
IDENTITY = {
    "version": 2,
    "id": "pbmc",
    "name": "Zellen · 細胞",
    "stats": {"n_cells": 40, "n_genes": 7, "has_connectivity": False, "n_edges": None},
    "embeddings": {"available_dimensions": [2], "files": {"2d": "points_2d.bin"}},
    "obs_fields": [],
}

# Publishes the edge files of another export: what an export does at its end, and nothing else.
PUBLISH = """
import shutil, sys
from pathlib import Path
from cellgraph_dask.edge_pairs.format import read_manifest
from cellgraph_dask.errors import CellgraphError
from cellgraph_dask.publish.output import open_output
made, out_dir = map(Path, sys.argv[1:])
manifest = read_manifest(made)
try:
    with open_output(out_dir, force=True) as output:
        for name in manifest.files:
            shutil.copyfile(made / 'connectivity' / name, output.work / name)
        output.publish(manifest)
except CellgraphError:
    sys.exit(9)
"""
REFUSED = 9
HOLD = """
import sys
from pathlib import Path
from cellgraph_dask.publish.output import open_output
with open_output(Path(sys.argv[1]), force=True):
    print("held", flush=True)
    sys.stdin.readline()
"""
# Two inside at once would find the other's folder there, or their own gone.
TAKE_TURNS = """
import sys
from pathlib import Path
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.output import open_output
out_dir, turns = Path(sys.argv[1]), 0
inside = out_dir.with_name("inside")
while turns < 150:
    try:
        with open_output(out_dir, force=True):
            inside.mkdir()
            inside.rmdir()
            turns += 1
    except OutputError as error:
        assert "running" in str(error) or "come and go" in str(error), error
"""

RENAMES = "?rename,?renameat,?renameat2,?link,?linkat"
STEPS = f"{RENAMES},?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,fsync,ftruncate,flock"
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None and "CI" not in os.environ, reason="strace is not installed"
)


def python(script: str, *arguments: object, before: list[str] | None = None) -> int:
    """Run a script in a process of its own and return its exit code."""
    command = [*(before or []), sys.executable, "-B", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def strace(call: str, action: str, when: int) -> list[str]:
    """Return the start of a command whose `when`-th such call meets `action`."""
    return [
        "strace", "-f", "-qqq", "-o", "/dev/null", "-e", "signal=none", "-e", f"trace={call}",
        "-e", f"inject={call}:{action}:when={when}",
    ]  # fmt: skip


def steps(calls: str, made: Path, out_dir: Path) -> list[tuple[str, int]]:
    """Publish once; return the system calls it made in order, each with its number of that name."""
    log = out_dir.with_name("calls")
    start = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qqq",
        "-o",
        str(log),
        "-e",
        "signal=none",
        "-e",
        f"trace={calls}",
    ]
    assert python(PUBLISH, made, out_dir, before=start) == 0
    made_before: Counter[str] = Counter()
    found = []
    for call in re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE):
        made_before[call] += 1
        found.append((call, made_before[call]))
    return found


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Return exports of both graphs, plain and gzip."""
    folder = tmp_path_factory.mktemp("exports")
    paths = {}
    for name, matrix in (("old", OLD), ("new", NEW)):
        source = write_store(folder / f"{name}.zarr", matrix)
        for compression in (PLAIN, GZIP):
            path = paths[name, compression] = folder / f"{name}-{compression}"
            export_connectivities(source, path, compression=compression)
    return paths


def names(out_dir: Path) -> list[str]:
    return [name for name in snapshot(out_dir) if name != "connectivity"]


def whole(compression: int | None, *others: str) -> list[str]:
    """Return the names of the files of a whole export and nothing else."""
    end = "" if compression is None else ".gz"
    files = ["connectivity_manifest.json", *(f"connectivity/edges.{s}.bin{end}" for s in
             ("dst", "src"))]  # fmt: skip
    return sorted([*files, *others])


def graph_in(out_dir: Path) -> str:
    """Return which graph a viewer finds, or "nothing", failing if it is a mixture."""
    if not (out_dir / "connectivity_manifest.json").exists():
        return "nothing"
    manifest, src, dst = read_export(out_dir)
    for name, matrix in (("old", OLD), ("new", NEW)):
        expected = oracle_edges(matrix)
        if manifest["n_edges"] == expected[0].size:
            assert np.array_equal([src, dst], expected)
            return name
    raise AssertionError(f"an export of {manifest['n_edges']} edges is neither graph")


def test_plain_and_gzip_replace_each_other(tmp_path):
    sources = [write_store(tmp_path / f"{k}.zarr", matrix) for k, matrix in enumerate((OLD, NEW))]
    out_dir = tmp_path / "out"
    for compression, k in [(PLAIN, 0), (GZIP, 1), (9, 0), (1, 1), (PLAIN, 0), (PLAIN, 1)]:
        export_connectivities(sources[k], out_dir, compression=compression, force=True)
        assert names(out_dir) == whole(compression)
        assert_exported(out_dir, (OLD, NEW)[k])
        assert read_export(out_dir).manifest["compression"] == compression


@pytest.fixture
def threatened(tmp_path, exports):
    """Return a function that makes a folder with an earlier export (or none) and an identity."""

    def make(before: int | str | None) -> Path:
        out_dir = tmp_path / "out"
        shutil.rmtree(out_dir, ignore_errors=True)
        if before == "nothing":
            out_dir.mkdir()
        else:
            shutil.copytree(exports["old", before], out_dir)
        (out_dir / "dataset_identity.json").write_text(json.dumps(IDENTITY))
        return out_dir

    return make


@needs_strace
@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, PLAIN), (PLAIN, GZIP), (GZIP, GZIP), ("nothing", PLAIN)],
)
def test_killed_at_every_step(exports, threatened, before, after):
    made, source = exports["new", after], exports["new", PLAIN].parent / "new.zarr"
    old = "nothing" if before == "nothing" else "old"
    found = []
    for call, when in steps(STEPS, made, threatened(before)):
        out_dir = threatened(before)
        assert python(PUBLISH, made, out_dir, before=strace(call, "signal=KILL", when)) == -9
        assert (out_dir / "connectivity_manifest.json").exists() or before == "nothing"
        found.append(graph_in(out_dir))
        n_edges = json.loads((out_dir / "dataset_identity.json").read_text())["stats"]["n_edges"]
        assert n_edges in (None, oracle_edges(NEW)[0].size)

        options = [] if after is None else ["--compression", after]
        outcome = run("export", source, out_dir, "--force", *options)
        assert outcome.exit_code == 0, outcome.stderr
        assert graph_in(out_dir) == "new"
        assert names(out_dir) == whole(after, "dataset_identity.json")
        assert verify_export(out_dir).ok
    # It was killed before and after the one step that counts.
    switch = found.index("new")
    assert 8 < switch < len(found) - 3
    assert set(found[:switch]) == {old}
    assert set(found[switch:]) == {"new"}


@needs_strace
@pytest.mark.parametrize(("before", "after"), [(PLAIN, PLAIN), (GZIP, PLAIN)])
def test_a_disk_that_fails_at_any_step(exports, threatened, before, after):
    made = exports["new", after]
    found = []
    for call, when in steps(f"{RENAMES},fsync,ftruncate", made, threatened(before)):
        out_dir = threatened(before)
        start = strace(call, "error=EIO", when)
        assert python(PUBLISH, made, out_dir, before=start) == (
            0 if call.startswith("link") else REFUSED
        )
        found.append(graph_in(out_dir))
        if found[-1] == "old":
            assert names(out_dir) == whole(before, "dataset_identity.json")
        else:
            assert len(names(out_dir)) == len(whole(after)) + 1
    switch = found.index("new")
    assert switch > 5
    assert set(found[:switch]) == {"old"}
    assert set(found[switch:]) == {"new"}


@needs_strace
@pytest.mark.usefixtures("leaves_scratch")
def test_a_killed_export_leaves_the_old_one_and_the_next_clears_up(tmp_path, exports):
    out_dir = tmp_path / "out"
    shutil.copytree(exports["old", PLAIN], out_dir)
    before = snapshot(out_dir)
    source = exports["new", PLAIN].parent / "new.zarr"
    # The first name that the main thread puts into the edge folder.
    start = ["strace", "-f", "-qqq", "-o", "/dev/null", "-P", str(out_dir / "connectivity"),
             "-e", "inject=fsync:signal=KILL:when=1"]  # fmt: skip
    outcome = run_process("export", source, out_dir, "--force", before=start)
    assert outcome.exit_code == -9
    left = snapshot(out_dir)
    assert (out_dir / ".cellgraph-dask").is_dir()
    assert {name: left[name] for name in before} == before
    assert graph_in(out_dir) == "old"

    assert run("export", source, out_dir, "--force").exit_code == 0
    assert names(out_dir) == whole(PLAIN)
    assert graph_in(out_dir) == "new"


@contextmanager
def holder(out_dir: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_second_export_into_the_same_folder_is_refused(tmp_path, exports):
    source = exports["new", PLAIN].parent / "new.zarr"
    out_dir = tmp_path / "out"
    shutil.copytree(exports["old", PLAIN], out_dir)
    with holder(out_dir) as process:
        before = snapshot(out_dir)
        outcome = run("export", source, out_dir, "--force")
        assert outcome.exit_code == 1
        assert "Traceback" not in outcome.stderr
        assert f"is running (process {process.pid} on {os.uname().nodename})" in outcome.stderr
        assert snapshot(out_dir) == before
    assert names(out_dir) == whole(PLAIN)
    assert run("export", source, out_dir, "--force").exit_code == 0
    assert graph_in(out_dir) == "new"


def test_a_killed_holder_holds_nothing(tmp_path, exports):
    source = exports["new", PLAIN].parent / "new.zarr"
    out_dir = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        process.kill()
    assert (out_dir / ".cellgraph-dask/lock").exists()
    assert run("export", source, out_dir).exit_code == 0
    assert names(out_dir) == whole(PLAIN)


def test_one_holder_at_a_time(tmp_path):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    command = [sys.executable, "-c", TAKE_TURNS, str(out_dir)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert errors == ["", "", ""]
    assert snapshot(out_dir) == {}


@pytest.mark.parametrize("compression", [PLAIN, GZIP])
def test_identity_is_updated_and_the_rest_of_it_kept(tmp_path, compression):
    source = write_store(tmp_path / "s.zarr", NEW)
    path = tmp_path / "out/dataset_identity.json"
    path.parent.mkdir()
    path.write_text(json.dumps(IDENTITY, indent=2))
    path.chmod(0o640)
    report = export_connectivities(source, path.parent, compression=compression)
    after = json.loads(path.read_text())
    stats = {"n_cells": 40, "n_genes": 7, "has_connectivity": True, "n_edges": report.n_edges}
    assert after == IDENTITY | {"stats": stats}
    assert list(after) == list(IDENTITY)
    assert list(after["stats"]) == list(stats)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert verify_export(path.parent).ok


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
def test_identity_that_does_not_fit_is_refused(tmp_path, text, message):
    source = write_store(tmp_path / "s.zarr", NEW)
    path = tmp_path / "out/dataset_identity.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    before = snapshot(tmp_path)
    outcome = run("export", source, path.parent)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert snapshot(tmp_path) == before


def test_no_identity_is_made(tmp_path):
    source = write_store(tmp_path / "s.zarr", NEW)
    export_connectivities(source, tmp_path / "out")
    assert names(tmp_path / "out") == whole(PLAIN)


def test_other_files_in_the_folder_stay(tmp_path):
    source = write_store(tmp_path / "s.zarr", NEW)
    out_dir = tmp_path / "out"
    (out_dir / "connectivity").mkdir(parents=True)
    others = ["connectivity/edges.txt", "connectivity/edges.src.bin.bak", "points_2d.bin"]
    for name in others:
        (out_dir / name).write_text(name)
    export_connectivities(source, out_dir)
    assert names(out_dir) == whole(PLAIN, *others)


def test_output_cleans_up_after_an_exception(tmp_path):
    def fail() -> None:
        with open_output(tmp_path / "deep/out", force=False) as output:
            (output.work / "runs").mkdir()
            (output.work / "runs/a").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert snapshot(tmp_path) == {}


def test_output_twice_in_one_process(tmp_path):
    with (
        open_output(tmp_path / "out", force=False),
        pytest.raises(OutputError, match=f"process {os.getpid()}"),
        open_output(tmp_path / "out", force=False),
    ):
        pass
    assert snapshot(tmp_path) == {}
