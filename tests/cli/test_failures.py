"""How commands fail: in the words of the command line, as JSON too, and by signals."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cellgraph_dask
from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.cli.commands import cli
from cellgraph_dask.cli.failures import wants_color
from cellgraph_dask.errors import MemoryLimitError, OutputError, SourceError
from tests.helpers.command import run
from tests.helpers.stores import symmetric_graph, write_store
from tests.helpers.terminal import Terminal

PACKAGE = Path(cellgraph_dask.__file__).parent
OPTIONS = {option.name for command in cli.commands.values() for option in command.params}


@pytest.fixture
def source(tmp_path):
    return write_store(tmp_path / "s.zarr", symmetric_graph())


def _texts():
    """Give every string of the package outside the command line, but no docstring."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli" or path.name == "demo.py":
            continue
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs
            ):
                yield path, node.value


def test_messages_name_parameters_of_python_which_the_command_line_has_too():
    named = set()
    for path, text in _texts():
        assert not re.search(r"(?<![\w-])--[a-z]+", text), (path, text)
        named |= {match[1] for match in re.finditer(r"`(\w+)(=True)?`", text)}
    assert (
        {"force", "resume", "key", "scratch_dir", "memory_limit"} <= named <= OPTIONS | {"remote"}
    )


def test_each_speaks_its_own_language(tmp_path, source):
    out_dir = tmp_path / "out"
    export_connectivities(source, out_dir)
    with pytest.raises(OutputError, match="replace it with `force=True`;"):
        export_connectivities(source, out_dir)
    assert "replace it with --force;" in run("export", source, out_dir).stderr
    with pytest.raises(MemoryLimitError, match=r"MB \(`memory_limit`\)"):
        plan_export(source, memory_limit="50MB")
    assert "MB (--memory-limit)" in run("plan", source, "--memory-limit", "50MB").stderr
    with pytest.raises(SourceError, match="Name the matrix with `key`"):
        plan_export(source, key="other")
    assert "Name the matrix with --key," in run("plan", source, "--key", "other").stderr
    assert cli.in_options("`force=True`, `other=True`, `None`") == "--force, `other=True`, `None`"


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "message"),
    [
        (["plan", "none.zarr"], 1, "SourceError", "none.zarr does not exist"),
        (["plan", "s.zarr", "--memory-limit", "50MB"], 1, "MemoryLimitError", "(--memory-limit)"),
        (["export", "s.zarr", "s.zarr/x"], 1, "OutputError", "is inside the store"),
        (["verify", "none"], 1, "InvalidExportError", "holds no connectivity_manifest.json"),
        (["inspect", "none"], 1, "SourceError", "none does not exist"),
        (["demo", "."], 1, "OutputError", "is not empty"),
        (["plan", "s.zarr", "--threads", "0"], 2, "BadParameter", "--threads"),
        (["plan"], 2, "MissingParameter", "Missing argument 'SOURCE'"),
        (["export", "s.zarr", "out", "--what"], 2, "NoSuchOption", "--what"),
        (["plan", "s.zarr", "--key", "a", "--neighbors-key", "b"], 2, "UsageError", "not both"),
        (["import"], 2, "UsageError", "No such command 'import'"),
    ],
)
def test_errors_as_json(source, monkeypatch, arguments, code, kind, message):
    monkeypatch.chdir(source.parent)
    outcome = run(*arguments, "--json")
    assert outcome.exit_code == code
    error = json.loads(outcome.stdout)["error"]
    assert set(error) == {"type", "message"}
    assert error["type"] in (kind, "NoSuchCommand")
    assert message in error["message"]
    assert message in outcome.stderr  # for people, as without --json
    assert run(*arguments).stdout == ""


