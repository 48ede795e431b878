"""The arithmetic of weighted graphs as compiled loops; see `loops`, whose words are used here.

Where rows are wanted complete, each stored entry takes part twice: as an entry of its row, and
mirrored as one of its column. "Upper" then are all entries of a row, and "lower" all of a column.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled
from .loops import _fill_rows, _mixed, _mixed_again, _sort

# Places in `rules.CODES`.
_ONES, _MAX, _MIN, _MEAN, _SUM, _FUZZY, _DIFFER = 0, 1, 2, 3, 4, 5, 6


@compiled()
def count_entries(
    indices: Array, indptr: Array, first_row: int, shift: int, band: int, both: int, in_row: Array,
    upper: Array, lower: Array,
) -> None:  # fmt: skip
    """Count a block's entries as `loops.count_contributions` does, or if `both` each one twice."""
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        n_upper = 0
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j < i or (both and j != i):
                lower[j >> shift, r >> band] += 1
            if j > i or (both and j != i):
                n_upper += 1
        in_row[r] = n_upper
        upper[i >> shift] += n_upper


@compiled()
def split_entries(
    indices: Array, weights: Array, indptr: Array, first_row: int, shift: int, band: int, both: int,
    lower_next: Array, upper_dst: Array, upper_weight: Array, lower_src: Array, lower_row: Array,
    lower_weight: Array,
) -> None:  # fmt: skip
    """Write a block's entries with their weights as `loops.split_block` does, or each one twice."""
    mask = (np.int64(1) << shift) - 1
    in_band = (np.int64(1) << band) - 1
    q: Any = np.uint64(0)
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        g = np.uint64(r >> band)
        columns, of_row = indices[indptr[r] : indptr[r + 1]], weights[indptr[r] : indptr[r + 1]]
        for e in range(columns.size):
            j = np.int64(columns[e])
            if j < i or (both and j != i):
                k = np.uint64(j >> shift)
                p = np.uint64(lower_next[k, g])
                lower_next[k, g] = p + np.uint64(1)
                lower_src[p] = j & mask
                lower_row[p] = r & in_band
                lower_weight[p] = of_row[e]
            if j > i or (both and j != i):
                upper_dst[q] = j
                upper_weight[q] = of_row[e]
                q += np.uint64(1)


@compiled()
def _group_upper(
    first_rows: Array, in_row: Array, row_starts: Array, dst: Array, weight: Array, starts: Array,
    f: int, base: int, ends: Array, grouped: Array, grouped_weight: Array,
) -> None:  # fmt: skip
    """Do what `loops._group_upper` does, with weights."""
    ends[:] = 0
    width = ends.size - 1
    for b in range(starts.shape[0]):
        s = max(first_rows[b] - base, 0)
        for p in range(row_starts[b, f], row_starts[b, f + 1]):
            ends[s + 1] += in_row[p]
            s += 1
    for s in range(width):
        ends[s + 1] += ends[s]
    for b in range(starts.shape[0]):
        s = max(first_rows[b] - base, 0)
        q = starts[b, f]
        for p in range(row_starts[b, f], row_starts[b, f + 1]):
            at = ends[s]
            n = np.int64(in_row[p])
            for k in range(n):
                grouped[at + k] = dst[q + k]
                grouped_weight[at + k] = weight[q + k]
            ends[s] = at + n
            q += n
            s += 1


@compiled()
def _group_lower(
    src: Array, row: Array, weight: Array, starts: Array, bases: Array, f: int, ends: Array,
    grouped: Array, grouped_weight: Array,
) -> None:  # fmt: skip
    """Do what `loops._group_lower` does, with weights."""
    ends[:] = 0
    width = ends.size - 1
    n_bands = bases.shape[1]
    for b in range(starts.shape[0]):
        for p in range(starts[b, f * n_bands], starts[b, (f + 1) * n_bands]):
            ends[src[p] + np.int64(1)] += 1
    for s in range(width):
        ends[s + 1] += ends[s]
    for b in range(starts.shape[0]):
        for g in range(n_bands):
            base = bases[b, g]
            first, last = starts[b, f * n_bands + g], starts[b, f * n_bands + g + 1]
            some_src, some_row, some_weight = src[first:last], row[first:last], weight[first:last]
            for p in range(some_src.size):
                s = some_src[p]
                at = np.uint64(ends[s])
                ends[s] = at + np.uint64(1)
                grouped[at] = base + np.int64(some_row[p])
                grouped_weight[at] = some_weight[p]


