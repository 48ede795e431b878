"""The weight of a pair of cells: a rule of its two directions.

With ``a = C[i, j]`` and ``b = C[j, i]``, i < j, repeats added up and what is not stored being 0, a
pair is an edge if the rule gives more than 0. Both directions of an edge have the same bits.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..source.matrix import Block, BlockEntries, Source
from . import symmetry_loops, weighted_loops

Rule = Literal["ones", "max", "min", "mean", "sum", "fuzzy"]

RULES: tuple[Rule, ...] = get_args(Rule)

# Besides the rules, for a check: 0 where both directions are the same, 1 where only one of them is
# there, 2 where both are there with different weights.
Combination = Rule | Literal["differ"]
CODES: tuple[Combination, ...] = (*RULES, "differ")  # compiled loops know them by their place

_MOST_EXACT = 2**53  # whole numbers up to here are the same in float64


def check_diagonal(source: Source, block: Block, entries: BlockEntries) -> None:
    """Raise a SourceError that names the first weight of a block that is on the diagonal."""
    place = entries.indices, entries.weights, entries.indptr, block.first_row
    at, row = symmetry_loops.first_on_diagonal(*place)
    if at >= 0:
        assert entries.weights is not None
        raise SourceError(
            f"the weight of cells ({row}, {row}) in {source.key} is {entries.weights[at]}: a cell "
            "is its own neighbor there, which no edge can be. Drop such entries with "
            "`drop_diagonal=True`."
        )


def check_weights(source: Source, rule: Combination, block: Block, entries: BlockEntries) -> Array:
    """Return the weights of a block; a SourceError names the first that the rule does not take."""
    weights = entries.weights
    assert weights is not None
    if not weights.size or rule == "differ":
        return weights
    bad, why = None, ""
    if weights.min() < 0:
        bad, why = weights < 0, "weights must not be negative where they are combined"
    elif rule == "fuzzy" and weights.max() > 1:
        bad, why = weights > 1, "the rule fuzzy takes weights from 0 to 1"
    elif weights.dtype.kind == "i" and weights.max() > _MOST_EXACT:
        bad = weights.astype(np.float64).astype(np.int64) != weights
        why = "float64 does not hold this number exactly"
    if bad is not None and bad.any():
        at = int(bad.argmax())
        row = block.first_row + int(np.searchsorted(entries.indptr, at, side="right")) - 1
        cells = (row, int(entries.indices[at]))
        raise SourceError(
            f"the weight of cells {cells if source.layout == 'csr' else cells[::-1]} in "
            f"{source.key} is {weights[at]}; {why}. Change such weights, or export the graph "
            "without weights."
        )
    return weights


def check_edges(source: Source, src: Array, dst: Array, weights: Array) -> None:
    """Refuse edges whose weights are too large for float64, or repeats for the rule fuzzy."""
    if weights.size and not weights.max() < np.inf:  # or it is NaN
        at = int(np.isfinite(weights).argmin())
        if np.isnan(weights[at]):
            raise SourceError(
                f"the repeated entries of cells ({src[at]}, {dst[at]}) in {source.key} add up to "
                "more than 1; the rule fuzzy takes weights from 0 to 1. Choose another rule."
            )
        raise SourceError(
            f"the weights of cells ({src[at]}, {dst[at]}) in {source.key} come to a number that "
            "float64 does not hold. Scale the weights down."
        )


def narrowed(src: Array, dst: Array, weights: Array) -> Array:
    """Return the weights of edges as float32; this thread's, until its next ones.

    A SourceError names the first pair whose weight is lost.
    """
    narrow = buffers.take("row keys", weights.size, np.float32)  # which are sorted by now
    at = weighted_loops.narrow(weights, narrow)
    if at >= 0:
        becomes = "infinite" if narrow[at] else "0"
        raise SourceError(
            f"the weight of cells ({src[at]}, {dst[at]}) is {weights[at]:g}, which would become "
            f"{becomes} as float32. Scale the weights, or write them as float64 (`dtype`)."
        )
    return narrow
