"""The arithmetic of the graph as compiled loops: no I/O, no Dask, no Python object per entry.

A stored entry ``C[i, j]`` with ``i < j`` is an *upper* entry, the edge ``(i, j)`` itself; one with
``i > j`` is a *lower* entry, whose transpose contributes the edge ``(j, i)``. Sources are cut into
*partitions* of ``2**shift`` cells, so the partition of a source is ``source >> shift`` and its
place inside it fits 16 bits::

    block of rows --split-->  upper dst in row order, and how many are in each row
                              lower (src, dst) by partition, dst rising
    partition     --merge-->  group both by source, merge two rising lists, drop repeats

All loops release the GIL; they allocate nothing and raise nothing (see `compiled`). Entries that
count as no entry at all (self-edges, stored zeros) are marked by setting their column to their own
row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled

_AT_ONCE = 16  # values that are written at once
_HALF = 1 << 32  # of what the low part of an integer weight counts


@compiled()
def count_contributions(
    indices: Array, indptr: Array, first_row: int, shift: int, band: int, in_row: Array, upper:
    Array, lower: Array,
) -> None:  # fmt: skip
    """Count a block's upper entries by row and by partition, its lower ones by partition and band.

    The block is as in `drop_stored_zeros`; `shift` and `band` are the binary logarithms of the
    cells in a partition and of the rows in a band. `in_row` (uint32) is set, `upper` by partition
    and `lower` by partition and band (int64) are added to.
    """
    for r in range(indptr.size - 1):
        i = first_row + r
        n_upper = 0
        for e in range(indptr[r], indptr[r + 1]):
            j = indices[e]
            if j < i:
                lower[j >> shift, r >> band] += 1
            elif j > i:
                n_upper += 1
        in_row[r] = n_upper
        upper[i >> shift] += n_upper


@compiled()
def split_block(
    indices: Array, indptr: Array, first_row: int, shift: int, band: int, lower_next: Array,
    upper_dst: Array, lower_src: Array, lower_row: Array,
) -> None:  # fmt: skip
    """Write a block's entries as edges: upper ones in row order, lower ones by partition and band.

    The block, `shift` and `band` are as in `count_contributions`. `lower_next` tells where the next
    lower entry of each partition and band goes (int64, changed in place). Written are `upper_dst`,
    destinations (uint32; uint64 above 2³² cells), `lower_src`, sources inside their partition, and
    `lower_row`, destinations, which are rows, inside their band (both uint16).
    """
    mask = (np.int64(1) << shift) - 1
    in_band = (np.int64(1) << band) - 1
    q: Any = np.uint64(0)
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        row = r & in_band
        g = np.uint64(r >> band)
        columns = indices[indptr[r] : indptr[r + 1]]
        for e in range(columns.size):
            j = np.int64(columns[e])
            if j < i:
                k = np.uint64(j >> shift)
                p = np.uint64(lower_next[k, g])
                lower_next[k, g] = p + np.uint64(1)
                lower_src[p] = j & mask
                lower_row[p] = row
            elif j > i:
                upper_dst[q] = j
                q += np.uint64(1)


@compiled()
def _sort(values: Array, start: int, stop: int) -> None:
    """Sort ``values[start:stop]`` in place: by insertion if it is short, else a heap sort."""
    if stop - start <= 32:
        for k in range(start + 1, stop):
            value = values[k]
            p = k
            while p > start and values[p - 1] > value:
                values[p] = values[p - 1]
                p -= 1
            values[p] = value
        return
    n = stop - start
    root = n // 2
    while n > 1:
        if root > 0:
            root -= 1
            value = values[start + root]
        else:
            n -= 1
            value = values[start + n]
            values[start + n] = values[start]
        p = root
        child = 2 * p + 1
        while child < n:
            if child + 1 < n and values[start + child + 1] > values[start + child]:
                child += 1
            if values[start + child] <= value:
                break
            values[start + p] = values[start + child]
            p = child
            child = 2 * p + 1
        values[start + p] = value


@compiled()
def _group_upper(
    first_rows: Array, in_row: Array, row_starts: Array, dst: Array, starts: Array, f: int, base:
    int, ends: Array, grouped: Array,
) -> None:  # fmt: skip
    """Sort one partition's upper entries by source, stable over the runs.

    Afterwards ``grouped[ends[s - 1]:ends[s]]`` are the destinations of source ``base + s``
    (``ends[-1]`` being 0). Parameters are those of `merge_partitions`; the entries of a row are in
    one run, or in a few that follow one another.
    """
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
            ends[s] = at + n
            q += n
            s += 1


@compiled()
def _group_lower(
    src: Array, row: Array, starts: Array, bases: Array, f: int, ends: Array, grouped: Array
) -> None:
    """Sort one partition's lower entries by source: a counting sort, stable over the runs."""
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
            some_src, some_row = src[first:last], row[first:last]
            for p in range(some_src.size):
                s = some_src[p]
                at = np.uint64(ends[s])
                ends[s] = at + np.uint64(1)
                grouped[at] = base + np.int64(some_row[p])


