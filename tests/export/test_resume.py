"""Interrupted exports: what is finished is kept, what does not hold is redone."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.delivery import edge_files
from cellgraph_dask.errors import ResumeError
from cellgraph_dask.export import run
from cellgraph_dask.plan.tuning import Budget
from cellgraph_dask.publish.work_folder import WORK_FOLDER
from cellgraph_dask.runtime.stage import Journal
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages import pipeline
from cellgraph_dask.stages.job import Tuning
from cellgraph_dask.stages.wishes import Thinning
from tests.benchmarks.make_store import make_store
from tests.helpers.effort import PART, part_of
from tests.helpers.exporting import run_export
from tests.helpers.stores import directed_graph, stored, symmetric_graph, write_store

GRAPHS = {"directed": directed_graph(3000), "symmetric": symmetric_graph(3000)}
TUNING = {count: Tuning(1000, 3000, 1500, 8, 2, count) for count in (True, False)}


def contents(out_dir: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out_dir)): p.read_bytes()
        for p in out_dir.rglob("*")
        if p.is_file() and WORK_FOLDER not in p.parts
    }


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(edge_files, "PART_EDGES", 1000)


@pytest.fixture(params=GRAPHS)
def source(request, tmp_path):
    return write_store(tmp_path / "s.zarr", stored(GRAPHS[request.param]), chunk=1000)


def export(source: Path, out_dir: Path, **options) -> object:
    return run_export(open_source(source), out_dir, memory_limit="4GB", **options)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("compression", [None, 6])
@pytest.mark.parametrize("count_degrees", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_any_interrupted_export_goes_on(
    tmp_path, source, compression, count_degrees, threads, monkeypatch
):
    tuning = TUNING[count_degrees]
    export(source, tmp_path / "whole", compression=compression, tuning=tuning)
    expected = contents(tmp_path / "whole")
    add = Journal.add
    n = kept = 0
    while True:  # interrupted after each line of the journal in turn, or some of them
        out_dir = tmp_path / f"out-{n}"
        left = [n]

        def counted(self, *line, left=left):
            add(self, *line)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "add", counted)
        try:
            export(source, out_dir, compression=compression, tuning=tuning, threads=threads)
            break
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(Journal, "add", add)
        report = export(source, out_dir, compression=compression, resume=True)
        assert contents(out_dir) == expected
        kept += report.kept_tasks
        n += PART if compression is None else 4
    assert n > 5
    assert (
        kept >= n // 4
    )  # nothing but the last task is done again, unless gzip parts were incomplete


def interrupted(source: Path, out_dir: Path, interrupt_after, n: int, **options) -> None:
    interrupt_after(n)
    with pytest.raises(KeyboardInterrupt):
        export(source, out_dir, tuning=TUNING[True], **options)
    interrupt_after(10**9)


def damage_one_file(folder: Path, rng: random.Random, k: int) -> Path:
    """Change, cut or lengthen one file of an interrupted run, and return it."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    victim = rng.choice([p for p in files if p.name not in ("run.json", "lock")])
    data = bytearray(victim.read_bytes())
    at = rng.randrange(len(data))
    if k % 3 == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif k % 3 == 1:
        del data[at:]
    else:
        data[at:at] = b"?"
    victim.write_bytes(data)
    return victim


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("compression", [None, 6])
def test_what_does_not_hold_is_redone(tmp_path, source, compression, interrupt_after):
    export(source, tmp_path / "whole", compression=compression, tuning=TUNING[True])
    expected = contents(tmp_path / "whole")
    rng = random.Random(0)
    for k in range(3 * part_of(4)):
        out_dir = tmp_path / f"out-{k}"
        interrupted(source, out_dir, interrupt_after, 9 + k, compression=compression)
        victim = damage_one_file(out_dir / WORK_FOLDER, rng, k)
        export(source, out_dir, compression=compression, resume=True)
        assert contents(out_dir) == expected, victim


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"id": 1}'])
def test_a_torn_record_means_a_new_start(tmp_path, source, interrupt_after, damage):
    interrupted(source, tmp_path / "out", interrupt_after, 5)
    (tmp_path / "out" / WORK_FOLDER / "run.json").write_text(damage)
    report = export(source, tmp_path / "out", resume=True)
    assert report.kept_tasks == 0
    export(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_nothing_to_resume_is_a_new_start(tmp_path, source):
    assert export(source, tmp_path / "out", resume=True).kept_tasks == 0


def test_without_resume_an_interrupted_run_is_cleared(tmp_path, source, interrupt_after):
    scratch = tmp_path / "scratch"
    interrupted(source, tmp_path / "out", interrupt_after, 3, scratch_dir=scratch)
    assert list(scratch.iterdir())
    report = export(source, tmp_path / "out", scratch_dir=scratch)
    assert report.kept_tasks == 0
    assert list(scratch.iterdir()) == []


def test_a_scratch_folder_elsewhere_is_found_again(tmp_path, source, interrupt_after):
    scratch = tmp_path / "scratch"
    interrupted(source, tmp_path / "out", interrupt_after, 7, scratch_dir=scratch)
    with pytest.raises(ResumeError, match="Leave out `scratch_dir`"):
        export(source, tmp_path / "out", scratch_dir=tmp_path / "other", resume=True)
    assert export(source, tmp_path / "out", resume=True).kept_tasks
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("out_dir", ["out", "link", "deep/../out"])
def test_the_folder_may_be_named_in_any_way(
    tmp_path, monkeypatch, source, interrupt_after, out_dir
):
    """Lock and journal stay, whether the path is relative, through a link, or a detour."""
    for name in ("out", "deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    seen = []
    stages = run.run_stages
    monkeypatch.setattr(
        run, "run_stages",
        lambda *a: seen.append({p.name for p in Path("out", WORK_FOLDER).iterdir()}) or stages(*a),
    )  # fmt: skip
    interrupted(source, Path(out_dir), interrupt_after, 7)
    assert export(source, Path(out_dir), resume=True).kept_tasks
    assert all("lock" in names for names in seen)


def test_a_replacing_run_need_not_be_forced_again(tmp_path, source, interrupt_after):
    write_store(tmp_path / "old.zarr", stored(directed_graph(50)))
    export(tmp_path / "old.zarr", tmp_path / "out")
    before = contents(tmp_path / "out")
    interrupted(source, tmp_path / "out", interrupt_after, 7, force=True)
    assert contents(tmp_path / "out") == before
    export(source, tmp_path / "out", resume=True)
    export(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("leaves_scratch")
def test_another_run_is_refused_with_the_reason(tmp_path, source, interrupt_after):
    out_dir = tmp_path / "out"
    interrupted(source, out_dir, interrupt_after, 5)
    other = write_store(tmp_path / "other.zarr", stored(GRAPHS["directed"]))
    with pytest.raises(ResumeError, match=r"had source '.*s\.zarr', not '.*other\.zarr'"):
        export(other, out_dir, resume=True)
    with pytest.raises(ResumeError, match="had compression None, not 6"):
        export(source, out_dir, resume=True, compression=6)
    with pytest.raises(ResumeError, match=r"takes .* but the limit is 100 MB"):
        run_export(open_source(source), out_dir, resume=True, memory_limit="100MB")
    record = out_dir / WORK_FOLDER / "run.json"
    text = record.read_text()
    record.write_text(json.dumps(json.loads(text) | {"version": "0.0.1"}))
    with pytest.raises(ResumeError, match=r"had version '0\.0\.1', not"):
        export(source, out_dir, resume=True)
    record.write_text(text)
    os.utime(source / "obsp/connectivities/indices/0")
    with pytest.raises(ResumeError, match="has changed since"):
        export(source, out_dir, resume=True)
    assert record.read_text() == text


# --- thinned graphs

THINNED = {"rule": "max", "weights": True, "thinning": Thinning(0.1, 4, 5000)}
OF_RUNS = ["split", "merge", "weigh", "thin"]
STAGES = {"directed": OF_RUNS, "from one end": OF_RUNS, "ranked, from one end": OF_RUNS,
          "symmetric": ["rank", "weigh", "thin"]}  # fmt: skip
KINDS = [
    {"format": "parquet", "directions": "both"},
    *(pytest.param(options, marks=pytest.mark.slow) for options in ({}, {"compression": 6})),
]


def weighted(kind: str) -> tuple[Any, dict[str, Any], Tuning]:
    """Return a graph with weights of its own, or with the same in both directions, and options."""
    matrix = GRAPHS["symmetric" if kind == "symmetric" else "directed"].tocsr(copy=True)
    matrix.data = np.random.default_rng(0).random(matrix.nnz)
    if kind == "symmetric":
        matrix = matrix.maximum(matrix.T).tocsr()
    if "one end" not in kind:
        return matrix, THINNED, TUNING[True]
    in_memory = replace(TUNING[True], count_components=True)
    if "ranked" in kind:
        return matrix, THINNED, in_memory
    return matrix, THINNED | {"thinning": Thinning(0.1, None, 700)}, in_memory


@pytest.fixture
def interrupt_in(monkeypatch):
    """Return a function that lets the next export end after so many tasks of a stage."""
    add = Journal.add

    def at(stage: str, n: int) -> None:
        left = iter(range(n))

        def counted(self, label, *line):
            add(self, label, *line)
            if label.split()[0] == stage and next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "add", counted)

    yield at
    monkeypatch.setattr(Journal, "add", add)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("kind", STAGES)
def test_thinned_graphs_go_on_from_any_stage(tmp_path, kind, options, interrupt_in, monkeypatch):
    if "format" in options:
        pytest.importorskip("pyarrow.parquet")
    matrix, thinned, tuning = weighted(kind)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=1000)
    options = thinned | options
    told = export(source, tmp_path / "whole", tuning=tuning, **options).thinned
    expected = contents(tmp_path / "whole")
    assert verify_export(tmp_path / "whole", source=source).ok
    monkeypatch.setattr(Budget, "has_room_for_counters", lambda *_: tuning.count_components)
    for stage in STAGES[kind]:
        for n in (0, 3):
            out_dir = tmp_path / f"{stage}-{n}"
            interrupt_in(stage, n)
            with pytest.raises(KeyboardInterrupt):
                export(source, out_dir, tuning=tuning, **options)
            interrupt_in("none", 0)
            report = export(source, out_dir, resume=True, **options)
            assert contents(out_dir) == expected, stage
            assert report.kept_tasks > n
            assert report.thinned.n_dropped == told.n_dropped > 0
            assert report.thinned.n_became_isolated == told.n_became_isolated


@pytest.mark.parametrize("then", ["whole", "damaged", "kept", "torn"])
def test_when_all_pieces_are_merged_the_runs_of_the_split_go(
    tmp_path, interrupt_in, monkeypatch, then
):
    matrix, thinned, tuning = weighted("directed")
    source = write_store(tmp_path / "s.zarr", matrix, chunk=1000)
    options = thinned | {"keep_scratch": then == "kept"}
    export(source, tmp_path / "whole", tuning=tuning, **thinned)
    interrupt_in("thin", 2)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", tuning=tuning, **options)
    interrupt_in("none", 0)
    (scratch,) = (tmp_path / "out" / WORK_FOLDER).glob("run-*/")
    pieces = sorted(scratch.glob("rows-*.run"))
    n_runs, n_pieces = len(list(scratch.glob("split-*.run"))), len(pieces)
    assert n_pieces > 3
    if then == "kept":
        assert n_runs > 3
    else:
        assert n_runs == 0
    if then == "damaged":
        pieces[1].write_bytes(pieces[1].read_bytes()[:-1])
    if then == "torn":
        (journal,) = (tmp_path / "out" / WORK_FOLDER).glob("journal-*")
        lines = journal.read_bytes().splitlines()
        is_split = [b'["split ' in line for line in lines]
        del lines[is_split.index(True)]
        journal.write_bytes(b"\n".join(lines) + b"\n")
    split_again = []
    split = pipeline.split
    monkeypatch.setattr(
        pipeline, "split", lambda runs, block: split_again.append(block) or split(runs, block)
    )
    monkeypatch.setattr(Budget, "has_room_for_counters", lambda *_: False)
    report = export(source, tmp_path / "out", resume=True, **options)
    assert bool(split_again) == (then in ("damaged", "torn"))
    assert report.kept_tasks >= n_pieces - 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    shutil.rmtree(tmp_path / "out" / WORK_FOLDER, ignore_errors=then != "kept")


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_runs_of_thinned_graphs_that_do_not_hold_are_made_again(tmp_path, kind, interrupt_in):
    matrix, options, tuning = weighted(kind)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=1000)
    export(source, tmp_path / "whole", tuning=tuning, **options)
    expected = contents(tmp_path / "whole")
    rng = random.Random(0)
    for k in range(3 * part_of(3)):
        out_dir = tmp_path / f"out-{k}"
        interrupt_in(STAGES[kind][-1 - k % len(STAGES[kind])], 2)
        with pytest.raises(KeyboardInterrupt):
            export(source, out_dir, tuning=tuning, **options)
        interrupt_in("none", 0)
        damage_one_file(out_dir / WORK_FOLDER, rng, k)
        export(source, out_dir, resume=True, **options)
        assert contents(out_dir) == expected, k


