"""The SLURM example: the job script it generates, and a real run where SLURM is there.

Several nodes see the stores only if pytest's folder is shared: name one with ``--basetemp``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellgraph_dask import export_connectivities
from tests.benchmarks.make_store import make_store

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm_job.py"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def run(*command: str, folder: Path, timeout: float = 60) -> str:
    environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    logs = [path.read_text() for path in folder.rglob("*.out")]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    return done.stdout


def job_script(folder: Path, *options: str) -> tuple[set[str], str]:
    """Return the directives and the command of the workers' jobs."""
    script = run(
        sys.executable, str(SCRIPT), "cells.zarr", "export", "--dry-run", *options, folder=folder
    )
    assert script.startswith("#!/")
    (command,) = [line for line in script.splitlines() if "dask_worker" in line]
    return set(re.findall(r"^#SBATCH (.+)$", script, re.MULTILINE)), command


def test_the_job_script_asks_for_what_a_worker_uses(tmp_path):
    directives, command = job_script(tmp_path, "--cores", "2", "--memory", "4GiB")
    assert {"-J cellgraph-worker", "-n 1", "--cpus-per-task=2", "--mem=4G"} < directives
    assert "-t 02:00:00" in directives
    assert not any(d.startswith(("-p", "-A")) for d in directives)
    assert command.startswith(sys.executable)
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


def slurm_answers() -> bool:
    if shutil.which("sbatch") is None:
        return False
    return not subprocess.run(["squeue"], check=False, capture_output=True, timeout=60).returncode


@pytest.mark.skipif(not slurm_answers(), reason="needs SLURM: sbatch and a controller")
@pytest.mark.parametrize("kind", ["directed", "symmetric"])
@pytest.mark.parametrize("compression", [None, 6])
def test_a_job_that_submits_its_workers_writes_the_same_bytes(tmp_path, kind, compression):
    store = make_store(
        tmp_path / "cells.zarr", n_cells=200_000, n_neighbors=15, kind=kind, order="random",
        zarr_format=2, chunk=100_000,
    )  # fmt: skip
    export_connectivities(store, tmp_path / "threads", compression=compression)
    options = [] if compression is None else ["--compression", str(compression)]
    run(
        "sbatch", "--wait", "--cpus-per-task=1", "--mem=1G", "--output=job.out", str(SCRIPT),
        "cells.zarr", "slurm", "--jobs", "2", "--cores", "1", "--memory", "1GB", *options,
        folder=tmp_path, timeout=300,
    )  # fmt: skip
    files = sorted(p.relative_to(tmp_path / "threads") for p in (tmp_path / "threads").rglob("*.*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "slurm" / file).read_bytes() == (
            tmp_path / "threads" / file
        ).read_bytes()
    assert '"n_edges"' in (tmp_path / "job.out").read_text()
