"""What thinning keeps, by plain numpy on dense matrices, and exports that no exporter has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellgraph_dask._version import __version__
from cellgraph_dask.edge_pairs.format import FOLDER, MANIFEST, WEIGHTS, Manifest
from cellgraph_dask.edge_pairs.provenance import PROVENANCE, Provenance
from cellgraph_dask.source.opening import open_source

Edges = dict[tuple[int, int], float]


def combined(matrix, rule):
    """Return the weights of all pairs, in both directions."""
    a = matrix.toarray().astype(np.float64)
    low, high = np.triu(a, 1), np.triu(a.T, 1)
    weights = {
        None: np.maximum(low, high), "max": np.maximum(low, high), "min": np.minimum(low, high),
        "mean": (low + high) / 2, "sum": low + high, "fuzzy": low + high - low * high,
        "ones": (low + high != 0) * 1.0,
    }[rule]  # fmt: skip
    return weights + weights.T


def thinned_edges(matrix, rule, *, min_weight=None, top_k=None, max_edges=None, strongest=None):
    """Return sources, destinations and weights of the edges that are kept, in their order."""
    weights = combined(matrix, rule)
    sign = 1 if strongest == "smallest" else -1
    if min_weight is not None:
        weights[weights < min_weight] = 0
    if top_k is not None:
        kept = np.zeros(weights.shape, bool)
        for row, of_row in enumerate(weights):
            cells = np.flatnonzero(of_row)
            kept[row, cells[np.lexsort((cells, sign * of_row[cells]))[:top_k]]] = True
        weights[~(kept | kept.T)] = 0
    src, dst = np.nonzero(np.triu(weights, 1))
    order = np.arange(src.size)
    if max_edges is not None:
        order = np.sort(np.lexsort((dst, src, sign * weights[src, dst]))[:max_edges])
    return src[order], dst[order], weights[src, dst][order]


def strong_edges(matrix, rule=None, **thinning) -> Edges:
    """Return the same as a dictionary: the edges in their order, with their weights."""
    src, dst, weights = (column.tolist() for column in thinned_edges(matrix, rule, **thinning))
    return dict(zip(zip(src, dst, strict=True), weights, strict=True))


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
