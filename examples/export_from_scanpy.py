"""From points to edge files: neighbors, an AnnData store on disk, and its graph beside a dataset.

With scanpy one call makes the graph, ``scanpy.pp.neighbors(adata)``, and puts it into
``obsp["connectivities"]`` as here. The example uses scipy instead, so that it runs without scanpy.

Run it in an empty folder::

    python export_from_scanpy.py
"""

import json
import warnings
from pathlib import Path

import anndata
import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from cellgraph_dask import export_connectivities

N_CELLS, N_NEIGHBORS = 5_000, 15

points = np.random.default_rng(0).normal(size=(N_CELLS, 3)).astype(np.float32)
distance, neighbor = KDTree(points).query(points, N_NEIGHBORS + 1)  # the first is the cell itself
row = np.repeat(np.arange(N_CELLS), N_NEIGHBORS)
graph = csr_matrix(
    (np.exp(-distance[:, 1:].ravel()), (row, neighbor[:, 1:].ravel())), shape=(N_CELLS, N_CELLS)
)

adata = anndata.AnnData(obsm={"X_umap": points[:, :2]}, shape=(N_CELLS, 0))
adata.obsp["connectivities"] = graph  # directed: the export adds the other direction
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about the zarr format of future versions
    adata.write_zarr("atlas.zarr")

# In real work `prepare` of cellucid 0.0.9 makes this folder, with points and obs, which a viewer
# needs too. Here is only the file that names the dataset.
dataset = Path("exports/atlas")
dataset.mkdir(parents=True)
identity = {"version": 2, "id": "atlas", "stats": {"n_cells": N_CELLS, "has_connectivity": False}}
(dataset / "dataset_identity.json").write_text(json.dumps(identity))

report = export_connectivities("atlas.zarr", dataset, compression=6)
print(f"stored    {graph.nnz:,} directed entries")
print(f"exported  {report.n_edges:,} edges, a cell has at most {report.max_neighbors}")
for path in sorted(dataset.rglob("*.*")):
    print(f"file      {path} ({path.stat().st_size:,} bytes)")
print("identity ", json.loads((dataset / "dataset_identity.json").read_text())["stats"])
