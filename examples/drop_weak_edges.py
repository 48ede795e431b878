"""Work on a graph that does not fit in memory: drop its weak edges with Dask, export the rest.

The graph is read as a Dask array of sparse blocks of about the same number of entries. Blocks are
read, changed and written one by one, so the graph may be larger than the memory by any factor.

Run it in an empty folder::

    python drop_weak_edges.py
"""

from pathlib import Path

import sparse

from cellgraph_dask import export_connectivities, read_connectivities
from cellgraph_dask.demo import make_demo_store

store = Path("cells.zarr")
make_demo_store(store, n_cells=20_000)

graph = read_connectivities(store, block_entries=50_000)
print(f"graph     {graph.shape[0]:,} cells in {graph.numblocks[0]} blocks")


def drop_weak(block: sparse.GCXS) -> sparse.GCXS:
    """Return a block whose weak edges have the weight zero, which is no edge."""
    strong = block.copy()  # `block * (block > 0.5)` does the same, but takes 20 times as long
    strong.data[strong.data < 0.5] = 0
    return strong


everything = export_connectivities(store, "export/all")
strong = export_connectivities(graph.map_blocks(drop_weak), "export/strong", memory_limit="2GB")
print(f"all       {everything.n_edges:,} edges")
print(f"strong    {strong.n_edges:,} edges, {strong.scratch_bytes:,} temporary bytes")
assert strong.n_edges < everything.n_edges
