"""Mutants of small stores: a named error, or exactly the edges that zarr reads from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.effort import part_of
from tests.helpers.mutants import LAYOUTS

N_MUTANTS = part_of(1000)  # a seed
# Where zarr's reading is not believed: a chunk that is gone is not zeros, a chunk of another length
# is damaged even if its codec copes, and a matrix whose obs cannot be read may be of other cells.
STRICTER = (
    r"is missing from the store",
    r"\d+ bytes, but says \d+",
    r"its file goes on after its end",
    r"the metadata of obs(/\S+)? cannot be used",
    r"it has storage transformers",  # which zarr passes over
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(part_of(2)))
def test_mutants(tmp_path, seed):
    log = tmp_path / "log"
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "tests.helpers.fuzz", str(tmp_path / "work"), str(seed),
               str(N_MUTANTS + len(LAYOUTS))]  # fmt: skip
    with log.open("w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2],
            check=False,
        )  # fmt: skip
    lines = log.read_text().splitlines()
    assert done.returncode == 0, lines[-60:]
    verdicts: Counter[str] = Counter()
    mutant = ""
    for number, line in enumerate(map(json.loads, lines)):
        if number % 2 == 0:
            mutant = line["mutant"]
            continue
        verdict, told = line["verdict"], f"{mutant}: {line}"
        if verdict == "refused though valid":
            assert any(re.search(reason, line["reason"]) for reason in STRICTER), told
        else:
            # No harm: zarr refuses metadata that have no bearing on the edges, as those of obs,
            # whose number of cells is then found in another way, or said to be unknown.
            assert verdict in ("refused", "exported", "no harm"), told
        if line["number"] < len(LAYOUTS):
            assert verdict == "exported", told
        verdicts[verdict] += 1
    assert sum(verdicts.values()) == N_MUTANTS + len(LAYOUTS)
    assert verdicts["exported"] > N_MUTANTS // 5
    assert verdicts["refused"] > N_MUTANTS // 4
    assert verdicts["no harm"] < N_MUTANTS // 10
