"""Graphs as Parquet folders, made by the stages with the sizes that a test chooses."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from cellgraph_dask._version import __version__
from cellgraph_dask.delivery.parquet import ParquetDelivery
from cellgraph_dask.delivery.parquet_files import ParquetFiles
from cellgraph_dask.delivery.parquet_product import write_manifest
from cellgraph_dask.edge_pairs.parquet import MOST_ROWS, GraphTable
from cellgraph_dask.edge_pairs.provenance import Provenance
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.stage import Journal, ResumableExecutor
from cellgraph_dask.runtime.threads import Threads
from cellgraph_dask.source.blocks import cut_blocks
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Job, Tuning
from cellgraph_dask.stages.pipeline import run_stages
from cellgraph_dask.stages.runs import Scratch


def make_table(
    source: Any, folder: Path, *, rule: Any = None, both: bool = False, weighted: bool = False,
    method: Any = "general", sizes: tuple[int, int, int] = (10**6, 10**6, 8), threads: int = 2,
    executor: Any = None, scratch: Path | None = None, key: str = "connectivities",
    row_group: int = MOST_ROWS, pieces: bool = False,
) -> GraphTable:  # fmt: skip
    """Make a folder; `sizes` are entries of blocks and of pieces, and the shift of partitions.

    With `pieces` it is made as on a cluster.
    """
    folder.mkdir(exist_ok=True)
    matrix = open_source(source, key) if isinstance(source, str | Path) else open_source(source)
    made_from = Provenance(
        source=matrix.origin.name,
        key=matrix.key,
        options={"rule": rule} if rule else {},
        fingerprint=matrix.fingerprint() if matrix.origin.is_lasting else None,
        version=__version__,
    )
    with tempfile.TemporaryDirectory() as own:
        where = scratch or Path(own)
        job = Job(matrix, Scratch(str(where)), sizes[2], method, rule, weighted, both)
        tuning = Tuning(sizes[0], sizes[0], sizes[1], sizes[2], threads)
        with closing(Journal(where, "run")) as journal:
            stages = ResumableExecutor(executor or Threads(threads, Progress()), journal)
            delivery: Any = ParquetFiles(job, folder, stages, row_group=row_group)
            if pieces:
                delivery = ParquetDelivery(job, folder, stages)
                delivery._target = replace(delivery._target, row_group=row_group)
            blocks = cut_blocks(matrix, sizes[0], sizes[0])
            outcome = run_stages(job, blocks, tuning, (3, 2**60 + 7, 99), stages, delivery)
    return write_manifest(
        folder, job.source.n_cells, outcome, job.rule or "ones", made_from, both=both,
        weighted=weighted, row_group=row_group,
    )  # fmt: skip


def wanted(matrix: Any, rule: str, *, both: bool) -> tuple[Any, Any, Any]:
    """Return sources, destinations and weights of a matrix by a rule, from scipy."""
    a = sp.csr_matrix(matrix).astype(np.float64)
    a.sum_duplicates()
    a.setdiag(0)
    a.eliminate_zeros()
    b = a.T.tocsr()
    weights = {
        "max": lambda: a.maximum(b),
        "min": lambda: a.minimum(b),
        "mean": lambda: 0.5 * (a + b),
        "sum": lambda: a + b,
        "fuzzy": lambda: a + b - a.multiply(b),
        "ones": lambda: ((a + b) != 0).astype(np.float64),
    }[rule]()
    weights = sp.csr_matrix(weights if both else sp.triu(weights, 1))
    weights.sort_indices()
    weights.eliminate_zeros()
    found = weights.tocoo()
    return found.row, found.col, found.data
