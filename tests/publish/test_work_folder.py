"""The work folder: one run at a time, and what a killed one has left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.output import local_folder, open_output
from cellgraph_dask.publish.work_folder import WORK_FOLDER, WorkFolder
from tests.helpers.command import run
from tests.helpers.flaky import Flaky
from tests.helpers.outputs import PLAIN, URL, DiskPlace, graph_in
from tests.helpers.stores import snapshot

HOLD = """
import sys
from pathlib import Path
from cellgraph_dask.publish.output import open_output
with open_output(Path(sys.argv[1]), force=True):
    print("held", flush=True)
    sys.stdin.readline()
"""
# Two inside at once would find the other's folder there, or their own gone.
TAKE_TURNS = """
import sys
from pathlib import Path
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.output import open_output
out_dir, turns = Path(sys.argv[1]), 0
inside = out_dir.with_name("inside")
while turns < 150:
    try:
        with open_output(out_dir, force=True):
            inside.mkdir()
            inside.rmdir()
            turns += 1
    except OutputError as error:
        assert "running" in str(error) or "come and go" in str(error), error
"""


@contextmanager
def holder(out_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_second_export_into_the_same_folder_is_refused(tmp_path, exports):
    source, place = exports.stores["new"], DiskPlace(tmp_path / "out")
    place.restore(exports.files["old", PLAIN])
    with holder(place.out_dir) as process:
        before = snapshot(place.out_dir)
        outcome = run("export", source, place.out_dir, "--force")
        assert outcome.exit_code == 1
        assert "Traceback" not in outcome.stderr
        assert f"is running (process {process.pid} on {os.uname().nodename})" in outcome.stderr
        assert snapshot(place.out_dir) == before
    assert place.files() == exports.files["old", PLAIN]
    assert run("export", source, place.out_dir, "--force").exit_code == 0
    assert graph_in(place.files()) == "new"


def test_a_killed_holder_holds_nothing(tmp_path, exports):
    place = DiskPlace(tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place.out_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdout.readline()
        process.kill()
    assert (place.out_dir / WORK_FOLDER / "lock").exists()
    assert run("export", exports.stores["new"], place.out_dir).exit_code == 0
    assert place.files() == exports.files["new", PLAIN]


def test_one_holder_at_a_time(tmp_path):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    command = [sys.executable, "-c", TAKE_TURNS, str(out_dir)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert errors == ["", "", ""]
    assert snapshot(out_dir) == {}


def test_what_a_killed_run_has_left_is_removed_unless_it_is_resumed(tmp_path):
    left = tmp_path / "out" / WORK_FOLDER / "runs/a"
    left.parent.mkdir(parents=True)
    left.write_text("x")
    with open_output(tmp_path / "out", force=False, resume=True) as output:
        assert left.exists()
        output.keep = True
    assert left.exists()
    with open_output(tmp_path / "out", force=False):
        assert not left.exists()
    assert snapshot(tmp_path / "out") == {}


def test_what_is_to_be_resumed_outlives_a_storage_that_cannot_be_written(tmp_path):
    left = local_folder(URL, tmp_path) / WORK_FOLDER / "run.json"
    left.parent.mkdir(parents=True)
    left.write_text("x")
    Flaky.restart(1, 2)  # the trial
    with (
        pytest.raises(OutputError, match="step 1 fails"),
        open_output(URL, force=False, resume=True, scratch_dir=tmp_path),
    ):
        pass
    assert left.exists()
    with open_output(URL, force=False, scratch_dir=tmp_path):
        pass
    assert snapshot(tmp_path) == {}


def test_a_temporary_folder_that_an_earlier_run_has_made_goes(tmp_path):
    folder = tmp_path / "made/before"
    folder.mkdir(parents=True)
    for temporary in (False, True):
        held = WorkFolder(folder, "name", temporary=temporary)
        held.take()
        assert held.path.is_dir()
        held.release(keep=False)
        assert folder.exists() != temporary
    assert list(snapshot(tmp_path)) == ["made"]
