"""Progress: what is told in how many columns, on a real terminal and without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellgraph_dask.runtime.progress import told
from tests.helpers.terminal import Terminal

SCRIPT = """
import time
from cellgraph_dask.runtime.progress import progress_bars
with progress_bars(True) as bars:
    bars.start("check split", 123_456_789, "entries")
    bars.advance(41_152_263)
    time.sleep(0.12)
"""


@pytest.mark.parametrize(
    ("done", "unit", "columns", "text"),
    [
        (0, "entries", 50, "1:00"),
        (25e6, "entries", 50, "1:00, 3:00 left, 417 k/s"),
        (25e6, "entries", 80, "1:00, 3:00 left, 417 k entries/s"),
        (100e6, "entries", 80, "1:00, 1.7 M entries/s"),
        (25e6, "edges", 120,
         "25,000,000 of 100,000,000 edges, 1:00, 3:00 left, 417 k edges/s"),
        (25e6, "bytes", 120, "25.0 MB of 100 MB, 1:00, 3:00 left, 417 kB/s"),
    ],
)  # fmt: skip
def test_what_is_told(done, unit, columns, text):
    assert told(done, 100e6, unit, 60, columns) == text


def environment(**more: str) -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    return kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | more


def on_a_terminal(columns: int, **more: str) -> str:
    """Return what is shown on a terminal, with its escapes."""
    command = [sys.executable, "-c", SCRIPT]
    with Terminal(command, cwd=Path(), env=environment(**more), columns=columns) as terminal:
        return terminal.rest().decode()


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_a_line_fits_the_terminal(columns):
    shown = on_a_terminal(columns)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]", shown)]
    assert max(map(len, lines)) <= columns
    last = [line for line in lines if "check split" in line][-1]
    assert re.search(r"━+.* 33% .*0:\d\d, 0:\d\d left, [\d.]+ [kM]( entries)?/s", last)
    assert ("41,152,263 of 123,456,789 entries" in last) == (columns == 120)
    assert "…" not in last


COLORS = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


@pytest.mark.parametrize(
    ("more", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"CLICOLOR": "0"}, False),
     ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)  # fmt: skip
def test_colors_of_a_terminal(more, colored):
    assert bool(COLORS.search(on_a_terminal(80, **more))) == colored


@pytest.mark.parametrize("more", [{}, {"FORCE_COLOR": "1"}])
def test_a_file_gets_one_plain_line(more):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment(**more), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