@compiled(int)
def merge_partitions(
    first_partition: int, shift: int, first_rows: Array, in_row: Array, row_starts: Array,
    upper_dst: Array, upper_starts: Array, lower_src: Array, lower_row: Array, lower_starts: Array,
    bases: Array, upper_ends: Array, lower_ends: Array, upper_grouped: Array, lower_grouped: Array,
    out_src: Array, out_dst: Array,
) -> int:  # fmt: skip
    """Merge the upper and lower entries of consecutive partitions into sorted, distinct edges.

    The entries are as in `merge.Packed`. Working memory are the ends, ``2**shift + 1`` int64, and
    the grouped entries, as long as the longest partition and of the type of the destinations. The
    edges go to `out_src` and `out_dst`, at least as long as all entries; their number is returned.
    """
    n: Any = np.uint64(0)
    for f in range(upper_starts.shape[1] - 1):
        base = np.int64(first_partition + f) << shift
        _group_upper(
            first_rows, in_row, row_starts, upper_dst, upper_starts, f, base,
            upper_ends, upper_grouped,
        )  # fmt: skip
        _group_lower(lower_src, lower_row, lower_starts, bases, f, lower_ends, lower_grouped)
        a: Any = np.uint64(0)
        b: Any = np.uint64(0)
        for s in range(upper_ends.size - 1):
            a_end = np.uint64(upper_ends[s])
            b_end = np.uint64(lower_ends[s])
            for p in range(np.int64(a) + 1, upper_ends[s]):
                if upper_grouped[p] < upper_grouped[p - 1]:
                    _sort(upper_grouped, np.int64(a), upper_ends[s])
                    break
            previous = np.int64(base + s)  # no destination equals its source
            while a < a_end and b < b_end:
                # Without branches: which list is next is as good as random.
                x = np.int64(upper_grouped[a])
                y = np.int64(lower_grouped[b])
                d = min(x, y)
                out_src[n] = base + s
                out_dst[n] = d
                n += np.uint64(d != previous)
                previous = d
                a += np.uint64(x <= y)
                b += np.uint64(y <= x)
            while a < a_end:
                d = np.int64(upper_grouped[a])
                out_src[n] = base + s
                out_dst[n] = d
                n += np.uint64(d != previous)
                previous = d
                a += np.uint64(1)
            while b < b_end:
                d = np.int64(lower_grouped[b])
                out_src[n] = base + s
                out_dst[n] = d
                n += np.uint64(d != previous)
                previous = d
                b += np.uint64(1)
    return int(np.int64(n))


