"""The compiled loops of verification; none of them is shared with the export.

An export is made by the loops in `kernels`. What proves it right must not repeat their mistakes, so
it has loops, hashes and data structures of its own. All release the GIL, allocate nothing and raise
nothing (see `compiled`).

An edge or entry is looked at as a *pair*, its smaller cell and its larger one, whichever of the two
directions it was stored in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled

TILE = 1 << 12  # entries whose rows are written out at a time; they stay in the nearest cache
_AT_ONCE = 16  # values that are written at once


@compiled(int)
def first_bad_edge(src: Array, dst: Array, last_src: int, last_dst: int, n_cells: int) -> int:
    """Return the first edge that breaks the order, or -1.

    It must be ``src < dst < n_cells`` and above its predecessor; the first one's is
    ``(last_src, last_dst)``.
    """
    if src.size == 0:
        return -1
    s0: Any = np.int64(src[0])
    d0: Any = np.int64(dst[0])
    if s0 >= d0 or d0 >= n_cells or s0 < last_src or (s0 == last_src and d0 <= last_dst):
        return 0
    bad: Any = False
    for k in range(1, src.size):  # no way out of the loop, so that it becomes vector code
        bad |= (src[k] >= dst[k]) | (dst[k] >= n_cells)
        bad |= (src[k] < src[k - 1]) | ((src[k] == src[k - 1]) & (dst[k] <= dst[k - 1]))
    if not bad:
        return -1
    k = 1
    while (
        src[k] < dst[k]
        and dst[k] < n_cells
        and (src[k] > src[k - 1] or (src[k] == src[k - 1] and dst[k] > dst[k - 1]))
    ):
        k += 1
    return k


@compiled(int)
def count_ends(cells: Array, first: int, counts: Array, carries: Array, n_carries: int) -> int:
    """Add one to ``counts[cell - first]`` for each cell that has a counter (uint8, in place).

    Each time a counter comes round to zero its cell is noted in `carries` and counts 256 more.

    Returns
    -------
    int
        How many are noted now; `carries` must have room for one in 256.
    """
    for k in range(cells.size):
        at = np.int64(cells[k]) - first
        if 0 <= at < counts.size:
            count = counts[at] + np.uint8(1)
            counts[at] = count
            if np.uint8(count) == 0:
                carries[n_carries] = cells[k]
                n_carries += 1
    return n_carries


@compiled()
def count_ends_wide(cells: Array, first: int, counts: Array) -> None:
    """Do `count_ends` with counters (uint32 or uint64) that never come round."""
    for k in range(cells.size):
        at = np.int64(cells[k]) - first
        if 0 <= at < counts.size:
            counts[at] += 1


@compiled(int)
def _scramble(pair: Any, seed: Any) -> Any:
    """Return 64 well-mixed bits of a pair and a seed (both uint64), by Murmur3's finaliser."""
    x = pair ^ seed
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@compiled()
def hash_edges(src: Array, dst: Array, seeds: Array, total: Array) -> None:
    """Add the hash of each edge to a 128-bit sum: two uint64 values, changed in place.

    Cells must fit 32 bits. `seeds` are four random uint64 values.
    """
    a = total[0]
    b = total[1]
    for k in range(src.size):
        pair = (np.uint64(src[k]) << np.uint64(32)) | np.uint64(dst[k])
        a += _scramble(pair * seeds[2] + seeds[3], seeds[0])
        b += _scramble(pair, seeds[1])
    total[0] = a
    total[1] = b


