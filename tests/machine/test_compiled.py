"""Compiled loops: as their Python, from the cache without numba, and never from a wrong cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cellgraph_dask
from cellgraph_dask.machine.compiled import compiled
from cellgraph_dask.source import checks
from cellgraph_dask.stages import loops

PACKAGE = Path(cellgraph_dask.__file__).parent

# Calls a loop in a new process; says whether numba had to come for it.
CALL = """
import json, sys
import numpy as np
from cellgraph_dask.stages import loops
decrease = loops.first_decrease(np.array([0, 3, 2, 5]))
print(json.dumps({"decrease": decrease, "numba": "numba" in sys.modules}))
"""


def call(package_parent: Path, home: Path) -> dict[str, object]:
    environment = os.environ | {"PYTHONPATH": str(package_parent), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=environment, cwd=home, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def package(tmp_path) -> Path:
    """Return the parent of a copy of the package without any cache."""
    parent = tmp_path / "site"
    shutil.copytree(
        PACKAGE, parent / "cellgraph_dask", ignore=shutil.ignore_patterns("__pycache__")
    )
    return parent


def test_the_second_start_needs_no_numba(package, tmp_path):
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}
    assert call(package, tmp_path) == {"decrease": 1, "numba": False}
    assert list((package / "cellgraph_dask" / "machine" / "__pycache__").glob("loop-*.o"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_is_compiled_anew(package, tmp_path, damage):
    call(package, tmp_path)
    (path,) = (package / "cellgraph_dask" / "machine" / "__pycache__").glob("loop-*.o")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        del content[-20:]
    elif damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}
    assert call(package, tmp_path) == {"decrease": 1, "numba": False}


@pytest.mark.usefixtures("leaves_scratch")  # the cache folder has the package's name
def test_the_users_cache_serves_where_the_package_cannot_be_written(package, tmp_path):
    (package / "cellgraph_dask" / "machine" / "__pycache__").write_text(
        "a file in the place of the folder"
    )
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}
    assert call(package, tmp_path) == {"decrease": 1, "numba": False}
    assert list((tmp_path / "cellgraph-dask").glob("loop-*.o"))


def test_a_change_of_the_source_is_a_new_cache_entry(package, tmp_path):
    call(package, tmp_path)
    source = package / "cellgraph_dask" / "stages" / "loops.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}


def test_arrays_must_be_contiguous():
    with pytest.raises(ValueError, match="contiguous"):
        checks.first_decrease(np.arange(10)[::2])


def test_loops_return_nothing_one_or_several_values():
    @compiled(int, bool)
    def both(values, limit):
        return values.size, values[0] > limit

    assert both(np.arange(3), -1) == (3, True)
    assert both(np.arange(3), 0) == (3, False)
    assert checks.scan_weights(np.array([0.0, -1.0, np.nan])) == (2, 1, 1)
    assert loops.count_values(np.zeros(3, np.uint16), 0, np.zeros(1, np.int64)) is None


@given(values=arrays(np.uint32, st.integers(0, 200), elements=st.integers(0, 300)), data=st.data())
def test_sorting_a_part_leaves_the_rest_alone(values, data):
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    expected = values.copy()
    expected[start:stop].sort()
    loops._sort(values, start, stop)
    assert values.tolist() == expected.tolist()


@settings(deadline=None)
@given(
    values=arrays(np.int32, st.integers(0, 100), elements=st.integers(-3, 60)),
    n_cells=st.integers(1, 60),
)
def test_the_compiled_loop_does_what_its_python_does(values, n_cells):
    expected = checks.first_invalid_index.function(values, n_cells)
    assert checks.first_invalid_index(values, n_cells) == expected
