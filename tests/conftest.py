"""After every test: no temporary file of ours, and no file left open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.s3 import S3, Proxy, start_s3

settings.register_profile("here", deadline=None)  # tests run on machines that stall
settings.load_profile("here")


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
