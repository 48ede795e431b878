"""From what the user says about edges to keep to what is kept of a matrix."""

from __future__ import annotations

from typing import Literal

from ..edge_pairs.format import most_viewer_edges
from ..errors import SourceError
from ..stages.wishes import Strongest, Thinning


def thinning_of(
    key: str, n_cells: int, min_weight: float | None, top_k: int | None,
    max_edges: int | Literal["viewer"] | None, strongest: Strongest | None,
) -> Thinning:  # fmt: skip
    """Return which edges of a matrix are kept.

    Raises a ValueError if a number is outside its range, and a SourceError if it is not clear which
    edges are the strongest, or the viewer does not draw any of so many cells.
    """
    if isinstance(max_edges, str):
        if max_edges != "viewer":
            raise ValueError(f"max_edges must be a number or 'viewer', not {max_edges!r}")
        max_edges = most_viewer_edges(n_cells)
        if max_edges < 1:
            raise SourceError(
                f"the viewer of cellucid 0.9.1 to 0.9.4 does not draw a graph of {n_cells:,} "
                "cells. Export fewer cells, or name a number of edges."
            )
    thinning = Thinning(min_weight, top_k, max_edges, strongest)
    if thinning and strongest is None and key.rpartition("/")[2].endswith("distances"):
        raise SourceError(
            f"{key} looks like distances, of which the smallest make the strongest edges. Say "
            "which edges are the strongest: `strongest='smallest'` or `strongest='largest'`."
        )
    return thinning
