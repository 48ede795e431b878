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
FEW = 32  # keys that are compared all with all; work space has room for so many


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


@compiled(int)
def _weakest_of_few(keys: Array, first: int, last: int, k: int, work: Array) -> Any:
    """Return the `k`-th largest key of ``[first, last)``, at most `FEW`.

    All are compared with all, and with zeros up to a fixed number, so that this becomes vector
    code.
    """
    n = last - first
    for e in range(n):
        work[e] = keys[first + e]
    for e in range(n, FEW):
        work[e] = 0
    weakest = work[0]
    for e in range(n):
        weakest = max(weakest, work[e])
    for e in range(n):
        key = work[e]
        larger = 0
        for other in range(FEW):
            larger += work[other] > key
        weakest = min(weakest, key) if larger < k else weakest
    return weakest


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
            if n <= FEW:
                weakest = _weakest_of_few(keys, a, b, k, work)
            else:
                for e in range(n):
                    work[e] = keys[a + e]
                weakest = _select(work, n, k)
            left: Any = k
            for e in range(a, b):
                left -= keys[e] > weakest
            for e in range(a, b):
                if keys[e] == weakest:
                    left -= 1
                    if left == 0:
                        row_key[np.int64(row) - base] = weakest
                        row_cell[np.int64(row) - base] = dst[e]
                        break
        a = b


@compiled()
def _move(src: Array, dst: Array, weights: Array, keys: Array, e: int, n: int) -> None:
    """Move edge `e` to place `n`, where it stays if it is kept."""
    src[n] = src[e]
    dst[n] = dst[e]
    weights[n] = weights[e]
    keys[n] = keys[e]


@compiled(int)
def keep_heavy(src: Array, dst: Array, weights: Array, keys: Array, least: Array, both: int) -> int:
    """Move edges with weights of at least ``least[0]`` to the front; return how many there are.

    Unless `both`, edges of which the source is larger are left out.
    """
    n = 0
    for e in range(src.size):
        kept = (weights[e] >= least[0]) & ((both != 0) | (src[e] < dst[e]))
        _move(src, dst, weights, keys, e, n)
        n += kept
    return n


@compiled(int)
def keep_ranked(
    src: Array, dst: Array, weights: Array, keys: Array, row_key: Array, row_cell: Array,
    places: Array, kept: Array,
) -> int:  # fmt: skip
    """Move edges that are as strong as the weakest that either row would keep to the front.

    The last two, int64 and uint8, are work space. The row of the destination lies anywhere, so it
    is looked at only where that of the source does not keep the edge.
    """
    left = 0
    for e in range(src.size):
        key = keys[e]
        i = np.int64(src[e])
        is_kept = (key > row_key[i]) | ((key == row_key[i]) & (dst[e] <= row_cell[i]))
        kept[e] = is_kept
        places[left] = e
        left += not is_kept
    for p in range(left):
        e = places[p]
        key = keys[e]
        j = np.int64(dst[e])
        other = row_key[j]
        is_kept = key > other
        if key == other:
            is_kept |= src[e] <= row_cell[j]
        kept[e] = is_kept
    n = 0
    for e in range(src.size):
        _move(src, dst, weights, keys, e, n)
        n += kept[e]
    return n


@compiled(int)
def keep_strongest(src: Array, dst: Array, weights: Array, keys: Array, cut: Array) -> int:
    """Move edges to the front that are stronger than a cut: a key, and the cells of an edge.

    Of those that are as strong, the edges that are not behind that one are kept.
    """
    n = 0
    for e in range(src.size):
        key = np.uint64(keys[e])
        kept: Any = key >= cut[0]
        if key == cut[0]:
            small = np.uint64(min(src[e], dst[e]))
            large = np.uint64(max(src[e], dst[e]))
            kept = small < cut[1] or (small == cut[1] and large <= cut[2])
        _move(src, dst, weights, keys, e, n)
        n += kept
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
    weakest_kept(cells, cells, keys, 0, 1, 1, 0, np.zeros(FEW, key_dtype), keys, cells)
    strongest_of(keys, 1, keys, ends)
    keep_heavy(cells, cells, weights, keys, weights, 1)
    keep_ranked(cells, cells, weights, keys, keys, cells, ends, np.zeros(1, np.uint8))
    keep_strongest(cells, cells, weights, keys, np.zeros(3, np.uint64))
    count_rows(cells, ends)
    count_digits(keys, 0, 0, np.zeros(1 << DIGIT_BITS, np.int64))
