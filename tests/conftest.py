"""After every test: no temporary file of ours, and no file left open.

The suite may run in several processes, with ``pytest -n auto``.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.s3 import S3, Proxy, start_s3

# Tests send signals to the processes that they start. Those of a suite in the background, or under
# nohup, would ignore them.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )

settings.register_profile("here", deadline=None)  # tests run on machines that stall
settings.load_profile("here")


# Modules whose tests share what is slow to start or make: a cluster, SLURM, stores, real graphs.
TOGETHER = (
    "tests/house/test_cellucid.py",
    "tests/house/test_slurm.py",
    "tests/runtime/test_cluster.py",
    "tests/source/test_source_memory.py",
    "tests/verify/test_alignment.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give tests to processes one by one, but those of some modules to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path in TOGETHER else nodeid

    return Scheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_files() -> Iterator[None]:
    """Give this process a folder for temporary files.

    Uploads find their temporary folder by URL and user, so two processes would meet there.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # some tests are another user
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
        tempfile.tempdir = None
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


@pytest.fixture
def leaves_scratch() -> None:
    """Mark a test that leaves temporary files on purpose, such as by killing an export."""


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Give a running S3."""
    with start_s3() as server:
        yield server


@pytest.fixture
def proxy(s3: S3) -> Iterator[Proxy]:
    """Give a proxy before it, whose faults the test chooses."""
    with Proxy(s3.port) as before:
        yield before


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    folder = request.node.funcargs.get("tmp_path")
    if folder is None:
        return
    assert open_files(folder) == []
    if "leaves_scratch" not in request.fixturenames:
        assert scratch_below(folder) == []


def scratch_below(folder: Path) -> list[Path]:
    """Return the work and scratch folders of exports below a folder."""
    return [p for p in folder.rglob("*cellgraph-dask*") if p.name.startswith((".cell", "cell"))]


def open_files(folder: Path) -> list[str]:
    """Return the files below a folder that this process holds open."""
    paths = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that listed them
            paths.append(str(fd.readlink()))
    return [path for path in paths if path.startswith(f"{folder}/")]