@pytest.mark.slow
@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("kind", ["from one end", "ranked, from one end"])
def test_edges_from_one_end_are_not_mixed_with_those_from_both(
    tmp_path, interrupt_in, monkeypatch, kind, then
):
    """Where the memory for counters is there or gone later, edges are merged again."""
    matrix, options, in_memory = weighted(kind)
    source = write_store(tmp_path / "s.zarr", matrix, chunk=1000)
    export(source, tmp_path / "whole", tuning=in_memory, **options)
    for stage in STAGES[kind]:
        out_dir = tmp_path / stage
        interrupt_in(stage, 2)
        with pytest.raises(KeyboardInterrupt):
            export(source, out_dir, tuning=TUNING[True] if then else in_memory, **options)
        interrupt_in("none", 0)
        with monkeypatch.context() as patch:
            patch.setattr(Budget, "has_room_for_counters", lambda *_: then)
            export(source, out_dir, resume=True, **options)
        assert contents(out_dir) == contents(tmp_path / "whole"), stage


# --- real processes


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    return {
        kind: make_store(
            folder / f"{kind}.zarr", n_cells=400_000, n_neighbors=15, kind=kind, order="random",
            zarr_format=2, chunk=50_000,
        )
        for kind in ("directed", "symmetric")
    }  # fmt: skip