@compiled()
def hash_entries(
    indices: Array,
    indptr: Array,
    first_row: int,
    seeds: Array,
    rows: Array,
    upper: Array,
    lower: Array,
) -> None:
    """Add the hashes of a block's entries to two sums: of upper entries, of mirrored lower ones.

    Parameters
    ----------
    indices, indptr, first_row
        A block of stored entries. Those in the column of their own row count for nothing.
    seeds
        As in `hash_edges`.
    rows
        Work space of `TILE` uint32.
    upper, lower
        128-bit sums as in `hash_edges`.
    """
    upper_a = upper[0]
    upper_b = upper[1]
    all_a = upper[0] + lower[0]
    all_b = upper[1] + lower[1]
    row = 0
    begin = 0
    while begin < indices.size:
        end = min(begin + rows.size, indices.size)
        e = begin
        while e < end:
            while indptr[row + 1] <= e:
                row += 1
            stop = min(end, indptr[row + 1])
            p = np.uint64(e - begin)  # unsigned: compiled code need not think of negative indices
            while p < np.uint64(stop - begin):
                if p + np.uint64(_AT_ONCE) <= np.uint64(rows.size):
                    for k in range(_AT_ONCE):  # maybe too many; those of later rows come later
                        rows[p + np.uint64(k)] = first_row + row
                    p += np.uint64(_AT_ONCE)
                else:
                    rows[p] = first_row + row
                    p += np.uint64(1)
            e = stop
        for k in range(begin, end):  # no branches: this becomes vector code
            i = np.int64(rows[k - begin])
            j = np.int64(indices[k])
            pair = (np.uint64(min(i, j)) << np.uint64(32)) | np.uint64(max(i, j))
            counts = np.uint64(0) - np.uint64(i != j)  # all ones, or nothing on the diagonal
            is_upper = np.uint64(0) - np.uint64(i < j)
            a = _scramble(pair * seeds[2] + seeds[3], seeds[0])
            b = _scramble(pair, seeds[1])
            all_a += a & counts
            all_b += b & counts
            upper_a += a & is_upper
            upper_b += b & is_upper
        begin = end
    upper[0] = upper_a
    upper[1] = upper_b
    lower[0] = all_a - upper_a
    lower[1] = all_b - upper_b


@compiled(int)
def _root(parent: Array, cell: Any) -> Any:
    """Return the root of a cell, halving the path to it."""
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = np.int64(parent[cell])
    return cell


@compiled(int)
def unite(src: Array, dst: Array, parent: Array, settled: Array) -> int:
    """Join the trees of the two cells of each edge; return how many were joined.

    Parameters
    ----------
    src, dst
        The edges.
    parent
        For each cell one of the same component, never a later one; a root is its own.
    settled
        A bit for each cell, set only for cells of one and the same component. These bits stay in
        a near cache when `parent` does not, and soon answer for most edges.
    """
    joined = 0
    for k in range(src.size):
        s = np.int64(src[k])
        d = np.int64(dst[k])
        if (settled[s >> 3] >> (s & 7)) & (settled[d >> 3] >> (d & 7)) & 1:
            continue
        a = _root(parent, s)
        b = _root(parent, d)
        if a != b:
            parent[max(a, b)] = min(a, b)
            joined += 1
    return joined


@compiled(int)
def flatten(parent: Array) -> int:
    """Make every cell a child of its root; return the number of roots."""
    n_roots = 0
    for cell in range(parent.size):
        parent[cell] = parent[parent[cell]]
        n_roots += parent[cell] == cell
    return n_roots


@compiled()
def settle(parent: Array, root: int, settled: Array) -> None:
    """Set the bits of the children of a root, and clear all others; `parent` must be flat."""
    for byte in range(settled.size):
        bits: Any = 0
        for cell in range(8 * byte, min(8 * byte + 8, parent.size)):
            bits |= np.int64(parent[cell] == root) << (cell & 7)
        settled[byte] = bits


@compiled()
def count_children(parent: Array, sizes: Array) -> None:
    """Write for each root how many cells are its children or itself, and 0 for other cells.

    `parent` must be flat; `sizes` may hold anything before.
    """
    sizes[:] = 0
    for cell in range(parent.size):
        sizes[parent[cell]] += 1


@compiled(int)
def index_sources(src: Array, first: int, ends: Array) -> int:
    """Count the edges of each source: ``ends[source - first + 1]`` grows by one (int64, in place).

    Sources outside are not counted; returns how many are.
    """
    n: Any = 0
    for k in range(src.size):
        at = np.int64(src[k]) - first
        if 0 <= at < ends.size - 1:
            ends[at + 1] += 1
            n += 1
    return int(n)


