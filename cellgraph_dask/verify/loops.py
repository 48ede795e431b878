"""The compiled loops of verification; none of them is shared with the export.

What proves an export right must not repeat its mistakes, so it has loops, hashes and data
structures of its own. All release the GIL, allocate nothing and raise nothing (see
`machine/compiled`).

An edge or entry is looked at as a *pair*, its smaller cell and its larger one, whichever of the two
directions it was stored in. In proofs the pairs of a partition, ``2**shift`` smaller cells, are
*keys*: the last `shift` bits of the smaller cell, and below them `bits` bits for the larger one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..edge_pairs import components
from ..edge_pairs.reader import first_bad_edge
from ..machine.buffers import Array
from ..machine.compiled import compiled

TILE = 1 << 12  # entries whose rows are written out at a time; they stay in the nearest cache
_AT_ONCE = 16  # values that are written at once


@compiled()
def count_ends(cells: Array, first: int, counts: Array) -> None:
    """Add one to ``counts[cell - first]`` for each cell that has a counter, in place."""
    for k in range(cells.size):
        at = np.int64(cells[k]) - first
        if 0 <= at < counts.size:
            counts[at] += 1


@compiled(int)
def _scramble(pair: Any, seed: Any) -> Any:
    """Return 64 well-mixed bits of a pair and a seed (both uint64), by Murmur3's finalizer."""
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
    indices: Array, indptr: Array, first_row: int, seeds: Array, rows: Array, upper: Array, lower:
    Array,
) -> None:  # fmt: skip
    """Add the hashes of a block's entries to two sums: of upper entries, of mirrored lower ones.

    Entries on the diagonal count for nothing. Seeds and sums are as in `hash_edges`; `rows` is work
    space of `TILE` uint32.
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


@compiled()
def count_pairs(indices: Array, indptr: Array, first_row: int, shift: int, counts: Array) -> None:
    """Count a block's entries by the partition of their smaller cell (int64, in place).

    Entries on the diagonal are left out, here and in `place_pairs`.
    """
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j != i:
                counts[min(i, j) >> shift] += 1


@compiled()
def place_pairs(
    indices: Array, indptr: Array, weights: Array, first_row: int, shift: int, bits: int, places:
    Array, keys: Array, kept: Array,
) -> None:  # fmt: skip
    """Write a block's entries as keys, by partition, in stored order within each.

    `places` (int64, changed in place) says where the next key of each partition goes. If there are
    weights, `kept` gets them in the order of the keys, and a key ends in one more bit: 1 for a
    lower entry.
    """
    mask = (np.int64(1) << shift) - 1
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if j != i:
                s = min(i, j)
                key: Any = ((s & mask) << bits) | max(i, j)
                p = places[s >> shift]
                places[s >> shift] = p + 1
                if weights.size > 0:
                    key = (key << 1) | np.int64(j < i)
                    kept[p] = weights[e]
                keys[p] = key


@compiled()
def gather(values: Array, starts: Array, places: Array, out: Array) -> None:
    """Copy the values of each partition to its place in `out`; `places` are changed in place."""
    offset = starts[0]
    for f in range(places.size):
        p = places[f]
        for k in range(starts[f] - offset, starts[f + 1] - offset):
            out[p] = values[k]
            p += 1
        places[f] = p


@compiled(int)
def distinct(keys: Array, starts: Array, bits: int, pairs: Array) -> int:
    """Write each key of several partitions once, with its partition's number above `bits` bits.

    The keys of each partition are rising, and begin where `starts` says. Return how many there are.
    """
    n = 0
    for f in range(starts.size - 1):
        high = np.int64(f) << bits
        last = np.int64(-1)
        for k in range(starts[f], starts[f + 1]):  # no branches: nobody can predict repeats
            key = np.int64(keys[k])
            pairs[n] = high | key
            n += key != last
            last = key
    return n


@compiled(int)
def add_up_floats(keys: Array, weights: Array, kept: Array) -> int:
    """Write the keys whose weights (float64) have a sum that is not zero; return their number.

    Keys are rising, equal ones in stored order, with the bit that tells lower entries; `kept` gets
    them without it. Each direction is added up on its own, and then both, as ``C + C.T`` does.
    """
    n = 0
    k = 0
    while k < keys.size:
        upper = 0.0
        lower = 0.0
        pair = keys[k] >> 1
        while k < keys.size and keys[k] >> 1 == pair:
            if keys[k] & 1 == 1:
                lower += weights[k]
            else:
                upper += weights[k]
            k += 1
        if upper + lower != 0.0:
            kept[n] = pair
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
        pair = keys[k] >> 1
        while k < keys.size and keys[k] >> 1 == pair:
            high += weights[k] >> 32
            low += weights[k] & 0xFFFFFFFF
            k += 1
        if (low & 0xFFFFFFFF) != 0 or high + (low >> 32) != 0:
            kept[n] = pair
            n += 1
    return n


@compiled(int)
def sum_pairs(keys: Array, weights: Array, pairs: Array, upper: Array, lower: Array) -> int:
    """Write each pair once, with the sums of its upper and lower weights; return their number.

    Keys are as for `add_up_floats`; all weights and sums are float64.
    """
    n = -1
    last: Any = -1
    for k in range(keys.size):
        pair = keys[k] >> 1
        if pair != last:
            n += 1
            pairs[n] = pair
            upper[n] = 0.0
            lower[n] = 0.0
            last = pair
        if keys[k] & 1 == 1:
            lower[n] += weights[k]
        else:
            upper[n] += weights[k]
    return n + 1


@compiled(int, int, int)
def check_rows(
    indices: Array, weights: Array, bits: Array, indptr: Array, first_row: int, seeds: Array, sums:
    Array,
) -> tuple[int, int, int]:  # fmt: skip
    """Look at the entries of a symmetric matrix: order, weights, and a sum that is to come to zero.

    Return the position of the first entry that cannot be, or -1; why: 1 if its column does not rise
    in its row, 2 if it is on the diagonal, 3 if its weight is not a positive number; and how many
    entries are above the diagonal. `bits` is a view of the weights (float64) as uint64. The hashes
    of entries above the diagonal are added to `sums` (two uint64, changed in place), those of the
    others are taken from it. Cells must fit 32 bits; seeds are four random uint64 values.
    """
    a = sums[0]
    b = sums[1]
    n_upper = 0
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            j = np.int64(indices[e])
            if e > indptr[r] and j <= np.int64(indices[e - 1]):
                return e, 1, n_upper
            if j == i:
                return e, 2, n_upper
            if not (weights[e] > 0 and weights[e] - weights[e] == 0):
                return e, 3, n_upper
            pair = (np.uint64(min(i, j)) << np.uint64(32)) | np.uint64(max(i, j))
            first = _scramble(pair + _scramble(bits[e], seeds[2]), seeds[0])
            second = _scramble(pair * (seeds[1] | np.uint64(1)) + bits[e], seeds[3])
            if j > i:
                n_upper += 1
                a += first
                b += second
            else:
                a -= first
                b -= second
    sums[0] = a
    sums[1] = b
    return -1, 0, n_upper


@compiled(int)
def take_upper(
    indices: Array, weights: Array, indptr: Array, first_row: int, src: Array, dst: Array, kept:
    Array,
) -> int:  # fmt: skip
    """Write the entries above the diagonal as edges with weights; return their number."""
    n = 0
    for r in range(indptr.size - 1):
        i = np.int64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            if np.int64(indices[e]) > i:
                src[n] = i
                dst[n] = indices[e]
                kept[n] = weights[e]
                n += 1
    return n


def warm_up(edge_dtype: DTypeLike, cell_dtype: DTypeLike) -> None:
    """Load (or compile) the loops that looking at the edges takes.

    `edge_dtype` is of the edge files, `cell_dtype` of forests.
    """
    edges = np.zeros(0, edge_dtype)
    none, two = np.zeros(0, cell_dtype), np.zeros(2, np.uint64)
    first_bad_edge(edges, edges, 0, 0, 0)
    count_ends(edges, 0, none)
    hash_edges(edges, edges, np.zeros(4, np.uint64), two)
    components.warm_up(edge_dtype, cell_dtype)


def warm_up_proof(index_dtype: DTypeLike, weight_dtype: DTypeLike) -> None:
    """Load (or compile) the loops that any proof takes, for the dtypes in which blocks are read."""
    indices, weights = np.zeros(0, index_dtype), np.zeros(0, weight_dtype)
    indptr, places = np.zeros(1, np.int64), np.zeros(0, np.int64)
    rows, sums, floats = np.zeros(0, np.uint32), np.zeros((2, 2), np.uint64), np.zeros(0)
    hash_entries(indices, indptr, 0, np.zeros(4, np.uint64), rows, sums[0], sums[1])
    count_pairs(indices, indptr, 0, 0, places)
    for key_dtype in (np.uint32, np.int64):
        keys = np.zeros(0, key_dtype)
        place_pairs(indices, indptr, weights, 0, 0, 1, places, keys, weights)
        place_pairs(indices, indptr, weights, 0, 0, 1, places, keys, floats)
        gather(keys, indptr, places, keys)
        distinct(keys, indptr, 0, places)
    for values in (weights, floats):
        gather(values, indptr, places, values)
    sum_pairs(places, floats, places, floats, floats)
    add_up = add_up_integers if weights.dtype.kind == "i" else add_up_floats
    add_up(places, weights, places)