def test_a_mistake_of_ours_as_json(source, monkeypatch):
    monkeypatch.setattr("cellgraph_dask.export.api.plan_export", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("plan", source, "--json")


def test_exit_codes_are_in_every_help():
    for command in ([], ["export"], ["verify"], ["plan"]):
        text = " ".join(run(*command, "--help").stdout.split())
        assert "3 `verify` found something wrong; 129, 130 and 143 after SIGHUP" in text


_WAIT = """
import sys, time
from cellgraph_dask.cli import main
from cellgraph_dask.verify import checks
def wait(self):
    with self.scratch() as folder:
        (folder / "pairs").write_text("many")
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
checks.Check.run = wait
main()
"""


def waiting(*arguments):
    """Start a verification that waits in its scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAIT, "verify", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_a_verification_that_is_ended_leaves_nothing(tmp_path, source):
    out_dir = tmp_path / "out"
    export_connectivities(source, out_dir)
    files = set(out_dir.iterdir())
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = waiting(out_dir, "--json")
        assert set(out_dir.iterdir()) > files
        process.send_signal(number)
        time.sleep(0.001)
        process.send_signal(signal.SIGTERM)  # a second one does not cut the tidying short
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode in (code, 143), stderr  # another thread may get the second one
        assert "Interrupted. Nothing is left behind." in stderr
        assert json.loads(stdout.splitlines()[-1])["error"]["type"] == "Interrupted"
        assert set(out_dir.iterdir()) == files


@pytest.mark.slow
def test_what_a_killed_verification_has_left_goes_with_the_next_run(tmp_path, source):
    out_dir, scratch = tmp_path / "out", tmp_path / "scratch"
    export_connectivities(source, out_dir)
    files = set(out_dir.iterdir())
    for options in ([], ["--scratch-dir", scratch]):
        folder = scratch if options else out_dir
        alive, killed = waiting(out_dir, *options), waiting(out_dir, *options)
        killed.kill()
        killed.communicate()
        left = set(folder.iterdir()) - files
        assert len(left) == 2
        assert run("verify", out_dir, *options).exit_code == 0
        (kept,) = set(folder.iterdir()) - files
        assert (kept / "pairs").exists()  # of the one that is still alive
        alive.terminate()
        alive.communicate(timeout=60)
    assert set(out_dir.iterdir()) == files


# Colors


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"CLICOLOR": "0"}, False),
        ({"CLICOLOR": "1"}, None),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_what_the_environment_says_of_colors(monkeypatch, environment, wanted):
    monkeypatch.setattr(os, "environ", environment)
    assert wants_color() is wanted


@pytest.mark.parametrize(
    ("more", "on_terminal", "in_file"),
    [({}, True, False), ({"NO_COLOR": "1"}, False, False), ({"FORCE_COLOR": "1"}, True, True)],
)
def test_colors_are_for_terminals_unless_the_user_says_otherwise(
    tmp_path, more, on_terminal, in_file
):
    command = [sys.executable, "-m", "cellgraph_dask", "plan", "nothing.zarr", "--json"]
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE.parent)}
    environment = kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | more
    with Terminal(command, cwd=tmp_path, env=environment) as terminal:
        shown = terminal.rest()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    for text, colored in ((shown, on_terminal), (done.stderr, in_file)):
        assert (b"\x1b[31m\x1b[1mError:\x1b[0m " in text) == colored
        assert (b"\x1b" in text) == colored
        assert b"Error:" in text
    assert b"\x1b" not in done.stdout


_FAILS_IN_THE_LOOP = """
import logging, sys, threading
logging.basicConfig()  # before distributed sets up its own, as in the command line
from distributed import LocalCluster
from cellgraph_dask.cli.group import client
logging.getLogger("cellgraph_dask").setLevel(sys.argv[1])
with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
    options = {"scheduler_address": cluster.scheduler_address, "scheduler_file": None}
    with client(options) as found:
        done = threading.Event()
        found.loop.add_callback(lambda: 1 / 0)  # as the cancelling of a call that did not begin
        found.loop.add_callback(done.set)
        assert done.wait(10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("level", "told"), [("WARNING", False), ("INFO", True)])
def test_what_the_network_logs_is_for_verbose_only(level, told):
    outcome = subprocess.run(
        [sys.executable, "-c", _FAILS_IN_THE_LOOP, level],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("ZeroDivisionError" in outcome.stderr) == told, outcome.stderr
