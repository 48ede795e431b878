"""The modules import one way only, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cellgraph_dask

PACKAGE = Path(cellgraph_dask.__file__).parent

# Each module may import those before it.
ORDER = [
    "errors", "memory", "files", "workspace", "compiled", "kernels", "edge_pairs", "arrays",
    "zarr_metadata", "chunk_codecs", "objects", "elsewhere", "chunks", "hdf5", "layout",
    "zarr_nodes", "places", "convert", "lazy",
    "source", "scratch", "job", "split_runs", "split", "merge", "degrees", "deflate",
    "edge_files", "stream", "plan", "journal", "progress", "execute", "cluster", "resume",
    "parts", "stages", "publish", "remote", "upload", "download", "exported",
    "verify_loops", "edge_reader", "census", "survey", "pair_file",
    "proof", "signed_proof", "embeddings", "alignment", "encoding", "verify", "inspection",
    "wording", "examine", "spool", "prepare", "run_folders", "export", "blocks", "demo", "cli",
    "__main__",
]  # fmt: skip
# Which modules may import a library; all others must not.
ROOMS = {
    "zarr": {"elsewhere", "zarr_nodes", "places", "source", "lazy", "demo", "inspection"},
    "numcodecs": {"chunk_codecs", "hdf5"},
    "h5py": {"hdf5", "places"},
    "anndata": {"demo"},
    "fsspec": {"remote"},
    "scipy": {"blocks", "demo", "exported", "spool"},
    "pandas": {"demo"},
    "numba": {"compiled"},
    "llvmlite": {"compiled"},
    "dask": {"blocks", "execute", "exported", "lazy", "spool"},
    "distributed": {"cluster", "prepare", "export"},
    "click": {"cli"},
    "rich": {"progress"},
    "isal": {"deflate", "objects"},
    "sparse": {"blocks"},
    "scanpy": set(),
    "cellucid": set(),
}  # fmt: skip
LIGHT = ("numpy", "scipy", "pandas", "zarr", "numcodecs", "dask", "distributed", "numba",
         "anndata", "rich", "sparse", "fsspec")  # fmt: skip


def imports(module: str) -> Iterator[str]:
    """Yield what a module imports anywhere: siblings as ".name", others by their first name."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield (node.module or "").split(".")[0]
            elif node.module:
                yield f".{node.module}"
            else:
                yield from (f".{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert modules == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module):
    below = set(ORDER[: ORDER.index(module)])
    siblings = {name[1:] for name in imports(module) if name.startswith(".")} - {"__version__"}
    assert siblings - below == set()
    assert "cellgraph_dask" not in set(imports(module))


def test_the_walk_sees_imports():
    assert {".errors", ".memory", ".export", ".demo", "click"} <= set(imports("cli"))
    assert {"anndata", ".edge_pairs"} <= set(imports("demo"))
    assert {".workspace", ".kernels", "zarr"} <= set(imports("source"))


@pytest.mark.parametrize("library", ROOMS)
def test_libraries_stay_in_their_rooms(library):
    found = {module for module in ORDER if library in set(imports(module))}
    assert found <= ROOMS[library]


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
