"""The SLURM example: the job script it generates, and real runs on a SLURM of one node."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cellgraph_dask import export_connectivities
from tests.benchmarks.make_store import make_store
from tests.helpers.slurm import PATH, NotStartedError, Slurm, own_slurm, wait_until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "cluster" / "slurm_job.py"
BIN = Path(sys.executable).parent
NOT_ACTIVATED = os.pathsep.join(p for p in PATH.split(os.pathsep) if Path(p) != BIN)
ACTIVATED = os.pathsep.join([str(BIN), NOT_ACTIVATED])


def job_script(folder: Path, *options: str) -> tuple[set[str], str]:
    """Return the directives and the command of the workers' jobs."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "cells.zarr", "export", "--dry-run", *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    script = done.stdout
    assert script.startswith("#!/")
    (command,) = [line for line in script.splitlines() if "dask_worker" in line]
    return set(re.findall(r"^#SBATCH (.+)$", script, re.MULTILINE)), command


def test_the_job_script_asks_for_what_a_worker_uses(tmp_path):
    directives, command = job_script(tmp_path, "--cores", "2", "--memory", "4GiB")
    assert {"-J cellgraph-worker", "-n 1", "--cpus-per-task=2", "--mem=4G"} < directives
    assert "-t 02:00:00" in directives
    assert not any(d.startswith(("-p", "-A")) for d in directives)
    assert Path(command.split()[0]).samefile(sys.executable)
    assert " tcp://" in command
    assert "--nthreads 2" in command
    assert "--memory-limit 4.00GiB" in command
    assert "--nworkers" not in command  # so one process with both threads
    assert "--nanny" in command
    assert "--death-timeout 60" in command
    assert not (tmp_path / "export").exists()


def test_the_job_script_names_partition_account_and_time(tmp_path):
    directives, _ = job_script(
        tmp_path, "--partition", "long", "--account", "lab", "--walltime", "00:30:00"
    )
    assert {"-p long", "-A lab", "-t 00:30:00"} < directives
    assert any(d.startswith("-o cellgraph-logs/") for d in directives)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Start a SLURM; where CI=true, not being able to is a failure."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(own_slurm())
        except NotStartedError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no SLURM: {error}")
        yield running


def contents(out_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out_dir)): p.read_bytes() for p in out_dir.rglob("*") if p.is_file()}


def printed(folder: Path, slurm: Slurm) -> str:
    """Return what jobs and daemons have said."""
    paths = [*folder.rglob("*.out"), *folder.rglob("*.err")]
    jobs = [f"{path.name}:\n{path.read_text()}" for path in sorted(paths)]
    return "\n".join([*jobs, slurm.logs(), str(slurm.jobs())])


def submit(slurm: Slurm, folder: Path, *arguments: str, activated: bool = True) -> int:
    """Submit the example in an activated environment, or by the full name of its Python."""
    command = [str(SCRIPT), *arguments]
    if not activated:
        command = ["--wrap", shlex.join(["exec", sys.executable, *command])]
    return int(
        slurm.run(
            "sbatch", "--parsable", "--cpus-per-task=1", "--mem=1G", "--time=00:10:00",
            f"--chdir={folder}", "--output=job.out", "--error=job.err", *command,
            PATH=ACTIVATED if activated else NOT_ACTIVATED, PYTHONPATH=str(ROOT),
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "compression", "activated"), [("symmetric", None, True), ("directed", 6, False)]
)
def test_a_job_that_submits_its_workers_writes_the_same_bytes(
    tmp_path, slurm, kind, compression, activated
):
    store = make_store(
        tmp_path / "cells.zarr", n_cells=200_000, n_neighbors=15, kind=kind, order="random",
        zarr_format=2, chunk=100_000,
    )  # fmt: skip
    export_connectivities(store, tmp_path / "threads", compression=compression)
    arguments = ["cells.zarr", "slurm", "--jobs", "2", "--cores", "1", "--memory", "1GB"]
    if compression is not None:
        arguments += ["--compression", str(compression)]
    before = set(slurm.jobs())
    job = submit(slurm, tmp_path, *arguments, activated=activated)
    # It ends the workers' jobs itself.
    assert wait_until(lambda: not slurm.running(), seconds=240), printed(tmp_path, slurm)
    jobs = {number: ended for number, ended in slurm.jobs().items() if number not in before}
    assert jobs.pop(job)[1] == "COMPLETED", printed(tmp_path, slurm)
    assert [name for name, _ in jobs.values()] == ["cellgraph-worker"] * 2

    assert contents(tmp_path / "slurm") == contents(tmp_path / "threads")
    report = json.loads((tmp_path / "job.out").read_text())
    # Three quarters of what a worker's job has asked for, and been given.
    assert report["memory_limit_bytes"] == pytest.approx(0.75e9, rel=0.01)
    assert report["symmetric"] == (kind == "symmetric")


@pytest.mark.slow
def test_workers_end_when_the_job_that_started_them_is_cancelled(tmp_path, slurm):
    before = set(slurm.jobs())
    # Two workers have room; while the third is queued the job waits for it, with a scheduler.
    job = submit(slurm, tmp_path, "cells.zarr", "slurm", "--jobs", "3", "--cores", "1",
                 "--memory", "1GB")  # fmt: skip
    logs = tmp_path / "cellgraph-logs"

    def two_are_connected() -> bool:
        texts = [path.read_text() for path in logs.glob("*.err")]
        return sum("Registered to:" in text for text in texts) == 2

    assert wait_until(two_are_connected, seconds=120), printed(tmp_path, slurm)
    slurm.run("scancel", "--state=PENDING", "--name=cellgraph-worker")
    slurm.run("scancel", str(job))
    assert wait_until(lambda: not slurm.running(), seconds=180), printed(tmp_path, slurm)
    jobs = {number: ended for number, ended in slurm.jobs().items() if number not in before}
    assert jobs.pop(job)[1] == "CANCELLED"
    # Only the one that was queued; the others left by themselves.
    assert sorted(state == "CANCELLED" for _, state in jobs.values()) == [False, False, True]
