"""Peers: each output as one writes it with everything in memory, with the libraries made for it.

``python peers/in_memory.py JOB STORE OUT_DIR``; the jobs take ``connectivities`` with the rule max:
"symmetrize" (scipy and anndata), "check" (cellucid 0.9.5), "parquet" (scipy and pandas), "top-k"
(scipy and numpy), "max-edges" (DuckDB).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

TOP_K = 10
VIEWER_BYTES = 2**29

Edges = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def read(store: Path) -> Any:
    """Return the matrix."""
    import zarr

    group = zarr.open_group(store, mode="r")["obsp/connectivities"]
    arrays = tuple(group[name][:] for name in ("data", "indices", "indptr"))
    return sparse.csr_matrix(arrays, shape=tuple(group.attrs["shape"]))


def edges_of(store: Path) -> Edges:
    """Return sources, destinations and weights of all pairs."""
    matrix = read(store)
    upper = sparse.triu(matrix.maximum(matrix.T), k=1, format="csr")
    upper.sort_indices()
    sources = np.repeat(np.arange(upper.shape[0], dtype=np.int32), np.diff(upper.indptr))
    return sources, upper.indices, upper.data


def symmetrize(store: Path, out_dir: Path) -> int:
    """Write the larger of both directions as an element."""
    import anndata
    import zarr

    matrix = read(store)
    matrix = matrix.maximum(matrix.T).tocsr()
    matrix.sort_indices()
    group = zarr.open_group(out_dir / "s.zarr", mode="w", zarr_format=2)
    anndata.io.write_elem(group, "connectivities", matrix)
    return int(matrix.nnz) // 2


def check(store: Path, _: Path) -> int:
    """Ask cellucid."""
    from cellucid.prepare_data._inputs import resolve_connectivities

    matrix = read(store)
    try:
        return int(resolve_connectivities(matrix, matrix.shape[0]).nnz) // 2
    except ValueError:  # not symmetric: it says so
        return -1


def parquet(store: Path, out_dir: Path) -> int:
    """Write a table of edges."""
    import pandas as pd

    src, dst, weight = edges_of(store)
    table = pd.DataFrame({"src": src, "dst": dst, "weight": weight.astype(np.float64)})
    table.to_parquet(out_dir / "edges.parquet", compression="zstd", index=False)
    return int(src.size)


def top_k(store: Path, out_dir: Path) -> int:
    """Keep what is among the strongest of either end."""
    matrix = read(store)
    matrix = matrix.maximum(matrix.T).tocsr()
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(matrix.nnz) - matrix.indptr[:-1].astype(np.int64)[rows]
    chosen = order[rank < TOP_K]
    picked = sparse.csr_matrix(
        (matrix.data[chosen], (rows[chosen], matrix.indices[chosen])), shape=matrix.shape
    )
    return _write(sparse.triu(picked.maximum(picked.T), k=1, format="csr"), out_dir)


def _write(upper: Any, out_dir: Path) -> int:
    upper.sort_indices()
    np.repeat(np.arange(upper.shape[0], dtype=np.uint32), np.diff(upper.indptr)).tofile(
        out_dir / "edges.src.bin"
    )
    upper.indices.astype(np.uint32).tofile(out_dir / "edges.dst.bin")
    return int(upper.nnz)


def max_edges(store: Path, out_dir: Path) -> int:
    """Keep as many edges as the viewer of cellucid 0.9.4 draws."""
    import duckdb
    import pandas as pd

    src, dst, weight = edges_of(store)
    table = pd.DataFrame({"src": src, "dst": dst, "weight": weight})  # noqa: F841  # the query's
    n_cells = read(store).shape[0]
    most = (VIEWER_BYTES - 4 * n_cells) // 44
    found = duckdb.sql(
        "SELECT src, dst FROM (SELECT * FROM table ORDER BY weight DESC, src, dst "
        f"LIMIT {most}) ORDER BY src, dst".replace("table", '"table"', 1)
    ).fetchnumpy()
    for side in ("src", "dst"):
        found[side].astype(np.uint32).tofile(out_dir / f"edges.{side}.bin")
    return int(found["src"].size)


JOBS = {
    "symmetrize": symmetrize, "check": check, "parquet": parquet, "top-k": top_k,
    "max-edges": max_edges,
}  # fmt: skip


def main() -> None:
    """Do a job, and print one line of JSON."""
    job, store, out_dir = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out_dir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    n_edges = JOBS[job](store, out_dir)
    print(json.dumps({"n_edges": n_edges, "seconds": round(time.perf_counter() - began, 3)}))


if __name__ == "__main__":
    main()
