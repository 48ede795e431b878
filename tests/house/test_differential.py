"""Random matrices in sources of every kind: exact edges, and `verify` finds one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import differential
from tests.helpers.effort import part_of
from tests.helpers.sources import KINDS

N_CASES = max(60, part_of(250))  # a seed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(part_of(2)))
def test_any_source(tmp_path, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.differential", "--seed", str(seed), "--cases",
         str(N_CASES)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == 0
    assert set(told["kinds"]) == set(KINDS)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_told(monkeypatch):
    """Of a right export, if one edge too few is expected."""
    seed = next(
        seed
        for seed in map(str, range(100))
        if differential.draw_case(seed).kind == "scipy"
        and differential.exact_edges(differential.draw_case(seed).matrix)
    )
    exact = differential.exact_edges
    assert differential.attempt(seed)[1] == []
    monkeypatch.setattr(differential, "exact_edges", lambda matrix: exact(matrix)[1:])
    assert differential.attempt(seed)[1][0].startswith("edges [")
    monkeypatch.undo()
    monkeypatch.setattr(differential, "make_source", None)
    assert "TypeError" in differential.attempt(seed)[1][0]