@compiled()
def _sort_weighted(
    dst: Array, weight: Array, start: int, stop: int, keys: Array, sorted_weight: Array
) -> None:
    """Sort ``[start, stop)`` by destination (below 2³²), stable; the last two are work space."""
    n = stop - start
    for k in range(n):
        keys[k] = (np.int64(dst[start + k]) << 32) | k
    _sort(keys, 0, n)
    for k in range(n):
        sorted_weight[k] = weight[start + (keys[k] & 0xFFFFFFFF)]
        dst[start + k] = keys[k] >> 32
    for k in range(n):
        weight[start + k] = sorted_weight[k]


@compiled(int)
def narrow(weights: Array, out: Array) -> int:
    """Write weights (positive) in another dtype; return where the first becomes 0 or infinite.

    That is -1 if there is none.
    """
    lost: Any = False
    for k in range(weights.size):
        out[k] = weights[k]
        lost |= (out[k] == 0) | (out[k] == np.inf)
    if lost:
        for k in range(weights.size):
            if out[k] == 0 or out[k] == np.inf:
                return k
    return -1


@compiled(int)
def combine(rule: int, a: Any, b: Any) -> Any:
    """Return the weight of a pair from those of its directions (float64); see `rules`."""
    if rule == _ONES:
        return 1.0 if a + b != 0.0 else 0.0
    if rule == _MAX:
        return max(a, b)
    if rule == _MIN:
        return min(a, b)
    if rule == _MEAN:
        return 0.5 * (a + b)
    if rule == _SUM:
        return a + b
    if rule == _FUZZY:
        return a + b - a * b if a <= 1.0 and b <= 1.0 else np.nan
    if a == b:
        return 0.0
    return 2.0 if a != 0.0 and b != 0.0 else 1.0


@compiled(bool)
def _falls(cells: Array, start: int, stop: int) -> bool:
    """Whether ``[start, stop)`` is not in order; no way out of the loop, so it is vector code."""
    falls: Any = False
    for p in range(start + 1, stop):
        falls |= cells[p] < cells[p - 1]
    return bool(falls)


@compiled(int, bool)
def _merge_row(
    upper: Array, upper_weight: Array, a: int, a_end: int, lower: Array, lower_weight: Array,
    b: int, b_end: int, source: int, rule: int, out_src: Array, out_dst: Array, out_weight: Array,
    n: int,
) -> tuple[int, bool]:  # fmt: skip
    """Merge the entries of a row, upper and lower, either in order and without repeats.

    Returned are the next place in the output, and whether they were so; if not, what was written is
    of no use. Which of them is next is as good as random, so there are no branches for it: where
    there is no weight, one is multiplied by 0. To all rules it is the same which weight is which.
    """
    p: Any = np.uint64(a)
    q: Any = np.uint64(b)
    at: Any = np.uint64(n)
    p_end, q_end = np.uint64(a_end), np.uint64(b_end)
    previous: Any = np.int64(-1)
    rises: Any = True
    while p < p_end and q < q_end:
        x = np.int64(upper[p])
        y = np.int64(lower[q])
        d = min(x, y)
        up = np.float64(upper_weight[p]) * np.float64(x <= y)
        low = np.float64(lower_weight[q]) * np.float64(y <= x)
        out_src[at] = source
        out_dst[at] = d
        out_weight[at] = combine(rule, up, low)
        at += np.uint64(out_weight[at] != 0.0)
        rises &= d > previous
        previous = d
        p += np.uint64(x <= y)
        q += np.uint64(y <= x)
    while p < p_end:
        d = np.int64(upper[p])
        out_src[at] = source
        out_dst[at] = d
        out_weight[at] = combine(rule, np.float64(upper_weight[p]), 0.0)
        at += np.uint64(out_weight[at] != 0.0)
        rises &= d > previous
        previous = d
        p += np.uint64(1)
    while q < q_end:
        d = np.int64(lower[q])
        out_src[at] = source
        out_dst[at] = d
        out_weight[at] = combine(rule, 0.0, np.float64(lower_weight[q]))
        at += np.uint64(out_weight[at] != 0.0)
        rises &= d > previous
        previous = d
        q += np.uint64(1)
    return int(np.int64(at)), bool(rises)


