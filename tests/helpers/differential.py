"""Random matrices in sources of every kind against exact arithmetic, and verification of each.

``python -m tests.helpers.differential --seed S --cases N``: a case is a matrix, how it is stored,
cut and worked on. Its export must hold the edges that Python's whole numbers and fractions give;
`verify` must accept these, and find one edge that is lost, gained or moved. A failure is a line of
JSON with all that is needed to see it again (``--only NUMBER``).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from scipy import sparse

from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.wishes import Thinning
from cellgraph_dask.verify.checks import verify
from cellgraph_dask.verify.proof import ProofPlan
from tests.helpers.exporting import run_export
from tests.helpers.planting import edges_of, plant
from tests.helpers.sources import KINDS, Matrix, make_source
from tests.helpers.thinning import plant_weighted, strong_edges
from tests.oracle import read_export

PATIENCE = 60  # seconds, after which every thread's stack is shown
LIMIT = 4 * 10**9
Edge = tuple[int, int]

INDEX_DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2", ">i8"]
INDPTR_DTYPES = ["i4", "i8", "u4", "u8", "i2", "u1", ">i8"]
WEIGHT_DTYPES = ["f2", "f4", "f8", ">f4", ">f8", "i1", "i2", "i4", "i8", ">i8", "u1", "u2", "u4",
                 "u8", "?"]  # fmt: skip
TINY = ProofPlan(block_entries=7, block_rows=3, piece_entries=4, threads=2)
PROOFS = {"tiny": TINY, "partly held": replace(TINY, room=100), "from the limit": None}


@dataclass(frozen=True)
class Case:
    """A matrix in a source of some kind, and the options of its export and verification."""

    matrix: Matrix
    kind: str
    tuning: Tuning | None
    method: str | None
    compression: int | None
    threads: int
    proof: str
    thinning: dict[str, Any] | None  # and the rule: of a second export, which is thinned
    seed: str  # of what the kind leaves open, and of the edge that is changed


def exact_edges(matrix: Matrix) -> list[Edge]:
    """Return the sorted edges of C + C.T, with weights added up exactly."""
    total: dict[Edge, Fraction] = {}
    for i, j, weight in zip(matrix.rows, matrix.columns, matrix.weights, strict=True):
        pair = (min(i, j), max(i, j))
        total[pair] = total.get(pair, Fraction(0)) + Fraction(weight)
    return sorted(pair for pair, weight in total.items() if weight != 0 and pair[0] < pair[1])


def draw_weights(random: Random, dtype: str, n: int) -> list[Any]:
    """Draw weights whose sums are exact in float64 in any order, or whole numbers of any size."""
    kind = np.dtype(dtype)
    style = random.choice(["positive", "zeros", "signs", "any"])
    if kind.kind == "b":
        return [int(style == "positive" or random.random() < 0.7) for _ in range(n)]
    if kind.kind == "f":
        info = np.finfo(kind)
        least, most = float(info.smallest_subnormal), 2.0 ** (int(info.maxexp) - 10)
        scale = random.choice([1.0, 1.0, 0.125, least, most])
        pool: list[Any] = [scale * k for k in (1, 2, 3)]
    else:
        limits = np.iinfo(kind)
        pool = random.choice([[1, 2, 3], [1, limits.max, limits.max - 1, limits.max // 2 + 1]])
        if limits.min < 0 and limits.max in pool and style != "positive":
            pool = [*pool, limits.min, limits.min // 2]
    if style in ("zeros", "any"):
        pool = [*pool, 0 * pool[0], *([-0.0] if kind.kind == "f" else [])]
    if style in ("signs", "any") and kind.kind in "if":
        pool = [*pool, *(-weight for weight in pool if weight > 0)]
    return [random.choice(pool) for _ in range(n)]


def draw_matrix(random: Random, *, small: bool) -> Matrix:
    """Draw cells that meet often, so that there are repeats, both directions, and hubs."""
    n = random.choice([1, 2, 3, 5, 8, 12, 40])
    if random.random() < 0.15:
        n = random.choice([255, 256, 257, 300])
    if not small and random.random() < 0.06:
        n = random.choice([65_534, 65_535, 65_536, 65_537, 70_000])
    cells = sorted({random.randrange(n) for _ in range(random.choice([1, 4, 8, 30]))} | {0, n - 1})
    n_entries = random.choice([0, 1, 3, 10, 40, 40, 120])
    rows = [random.choice(cells) for _ in range(n_entries)]
    columns = [random.choice(cells) for _ in range(n_entries)]
    if random.random() < 0.15:  # a hub
        others = cells if n > 300 else range(n)
        rows += [cells[0]] * len(others)
        columns += others
    dtype = random.choice(WEIGHT_DTYPES)
    weights = draw_weights(random, dtype, len(rows))
    symmetric = random.random()
    if symmetric < 0.5:
        rows, columns, weights = rows + columns, columns + rows, weights * 2
    elif symmetric < 0.6 and np.dtype(dtype).kind in "if":  # all cancel, but for overflows
        most = np.iinfo(dtype).max if np.dtype(dtype).kind == "i" else np.inf
        mirror = [-weight if -weight <= most else weight for weight in weights]
        rows, columns, weights = rows + columns, columns + rows, weights + mirror
    entries = list(zip(rows, columns, weights, strict=True))
    if random.random() < 0.5:  # no repeats
        entries = list({entry[:2]: entry for entry in entries}.values())
    if random.random() < 0.5:  # in order
        entries.sort(key=lambda entry: entry[:2])
    rows, columns, weights = map(list, zip(*entries, strict=True)) if entries else ([], [], [])
    wide = [d for d in INDEX_DTYPES if np.iinfo(d).max >= n - 1]
    long = [d for d in INDPTR_DTYPES if np.iinfo(d).max >= len(rows)]
    return Matrix(
        n, rows, columns, weights, dtype, random.choice(wide), random.choice(long),
        random.choice(["csr", "csc"]),
    )  # fmt: skip


def draw_thinning(random: Random, matrix: Matrix) -> dict[str, Any] | None:
    """Draw a rule and which edges to keep, if weights of this matrix can be combined."""
    total = sum(map(Fraction, matrix.weights))
    if matrix.n > 300 or min(matrix.weights, default=0) < 0 or not 0 < total < 2**53:
        return None
    options = {
        "rule": random.choice(["ones", "max", "min", "mean", "sum"]),
        "top_k": random.choice([None, 1, 2, 5]),
        "max_edges": random.choice([None, 1, 3, 10, 1000]),
        "strongest": random.choice(["largest", "smallest"]),
    }
    return options if options["top_k"] or options["max_edges"] else None


def draw_case(seed: str) -> Case:
    """Draw a case; the same seed gives the same."""
    random = Random(seed)
    kind = random.choice(list(KINDS))
    matrix = draw_matrix(random, small=KINDS[kind].small)
    matrix = KINDS[kind].suit(matrix)
    tuning = None
    if random.random() < 0.8:
        n_entries = len(matrix.rows)
        shifts = [0, 1, 8] if matrix.n <= 12 else [4, 8] if matrix.n <= 300 else [8, 16]
        most = 20 if random.random() < 0.2 else 6  # tasks, or it would take long
        tuning = Tuning(
            block_entries=max(random.choice([1, 2, 5, 1000]), n_entries // most),
            block_rows=max(random.choice([1, 3, 100_000]), matrix.n // most),
            piece_entries=max(random.choice([1, 2, 5, 1000]), n_entries // most),
            shift=random.choice(shifts),
            threads=random.choice([1, 1, 2, 4]),
            count_degrees=random.random() < 0.5,
        )
    methods = [None, None, "symmetric", "general"]
    if np.dtype(matrix.dtype).kind in "if":  # only then are there negative weights
        methods.append("signed")
    return Case(
        matrix,
        kind,
        tuning,
        method=random.choice(methods),
        compression=random.choice([None, None, *range(1, 10)]),
        threads=random.choice([1, 1, 2, 3]),
        proof=random.choice(list(PROOFS)),
        thinning=draw_thinning(random, matrix) if random.random() < 0.4 else None,
        seed=seed,
    )


def changed(edges: list[Edge], n: int, random: Random) -> tuple[str, list[Edge]] | None:
    """Return the edges but for one, and what was done to it; None if nothing can be."""
    absent = {tuple(sorted(random.sample(range(n), 2))) for _ in range(20)} if n > 1 else set()
    absent -= set(edges)
    ways = ["lost"] * bool(edges) + ["gained"] * bool(absent) + ["moved"] * bool(edges and absent)
    if not ways:
        return None
    way, found = random.choice(ways), set(edges)
    if way != "gained":
        found.remove(random.choice(edges))
    if way != "lost":
        found.add(random.choice(sorted(absent)))
    return way, sorted(found)


def judge(case: Case, folder: Path) -> list[str]:
    """Export a case and verify it, sound and changed; return what is wrong."""
    matrix, random = case.matrix, Random(f"{case.seed} made")
    expected = exact_edges(matrix)
    source, reference = make_source(case.kind, matrix, folder, random)
    out_dir = folder / "out"
    run_export(
        open_source(source), out_dir, tuning=case.tuning, method=case.method,
        compression=case.compression, threads=case.threads, memory_limit=LIMIT,
    )  # fmt: skip
    problems = []
    if edges_of(out_dir) != expected:
        problems.append(f"edges {edges_of(out_dir)[:50]}, not {expected[:50]}")
    manifest = read_export(out_dir).manifest
    degrees = Counter(cell for edge in expected for cell in edge)
    figures = (matrix.n, len(expected), max(degrees.values(), default=0))
    said = tuple(manifest[name] for name in ("n_cells", "n_edges", "max_neighbors"))
    if said != figures or manifest["compression"] != case.compression:
        problems.append(f"manifest {manifest}, not {figures}")
    if found := list(out_dir.glob(".*")):
        problems.append(f"left behind: {found}")

    verified = partial(verdict, case, out_dir, reference)
    if verified() != ("ok",):
        problems.append(f"verify refuses what is sound: {verified()}")
    if change := changed(expected, matrix.n, random):
        plant(out_dir, change[1], matrix.n, random.choice([None, 6]))
        if verified() == ("ok",):
            problems.append(f"verify accepts edges of which one is {change[0]}: {change[1][:50]}")
    if case.thinning is not None:
        problems += judge_thinned(case, case.thinning, source, reference, folder, random)
    return problems


def verdict(case: Case, out_dir: Path, reference: Any) -> tuple[str, ...]:
    """Verify an export against its matrix; return what is wrong, or that nothing is."""
    report = verify(
        out_dir, Progress(), source=open_source(reference), limit=LIMIT, threads=case.threads,
        proof_plan=PROOFS[case.proof],
    )  # fmt: skip
    return ("ok",) if report.ok else report.problems


def judge_thinned(
    case: Case, options: dict[str, Any], source: Any, reference: Any, folder: Path, random: Random
) -> list[str]:
    """Thin a graph and verify it, sound and changed; return what is wrong."""
    matrix, out_dir = case.matrix, folder / "thinned"
    dense = np.zeros((matrix.n, matrix.n))
    np.add.at(dense, (matrix.rows, matrix.columns), np.array(matrix.weights, np.float64))
    thinning = {name: value for name, value in options.items() if name != "rule"}
    expected = strong_edges(sparse.csr_matrix(dense), options["rule"], **thinning)
    run_export(
        open_source(source), out_dir, rule=options["rule"], weights=True,
        thinning=Thinning(**thinning), tuning=case.tuning, compression=case.compression,
        method=None if case.method == "signed" else case.method, threads=case.threads,
        memory_limit=LIMIT,
    )  # fmt: skip
    problems = []
    if edges_of(out_dir) != list(expected):
        problems.append(f"thinned {edges_of(out_dir)[:50]}, not {list(expected)[:50]}")

    verified = partial(verdict, case, out_dir, reference)
    if verified() != ("ok",):
        problems.append(f"verify refuses what is thinned soundly: {verified()}")
    if isinstance(reference, Path) and (change := changed(list(expected), matrix.n, random)):
        told = {name: value for name, value in options.items() if value is not None}
        wrong = {pair: expected.get(pair, 1.0) for pair in change[1]}
        plant_weighted(out_dir, reference, wrong, matrix.n, told)
        if verified() == ("ok",):
            problems.append(f"verify accepts a thinned graph with an edge {change[0]}")
    return problems


def attempt(seed: str, judged: Callable[[Case, Path], list[str]] = judge) -> tuple[Case, list[str]]:
    """Judge a case in a folder of its own; a traceback is a problem, too."""
    case = draw_case(seed)
    folder = Path(tempfile.mkdtemp(prefix="differential-"))
    try:
        return case, judged(case, folder)
    except Exception:
        return case, [traceback.format_exc()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Judge so many cases; 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--only", type=int, help="number of the one case to judge")
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    kinds: Counter[str] = Counter()
    n_wrong = 0
    for number in range(options.cases) if options.only is None else [options.only]:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        case, problems = attempt(f"{options.seed}/{number}")
        faulthandler.cancel_dump_traceback_later()
        kinds[case.kind] += 1
        if problems:
            n_wrong += 1
            told = {"number": number, "problems": problems, "case": asdict(case)}
            print(json.dumps(told, default=str), flush=True)
    print(
        json.dumps({"seed": options.seed, "wrong": n_wrong, "kinds": dict(sorted(kinds.items()))})
    )
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