def command(store: Path, out_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "cellgraph_dask", "export", str(store), str(out_dir), "--json",
            "--memory-limit", "512MB", *options]  # fmt: skip


def wait_for_journal(out_dir: Path, n_bytes: int, process: subprocess.Popen[str]) -> bool:
    """Wait until the journal has so many bytes; False if the process ended before."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if any(p.stat().st_size >= n_bytes for p in out_dir.glob(f"{WORK_FOLDER}/journal-*")):
            return True
        time.sleep(0.001)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directed", "symmetric"])
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_process_that_is_ended_can_be_gone_on_with(tmp_path, large, kind, ending):
    out_dir = tmp_path / "out"
    options = ["--compression", "6"] if ending == "SIGINT" else []
    export_connectivities(large[kind], tmp_path / "whole", compression=6 if options else None)
    process = subprocess.Popen(
        command(large[kind], out_dir, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert wait_for_journal(out_dir, 300, process), "the export ended before the signal"
    process.send_signal(getattr(signal, ending))
    _, errors = process.communicate(timeout=60)
    assert not (out_dir / "connectivity_manifest.json").exists()
    again = command(large[kind], out_dir, *options, "--resume")
    if ending != "SIGKILL":
        assert process.returncode == 128 + getattr(signal, ending)
        assert "What is finished is kept. Resume with:" in errors
        printed = shlex.split(errors.strip().splitlines()[-1])
        assert printed[0] == "cellgraph-dask"
        again = [sys.executable, "-m", "cellgraph_dask", *printed[1:]]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kept_tasks"] > 0
    assert contents(out_dir) == contents(tmp_path / "whole")


def test_bands_survive(tmp_path, monkeypatch, interrupt_after):
    """Runs whose rows are cut into many bands are kept like others."""
    monkeypatch.setattr("cellgraph_dask.stages.split.BAND_BITS", 5)
    monkeypatch.setattr("cellgraph_dask.stages.merge.BAND_BITS", 5)
    source = write_store(tmp_path / "s.zarr", stored(GRAPHS["directed"]), chunk=1000)
    interrupted(source, tmp_path / "out", interrupt_after, 7)
    assert export(source, tmp_path / "out", resume=True).kept_tasks
    monkeypatch.undo()
    export(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
