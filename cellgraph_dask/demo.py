"""A small but real AnnData store to try things on: points in clusters and their neighbors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .edge_pairs.graph import open_export
from .errors import OutputError
from .export.api import export_connectivities
from .export.run import ExportReport
from .machine.memory import format_bytes
from .machine.remote import local_path
from .machine.report import Report
from .verify.api import verify_export

N_NEIGHBORS = 15
_N_CLUSTERS = 12
_N_DIMENSIONS = 3


@dataclass(frozen=True)
class DemoResult(Report):
    """What the demo made: an AnnData store, and a report of its export."""

    _title = "Demo"

    store: str
    report: ExportReport

    def describe(self) -> str:
        """Describe the result for the terminal, with what to try next."""
        report = self.report
        return "\n".join(
            [
                f"Made     {self.store}: AnnData, {report.n_cells:,} cells in {_N_CLUSTERS} "
                f"clusters, {N_NEIGHBORS} nearest neighbors each",
                f"Exported {report.out_dir}: {report.n_edges:,} edges, {report.seconds:.1f} s, "
                f"peak memory {format_bytes(report.peak_memory_bytes)}",
                "Checked  order, degrees and sizes of the edge files, and every edge against "
                "scipy's C + C.T",
                "Next:",
                f"  cellgraph-dask plan {self.store} --memory-limit 512MB",
                f"  cellgraph-dask export {self.store} {report.out_dir} --compression 6 --force",
                f"  cellgraph-dask verify {report.out_dir} --source {self.store}",
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


def run_demo(directory: str | Path | None = None, *, n_cells: int = 100_000) -> DemoResult:
    """Make a store, export its graph, and check the export.

    Both go to a folder that must be empty if it is there: by default a new one in the working
    directory. Otherwise, or if the check fails, `OutputError` is raised.
    """
    folder = local_path(directory) if directory is not None else _new_folder()
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; name a new folder for the demo.")
    store, out_dir = folder / "cells.zarr", folder / "export"
    folder.mkdir(parents=True, exist_ok=True)
    make_demo_store(store, n_cells)
    report = export_connectivities(store, out_dir)
    verified = verify_export(out_dir, source=store)
    problems = [*verified.problems, *_compare_with_scipy(store, out_dir)]
    if problems:
        raise OutputError(f"the demo's export is wrong: {'; '.join(problems)}")
    return DemoResult(str(store), report)


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
