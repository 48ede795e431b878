"""Compiled loops: as their Python, from the cache without numba, and never from a wrong cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cellgraph_dask
from cellgraph_dask.machine import compiled as machine_compiled
from cellgraph_dask.machine.compiled import compiled
from cellgraph_dask.source import checks
from cellgraph_dask.stages import loops

PACKAGE = Path(cellgraph_dask.__file__).parent

# Calls a loop in a new process; says whether numba had to come for it.
CALL = """
import json, sys
import numpy as np
from cellgraph_dask.source import checks
decrease = checks.first_decrease(np.array([0, 3, 2, 5]))
print(json.dumps({"decrease": decrease, "numba": "numba" in sys.modules}))
"""


def call(package_parent: Path, home: Path, **settings: str) -> dict[str, object]:
    environment = os.environ | {"PYTHONPATH": str(package_parent), "XDG_CACHE_HOME": str(home)}
    environment |= settings
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=environment, cwd=home, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cached(package_parent: Path) -> list[Path]:
    return list(package_parent.glob("cellgraph_dask/machine/__pycache__/loop-*.o"))


@pytest.fixture
def package(tmp_path) -> Path:
    """Return the parent of a copy of the package without any cache."""
    parent = tmp_path / "site"
    shutil.copytree(
        PACKAGE, parent / "cellgraph_dask", ignore=shutil.ignore_patterns("__pycache__")
    )
    return parent


@pytest.fixture(scope="module")
def called(tmp_path_factory) -> Path:
    """Return the parent of a copy of the package whose loop has been called."""
    folder = tmp_path_factory.mktemp("called")
    shutil.copytree(
        PACKAGE, folder / "cellgraph_dask", ignore=shutil.ignore_patterns("__pycache__")
    )
    assert call(folder, folder) == {"decrease": 1, "numba": True}
    return folder


@pytest.fixture
def warm(called, tmp_path) -> Path:
    """Return the parent of another copy of it, with its cache."""
    return shutil.copytree(called, tmp_path / "site")


def test_the_second_start_needs_no_numba(package, tmp_path):
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}
    assert call(package, tmp_path) == {"decrease": 1, "numba": False}
    assert cached(package)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_is_compiled_anew(warm, tmp_path, damage):
    (path,) = cached(warm)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        del content[-20:]
    elif damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)
    assert call(warm, tmp_path) == {"decrease": 1, "numba": True}
    assert call(warm, tmp_path) == {"decrease": 1, "numba": False}


@pytest.mark.usefixtures("leaves_scratch")  # the cache folder has the package's name
def test_the_users_cache_serves_where_the_package_cannot_be_written(package, tmp_path):
    (package / "cellgraph_dask" / "machine" / "__pycache__").write_text(
        "a file in the place of the folder"
    )
    assert call(package, tmp_path) == {"decrease": 1, "numba": True}
    assert call(package, tmp_path) == {"decrease": 1, "numba": False}
    assert list((tmp_path / "cellgraph-dask").glob("loop-*.o"))


def edit(package: Path, old: str, new: str) -> None:
    path = package / "cellgraph_dask" / "source" / "checks.py"
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new, 1))


@pytest.mark.slow
def test_only_a_change_of_the_loop_makes_a_new_cache_entry(warm, tmp_path):
    edit(warm, "import numpy", "# lines move\n\nimport numpy")
    moved = warm.rename(tmp_path / "moved")
    assert call(moved, tmp_path) == {"decrease": 1, "numba": False}
    edit(moved, "return r\n", "return r + 5\n")
    assert call(moved, tmp_path) == {"decrease": 6, "numba": True}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["variable", "file"])
def test_other_settings_of_numba_make_a_new_cache_entry(warm, tmp_path, setting):
    if setting == "variable":
        assert call(warm, tmp_path, NUMBA_OPT="1") == {"decrease": 1, "numba": True}
    else:
        (tmp_path / ".numba_config.yaml").write_text("opt: 1\n")
        assert call(warm, tmp_path) == {"decrease": 1, "numba": True}
    assert len(cached(warm)) == 2


def loops_of(**changes: str) -> dict[str, Any]:
    """Return loops of a module in which parts of the text are others."""
    text = MODULE
    for old, new in changes.items():
        text = text.replace(old, new)
    names: dict[str, Any] = {"compiled": compiled, "np": np, "__name__": "somewhere"}
    exec(compile(text, "somewhere.py", "exec"), names)
    return names


MODULE = """
LIMIT = 3

@compiled(int)
def inner(value):
    return value + 1

@compiled(int)
def outer(values):
    n = 0
    for k in range(values.size):
        if inner(values[k]) > np.int64(LIMIT):
            n += 1
    return n
