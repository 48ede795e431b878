"""Both places that exports are published to, and two exports to be published."""

from __future__ import annotations

import pytest

from tests.helpers.flaky import Flaky
from tests.helpers.outputs import DiskPlace, Made, StoragePlace, make_exports


@pytest.fixture(autouse=True)
def _empty_storage() -> None:
    Flaky.objects.clear()
    Flaky.restart()


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Made:
    """Return stores of both graphs, and the files of their exports."""
    return make_exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(params=["disk", "storage"])
def place(request, tmp_path) -> DiskPlace:
    """Return a folder on disk, and one in storage."""
    if request.param == "disk":
        return DiskPlace(tmp_path / "out")
    return StoragePlace(tmp_path / "scratch")
