"""Peer: DuckDB, a database that sorts out of core inside a memory limit of its own."""

from __future__ import annotations

import shutil

import duckdb
import numpy as np
import pandas as pd
from peer_job import EdgeFiles, PeerJob, Result, open_matrix, run_peer

BATCH_ENTRIES = 4 << 20
CHUNK_VECTORS = 512
N_THREADS = 2

QUERY = """
    SELECT DISTINCT least(a, b) AS src, greatest(a, b) AS dst
    FROM entries WHERE a <> b ORDER BY src, dst
"""


def export(job: PeerJob) -> Result:
    """Load the entries in batches, let SQL make the edges, stream them to the files.

    Stored zeros are dropped. Weights that cancel are not looked for, so it is exact for weights
    of one sign only, which connectivities and distances are.
    """
    spill = job.out_dir / "duckdb"
    spill.mkdir()
    connection = duckdb.connect(
        spill / "entries.duckdb",
        config={
            "memory_limit": f"{job.memory_limit // 10**6}MB",
            "threads": N_THREADS,
            "temp_directory": str(spill / "temp"),
            "preserve_insertion_order": False,
        },
    )
    connection.execute("CREATE TABLE entries (a UINTEGER, b UINTEGER)")
    n_cells = load(connection, job)
    n_edges = 0
    connection.execute(QUERY)
    with EdgeFiles(job, n_cells) as files:
        while len(edges := connection.fetch_df_chunk(CHUNK_VECTORS)):
            files.append(edges["src"].to_numpy(), edges["dst"].to_numpy())
            n_edges += len(edges)
    connection.close()
    shutil.rmtree(spill)
    return Result(n_edges, None)


def load(connection: duckdb.DuckDBPyConnection, job: PeerJob) -> int:
    """Insert the stored entries, some rows at a time, and return the number of cells."""
    group = open_matrix(job.store)
    n_cells = int(group.attrs["shape"][0])
    mean = max(1, group["indices"].shape[0] // max(1, n_cells))
    step = max(1, BATCH_ENTRIES // mean)
    for first in range(0, n_cells, step):
        indptr = group["indptr"][first : first + step + 1]
        span = slice(int(indptr[0]), int(indptr[-1]))
        kept = group["data"][span] != 0
        rows = np.arange(first, first + len(indptr) - 1, dtype=np.uint32)
        batch = pd.DataFrame(
            {
                "a": np.repeat(rows, np.diff(indptr))[kept],
                "b": group["indices"][span][kept].astype(np.uint32),
            },
            copy=False,
        )
        connection.register("batch", batch)
        connection.execute("INSERT INTO entries SELECT a, b FROM batch")
        connection.unregister("batch")
    return n_cells


if __name__ == "__main__":
    run_peer(export)
