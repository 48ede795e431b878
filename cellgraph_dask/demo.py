"""A small but real AnnData store to try things on: points in clusters and their neighbors."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .edge_pairs.graph import open_export
from .errors import OutputError, SourceError
from .export.api import export_connectivities
from .export.run import ExportReport
from .machine.amounts import counted, format_time
from .machine.memory import format_bytes
from .machine.remote import local_path
from .machine.report import Report
from .verify.api import verify_export

N_NEIGHBORS = 15
_N_CLUSTERS = 12
_N_DIMENSIONS = 3


@dataclass(frozen=True)
class DemoResult(Report):
    """What the demo made: an AnnData store, a report of its export, and a picture if it could."""

    _title = "Demo"

    store: str
    report: ExportReport
    picture: str | None = None

    def describe(self) -> str:
        """Say what to try next."""
        store, out_dir = shlex.quote(self.store), shlex.quote(self.report.out_dir)
        return "\n".join(
            [
                "Next:",
                f"  cellgraph-dask plan {store} --memory-limit 512MB",
                f"  cellgraph-dask export {store} {out_dir} --compression 6 --force",
                f"  cellgraph-dask verify {out_dir} --source {store}",
            ]
        )


def make_demo_store(path: Path, n_cells: int = 100_000, seed: int = 0) -> None:
    """Write an AnnData store with a neighbor graph.

    The cells are points around cluster centers; neighbors are exact, by `scipy.spatial.KDTree`.
    ``obsp["distances"]`` is directed, ``obsp["connectivities"]`` its symmetrized Gaussian weights.
    """
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix
    from scipy.spatial import KDTree

    rng = np.random.default_rng(seed)
    cluster = rng.integers(_N_CLUSTERS, size=n_cells)
    centers = rng.normal(scale=8, size=(_N_CLUSTERS, _N_DIMENSIONS))
    points = centers[cluster] + rng.normal(size=(n_cells, _N_DIMENSIONS))
    k = min(N_NEIGHBORS, n_cells - 1)
    distance, neighbor = KDTree(points).query(points, k + 1, workers=-1)
    indptr = np.arange(0, n_cells * k + 1, k)
    distances = csr_matrix(
        (distance[:, 1:].ravel(), neighbor[:, 1:].ravel(), indptr), shape=(n_cells, n_cells)
    )
    distances.sort_indices()
    weights = distances.copy()
    scale = np.repeat(distance[:, -1], k)
    weights.data = np.exp(-((weights.data / scale) ** 2)).astype(np.float32)
    connectivities = weights.maximum(weights.T).tocsr()

    adata = anndata.AnnData(
        obs=pd.DataFrame(
            {"cluster": pd.Categorical([f"cluster {c}" for c in cluster])},
            index=[f"cell-{i}" for i in range(n_cells)],
        )
    )
    adata.obsm["X_umap"] = points[:, :2].astype(np.float32)
    adata.obsp["connectivities"] = connectivities
    adata.obsp["distances"] = distances
    adata.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": k, "method": "exact"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the default format of future versions
        adata.write_zarr(path)


def make_pbmc_store(path: Path) -> int:
    """Write the blood cells that scanpy brings along to a store; return how many there are.

    They are `scanpy.datasets.pbmc68k_reduced`, with the neighbors and the UMAP that are in it.
    """
    try:
        import scanpy
    except ImportError as error:
        raise SourceError(
            "the cells of `pbmc=True` come with scanpy, which is not installed: `pip install "
            f"scanpy` ({error})."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its old layout, and future formats
        adata = scanpy.datasets.pbmc68k_reduced()
        adata.write_zarr(path)
    return int(adata.n_obs)


def run_demo(
    directory: str | Path | None = None,
    *,
    n_cells: int = 100_000,
    pbmc: bool = False,
    picture: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Make a store, export its graph, check the export, and draw it.

    All goes to a folder that must be empty if it is there: by default a new one in the working
    directory. Otherwise, or if the check fails, `OutputError` is raised. With `pbmc` the cells are
    those of `make_pbmc_store`. By default a `picture` is drawn if the extra ``plot`` is installed.
    `say` is told each step as it begins, and what came of it.
    """
    folder = local_path(directory) if directory is not None else _new_folder()
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; name a new folder for the demo.")
    store, out_dir = folder / "cells.zarr", folder / "export"
    folder.mkdir(parents=True, exist_ok=True)
    _make_store(store, n_cells, pbmc, say)
    say(_step(2, "Export its graph", "export", store, out_dir))
    report = export_connectivities(store, out_dir)
    say(
        f"   {counted(report.n_edges, 'edge')} in {format_time(report.seconds)}, peak memory "
        f"{format_bytes(report.peak_memory_bytes)}"
    )
    say(_step(3, "Check every edge", "verify", out_dir, "--source", store))
    verified = verify_export(out_dir, source=store)
    problems = [*verified.problems, *_compare_with_scipy(store, out_dir)]
    if problems:
        raise OutputError(f"the demo's export is wrong: {'; '.join(problems)}")
    say("   Checked: the edges are those of the matrix, and of scipy's C + C.T")
    color = "bulk_labels" if pbmc else "cluster"
    drawn = _draw(out_dir, folder / "graph.png", color, picture, say)
    return DemoResult(str(store), report, drawn)


