"""Peer: SciPy with everything in memory, what a competent user writes first."""

from __future__ import annotations

import numpy as np
from peer_job import EdgeFiles, PeerJob, Result, open_matrix, run_peer
from scipy import sparse


def export(job: PeerJob) -> Result:
    """Read the matrix, add its transpose, keep the upper triangle, write."""
    group = open_matrix(job.store)
    shape = tuple(group.attrs["shape"])
    arrays = tuple(group[name][:] for name in ("data", "indices", "indptr"))
    matrix = sparse.csr_matrix(arrays, shape=shape)
    total = (matrix + matrix.T).tocsr()
    total.eliminate_zeros()
    degrees = np.diff(total.indptr) - (total.diagonal() != 0)
    upper = sparse.triu(total, k=1, format="csr")
    upper.sort_indices()
    sources = np.repeat(np.arange(shape[0], dtype=upper.indices.dtype), np.diff(upper.indptr))
    with EdgeFiles(job, shape[0]) as files:
        files.append(sources, upper.indices)
    return Result(int(upper.nnz), int(degrees.max(initial=0)))


if __name__ == "__main__":
    run_peer(export)
