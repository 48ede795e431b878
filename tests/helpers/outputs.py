"""Where exports are published to: a folder on disk, or a storage in memory, looked at alike."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cellgraph_dask import export_connectivities
from cellgraph_dask.machine.remote import find_path
from cellgraph_dask.publish.output import Output, open_output
from cellgraph_dask.publish.publish import DiskTarget, Target
from cellgraph_dask.publish.upload import StorageTarget
from cellgraph_dask.publish.work_folder import WorkFolder
from tests.helpers.flaky import Flaky
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store
from tests.oracle import oracle_edges

N_CELLS = 40
GRAPHS = {"old": symmetric_graph(N_CELLS, 3, seed=1), "new": directed_graph(N_CELLS, 5)}
EDGES = {name: oracle_edges(matrix) for name, matrix in GRAPHS.items()}
N_EDGES = {name: edges[0].size for name, edges in EDGES.items()} | {"nothing": None}
PLAIN, GZIP = None, 6
MANIFEST, IDENTITY = "connectivity_manifest.json", "dataset_identity.json"
URL = "flaky://bucket/exports/a"
INSIDE = "bucket/exports/a/"

Files = dict[str, bytes]


class Made(NamedTuple):
    """A store of each graph, and the files of their exports on disk, by name and compression."""

    stores: dict[str, Path]
    files: dict[tuple[str, int | None], Files]


def make_exports(folder: Path) -> Made:
    """Write the stores of both graphs, and export them plain and with gzip."""
    made = Made({}, {})
    for name, matrix in GRAPHS.items():
        store = made.stores[name] = write_store(folder / f"{name}.zarr", matrix)
        for compression in (PLAIN, GZIP):
            out_dir = folder / f"{name}-{compression}"
            export_connectivities(store, out_dir, compression=compression)
            made.files[name, compression] = DiskPlace(out_dir).files()
    return made


def graph_in(files: Files) -> str:
    """Return which graph a viewer finds, or "nothing"; fail if it is a mixture."""
    if MANIFEST not in files:
        return "nothing"
    manifest = json.loads(files[MANIFEST])
    sides = []
    for key in ("sourcesPath", "destinationsPath"):
        raw = files[manifest[key]]
        raw = raw if manifest["compression"] is None else gzip.decompress(raw)
        sides.append(np.frombuffer(raw, np.dtype(manifest["index_dtype"]).newbyteorder("<")))
    for name, edges in EDGES.items():
        if manifest["n_edges"] == edges[0].size:
            assert np.array_equal(sides, edges)
            return name
    raise AssertionError(f"an export of {manifest['n_edges']} edges is neither graph")


def identity_of(name: str, **more: Any) -> dict[str, Any]:
    """Return a dataset's identity as it is beside the export of a graph, or beside none."""
    n_edges = N_EDGES[name]
    stats = {"n_cells": N_CELLS, "n_genes": 7, "has_connectivity": n_edges is not None}
    return {
        "version": 2,
        "name": "Zellen · 細胞",
        "stats": {**stats, "n_edges": n_edges, **more},
        "embeddings": {"available_dimensions": [2], "files": {"2d": "points_2d.bin"}},
    }


class DiskPlace:
    """A folder of this machine."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir: Any = out_dir
        self.more: dict[str, Any] = {}

    def files(self) -> Files:
        """Return the content of all files, by name."""
        found = snapshot(self.out_dir) if self.out_dir.exists() else {}
        return {name: content for name, content in found.items() if content is not None}

    def restore(self, files: Files) -> None:
        """Let there be these files and no others."""
        shutil.rmtree(self.out_dir, ignore_errors=True)
        for name, content in files.items():
            path = self.out_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def open(self, **options: Any) -> Output:
        """Return it to be held for writing."""
        return open_output(self.out_dir, **self.more, **options)

    @contextmanager
    def target(self) -> Iterator[tuple[Target, Path]]:
        """Give it as what `publish` takes, and the work folder."""
        held = WorkFolder(self.out_dir, str(self.out_dir))
        held.take()
        try:
            yield DiskTarget(held), held.path
        finally:
            held.release(keep=False)


class StoragePlace(DiskPlace):
    """A folder in a storage in memory."""

    def __init__(self, scratch: Path) -> None:
        self.out_dir = URL
        self.more = {"scratch_dir": scratch}

    def files(self) -> Files:
        """Return the content of all objects, by name; nothing is on its way."""
        assert Flaky.uploads == set()
        assert all(name.startswith(INSIDE) for name in Flaky.objects)
        return {name.removeprefix(INSIDE): content for name, content in Flaky.objects.items()}

    def restore(self, files: Files) -> None:
        """Let there be these objects and no others."""
        Flaky.objects.clear()
        Flaky.objects.update({INSIDE + name: content for name, content in files.items()})
        Flaky.restart()

    @contextmanager
    def target(self) -> Iterator[tuple[Target, Path]]:
        """Give it as what `publish` takes, and the work folder."""
        held = WorkFolder(self.more["scratch_dir"] / "cellgraph-dask-x", URL, temporary=True)
        held.take()
        try:
            path: Any = find_path(URL)
            yield StorageTarget(path), held.path
        finally:
            held.release(keep=False)