@compiled(int)
def _find(dst: Array, begin: int, end: int, wanted: Any) -> int:
    """Return the place of a value in the rising ``dst[begin:end]``, or -1."""
    low: Any = begin
    high: Any = end
    while high - low > 8:
        middle = (low + high) >> 1
        if np.int64(dst[middle]) < wanted:
            low = middle + 1
        else:
            high = middle
    while low < high and np.int64(dst[low]) < wanted:
        low += 1
    if low < end and np.int64(dst[low]) == wanted:
        return int(low)
    return -1


@compiled(int)
def mark_rows(
    indices: Array,
    indptr: Array,
    first_row: int,
    row_begin: int,
    row_end: int,
    ends: Array,
    dst: Array,
    offset: int,
    seen: Array,
) -> int:
    """Mark the edges that upper entries of whole rows stand for.

    Parameters
    ----------
    indices, indptr, first_row
        A block of stored entries.
    row_begin, row_end
        The rows to look at, counted from the block's first.
    ends
        Row ``r`` of the block is the source of the edges ``ends[r] … ends[r + 1]``.
    dst
        Destinations of the edges from number `offset` on.
    seen
        A byte for each of them, set to 1 in place.

    Returns
    -------
    int
        The first entry without an edge, or -1.
    """
    for r in range(row_begin, row_end):
        i = np.int64(first_row + r)
        begin = ends[r] - offset
        end = ends[r + 1] - offset
        at: Any = begin
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j > i:
                # Where rows are sorted, the edge is the next one or one of those after it.
                if at < end and np.int64(dst[at]) < j:
                    at += 1
                if at < end and np.int64(dst[at]) < j:
                    at += 1
                if at >= end or np.int64(dst[at]) != j:
                    at = _find(dst, begin, end, j)
                    if at < 0:
                        return e
                seen[at] = 1
    return -1


@compiled()
def count_loose(
    indices: Array,
    indptr: Array,
    first_row: int,
    matched: Array,
    shift: int,
    lower: Array,
    upper: Array,
) -> None:
    """Count a block's loose entries by partition of their smaller cell (int64, in place).

    Loose are all lower entries, and the upper ones in rows that are not `matched` (a byte a row).
    """
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j < i:
                lower[j >> shift] += 1
            elif j > i and matched[r] == 0:
                upper[i >> shift] += 1


@compiled()
def gather_loose(
    indices: Array,
    indptr: Array,
    first_row: int,
    matched: Array,
    shift: int,
    lower: Array,
    lower_small: Array,
    lower_large: Array,
    upper: Array,
    upper_small: Array,
    upper_large: Array,
) -> None:
    """Write a block's loose entries as pairs, by partition of their smaller cell.

    Parameters
    ----------
    indices, indptr, first_row, matched, shift
        As in `count_loose`; at most 2¹⁶ rows.
    lower, upper
        Where the next pair of each partition goes; int64, changed in place.
    lower_small, upper_small
        The smaller cell's place in its partition; uint16.
    lower_large
        The larger cell, counted from `first_row`; uint16.
    upper_large
        The larger cell.
    """
    mask = (np.int64(1) << shift) - 1
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j < i:
                p = lower[j >> shift]
                lower[j >> shift] = p + 1
                lower_small[p] = j & mask
                lower_large[p] = r
            elif j > i and matched[r] == 0:
                p = upper[i >> shift]
                upper[i >> shift] = p + 1
                upper_small[p] = i & mask
                upper_large[p] = j


