"""The arithmetic of thinning as compiled loops.

A *key* is an unsigned integer that is larger for a stronger edge. Of equally strong neighbors the
one with the smaller number comes first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled

DIGIT_BITS = 16


@compiled(int)
def _select(keys: Array, n: int, k: int) -> Any:
    """Return the `k`-th largest of the first `n` keys (`k` from 1 on), which are reordered."""
    low: Any = 0
    high: Any = n - 1
    at = k - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        i: Any = low
        j: Any = high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return keys[at]


@compiled(int)
def strongest_of(keys: Array, k: int, work: Array, places: Array) -> int:
    """Write the places of the `k` strongest of a row's neighbors, in the order of their cells."""
    n = keys.size
    for e in range(n):
        work[e] = keys[e]
    weakest = _select(work, n, k) if n > k else keys[0]
    left = k
    if n > k:
        for e in range(n):
            left -= keys[e] > weakest
    found = 0
    for e in range(n):
        is_equal = keys[e] == weakest
        if n <= k or keys[e] > weakest or (is_equal and left > 0):
            left -= is_equal
            places[found] = e
            found += 1
    return found


@compiled()
def weakest_kept(
    src: Array, dst: Array, keys: Array, first: int, last: int, k: int, base: int, work: Array,
    row_key: Array, row_cell: Array,
) -> None:  # fmt: skip
    """Find the `k`-th strongest neighbor of each row among the entries ``[first, last)``.

    Entries are sorted by source and destination. Key and destination go to the place of the row,
    counted from `base`; rows with fewer entries are left as they are.
    """
    a: Any = first
    while a < last:
        b: Any = a
        row = src[a]
        while b < last and src[b] == row:
            b += 1
        n = b - a
        if n > k:
            for e in range(n):
                work[e] = keys[a + e]
            weakest = _select(work, n, k)
            stronger = 0
            for e in range(a, b):
                stronger += keys[e] > weakest
            left = k - stronger
            for e in range(a, b):
                if keys[e] == weakest:
                    left -= 1
                    if left == 0:
                        row_key[np.int64(row) - base] = weakest
                        row_cell[np.int64(row) - base] = dst[e]
                        break
        a = b


@compiled(int)
def keep_edges(
    src: Array, dst: Array, weights: Array, keys: Array, least: Array, row_key: Array,
    row_cell: Array, cut: Array, both: int,
) -> int:  # fmt: skip
    """Move the edges that are kept to the front, and return how many there are.

    Weights are at least ``least[0]``. Where there are row keys, an edge is among the strongest of
    either end. Where there is a cut (key, source, destination), it is stronger than that, or as
    strong and not behind that edge. Unless `both`, edges of which the source is larger are left
    out.
    """
    n = 0
    for e in range(src.size):
        i = np.int64(src[e])
        j = np.int64(dst[e])
        key = keys[e]
        kept: Any = weights[e] >= least[0] and (both or i < j)
        if kept and row_key.size:
            kept = key > row_key[i] or (key == row_key[i] and j <= np.int64(row_cell[i]))
            if not kept:
                kept = key > row_key[j] or (key == row_key[j] and i <= np.int64(row_cell[j]))
        if kept and cut.size and key <= cut[0]:
            small = np.uint64(min(i, j))
            large = np.uint64(max(i, j))
            behind = small > cut[1] or (small == cut[1] and large > cut[2])
            kept = key == cut[0] and not behind
        if kept:
            src[n] = i
            dst[n] = j
            weights[n] = weights[e]
            keys[n] = key
            n += 1
    return n


@compiled(int)
def count_rows(src: Array, ends: Array) -> int:
    """Return the number of rows with entries; `ends` gets the most in one, of the first, the last.

    Entries are sorted by source; `ends` (int64) are zeros at first.
    """
    n_rows = 0
    a: Any = 0
    while a < src.size:
        b: Any = a
        while b < src.size and src[b] == src[a]:
            b += 1
        ends[0] = max(ends[0], b - a)
        if a == 0:
            ends[1] = b - a
        ends[2] = b - a
        n_rows += 1
        a = b
    return n_rows


@compiled()
def count_digits(keys: Array, prefix: int, shift: int, counts: Array) -> None:
    """Count the digits of 16 bits at `shift` of those keys whose higher digits are `prefix`."""
    for e in range(keys.size):
        digits = np.uint64(keys[e]) >> np.uint64(shift)
        if digits >> np.uint64(DIGIT_BITS) == np.uint64(prefix):
            counts[np.int64(digits & np.uint64(0xFFFF))] += 1


def warm_up(cell_dtype: np.dtype[Any], key_dtype: np.dtype[Any]) -> None:
    """Load (or compile) the loops for these dtypes of cells and keys."""
    cells, keys = np.zeros(1, cell_dtype), np.zeros(1, key_dtype)
    weights, ends = np.zeros(1), np.zeros(3, np.int64)
    weakest_kept(cells, cells, keys, 0, 1, 1, 0, keys, keys, cells)
    strongest_of(keys, 1, keys, ends)
    keep_edges(cells, cells, weights, keys, weights, keys, cells, np.zeros(3, np.uint64), 1)
    count_rows(cells, ends)
    count_digits(keys, 0, 0, np.zeros(1 << DIGIT_BITS, np.int64))
