"""What thinning keeps, by plain numpy on dense matrices."""

from __future__ import annotations

import numpy as np


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
