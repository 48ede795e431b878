"""Exports mutants one after the other and says what came of each; run as a process of its own.

``python -m tests.helpers.fuzz FOLDER SEED COUNT``: a line of JSON before each mutant (so that a
crash of the interpreter can be laid to one) and one after it. A mutant that takes longer than
`PATIENCE` ends the process with every thread's stack.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import random
import shutil
import sys
import traceback
import warnings
from pathlib import Path

from cellgraph_dask import export_connectivities
from cellgraph_dask.errors import CellgraphError
from tests.helpers.mutants import Mutant, decoded, edges_of, make_bases, mutate, write_files
from tests.oracle import read_export

PATIENCE = 60


def judge(source: Path, out_dir: Path, sound: dict[str, bytes]) -> tuple[str, str]:
    """Export a store and compare with what zarr reads from it: a verdict, and a reason.

    `sound` are the files of the sound store; its edges count where zarr refuses to read.
    """
    shutil.rmtree(out_dir, ignore_errors=True)
    try:
        export_connectivities(source, out_dir, threads=1, memory_limit="4GB")
    except CellgraphError as error:
        if list(out_dir.parent.glob("out*")):
            return "litter", str(error)
        try:
            edges_of(decoded(source))
        except Exception as other:
            return "refused", f"{type(error).__name__}: {error} | {type(other).__name__}"
        return "refused though valid", f"{type(error).__name__}: {error}"
    except BaseException:
        return "traceback", traceback.format_exc()
    verdict, reason = "exported", ""
    try:
        src, dst = edges_of(decoded(source))
    except Exception as error:
        good, verdict, reason = source.with_name("sound.zarr"), "no harm", type(error).__name__
        write_files(good, sound)
        src, dst = edges_of(decoded(good))
    manifest, found_src, found_dst = read_export(out_dir)
    if found_src.tolist() != src.tolist() or found_dst.tolist() != dst.tolist():
        return "wrong edges", json.dumps(manifest)
    return verdict, reason


def main(folder: Path, seed: int, count: int) -> None:
    """Try so many mutants."""
    logging.disable()
    warnings.simplefilter("ignore")
    bases = make_bases(folder)
    source, out_dir = folder / "s.zarr", folder / "out"
    random_ = random.Random(seed)
    last: tuple[str, dict[str, bytes] | None] = ("", None)
    for number in range(count):
        base = bases[number % len(bases)]
        # Every base comes out sound once, so that the harness cannot refuse everything.
        mutant = Mutant(base.name, base.files) if number < len(bases) else mutate(base, random_)
        print(json.dumps({"number": number, "mutant": mutant.name}), flush=True)
        write_files(source, mutant.files, last[1] if last[0] == base.name else None)
        last = (base.name, mutant.files)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        verdict, reason = judge(source, out_dir, base.files)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"number": number, "verdict": verdict, "reason": reason}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
