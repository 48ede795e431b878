"""The command line: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import zarr
from scipy.sparse import csr_matrix

from cellgraph_dask import demo
from cellgraph_dask._version import __version__
from tests.helpers.command import run, run_process
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.oracle import assert_exported, oracle_edges, oracle_max_neighbors, read_export

GRAPH = symmetric_graph()
COMMANDS = ["plan", "export", "verify", "inspect", "demo"]
PLAN_FIELDS = {
    "source", "key", "n_cells", "n_entries", "n_blocks", "n_partitions", "threads", "index_dtype",
    "compression", "memory_limit_bytes", "reserved_memory_bytes", "projected_memory_bytes",
    "scratch_bytes", "scratch_free_bytes", "output_bytes", "output_free_bytes", "warnings",
}  # fmt: skip
REPORT_FIELDS = {
    "out_dir", "n_cells", "n_edges", "max_neighbors", "index_dtype", "compression", "symmetric",
    "threads", "seconds", "memory_limit_bytes", "projected_memory_bytes", "peak_memory_bytes",
    "scratch_bytes", "output_bytes",
}  # fmt: skip
VERIFY_FIELDS = {"ok", "problems", "n_cells", "n_edges", "max_neighbors"}


@pytest.fixture
def source(tmp_path):
    return write_store(tmp_path / "s.zarr", GRAPH)


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(arguments, flag):
    outcome = run(*arguments, flag)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert outcome.stdout.startswith("Usage: ")
    if not arguments:
        assert all(re.search(rf"^  {name} ", outcome.stdout, re.M) for name in COMMANDS)


def test_help_names_every_option():
    text = run("export", "--help").stdout
    options = ("--key", "--compression", "--memory-limit", "--threads", "--scratch-dir",
               "--keep-scratch", "--force", "--resume", "--json", "--progress")  # fmt: skip
    assert all(option in text for option in options)
    assert "512MB" in text


def test_a_command_seldom_looks_for_garbage(source):
    script = (
        "import gc, os, sys\n"
        "found, leave = [], os._exit\n"
        "gc.callbacks.append(lambda phase, _: found.append(phase))\n"
        "os._exit = lambda code: (print(found.count('start'), file=sys.stderr), leave(code))\n"
        "from cellgraph_dask.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "plan", str(source), "--json"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(outcome.stdout)["n_cells"] == GRAPH.shape[0]
    assert int(outcome.stderr.split()[-1]) < 20  # 80 while zarr is imported, by default


def test_version():
    assert run("--version").stdout == f"cellgraph-dask, version {__version__}\n"


def test_the_installed_command_and_the_module(tmp_path, source):
    outcome = run_process("export", source, tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    n_edges = oracle_edges(GRAPH)[0].size
    end_line = rf"{n_edges} edges of 40 cells in [\d.]+ s, peak memory [\d.]+ [MG]B: .*/out\n"
    assert re.fullmatch(end_line, outcome.stdout)
    assert_exported(tmp_path / "out", GRAPH)


def test_export_as_json(tmp_path, source):
    outcome = run("export", source, tmp_path / "out", "--json", "--compression", 6)
    assert outcome.stderr == ""
    report = json.loads(outcome.stdout)
    assert set(report) >= REPORT_FIELDS
    expected = {
        "out_dir": str(tmp_path / "out"),
        "n_cells": 40,
        "n_edges": oracle_edges(GRAPH)[0].size,
        "max_neighbors": oracle_max_neighbors(GRAPH),
        "index_dtype": "uint16",
        "compression": 6,
    }
    assert report | expected == report
    files = [p for p in (tmp_path / "out/connectivity").iterdir() if p.suffix == ".gz"]
    assert report["output_bytes"] == sum(path.stat().st_size for path in files)
    assert report["peak_memory_bytes"] > 10**7


@pytest.mark.parametrize("graph", [GRAPH, directed_graph()])
def test_symmetric_says_what_the_matrix_is(tmp_path, graph):
    source = write_store(tmp_path / "s.zarr", graph)
    report = json.loads(run("export", source, tmp_path / "out", "--json").stdout)
    assert report["symmetric"] == ((graph != graph.T).nnz == 0)
    assert_exported(tmp_path / "out", graph)


def test_plan_as_json_writes_nothing(tmp_path, source):
    before = snapshot(tmp_path)
    outcome = run(
        "plan", source, tmp_path / "out", "--json", "--memory-limit", "4GB", "--threads", 2,
        "--scratch-dir", tmp_path / "scratch",
    )  # fmt: skip
    assert outcome.exit_code == 0
    plan = json.loads(outcome.stdout)
    assert set(plan) >= PLAN_FIELDS
    assert plan["n_cells"] == 40
    assert plan["n_entries"] == GRAPH.nnz
    assert plan["memory_limit_bytes"] == 4 * 10**9
    assert plan["reserved_memory_bytes"] < plan["projected_memory_bytes"] <= 4 * 10**9
    assert plan["warnings"] == []
    assert snapshot(tmp_path) == before


def test_plan_for_people(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    outcome = run("plan", source)
    assert outcome.exit_code == 0
    for words in ("cells:", "stored entries:", "1 block, ", "partition", "uint16, plain",
                  "projected", "limit", "scratch:", "free"):  # fmt: skip
        assert words in outcome.stdout
    assert "Warning" not in outcome.stdout
    assert snapshot(tmp_path) == before


def test_only_plan_tells_of_viewers_and_says_so_once(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whose name may hold any word
    planned = run("plan", "s.zarr")
    assert planned.stdout.count("0.9.1 and later do not read these files") == 1
    assert planned.stdout.count("viewer") == 1
    exported = run("export", "s.zarr", "out", "-v")
    verified = run("verify", "out")
    shown = run("inspect", "out")
    for outcome in (exported, verified, shown):
        words = (outcome.stdout + outcome.stderr).replace(str(tmp_path), "")
        assert "cellucid" not in words
        assert "viewer" not in words


def test_very_dense_graphs_are_warned_of(tmp_path, source):
    # 41 million entries, of which a plan reads none: the last row is said to hold the rest.
    n_entries = 41_000_000
    group = zarr.open_group(source, use_consolidated=False)["obsp/connectivities"]
    for name in ("indices", "data"):
        group[name].resize((n_entries,))
    group["indptr"][-1] = n_entries
    zarr.consolidate_metadata(source)
    outcome = run("plan", source)
    assert outcome.exit_code == 0
    assert outcome.stdout.count("Warning: This graph is very dense: 1,025,000 stored") == 1


def test_verify_exits_with_3_if_something_is_wrong(tmp_path, source):
    out_dir = tmp_path / "out"
    run("export", source, out_dir)
    outcome = run("verify", out_dir, "--json")
    assert outcome.exit_code == 0
    report = json.loads(outcome.stdout)
    assert set(report) >= VERIFY_FIELDS
    assert report["ok"] is True
    assert report["problems"] == []
    (out_dir / "connectivity/edges.dst.bin").write_bytes(b"")
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert "edges.dst.bin holds 0 instead of" in outcome.stderr
    assert run_process("verify", out_dir).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compression", "0"], "--compression"),
        (["--compression", "10"], "--compression"),
        (["--compression", "six"], "--compression"),
        (["--memory-limit", "much"], "'much' is not a size; write it as 512MB"),
        (["--memory-limit", "0"], "a size must be positive"),
        (["--memory-limit", "-1GB"], "is not a size"),
        (["--memory-limit", "9" * 400], "a size must be less than 8 EiB"),
        (["--threads", "9" * 400], "--threads"),
        (["--threads", "0"], "--threads"),
        (["--what"], "No such option"),
        (["and", "more"], "unexpected extra argument"),
    ],
)
def test_usage_errors(tmp_path, source, arguments, message):
    before = snapshot(tmp_path)
    outcome = run("export", source, tmp_path / "out", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert message in outcome.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("arguments", [["export"], ["export", "s.zarr"], ["plan"], ["verify"]])
def test_missing_arguments(arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert "Missing argument" in outcome.stderr


def test_unknown_command():
    outcome = run("import")
    assert outcome.exit_code == 2
    assert "No such command 'import'" in outcome.stderr


def test_demo(tmp_path):
    outcome = run("demo", tmp_path / "demo", "--cells", 300, "--no-picture")
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    for words in ("300 cells", "15 nearest neighbors", "edges", "Checked", "Next:"):
        assert words in outcome.stdout
    assert read_export(tmp_path / "demo/export").manifest["n_cells"] == 300
    # What it says it does is what a user can do, and so is what it says to try next.
    done = re.findall(r"^   \$ cellgraph-dask (.*)$", outcome.stdout, re.M)
    assert [command.split()[0] for command in done] == ["export", "verify"]
    assert run(*done[0].split(), "--force").exit_code == 0
    commands = re.findall(r"^  cellgraph-dask (.*)$", outcome.stdout, re.M)
    assert [command.split()[0] for command in commands] == ["plan", "export", "verify"]
    for command in [done[1], *commands]:  # the limit that it names in a process of its own
        assert run_process(*command.split()).exit_code == 0, command


@pytest.mark.slow
def test_demo_with_cells_of_scanpy_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    outcome = run_process("demo", tmp_path / "a demo", "--pbmc")
    assert outcome.exit_code == 0, outcome.stderr
    assert "700 cells" in outcome.stdout
    assert read_export(tmp_path / "a demo/export").manifest["n_cells"] == 700
    assert (tmp_path / "a demo/graph.png").read_bytes().startswith(b"\x89PNG")
    command = re.search(r"^   \$ cellgraph-dask (plot .*)$", outcome.stdout, re.M)[1]
    assert shlex.split(command)[1] == str(tmp_path / "a demo/export")
    assert run(*shlex.split(command)).exit_code == 1  # it is there already


def test_demo_without_what_it_takes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)  # as if it were not installed
    outcome = run("demo", tmp_path / "pbmc", "--pbmc")
    assert outcome.exit_code == 1
    assert "the cells of --pbmc come with scanpy, which is not installed" in outcome.stderr
    assert "pip install scanpy" in outcome.stderr
    assert run("demo", tmp_path / "both", "--pbmc", "--cells", 100).exit_code == 2
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    outcome = run("demo", tmp_path / "plain", "--cells", 50)
    assert outcome.exit_code == 0
    assert "4. No picture: `pip install 'cellgraph-dask[plot]'` adds" in outcome.stdout


def test_demo_as_json_in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cellgraph-demo-1", "cellgraph-demo-2"):
        outcome = run("demo", "--cells", 50, "--json", "--no-picture")
        result = json.loads(outcome.stdout)
        assert result["store"] == f"{name}/cells.zarr"
        assert result["report"]["n_cells"] == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cellgraph-demo-1", "cellgraph-demo-2"]


def test_demo_does_not_touch_a_folder_with_things_in_it(tmp_path):
    (tmp_path / "file").write_text("mine")
    outcome = run("demo", tmp_path, "--cells", 50)
    assert outcome.exit_code == 1
    assert "is not empty" in outcome.stderr
    assert list(snapshot(tmp_path)) == ["file"]


def test_progress_bars_go_to_standard_error(tmp_path, source):
    quiet = run("export", source, tmp_path / "a")
    assert quiet.stderr == ""  # not a terminal
    loud = run("export", source, tmp_path / "b", "--progress", "--json")
    assert "entries" in loud.stderr
    json.loads(loud.stdout)
    assert run("verify", tmp_path / "b", "--no-progress").stderr == ""


def test_keep_scratch(tmp_path):
    source = write_store(tmp_path / "s.zarr", directed_graph())
    scratch = tmp_path / "kept"
    outcome = run("export", source, tmp_path / "out", "--scratch-dir", scratch, "--keep-scratch")
    assert outcome.exit_code == 0
    (folder,) = scratch.iterdir()
    assert any(path.suffix == ".run" for path in folder.rglob("*"))
    folder.rename(tmp_path / "moved")  # or it would count as litter
    outcome = run("export", source, tmp_path / "out", "--scratch-dir", scratch, "--force")
    assert outcome.exit_code == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_shows_where_an_error_comes_from(tmp_path, source, verbose):
    chunk = source / "obsp/connectivities/data/0"
    chunk.write_bytes(b"\x07" * 90)
    options = ["-v"] if verbose else []
    outcome = run_process(*options, "export", source, tmp_path / "out")
    assert outcome.exit_code == 1
    assert "chunk 0 of obsp/connectivities/data does not decode" in outcome.stderr
    assert ("Traceback" in outcome.stderr) == verbose
    assert ("ChunkError" in outcome.stderr) == verbose  # the cause
    assert not (tmp_path / "out").exists()


def test_one_is_singular(tmp_path):
    """One edge of two cells, one cell alone: no "1 edges" in anything that is printed."""
    pair = csr_matrix(([1.0, 1.0], ([0, 1], [1, 0])), shape=(2, 2), dtype="f4")
    lonely = csr_matrix(([1.0, 1.0], ([0, 1], [1, 0])), shape=(3, 3), dtype="f4")
    for name, graph in (("pair", pair), ("lonely", lonely)):
        source, out = write_store(tmp_path / f"{name}.zarr", graph), tmp_path / name
        said = [
            run("plan", source, "--threads", 1),
            run("export", source, out, "--threads", 1, "-v"),
            run("verify", out, "--source", source),
            run("inspect", out),
            run("inspect", source),
            run("symmetrize", source, tmp_path / f"{name}2.zarr"),
        ]
        text = "\n".join(outcome.stdout + outcome.stderr for outcome in said)
        assert all(outcome.exit_code == 0 for outcome in said)
        assert not re.findall(r"(?<![\d,.])1 (?:\w+ )?(?:\w+s|entries|were|are)\b", text)
        assert "1 edge of" in text
        assert "at most 1 neighbor." in text
    assert "1 cell without neighbors" in text


def test_degrees_are_drawn_where_they_can_be(tmp_path, source, monkeypatch):
    run("export", source, tmp_path / "out")
    for command in ("verify", "inspect"):
        line = re.search(r"^degrees: +(.*)$", run(command, tmp_path / "out").stdout, re.M)[1]
        assert re.fullmatch(r"[▁▂▃▄▅▆▇█]+  from \d+ to \d+( and more)?", line)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    plain = run_process("verify", tmp_path / "out")
    assert plain.exit_code == 0
    assert "degrees:" not in plain.stdout
    assert "u258" not in plain.stdout
