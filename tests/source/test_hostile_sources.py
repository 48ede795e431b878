"""Some of the claims, bombs and hard graphs of `tests.helpers.hostile`, each in its cgroup."""

from __future__ import annotations

import pytest

from tests.benchmarks.cgroup import CgroupUnavailableError
from tests.helpers.hostile import CASES, attempt

NAMES = [
    "dense of 2^40, chunks squares, zarr 3",
    "dense of 2^40, chunks single, h5ad",
    "2^36 cells, zarr 3",
    "an export with n_cells of 1099511627776, and its source",
    "zstd bomb in a shard",
    "zstd bomb in a dense matrix",
    "zstd bomb in obsm",
    "deflate bomb, h5ad, user block of 512",
    "key of two gigabytes, h5ad",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_refused_or_right_but_never_killed(name):
    try:
        problems = attempt(CASES[name])
    except CgroupUnavailableError as error:
        pytest.skip(str(error))
    assert problems == []
