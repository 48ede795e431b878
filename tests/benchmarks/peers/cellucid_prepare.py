"""Peer: ``prepare`` of cellucid 0.0.9, given the least it accepts besides the graph."""

from __future__ import annotations

import contextlib
import json
import sys

import numpy as np
import pandas as pd
from cellucid.prepare_data import prepare
from peer_job import PeerJob, Result, open_matrix, run_peer
from scipy import sparse


def export(job: PeerJob) -> Result:
    """Read the matrix and hand it over, with a line as the embedding and one constant field."""
    group = open_matrix(job.store)
    shape = tuple(group.attrs["shape"])
    arrays = tuple(group[name][:] for name in ("data", "indices", "indptr"))
    line = np.arange(shape[0], dtype=np.float32)[:, None]
    with contextlib.redirect_stdout(sys.stderr):
        prepare(
            latent_space=line,
            obs=pd.DataFrame({"zero": np.zeros(shape[0], np.float32)}),
            connectivities=sparse.csr_matrix(arrays, shape=shape),
            out_dir=job.out_dir,
            compression=job.compression,
            X_umap_1d=line,
            force=True,
        )
    manifest = json.loads((job.out_dir / "connectivity_manifest.json").read_text("utf-8"))
    return Result(manifest["n_edges"], manifest["max_neighbors"])


if __name__ == "__main__":
    run_peer(export)
