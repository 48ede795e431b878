"""Mutants of small stores: a named error, or exactly the edges that zarr reads from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.helpers.mutants import LAYOUTS

N_MUTANTS = 2400
N_PROCESSES = 2
# Where zarr's reading is not believed: a chunk that is gone is not zeros, a chunk of another length
# is damaged even if its codec copes, and a matrix whose obs cannot be read may be of other cells.
STRICTER = (
    r"is missing from the store",
    r"\d+ bytes, but says \d+",
    r"its file goes on after its end",
    r"the metadata of obs(/\S+)? cannot be used",
    r"it has storage transformers",  # which zarr passes over
)


def test_mutants(tmp_path):
    commands = []
    for k in range(N_PROCESSES):
        (tmp_path / str(k)).mkdir()
        log = (tmp_path / f"{k}.log").open("w")
        count = N_MUTANTS // N_PROCESSES + len(LAYOUTS)
        command = [
            sys.executable,
            "-m",
            "tests.helpers.fuzz",
            str(tmp_path / str(k)),
            str(k),
            str(count),
        ]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2]
        )
        commands.append((process, log))
    verdicts: Counter[str] = Counter()
    for k, (process, log) in enumerate(commands):
        process.wait()
        log.close()
        lines = (tmp_path / f"{k}.log").read_text().splitlines()
        assert process.returncode == 0, f"seed {k}: {lines[-60:]}"
        mutant = ""
        for number, line in enumerate(map(json.loads, lines)):
            if number % 2 == 0:
                mutant = line["mutant"]
                continue
            verdict, told = line["verdict"], f"seed {k}: {mutant}: {line}"
            if verdict == "refused though valid":
                assert any(re.search(reason, line["reason"]) for reason in STRICTER), told
            else:
                # No harm: zarr refuses metadata that have no bearing on the edges.
                assert verdict in ("refused", "exported", "no harm"), told
            if line["number"] < len(LAYOUTS):
                assert verdict == "exported", told
            verdicts[verdict] += 1
    assert sum(verdicts.values()) == N_MUTANTS + N_PROCESSES * len(LAYOUTS)
    assert verdicts["exported"] > N_MUTANTS // 5
    assert verdicts["refused"] > N_MUTANTS // 4
    assert verdicts["no harm"] < N_MUTANTS // 50
