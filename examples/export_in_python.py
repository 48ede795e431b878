"""Make a demo store, plan and run its export with a memory limit, check it, and read the edges.

Run it in an empty folder::

    python export_in_python.py
"""

from pathlib import Path

import numpy as np

from cellgraph_dask import export_connectivities, plan_export, verify_export
from cellgraph_dask.demo import make_demo_store
from cellgraph_dask.edge_pairs.format import read_manifest

store, out_dir = Path("cells.zarr"), Path("export")
make_demo_store(store, n_cells=20_000)

# A plan reads the store's metadata and row pointers, and writes nothing.
plan = plan_export(store, out_dir, memory_limit="1GB")
print(f"plan      {plan.n_entries:,} stored entries, {plan.threads} threads")
print(f"memory    {plan.projected_memory_bytes / 1e6:.0f} MB projected")

report = export_connectivities(store, out_dir, memory_limit="1GB")
print(f"export    {report.n_edges:,} edges in {report.seconds:.1f} s")
print(f"memory    {report.peak_memory_bytes / 1e6:.0f} MB measured, limit 1000 MB")

verified = verify_export(out_dir)
print(f"verify    {'sound' if verified.ok else verified.problems}")

# The files are plain integers: numpy needs only the dtype.
manifest = read_manifest(out_dir)
src = np.fromfile(out_dir / manifest.path("src"), report.index_dtype)
dst = np.fromfile(out_dir / manifest.path("dst"), report.index_dtype)
assert src.size == dst.size == report.n_edges
assert np.all(src < dst)
degrees = np.bincount(src, minlength=report.n_cells) + np.bincount(dst, minlength=report.n_cells)
assert degrees.max() == report.max_neighbors
print(f"edges     {src[0]}-{dst[0]} is the first; a cell has {degrees.mean():.1f} on average")