@compiled(int)
def mark_pairs(
    small: Array,
    large: Array,
    bases: Array,
    apart: Array,
    slices: Array,
    first_partition: int,
    shift: int,
    bounds: Array,
    ends: Array,
    cursor: Array,
    dst: Array,
    seen: Array,
    place: Array,
) -> int:
    """Mark the edges that loose pairs stand for.

    Parameters
    ----------
    small, large
        Pairs, as `gather_loose` writes them.
    bases
        What to add to `large` in each lot of pairs.
    apart
        How far behind its smaller cell the larger one of a pair is, in each lot.
    slices
        ``(n_lots, n_partitions + 1)`` int64: where each partition starts in each lot.
    first_partition, shift
        What ``slices[:, 0]`` is of.
    bounds
        Only pairs in ``[bounds[0:2], bounds[2:4])`` are looked for.
    ends
        Cell ``bounds[0] + k`` is the source of the edges ``ends[k] … ends[k + 1]``.
    cursor
        For each of these cells the edge to look at first, ``ends[k]`` in the beginning; changed in
        place. Pairs come in the order of the rows they were in, so that it is seldom far off.
    dst, seen
        Destinations of the edges inside the bounds, and a byte for each, set to 1 in place.
    place
        Two int64: the pair that has no edge, if there is one.

    Returns
    -------
    int
        -1 if all have their edge, else 0.
    """
    for f in range(slices.shape[1] - 1):
        base = np.int64(first_partition + f) << shift
        for b in range(slices.shape[0]):
            for p in range(slices[b, f], slices[b, f + 1]):
                s = base + np.int64(small[p])
                d = bases[b] + np.int64(large[p + apart[b]])
                if s < bounds[0] or (s == bounds[0] and d < bounds[1]):
                    continue
                if s > bounds[2] or (s == bounds[2] and d >= bounds[3]):
                    continue
                begin = ends[s - bounds[0]]
                end = ends[s - bounds[0] + 1]
                at: Any = cursor[s - bounds[0]]
                for _ in range(3):
                    if at < end and np.int64(dst[at]) < d:
                        at += 1
                if at >= end or np.int64(dst[at]) != d:
                    at = _find(dst, begin, end, d)
                    if at < 0:
                        place[0] = s
                        place[1] = d
                        return 0
                seen[at] = 1
                cursor[s - bounds[0]] = at + 1
    return -1


@compiled(int)
def first_unseen(seen: Array) -> int:
    """Return the place of the first zero, or -1."""
    n: Any = 0
    for k in range(seen.size):
        n += seen[k] != 0
    if n == seen.size:
        return -1
    k = 0
    while seen[k] != 0:
        k += 1
    return k


@compiled(int)
def gather_weighted(
    indices: Array,
    weights: Array,
    indptr: Array,
    first_row: int,
    shift: int,
    places: Array,
    small: Array,
    large: Array,
    weight: Array,
    below: int,
) -> int:
    """Do `gather_loose` with weights: of the lower entries if `below` is 1, else the upper."""
    mask = (np.int64(1) << shift) - 1
    n = 0
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if (j < i and below == 1) or (j > i and below == 0):
                s = min(i, j)
                p = places[s >> shift]
                places[s >> shift] = p + 1
                small[p] = s & mask
                large[p] = max(i, j)
                weight[p] = weights[e]
                n += 1
    return n


@compiled()
def count_side(
    indices: Array, indptr: Array, first_row: int, shift: int, below: int, counts: Array
) -> None:
    """Count what `gather_weighted` will write, by partition (int64, in place)."""
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if (j < i and below == 1) or (j > i and below == 0):
                counts[min(i, j) >> shift] += 1


@compiled(int)
def add_up_floats(keys: Array, below: Array, weights: Array, kept: Array) -> int:
    """Add the weights of equal keys; keep the keys whose sum is not zero.

    Parameters
    ----------
    keys
        Rising int64, equal ones in stored order: of the upper entries, and of the lower ones.
    below
        A byte for each, 1 for a lower entry.
    weights
        float64. Each direction is added up on its own, and then both, as ``C + C.T`` does.
    kept
        The keys that are kept; int64.

    Returns
    -------
    int
        How many are kept.
    """
    n = 0
    k = 0
    while k < keys.size:
        upper = 0.0
        lower = 0.0
        key = keys[k]
        while k < keys.size and keys[k] == key:
            if below[k] == 1:
                lower += weights[k]
            else:
                upper += weights[k]
            k += 1
        if upper + lower != 0.0:
            kept[n] = key
            n += 1
    return n


@compiled(int)
def add_up_integers(keys: Array, weights: Array, kept: Array) -> int:
    """Do `add_up_floats` for int64 weights, exactly: no sum overflows."""
    n = 0
    k = 0
    while k < keys.size:
        high: Any = np.int64(0)
        low: Any = np.int64(0)
        key = keys[k]
        while k < keys.size and keys[k] == key:
            high += weights[k] >> 32
            low += weights[k] & 0xFFFFFFFF
            k += 1
        if (low & 0xFFFFFFFF) != 0 or high + (low >> 32) != 0:
            kept[n] = key
            n += 1
    return n
