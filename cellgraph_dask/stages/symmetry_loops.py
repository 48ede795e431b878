"""The compiled loops that tell what keeps a matrix from being symmetric."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled
from .loops import _fill_rows, _sort
from .weighted_loops import weigh

NOT_FINITE, NEGATIVE, ZERO, DIAGONAL, REPEATED, TOO_LARGE = 0, 1, 2, 3, 4, 5  # kinds of entries


@compiled(bool, bool)
def look_at_entries(
    indices: Array, weights: Array, bits: Array, largest: Array, indptr: Array, first_row: int,
    seeds: Array, rows: Array, keys: Array, counts: Array, firsts: Array, imbalance: Array,
) -> tuple[bool, bool]:  # fmt: skip
    """Count a block's entries that are special, and hash the others as `stream_entries` does.

    Of each kind, `counts` (int64) gets the number and `firsts` row and column of the first one, if
    there is none yet (-1). `largest` is the largest weight that may be; `rows` and `keys` (int64)
    are work space. Repeats are found inside the block's part of a row. The results tell whether
    the entries of the first row, and of the last one, rise.
    """
    _fill_rows(indptr, first_row, rows)
    n_special, unsorted = weigh(indices, rows, weights, bits, largest, 0, 0, seeds, imbalance)
    if n_special:
        _count_special(indices, rows, weights, largest, counts, firsts)
    if not unsorted:
        return True, True
    first, last = _count_repeats(indices, indptr, first_row, keys, counts, firsts)
    return bool(first), bool(last)


@compiled()
def _count_special(
    indices: Array, rows: Array, weights: Array, largest: Array, counts: Array, firsts: Array
) -> None:
    """Count the entries of each kind but repeated ones; see `look_at_entries`."""
    for e in range(indices.size):
        w = weights[e]
        kind = -1
        if not np.isfinite(w):
            kind = NOT_FINITE
        elif w == 0.0:
            kind = ZERO
        elif np.int64(indices[e]) == np.int64(rows[e]):
            kind = DIAGONAL
        elif w < 0.0:
            kind = NEGATIVE
        elif w > largest[0]:
            kind = TOO_LARGE
        if kind >= 0:
            counts[kind] += 1
            if firsts[kind, 0] < 0:
                firsts[kind, 0] = rows[e]
                firsts[kind, 1] = indices[e]


@compiled(bool, bool)
def _count_repeats(
    indices: Array, indptr: Array, first_row: int, keys: Array, counts: Array, firsts: Array
) -> tuple[bool, bool]:
    """Count repeated entries, and tell whether those of the first and the last row rise."""
    first_rises: Any = True
    last_rises: Any = True
    for r in range(indptr.size - 1):
        begin = indptr[r]
        n = indptr[r + 1] - begin
        rises: Any = True
        for k in range(1, n):
            rises &= indices[begin + k] > indices[begin + k - 1]
        if not rises:
            for k in range(n):
                keys[k] = indices[begin + k]
            _sort(keys, 0, n)
            for k in range(1, n):
                if keys[k] == keys[k - 1]:
                    counts[REPEATED] += 1
                    if firsts[REPEATED, 0] < 0:
                        firsts[REPEATED, 0] = first_row + r
                        firsts[REPEATED, 1] = keys[k]
        if r == 0:
            first_rises = rises
        last_rises = rises
    return bool(first_rises), bool(last_rises)


@compiled(int, int)
def first_on_diagonal(
    indices: Array, weights: Array, indptr: Array, first_row: int
) -> tuple[int, int]:
    """Return position and row of the first weight on the diagonal that is not 0, or (-1, -1)."""
    for r in range(indptr.size - 1):
        row = first_row + r
        columns = indices[indptr[r] : indptr[r + 1]]
        found: Any = False
        for k in range(columns.size):  # no way out of the loop, so it is vector code
            found |= columns[k] == row
        if found:
            for e in range(indptr[r], indptr[r + 1]):
                if indices[e] == row and weights[e] != 0:
                    return e, row
    return -1, -1