@compiled(int, bool)
def merge_weighted(
    first_partition: int, shift: int, first_rows: Array, in_row: Array, row_starts: Array,
    upper_dst: Array, upper_weight: Array, upper_starts: Array, lower_src: Array, lower_row: Array,
    lower_weight: Array, lower_starts: Array, bases: Array, upper_ends: Array, lower_ends: Array,
    upper_grouped: Array, upper_kept: Array, lower_grouped: Array, lower_kept: Array, keys: Array,
    rule: int, out_src: Array, out_dst: Array, out_weight: Array,
) -> tuple[int, bool]:  # fmt: skip
    """Merge entries as `loops.merge_partitions` does, and combine the weights of both directions.

    Returned are the number of edges, and whether the dtype of `out_weight` held what repeated
    entries added up to.

    `upper_kept` and `lower_kept` are work space for the weights of the grouped entries, `keys`
    (int64) to sort as many. What a rule makes 0 is no edge. Weights must not be negative. Where
    directions are compared, the weight of a pair is as for `rules.CODES`, and 4 more for each
    repeated entry.
    """
    n: Any = 0
    is_exact: Any = True
    for f in range(upper_starts.shape[1] - 1):
        base = np.int64(first_partition + f) << shift
        _group_upper(
            first_rows, in_row, row_starts, upper_dst, upper_weight, upper_starts, f, base,
            upper_ends, upper_grouped, upper_kept,
        )  # fmt: skip
        _group_lower(
            lower_src, lower_row, lower_weight, lower_starts, bases, f, lower_ends,
            lower_grouped, lower_kept,
        )  # fmt: skip
        a: Any = 0
        b: Any = 0
        for s in range(upper_ends.size - 1):
            source = base + s
            a_end = upper_ends[s]
            b_end = lower_ends[s]
            if _falls(upper_grouped, a, a_end):
                _sort_weighted(upper_grouped, upper_kept, a, a_end, keys, out_weight[n:])
            merged, rises = _merge_row(
                upper_grouped, upper_kept, a, a_end, lower_grouped, lower_kept, b, b_end,
                source, rule, out_src, out_dst, out_weight, n,
            )  # fmt: skip
            if rises:
                n = merged
                a = a_end
                b = b_end
            while a < a_end or b < b_end:
                if b >= b_end or (a < a_end and upper_grouped[a] <= lower_grouped[b]):
                    d = np.int64(upper_grouped[a])
                else:
                    d = np.int64(lower_grouped[b])
                more = a + b + (a < a_end and upper_grouped[a] == d)
                more += b < b_end and lower_grouped[b] == d
                up = 0.0
                while a < a_end and upper_grouped[a] == d:
                    up += upper_kept[a]
                    a += 1
                low = 0.0
                while b < b_end and lower_grouped[b] == d:
                    low += lower_kept[b]
                    b += 1
                weight = combine(rule, up, low)
                if rule == _DIFFER:
                    weight += 4.0 * (a + b - more)
                out_src[n] = source
                out_dst[n] = d
                out_weight[n] = weight
                is_exact &= np.float64(out_weight[n]) == weight
                n += weight != 0.0
    return int(n), bool(is_exact)


@compiled(int, bool)
def weigh(
    indices: Array, rows: Array, weights: Array, bits: Array, largest: Array, first_whole: int,
    n_whole: int, seeds: Array, imbalance: Array,
) -> tuple[int, bool]:  # fmt: skip
    """Add the hashes of a block's entries with their weights to `imbalance`.

    See `weigh_block`; `n_whole` rows from `first_whole` on are whole in the block. As in
    `loops._weigh` there are no branches, so that this becomes vector code. Entries on the diagonal,
    zeros and what is not finite have no hash. Returned are how many of these there are, and of
    negative weights and those above `largest`; and whether the columns of a row do not rise
    strictly.
    """
    sum_a = imbalance[0]
    sum_b = imbalance[1]
    near = imbalance[2]
    n_near = np.uint64(n_whole)
    zero = np.float32(0)  # so that float32 is not compared as float64
    n_special = 0
    for e in range(indices.size):
        i = np.int64(rows[e])
        j = np.int64(indices[e])
        w = weights[e]
        is_entry = (j != i) & (w != zero) & (w - w == zero)  # not NaN or infinite
        n_special += not (is_entry & (w > zero) & (w <= largest[0]))
        counts = np.uint64(0) - np.uint64(is_entry)  # all ones, or nothing
        minus = np.uint64(0) - np.uint64(j < i)  # all ones for a lower entry
        pair = (np.uint64(min(i, j)) << np.uint64(32)) | np.uint64(max(i, j))
        mixed = _mixed(pair + _mixed(np.uint64(bits[e]), seeds[2]), seeds[0])
        signed = ((mixed & counts) ^ minus) - minus
        sum_a += signed
        sum_b += ((_mixed_again(mixed, seeds[1]) & counts) ^ minus) - minus
        inside = (np.uint64(i - first_whole) < n_near) & (np.uint64(j - first_whole) < n_near)
        near += signed & (np.uint64(0) - np.uint64(inside))
    imbalance[0] = sum_a
    imbalance[1] = sum_b
    imbalance[2] = near
    unsorted: Any = False
    for e in range(1, indices.size):
        unsorted |= (rows[e] == rows[e - 1]) & (indices[e] <= indices[e - 1])
    return n_special, unsorted


