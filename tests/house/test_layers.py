"""Rooms import downwards only and through their doors; heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cellgraph_dask

PACKAGE = Path(cellgraph_dask.__file__).parent

# From the ground up. A room imports rooms of lower floors; rooms of one floor know nothing of
# each other.
FLOORS: list[set[str]] = [
    {"errors", "_version"},
    {"machine"},
    {"edge_pairs", "runtime"},
    {"publish", "source"},
    {"stages", "verify"},
    {"delivery"},
    {"plan"},
    {"export"},
    {"inspection"},
    {"look"},
    {"demo"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The proof is independent of what it proves.
NEVER = {"verify": {"stages", "delivery", "publish", "plan", "export"}}
# Which modules may import a library; all others must not.
LIBRARIES = {
    "zarr": {
        "source/remote_store",
        "source/zarr_store",
        "source/zarr_objects",
        "source/opening",
        "delivery/object_copy",
        "delivery/store_copy",
        "demo",
    },
    "numcodecs": {"source/codecs", "delivery/zarr_files"},
    "h5py": {"source/hdf5", "source/hdf5_datasets", "source/listing", "source/opening"},
    "anndata": {"demo", "delivery/object_copy", "delivery/store_copy"},
    "fsspec": {"machine/remote"},
    "scipy": {"source/blocks", "source/selected", "source/spool", "edge_pairs/graph", "demo"},
    "pandas": {"demo"},
    "matplotlib": {"look/raster", "look/figure", "look/shading", "look/opened"},
    "numba": {"machine/compiled"},
    "llvmlite": {"machine/compiled"},
    "dask": {
        "source/blocks",
        "source/selected",
        "source/spool",
        "edge_pairs/graph",
        "runtime/threads",
    },
    "distributed": {
        "runtime/cluster",
        "plan/options",
        "export/api",
        "export/choosing",
        "export/run",
        "export/symmetrize",
    },
    "click": {
        "cli/commands",
        "cli/completion",
        "cli/failures",
        "cli/group",
        "cli/help",
        "cli/look",
        "cli/options",
        "cli/reporting",
        "cli/starting",
    },
    "rich": {"runtime/progress"},
    "IPython": {"runtime/progress"},
    "isal": {"edge_pairs/gzip_member", "source/codecs", "delivery/zarr_files"},
    "pyarrow": {"edge_pairs/parquet_io"},
    "sparse": {"source/blocks"},
    "scanpy": {"demo"},
    "cellucid": set(),
}
LIGHT = ("numpy", "scipy", "pandas", "zarr", "numcodecs", "dask", "distributed", "numba",
         "anndata", "rich", "sparse", "fsspec", "pyarrow", "matplotlib")  # fmt: skip


def name_of(path: Path) -> str:
    """Return the name of a module, such as "machine/files"; of a package its folder's name."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    return str(relative.parent if relative.name == "__init__" and relative.parts[1:] else relative)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """Return the room that a module is in; modules at the top are rooms of their own."""
    return module.partition("/")[0]


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """Return what a module imports anywhere, as (module of this package, name) or (library, "")."""
    return tuple(_imports(MODULES[module]))


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], ""
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0], ""
        elif isinstance(node, ast.ImportFrom):
            folder = path.parent
            for _ in range(node.level - 1):
                folder = folder.parent
            inside = [*folder.relative_to(PACKAGE).parts, *(node.module or "").split(".")]
            base = "/".join(filter(None, inside))
            for alias in node.names:
                full = f"{base}/{alias.name}".lstrip("/")
                yield (full, "") if full in MODULES else (base, alias.name)


@cache
def offered_by(room: str) -> list[str]:
    """Return the modules in the ``__all__`` of a room."""
    return next(
        ast.literal_eval(node.value)
        for node in ast.parse(MODULES[room].read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )


def siblings(module: str) -> set[tuple[str, str]]:
    """Return what a module imports of this package."""
    return {(other, name) for other, name in imports(module) if other in MODULES or not other}


def test_every_module_has_its_place():
    assert {room_of(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    here = room_of(module)
    others = {room_of(other) for other, _ in siblings(module) if other} - {here}
    assert {other for other in others if FLOOR[other] >= FLOOR[here]} == set()
    assert "cellgraph_dask" not in {other for other, _ in imports(module)}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_are_entered_by_their_doors(module):
    """Of another room only the modules in its ``__all__`` are imported, and no private name."""
    for other, name in siblings(module):
        room = room_of(other)
        if room != room_of(module) and "/" in other:
            assert other.partition("/")[2] in offered_by(room)
            assert not name.startswith("_") or name == "__version__"


def reached_from(room: str) -> set[str]:
    """Return the rooms that the modules of a room import, and those import, and so on."""
    seen: set[str] = set()
    todo = [module for module in MODULES if room_of(module) == room]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += [other for other, _ in siblings(module) if other]
    return {room_of(module) for module in seen}


@pytest.mark.parametrize("room", NEVER)
def test_what_a_room_never_reaches(room):
    assert reached_from(room) & NEVER[room] == set()


def test_a_source_knows_no_executor():
    """Of the running of stages it only has what tells of progress."""
    known = {other for m in MODULES if room_of(m) == "source" for other, _ in siblings(m)}
    assert {other for other in known if room_of(other) == "runtime"} <= {"runtime/progress"}


def test_the_modules_of_a_room_form_no_circle():
    above: dict[str, set[str]] = {
        module: {other for other, _ in siblings(module) if other} for module in MODULES
    }
    while free := {module for module, others in above.items() if not others & set(above)}:
        above = {module: others for module, others in above.items() if module not in free}
    assert above == {}


def test_the_walk_sees_imports():
    assert ("machine/files", "read_at") in siblings("stages/runs")
    assert ("machine/buffers", "") in siblings("source/matrix")
    assert ("stages/loops", "") in siblings("stages/merge")
    assert ("click", "") in set(imports("cli/commands"))
    assert {"machine", "source", "stages"} <= reached_from("export")


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_rooms(library):
    found = {module for module in MODULES if (library, "") in set(imports(module))}
    assert found <= LIBRARIES[library]


@pytest.mark.parametrize("module", ["cellgraph_dask", "cellgraph_dask.cli"])
def test_imports_are_light(module):
    script = f"import sys, json, {module}; json.dump(sorted(sys.modules), sys.stdout)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert module in loaded
    assert loaded & set(LIGHT) == set()


def test_public_names_come_when_they_are_asked_for():
    for name in cellgraph_dask.__all__:
        assert getattr(cellgraph_dask, name) is not None
    assert set(cellgraph_dask.__all__) <= set(dir(cellgraph_dask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cellgraph_dask.nothing
