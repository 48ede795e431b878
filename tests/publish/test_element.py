"""An element put into a store that is there, killed or refused at every system call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr

from cellgraph_dask import symmetrize_connectivities
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.consolidated import consolidate, is_consolidated
from cellgraph_dask.publish.element import ElementOutput
from cellgraph_dask.publish.whole import work_beside
from tests.helpers.fault_server import Attempts, FaultServer, needs_watching
from tests.helpers.stores import (
    chunk_file,
    directed_graph,
    snapshot,
    symmetric_graph,
    write_anndata,
    write_store,
)
from tests.publish.test_disk import RENAMES

OLD, NEW = symmetric_graph(20, 3), symmetric_graph(20, 3, seed=1)
WANTED = NEW.multiply(2).tocsr()  # the sum of both directions

# Puts an element into a store, and nothing else: it was made before.
PLACE = """
import sys
from pathlib import Path
from cellgraph_dask.errors import CellgraphError
from cellgraph_dask.publish.element import ElementOutput
made, store = map(Path, sys.argv[1:])
try:
    with ElementOutput(store, "", "connectivities", force=True, resume=False) as output:
        output.publish(made)
except CellgraphError:
    sys.exit(9)
"""
REFUSED = 9
STEPS = (*RENAMES, "unlink", "unlinkat", "mkdir", "mkdirat", "fsync")


class Store:
    """A store to be put back before each attempt, and the element that is to come."""

    def __init__(self, folder: Path, zarr_format: int, before: str) -> None:
        self.store, self.kept, self.made = (folder / n for n in ("s.zarr", "kept", "made"))
        source = write_store(folder / "n.zarr", NEW, zarr_format=zarr_format)
        symmetrize_connectivities(source, folder / "d.zarr", rule="sum")
        (folder / "new").mkdir()
        shutil.move(folder / "d.zarr" / "obsp", folder / "new" / "obsp")
        write_store(self.kept, OLD, zarr_format=zarr_format)
        if before != "old":
            shutil.rmtree(self.kept / "obsp" / ("" if before == "no obsp" else "connectivities"))
            consolidate(self.kept)

    def restore(self) -> None:
        for folder in (self.store, self.made, work_beside(self.store)):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.kept, self.store)
        self.restore_made()

    def restore_made(self) -> None:
        """Put back what is to come alone."""
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.copytree(self.made.with_name("new"), self.made)

    def placing(self, server: FaultServer) -> Attempts:
        """Return attempts to put the element into the store as it was."""
        root = self.made.parent
        return Attempts(server, PLACE, (self.made, self.store), root, self.restore)

    def state(self, *, consolidated: bool | None) -> str:
        """Return which element readers find; fail if it is a mixture of both."""
        try:
            root = zarr.open_group(self.store, mode="r", use_consolidated=consolidated)
        except ValueError:  # there are none at the moment
            root = zarr.open_group(self.store, mode="r", use_consolidated=False)
        if "obsp" not in root or "connectivities" not in root["obsp"]:
            return "none"
        found = anndata.io.read_elem(root["obsp"]["connectivities"])
        states = {"old": OLD, "new": WANTED}
        return next(n for n, m in states.items() if m.nnz == found.nnz and (m != found).nnz == 0)


@pytest.mark.slow
@needs_watching
@pytest.mark.usefixtures("leaves_scratch")
@pytest.mark.parametrize(("before", "zarr_format"), [("old", 3), ("none", 2)])
def test_killed_at_every_step(server, tmp_path, before, zarr_format):
    place = Store(tmp_path, zarr_format, before)
    placing = place.placing(server)
    old = "old" if before == "old" else "none"
    seen: dict[bool, list[str]] = {True: [], False: []}
    calls = placing.steps(STEPS)
    assert len(calls) > 10
    for n, _ in enumerate(calls, 1):
        assert placing.run(STEPS, n).exit_code == -9
        for consolidated in (True, False):
            seen[consolidated].append(place.state(consolidated=consolidated))
        # The next one does the rest.
        place.restore_made()
        with ElementOutput(place.store, "", "connectivities", force=True, resume=False) as output:
            output.publish(place.made)
        assert place.state(consolidated=True) == "new"
        assert is_consolidated(place.store)
        assert not work_beside(place.store).exists()
    for found in seen.values():  # each way of reading sees one change, from old to new
        switch = found.index("new")
        assert set(found[:switch]) == {old}
        assert set(found[switch:]) == {"new"}


@pytest.mark.slow
@needs_watching
@pytest.mark.parametrize(("before", "zarr_format"), [("old", 2)])
def test_a_disk_that_fails_at_any_step(server, tmp_path, before, zarr_format):
    place = Store(tmp_path, zarr_format, before)
    placing = place.placing(server)
    names = (*RENAMES, "fsync")
    for n, _ in enumerate(placing.steps(names), 1):
        exit_code = placing.run(names, n, "EIO").exit_code
        found = place.state(consolidated=False)
        assert exit_code == (REFUSED if found == before else 0)
        if exit_code == REFUSED:
            assert place.state(consolidated=True) == before
            assert snapshot(place.store) == snapshot(place.kept) or is_consolidated(place.store)


def test_a_store_without_obsp_gets_one(tmp_path):
    place = Store(tmp_path, 2, "no obsp")
    place.restore()
    with ElementOutput(place.store, "", "connectivities", force=False, resume=False) as output:
        output.publish(place.made)
    assert place.state(consolidated=True) == "new"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_store_keeps_all_else(tmp_path, zarr_format, consolidated):
    store = write_store(
        tmp_path / "s.zarr", directed_graph(), key="distances", zarr_format=zarr_format,
        consolidated=consolidated,
    )  # fmt: skip
    before = snapshot(store)
    symmetrize_connectivities(store, store, key="distances", rule="max")
    after = snapshot(store)
    changed = {".zmetadata", "zarr.json"} if consolidated else set()
    assert {p for p in before if before[p] != after[p]} <= changed
    assert all(p.startswith("obsp/connectivities") for p in after.keys() - before.keys())
    assert is_consolidated(store) == consolidated
    found = anndata.read_zarr(store).obsp
    assert sorted(found) == ["connectivities", "distances"]
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_are_those_of_zarr(tmp_path, zarr_format):
    store = write_store(tmp_path / "s.zarr", OLD, zarr_format=zarr_format)
    name = ".zmetadata" if zarr_format == 2 else "zarr.json"
    theirs = json.loads((store / name).read_text())
    consolidate(store)
    ours = json.loads((store / name).read_text())

    def plain(found):
        """Leave out what zarr writes into groups of format 2, where it has no meaning."""
        if zarr_format == 2:
            for path, document in found["metadata"].items():
                if path.endswith(".zgroup"):
                    document.pop("consolidated_metadata", None)
        return found

    assert plain(ours) == plain(theirs)


def test_what_is_there_is_replaced_only_by_force(tmp_path):
    store = write_store(tmp_path / "s.zarr", directed_graph())
    before = snapshot(store)
    with pytest.raises(OutputError, match="has obsp/connectivities already"):
        symmetrize_connectivities(store, store, rule="max")
    assert snapshot(store) == before
    symmetrize_connectivities(store, store, rule="max", force=True)
    wanted = directed_graph()
    assert np.array_equal(
        anndata.read_zarr(store).obsp["connectivities"].toarray(),
        wanted.maximum(wanted.T).toarray(),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_store_behind_a_link_and_a_group_in_a_larger_one(tmp_path):
    (tmp_path / "far").mkdir()
    store = write_anndata(tmp_path / "far" / "s.zarr", connectivities=directed_graph())
    (tmp_path / "link.zarr").symlink_to(store)
    symmetrize_connectivities(store, tmp_path / "link.zarr", rule="max", to_key="sym")
    assert sorted(anndata.read_zarr(store).obsp) == ["connectivities", "sym"]
    zarr_format = zarr.open_group(store, mode="r").metadata.zarr_format
    root = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=zarr_format)
    root.create_group("mod")
    shutil.move(store, tmp_path / "m.zarr" / "mod" / "rna")
    zarr.consolidate_metadata(tmp_path / "m.zarr")
    outer, key = tmp_path / "m.zarr", "mod/rna/obsp/connectivities"
    symmetrize_connectivities(outer, outer, key=key, rule="min", to_key="mutual")
    listed = zarr.open_group(outer, mode="r", use_consolidated=True)
    assert "data" in listed["mod/rna/obsp/mutual"]
    inner = zarr.open_group(outer / "mod" / "rna", mode="r", use_consolidated=True)
    assert "data" in inner["obsp/mutual"]


def test_a_disk_without_exchange(tmp_path, monkeypatch):
    from cellgraph_dask.publish import whole

    class Old:
        """A C library that has no renameat2."""

    monkeypatch.setattr(whole.ctypes, "CDLL", lambda *_args, **_options: Old())
    store = write_store(tmp_path / "s.zarr", directed_graph())
    symmetrize_connectivities(store, store, rule="max", force=True)
    assert chunk_file(store, "data").exists()
    assert (anndata.read_zarr(store).obsp["connectivities"] != directed_graph()).nnz