def _step(number: int, what: str, *words: object) -> str:
    """Return the beginning of a step, with its command."""
    command = shlex.join(["cellgraph-dask", *map(str, words)])
    return f"{number}. {what}:\n   $ {command}"


def _make_store(store: Path, n_cells: int, pbmc: bool, say: Callable[[str], None]) -> None:
    began = time.perf_counter()
    if pbmc:
        say(f"1. Write blood cells that scanpy brings along, with their neighbors, to {store}")
        n_cells = make_pbmc_store(store)
    else:
        say(
            f"1. Make {counted(n_cells, 'cell')} in {_N_CLUSTERS} clusters, {N_NEIGHBORS} nearest "
            f"neighbors each, in {store}"
        )
        make_demo_store(store, n_cells)
    took = format_time(time.perf_counter() - began)
    say(f"   AnnData, {counted(n_cells, 'cell')}, in {took}")


def _draw(
    out_dir: Path, target: Path, color: str, wanted: bool | None, say: Callable[[str], None]
) -> str | None:
    """Draw the export; say how it could be drawn if the extra for that is not installed."""
    if wanted is None and find_spec("matplotlib") is None:
        say("4. No picture: `pip install 'cellgraph-dask[plot]'` adds `cellgraph-dask plot`")
    elif wanted is not False:
        from .look.files import draw_file

        say(_step(4, "Draw all edges", "plot", out_dir, "-o", target, "--color", color))
        drawn = draw_file(out_dir, target, color=color)
        say(f"   {target}, in {format_time(drawn.seconds)}")
        return str(target)
    return None


def _new_folder() -> Path:
    for k in range(1, 1000):
        folder = Path(f"cellgraph-demo-{k}")
        if not folder.exists():
            return folder
    raise OutputError("there are a thousand demo folders here; name one, or remove some.")


def _compare_with_scipy(store: Path, out_dir: Path) -> list[str]:
    """Compare the exported edges with those of scipy in memory."""
    import zarr
    from scipy.sparse import csr_matrix, triu

    group = zarr.open_group(store, mode="r")["obsp/connectivities"]
    matrix = csr_matrix(
        tuple(group[name][:] for name in ("data", "indices", "indptr")), shape=group.attrs["shape"]
    )
    upper = triu(matrix + matrix.T, k=1, format="csr")
    upper.sort_indices()
    expected = upper.tocoo()
    with open_export(out_dir) as graph:
        if np.array_equal(graph.src, expected.row) and np.array_equal(graph.dst, expected.col):
            return []
        return [f"{graph.n_edges} edges do not equal scipy's {expected.nnz}"]