@compiled(int)
def merge_signed(
    upper_keys: Array, upper_high: Array, upper_low: Array, lower_keys: Array, lower_high: Array,
    lower_low: Array, first_source: int, dst_bits: int, out_src: Array, out_dst: Array,
) -> int:  # fmt: skip
    """Merge two sorted lists of weighted edges; an edge whose weights add up to zero is none.

    Keys are ``(source - first_source) << dst_bits | destination``: int64, rising, repeats allowed.
    Weights are ``high * 2**32 + low``. Integers are int64 in both parts, ``low`` below 2³²: sums
    are exact, and overflow in no less than 2³¹ repeats. Floats are float64, with zeros for
    ``high``. Returned is the number of edges written to `out_src` and `out_dst`.
    """
    zero = upper_high.dtype.type(0)
    n = 0
    a = 0
    b = 0
    while a < upper_keys.size or b < lower_keys.size:
        if b >= lower_keys.size or (a < upper_keys.size and upper_keys[a] <= lower_keys[b]):
            key = upper_keys[a]
        else:
            key = lower_keys[b]
        # In stored order, one direction after the other, as C + C.T means it.
        high = zero
        low = zero
        while a < upper_keys.size and upper_keys[a] == key:
            high += upper_high[a]
            low += upper_low[a]
            a += 1
        low_below = zero
        while b < lower_keys.size and lower_keys[b] == key:
            high += lower_high[b]
            low_below += lower_low[b]
            b += 1
        low += low_below
        carried = low // _HALF
        if high + carried != 0 or low != carried * _HALF:
            out_src[n] = first_source + (key >> dst_bits)
            out_dst[n] = key & ((np.int64(1) << dst_bits) - 1)
            n += 1
    return n


@compiled(int)
def select_range(
    src: Array, dst: Array, low_src: int, low_dst: int, high_src: int, high_dst: int, kept: Array
) -> int:
    """Write the positions (int64) of the edges in ``[(low_src, low_dst), (high_src, high_dst))``.

    How many there are is returned.
    """
    n = 0
    for p in range(src.size):
        s = np.int64(src[p])
        d = np.int64(dst[p])
        if (s > low_src or (s == low_src and d >= low_dst)) and (
            s < high_src or (s == high_src and d < high_dst)
        ):
            kept[n] = p
            n += 1
    return n


@compiled()
def count_values(values: Array, shift: int, counts: Array) -> None:
    """Add one to ``counts[value >> shift]`` for each value, in place."""
    for k in range(values.size):
        counts[np.int64(values[k]) >> shift] += 1


@compiled()
def count_destinations_of(src: Array, dst: Array, source: int, shift: int, counts: Array) -> None:
    """Add one to ``counts[dst >> shift]`` for each edge of one source (int64, in place)."""
    for k in range(src.size):
        if src[k] == source:
            counts[np.int64(dst[k]) >> shift] += 1


@compiled()
def count_edges_per_source(src: Array, first_source: int, counts: Array) -> None:
    """Add one to ``counts[source - first_source]`` for each edge (uint32, in place)."""
    for k in range(src.size):
        counts[np.int64(src[k]) - first_source] += 1


@compiled(int)
def _mixed(key: Any, seed: Any) -> Any:
    """Return a well-mixed 64-bit value of `key` (uint64): the finalizer of SplitMix64."""
    x = key + seed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled(int)
def _mixed_again(mixed: Any, seed: Any) -> Any:
    """Return another mix of a mixed value, with a seed of its own."""
    x = (mixed ^ seed) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


@compiled()
def _fill_rows(indptr: Array, first_row: int, rows: Array) -> None:
    """Write the row of each entry of a block."""
    size = np.uint64(rows.size)
    for r in range(indptr.size - 1):
        i = first_row + r
        e = np.uint64(indptr[r])  # unsigned, so that no negative index has to be thought of
        stop = np.uint64(indptr[r + 1])
        while e < stop and e + np.uint64(_AT_ONCE) <= size:
            for k in range(_AT_ONCE):  # too many, but at once; the next row mends it
                rows[e + np.uint64(k)] = i
            e += np.uint64(_AT_ONCE)
        while e < stop:
            rows[e] = i
            e += np.uint64(1)


