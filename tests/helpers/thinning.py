"""Thinned graphs, from dense arithmetic, and exports with them that no exporter has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellgraph_dask._version import __version__
from cellgraph_dask.edge_pairs.format import FOLDER, MANIFEST, WEIGHTS, Manifest
from cellgraph_dask.edge_pairs.provenance import PROVENANCE, Provenance
from cellgraph_dask.source.opening import open_source

Edges = dict[tuple[int, int], float]


def all_weights(matrix: Any, rule: str | None) -> np.ndarray:
    """Return the weights of pairs above the diagonal, by a rule."""
    dense = matrix.toarray().astype(np.float64)  # repeats are added up
    a, b = np.triu(dense, 1), np.triu(dense.T, 1)
    if rule is None:
        assert np.array_equal(a, b)
    return {
        None: lambda: a,
        "max": lambda: np.maximum(a, b),
        "min": lambda: np.minimum(a, b),
        "mean": lambda: 0.5 * (a + b),
        "sum": lambda: a + b,
        "fuzzy": lambda: a + b - a * b,
        "ones": lambda: (a + b > 0).astype(np.float64),
    }[rule]()


def strong_edges(
    matrix: Any, rule: str | None = None, *, min_weight: float | None = None, top_k: int | None =
    None, max_edges: int | None = None, strongest: str | None = None,
) -> Edges:  # fmt: skip
    """Return the edges that thinning keeps, in order, with their weights."""
    upper = all_weights(matrix, rule)
    upper[upper < (min_weight or 0)] = 0
    sign = 1 if strongest == "smallest" else -1
    both = upper + upper.T
    if top_k is not None:
        kept = np.zeros_like(both, dtype=bool)
        for cell, row in enumerate(both):
            neighbors = np.flatnonzero(row)
            order = sorted(neighbors.tolist(), key=lambda other: (sign * row[other], other))
            kept[cell, order[:top_k]] = True
        upper[~(kept | kept.T)] = 0
    edges = {(int(i), int(j)): float(upper[i, j]) for i, j in zip(*np.nonzero(upper), strict=True)}
    if max_edges is not None:
        order = sorted(edges, key=lambda pair: (sign * edges[pair], pair))
        edges = {pair: edges[pair] for pair in sorted(order[:max_edges])}
    return edges


def plant_weighted(
    out_dir: Path, source: Path, edges: Edges, n_cells: int, options: dict[str, Any], *,
    weighted: bool = True,
) -> Path:  # fmt: skip
    """Write an export of edges, which says that it was made from a source with these options."""
    pairs = np.array(sorted(edges), np.int64).reshape(-1, 2)
    degrees = np.bincount(pairs.ravel(), minlength=1)
    manifest = Manifest(n_cells, len(pairs), int(degrees.max()), None, weighted=weighted)
    (out_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    columns = dict(zip(("src", "dst"), pairs.T, strict=True))
    columns[WEIGHTS] = np.array([edges[pair] for pair in sorted(edges)])
    for side, dtype in manifest.columns.items():
        (out_dir / manifest.path(side)).write_bytes(columns[side].astype(dtype).tobytes())
    (out_dir / MANIFEST).write_text(manifest.to_json())
    opened = open_source(source)
    made = Provenance(opened.origin.name, opened.key, options, opened.fingerprint(), __version__)
    (out_dir / FOLDER / PROVENANCE).write_text(made.to_json(manifest))
    return out_dir