"""


@pytest.mark.parametrize(
    ("change", "is_another"),
    [({"LIMIT = 3": "\n\nLIMIT = 3  # said otherwise"}, False), ({"LIMIT = 3": "LIMIT = 4"}, True),
     ({"value + 1": "value + 2"}, True), ({"np.int64": "np.uint64"}, True),
     ({"(int)\ndef outer": "(bool)\ndef outer"}, True), ({"n = 0": "n = 1"}, True)],
)  # fmt: skip
def test_the_digest_is_of_all_that_is_compiled(change, is_another):
    digests = {loops_of(**text)["outer"]._digest(("<i8 1",)) for text in ({}, change)}
    assert len(digests) == 1 + is_another
    assert loops_of()["outer"](np.arange(6)) == 3


def test_what_a_loop_may_not_use_is_named():
    with pytest.raises(NotImplementedError, match="outer cannot use LIMIT"):
        loops_of(**{"LIMIT = 3": "LIMIT = [3]"})["outer"](np.arange(6))


def group_may_write(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def world_may_write(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def belongs_to_another(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 65534, -1)


def is_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("of", ["folder", "file"])
@pytest.mark.parametrize("spoil", [group_may_write, world_may_write, belongs_to_another, is_a_link])
def test_what_others_may_have_written_is_not_used(tmp_path, monkeypatch, spoil, of):
    first, second = tmp_path / "__pycache__", tmp_path / "user" / "loops"
    monkeypatch.setattr(machine_compiled, "_folders", lambda: iter([first, second]))
    machine_compiled._write_cache("loop", "symbol", b"co\nde")
    assert machine_compiled._read_cache("loop") == ("symbol", b"co\nde")
    spoil(first if of == "folder" else first / "loop")
    assert machine_compiled._read_cache("loop") is None
    machine_compiled._write_cache("loop", "symbol", b"new")
    assert machine_compiled._read_cache("loop") == ("symbol", b"new")
    assert second.exists() == (of == "folder")
    if of == "folder":
        assert second.stat().st_mode & 0o777 == 0o700


LOST = """
import os, sys
import numpy as np
from cellgraph_dask.source import checks
checks.first_decrease(np.array([0, 3], np.int32))  # imports all that is needed
os.environ.pop("XDG_CACHE_HOME")
os.environ.pop("HOME")
if sys.argv[1:]:
    os.environ["HOME"] = sys.argv[1]
os.setuid(54321)
assert checks.first_decrease(np.array([0, 3, 2, 5])) == 1
"""


@pytest.mark.slow
@pytest.mark.usefixtures("leaves_scratch")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("home", [[], ["/root"], ["/nowhere"]])
def test_users_without_a_home_compile_each_time(package, tmp_path, home):
    environment = os.environ | {"PYTHONPATH": str(package), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOST, *home],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Exports graphs of all kinds and proves them, after numba has lost something.
WHOLE = """
import sys
from pathlib import Path
import numpy as np
{without}
from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.machine.compiled import Loop
from tests.helpers.stores import directed_graph, stored, symmetric_graph, write_store
from tests.oracle import assert_exported

ordinary = []
of_numba = Loop._ordinary
Loop._ordinary = lambda loop: ordinary.append(loop) or of_numba(loop)
signed = directed_graph(80, 6)
signed.data = np.random.default_rng(0).choice([-2, -1, 2], signed.nnz)
for name, graph in [("symmetric", symmetric_graph(80, 6)), ("directed", directed_graph(80, 6)),
                    ("signed", signed)]:
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    store = write_store(folder / "s.zarr", graph)
    export_connectivities(store, folder / "out")
    assert_exported(folder / "out", stored(graph))
    report = verify_export(folder / "out", source=store)
    assert report.ok, report.problems
assert len(ordinary) > 20, ordinary
"""
HIDE = """
def hide(owner, name):
    function = getattr(owner, name)
    def hidden(*args, **settings):
        if sys._getframe(1).f_globals["__name__"].startswith("cellgraph_dask"):
            raise AttributeError(name)  # numba itself has it under another name
        return function(*args, **settings)
    setattr(owner, name, hidden)
"""
MISSING = {
    "object code": HIDE + "from numba.core.codegen import CPUCodeLibrary\n"
    "hide(CPUCodeLibrary, '_get_compiled_object')",
    "loader": HIDE + "import llvmlite.binding\nhide(llvmlite.binding, 'create_mcjit_compiler')",
    "option": "from numba.core.cpu import CPUTargetOptions\n"
    "for base in CPUTargetOptions.__mro__:\n"
    "    if '_nrt' in vars(base):\n        del base._nrt",
    "compiling": "import os\nos.environ['NUMBA_DISABLE_JIT'] = '1'",
}


def run_without(script: str, missing: str, package: Path, folder: Path) -> str:
    """Run a script in a new process whose numba has lost something."""
    paths = f"{package}{os.pathsep}{Path(__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script.replace("{without}", missing),
         str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder)},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cached(package) == []
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["loader", "option"])
def test_without_a_private_name_of_numba_a_loop_is_an_ordinary_function(package, tmp_path, missing):
    script = "import sys\n{without}\n" + CALL
    found = json.loads(run_without(script, MISSING[missing], package, tmp_path))
    assert found == {"decrease": 1, "numba": True}


@pytest.mark.slow
@pytest.mark.usefixtures("leaves_scratch")
@pytest.mark.parametrize("missing", ["object code", "compiling"])
def test_ordinary_functions_and_python_make_the_same_exports(package, tmp_path, missing):
    run_without(WHOLE, MISSING[missing], package, tmp_path)


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