@compiled(int, bool)
def _weigh(indices: Array, rows: Array, seeds: Array, imbalance: Array) -> tuple[int, bool]:
    """Add the hashes of a block's entries to `imbalance`; see `stream_block`.

    The loops have no branches and know nothing of rows, so they become vector code. Returned are
    the number of entries on the diagonal, and whether the columns of a row do not rise strictly.
    """
    sum_a = imbalance[0]
    sum_b = imbalance[1]
    n_diagonal = 0
    for e in range(indices.size):
        i = np.int64(rows[e])
        j = np.int64(indices[e])
        key = (np.uint64(min(i, j)) << np.uint64(32)) | np.uint64(max(i, j))
        counts = np.uint64(0) - np.uint64(j != i)  # all ones, or nothing on the diagonal
        minus = np.uint64(0) - np.uint64(j < i)  # all ones for a lower entry
        mixed = _mixed(key, seeds[0])
        sum_a += ((mixed & counts) ^ minus) - minus
        sum_b += ((_mixed_again(mixed, seeds[1]) & counts) ^ minus) - minus
        n_diagonal += j == i
    imbalance[0] = sum_a
    imbalance[1] = sum_b
    unsorted: Any = False
    for e in range(1, indices.size):
        unsorted |= (rows[e] == rows[e - 1]) & (indices[e] <= indices[e - 1])
    return n_diagonal, unsorted


@compiled(int)
def _keep_upper(indices: Array, rows: Array, dst: Array) -> int:
    """Move the upper entries of a block to the front of `rows` and `dst`; return their number."""
    n: Any = np.uint64(0)
    for e in range(indices.size):
        i = rows[e]
        j = indices[e]
        rows[n] = i
        dst[n] = j
        n += np.uint64(np.int64(j) > np.int64(i))
    return int(np.int64(n))


@compiled(bool)
def _sort_rows(src: Array, dst: Array, n: int) -> bool:
    """Sort each source's destinations among `n` edges; return whether any occurs twice."""
    repeats: Any = False
    begin = 0
    while begin < n:
        end = begin + 1
        while end < n and src[end] == src[begin]:
            end += 1
        _sort(dst, begin, end)
        for k in range(begin + 1, end):
            repeats |= dst[k] == dst[k - 1]
        begin = end
    return bool(repeats)


@compiled()
def count_degrees(
    indices: Array, indptr: Array, first_row: int, n_diagonal: int, degrees: Array
) -> None:
    """Set the `degrees` of a block; see `stream_block`."""
    degrees[:4] = 0
    for r in range(indptr.size - 1):
        degree = indptr[r + 1] - indptr[r]
        if n_diagonal:
            for e in range(indptr[r], indptr[r + 1]):
                degree -= indices[e] == first_row + r
        degrees[0] = max(degrees[0], degree)
        if r == 0:
            degrees[1] = degree
        degrees[2] = degree
        degrees[3] += degree > 0


@compiled(int, bool)
def stream_block(
    indices: Array, indptr: Array, first_row: int, seeds: Array, out_src: Array, out_dst: Array,
    imbalance: Array, degrees: Array,
) -> tuple[int, bool]:  # fmt: skip
    """Write a block's upper entries as edges, and weigh them against its lower ones.

    The block is as in `drop_stored_zeros`, with fewer than 2³² cells; `out_src` and `out_dst` are
    as long. The seeds are two random uint64 values, the same for all blocks of a matrix.

    `imbalance` (two uint64 values, changed in place) is a 128-bit sum of hashes, plus that of each
    upper entry ``(i, j)`` and minus that of each mirrored lower one. Over a whole matrix without
    repeats it comes to zero if the matrix is symmetric, and else with a chance of about 2⁻¹²⁸ only.

    `degrees` (four int64 values) is set to the largest number of entries in a row, that of the
    first row, that of the last row, and the number of rows with entries, all off the diagonal.
    Returned are the number of edges written, and whether a row holds the same upper entry twice.
    """
    _fill_rows(indptr, first_row, out_src)
    n_diagonal, unsorted = _weigh(indices, out_src, seeds, imbalance)
    n = _keep_upper(indices, out_src, out_dst)
    count_degrees(indices, indptr, first_row, n_diagonal, degrees)
    return n, unsorted and _sort_rows(out_src, out_dst, n)
