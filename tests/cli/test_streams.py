"""Standard streams that are closed, full, or left by their reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.helpers.stores import directed_graph, write_store
from tests.oracle import assert_exported

GRAPH = directed_graph()
COMMAND = f"{sys.executable} -m cellgraph_dask"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a working folder with a store."""
    write_store(tmp_path / "s.zarr", GRAPH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str) -> tuple[int, str]:
    """Run a line of a shell; return its exit code and what came on standard error."""
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("streams", [">&-", "2>&- >words", "<&- >&- 2>&-", ">/dev/full 2>&1"])
@pytest.mark.parametrize("more", ["", pytest.param("--json --progress", marks=pytest.mark.slow)])
def test_an_export_is_done_whatever_becomes_of_its_words(here, streams, more):
    code, errors = shell(f"{COMMAND} export s.zarr out {more} {streams}")
    assert (code, errors if "progress" not in more else "") == (0, "")
    assert_exported(here / "out", GRAPH)
    names = {"connectivity", "connectivity_manifest.json"}
    assert {path.name for path in (here / "out").iterdir()} == names


def test_words_that_are_lost_are_told_of(here):
    code, errors = shell(f"{COMMAND} export s.zarr out >/dev/full")
    assert code == 0
    assert errors.startswith("Warning: what was asked for is done, but standard output cannot")
    assert_exported(here / "out", GRAPH)
    (here / "out/connectivity/edges.src.bin").write_bytes(b"")
    assert shell(f"{COMMAND} verify out >/dev/full 2>/dev/full")[0] == 3
    for command in ("plan s.zarr", "--help"):
        code, errors = shell(f"{COMMAND} {command} >/dev/full")
        assert code == 1
        assert errors == "Error: standard output cannot be written: No space left on device.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("plan s.zarr", 0), ("plan s.zarr --json", 0), ("inspect s.zarr", 0), ("--help", 0),
        ("verify out --json", 0), ("demo --cells 50", 0), ("plan none.zarr", 1),
        ("plan s.zarr --unknown", 2), ("plan none.zarr -v", 1),
    ],
)  # fmt: skip
def test_no_traceback_whatever_the_streams(here, command, code):
    shell(f"{COMMAND} export s.zarr out >/dev/null")
    for streams in (">&- 2>&-", "2>/dev/full >/dev/null", "2>&1 | true"):
        found, errors = shell(f"set -o pipefail; {COMMAND} {command} {streams}")
        assert found == code, streams
        assert "Traceback" not in errors or command.endswith("-v")


def test_what_is_opened_next_does_not_get_the_number_of_a_closed_stream():
    line = """
import os, sys
from cellgraph_dask.cli import streams
streams.prepare()
assert min(os.open("/dev/zero", os.O_RDONLY), 9) > 2
print("lost")
print("lost", file=sys.stderr)
assert streams.finish(0) == 0
os.write(int(sys.argv[1]), b"done")
"""
    read, write = os.pipe()
    code = f"exec {sys.executable} -c '{line}' {write} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", code], pass_fds=[write], check=False)
    os.close(write)
    assert (done.returncode, os.read(read, 10)) == (0, b"done")
    os.close(read)


def test_json_that_a_reader_leaves(here):
    done = subprocess.Popen(
        [*COMMAND.split(), "plan", "s.zarr", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with suppress(ValueError):
        json.loads(done.stdout.read(1) + b"}")
    done.stdout.close()
    assert (done.stderr.read(), done.wait()) == (b"", 0)
    done.stderr.close()
