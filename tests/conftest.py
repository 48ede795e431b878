"""After every test: no temporary file of ours, and no file left open.

The suite may run in several processes, with ``pytest -n auto``.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.effort import THOROUGH
from tests.helpers.fault_server import FaultServer
from tests.helpers.s3 import S3, Proxy, start_s3

# Tests send signals to the processes that they start. Those of a suite in the background, or under
# nohup, would ignore them.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )

# The many processes that tests start read bytecode, instead of compiling all anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile("here", deadline=None)  # tests run on machines that stall
settings.load_profile("here")


# Modules whose tests share what is slow to start or make: a cluster, SLURM, stores, real graphs,
# or to compile.
TOGETHER = (
    "tests/house/test_cellucid.py",
    "tests/house/test_slurm.py",
    "tests/look/test_picture.py",
    "tests/runtime/test_cluster.py",
    "tests/source/test_source_memory.py",
    "tests/verify/test_alignment.py",
)


# Of those that are not in one process: what takes longest begins first, or one would wait for it.
LONGEST = (
    "tests/house/test_fuzz.py",
    "tests/house/test_differential.py",
    "tests/export/test_faults.py",
    "tests/verify/test_corruption.py",
    "tests/source/test_any_matrix.py",
)


MOST_CASES = 3  # of one test, in a run of the whole suite,
MOST_SLOW_CASES = 2  # … of a slow one,
MOST_QUICK_CASES = 2  # … and in the quick part


def _more_cases(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    """Return what is left over if `most` cases of each test are taken, from first to last."""
    cases: dict[Any, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault((item.parent, getattr(item, "originalname", item.name)), []).append(item)
    left = []
    for those in cases.values():
        kept = {(len(those) - 1) * k // (most - 1) for k in range(most)}
        left += [item for number, item in enumerate(those) if number not in kept]
    return left


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _left_to_ci(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    """Return what only CI tries of a whole suite; of tests that are named, all is tried."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS or config.getoption("keyword")
    if THOROUGH or named:
        return set()
    left = {item for item in items if item.get_closest_marker("thorough")}
    slow = set(filter(_is_slow, items))
    left.update(_more_cases([item for item in items if item in slow], MOST_SLOW_CASES))
    left.update(_more_cases([item for item in items if item not in slow], MOST_CASES))
    return left


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose what is left to CI, and the quick part; let slow tests begin first."""
    left = _left_to_ci(config, items)
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))
    for item in _more_cases(items, MOST_QUICK_CASES):
        item.add_marker(pytest.mark.slow)

    def rank(item: pytest.Item) -> int:
        if not _is_slow(item):
            return len(LONGEST) + 1
        path = item.nodeid.partition("::")[0]
        return LONGEST.index(path) if path in LONGEST else len(LONGEST)

    if hasattr(config, "workerinput"):
        items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With ``-n auto``, one more process than cores: some tests wait for others' processes."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give tests to processes one by one, but those of some modules to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path in TOGETHER else nodeid

    return Scheduling(config, log) if config.option.dist == "load" else None


# Files of other modules' tests lie in memory, where fsync takes no time. These limit memory, which
# such files would count towards.
ON_DISK = (
    "tests/benchmarks/test_benchmarks.py",
    "tests/machine/test_memory.py",
    "tests/source/test_hostile_sources.py",
    "tests/source/test_source_memory.py",
    "tests/verify/test_memory.py",
)
IN_MEMORY = Path("/dev/shm")


def in_memory() -> Path | None:
    """Return where there is room for files in memory; None if elsewhere is asked for, or nowhere.

    ``TMPDIR=/tmp pytest`` puts all files on the disk.
    """
    if "TMPDIR" in os.environ or not os.access(IN_MEMORY, os.W_OK | os.X_OK):
        return None
    room = shutil.disk_usage(IN_MEMORY).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return IN_MEMORY if min(room, memory / 2) >= 3e9 else None


@contextmanager
def temporary_files(factory: Any, where: Path | None) -> Iterator[None]:
    """Let temporary files, and those of pytest, lie in a new folder."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir, factory._basetemp
    with tempfile.TemporaryDirectory("", "tests-", where, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # some tests are another user
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if where is not None:
            factory._basetemp = Path(folder, "pytest").resolve()
            factory._basetemp.mkdir()
        yield
        tempdir, tempfile.tempdir, factory._basetemp = before
        del os.environ["TMPDIR"]
        if tempdir is not None:
            os.environ["TMPDIR"] = tempdir


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pytest's folder on the disk."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_files(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[None]:
    """Give this process a folder for temporary files.

    Uploads find their temporary folder by URL and user, so two processes would meet there.
    """
    with temporary_files(tmp_path_factory, in_memory()):
        yield


@pytest.fixture(scope="module", autouse=True)
def _on_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, disk: Path
) -> Iterator[None]:
    if request.node.nodeid in ON_DISK:
        with temporary_files(tmp_path_factory, disk):
            yield
    else:
        yield


@pytest.fixture
def leaves_scratch() -> None:
    """Mark a test that leaves temporary files on purpose, such as by killing an export."""


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Give a running S3."""
    with start_s3() as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[FaultServer]:
    """Give a process that runs commands whose system calls fail."""
    with FaultServer() as started:
        yield started


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
    shutil.rmtree(folder, ignore_errors=True)  # it may take memory


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


@pytest.fixture
def interrupt_after(monkeypatch):
    """Return a function that lets the next export end as by Ctrl-C after so many journal lines."""
    from cellgraph_dask.runtime.stage import Journal

    add = Journal.add

    def after(n: int) -> None:
        left = iter(range(n))

        def counted(self, *line):
            add(self, *line)
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "add", counted)

    yield after
    monkeypatch.setattr(Journal, "add", add)