@compiled(int)
def keep_entries(
    indices: Array, weights: Array, both: int, rows: Array, dst: Array, kept_weights: Array
) -> int:
    """Move a block's upper entries, or `both`, to the front of the last three; return how many."""
    n: Any = np.uint64(0)
    for e in range(indices.size):
        i = rows[e]
        j = indices[e]
        rows[n] = i
        dst[n] = j
        kept_weights[n] = weights[e]
        n += np.uint64((np.int64(j) > np.int64(i)) | ((both != 0) & (np.int64(j) != np.int64(i))))
    return int(np.int64(n))


@compiled(bool)
def _sort_rows(src: Array, dst: Array, weight: Array, n: int, keys: Array, spare: Array) -> bool:
    """Do what `loops._sort_rows` does, with weights; the last two are work space."""
    repeats: Any = False
    begin = 0
    while begin < n:
        end = begin + 1
        unsorted: Any = False
        while end < n and src[end] == src[begin]:
            unsorted |= dst[end] <= dst[end - 1]
            end += 1
        if unsorted:
            _sort_weighted(dst, weight, begin, end, keys, spare)
            for k in range(begin + 1, end):
                repeats |= dst[k] == dst[k - 1]
        begin = end
    return bool(repeats)


@compiled(int, bool)
def weigh_block(
    indices: Array, weights: Array, bits: Array, largest: Array, indptr: Array, first_row: int,
    whole: Array, seeds: Array, out_src: Array, imbalance: Array,
) -> tuple[int, bool]:  # fmt: skip
    """Write the source of each entry, and weigh upper entries with weights against lower ones.

    As `loops.stream_block`, but that hashes take the weights in: `bits` is a view of `weights`
    (floats, finite, not negative) as unsigned integers, `largest` holds the largest one there may
    be. `imbalance` has a third uint64 value: the sum of those entries alone whose row and column
    are both among the rows ``[whole[0], whole[1])``, all of which are whole in this block; it comes
    to zero if the matrix is symmetric. The seeds are three. Returned are the number of entries on
    the diagonal, and whether the columns of a row do not rise strictly.
    """
    _fill_rows(indptr, first_row, out_src)
    n_diagonal, unsorted = weigh(
        indices, out_src, weights, bits, largest, whole[0], max(whole[1] - whole[0], 0), seeds,
        imbalance,
    )  # fmt: skip
    return n_diagonal, unsorted


@compiled(int, bool)
def look_at_block(
    indices: Array, indptr: Array, first_row: int, out_src: Array
) -> tuple[int, bool]:
    """Do what `weigh_block` does, of a matrix that is known to be symmetric: nothing is hashed."""
    _fill_rows(indptr, first_row, out_src)
    n_diagonal = 0
    for e in range(indices.size):
        n_diagonal += np.int64(out_src[e]) == np.int64(indices[e])
    unsorted: Any = False
    for e in range(1, indices.size):
        unsorted |= (out_src[e] == out_src[e - 1]) & (indices[e] <= indices[e - 1])
    return n_diagonal, unsorted


@compiled(int, bool)
def place_entries(
    indices: Array, weights: Array, both: int, rule: int, unsorted: bool, keys: Array,
    out_src: Array, out_dst: Array, out_weight: Array,
) -> tuple[int, bool]:  # fmt: skip
    """Write a block's entries as edges with weights, whose sources are there.

    `keys` (int64) is work space to sort as many entries; `weights` are used up. Returned are the
    number of edges written, and whether a row holds the same entry twice.
    """
    n = keep_entries(indices, weights, both, out_src, out_dst, out_weight)
    if rule != _MAX and rule != _MIN:
        for k in range(n):
            out_weight[k] = combine(rule, out_weight[k], out_weight[k])
    return n, unsorted and _sort_rows(out_src, out_dst, out_weight, n, keys, weights)
