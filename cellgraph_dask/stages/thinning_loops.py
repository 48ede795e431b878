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
FEW = 32  # entries of a row that is sorted in a table of rows
TABLE_ROWS = 4096
AT_ONCE = 1 << 15  # edges whose destinations are looked up in one go
LEVELS = 256  # of keys
SOME = 2  # edges of a row, of which a sample of all edges is made


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
def _note_weakest(
    src: Array, dst: Array, keys: Array, begin: int, k: int, weakest: Any, place: int,
    row_cell: Array,
) -> None:  # fmt: skip
    """Write which is the last of equally strong neighbors that the row from `begin` on keeps."""
    left: Any = k
    e: Any = begin
    while e < src.size and src[e] == src[begin]:
        left -= keys[e] > weakest
        e += 1
    for equal in range(begin, e):
        if keys[equal] == weakest:
            left -= 1
            if left == 0:
                row_cell[place] = dst[equal]


@compiled(int, int)
def tabulate(
    src: Array, dst: Array, keys: Array, first: int, last: int, k: int, base: int, work: Array,
    row_key: Array, row_cell: Array, table: Array, begins: Array,
) -> tuple[int, int]:  # fmt: skip
    """Write keys of rows with more than `k` entries to rows of `table`, before zeros.

    Entries ``[first, last)`` are sorted by source and destination. Of rows with more than `FEW`,
    the `k`-th strongest is found at once, and noted as `note_weakest` does it. Returned are the
    entry that is next when `table` is full, and its rows; `begins` gets where they begin.
    """
    m = 0
    a: Any = first
    while a < last and m < table.shape[0]:
        b: Any = a
        row = src[a]
        while b < last and src[b] == row:
            b += 1
        n = b - a
        if n > FEW and n > k:
            for e in range(n):
                work[e] = keys[a + e]
            place = np.int64(row) - base
            row_key[place] = _select(work, n, k)
            _note_weakest(src, dst, keys, a, k, row_key[place], place, row_cell)
        elif n > k:
            for e in range(n):
                table[m, e] = keys[a + e]
            for e in range(n, FEW):
                table[m, e] = 0
            begins[m] = a
            m += 1
        a = b
    return a, m


@compiled()
def note_weakest(
    src: Array, dst: Array, keys: Array, k: int, base: int, row_key: Array, row_cell: Array,
    table: Array, begins: Array,
) -> None:  # fmt: skip
    """Note the `k`-th strongest neighbor of rows, whose keys are sorted in `table`.

    Key and destination go to the place of the row, counted from `base`. Where no other key is as
    large, all destinations will do: then it is the largest number.
    """
    for r in range(table.shape[0]):
        begin = begins[r]
        place = np.int64(src[begin]) - base
        weakest = table[r, FEW - k]
        row_key[place] = weakest
        row_cell[place] = ~row_cell.dtype.type(0)
        if table[r, FEW - k - 1] == weakest:
            _note_weakest(src, dst, keys, begin, k, weakest, place, row_cell)


@compiled(int)
def sample_kept(
    src: Array, dst: Array, keys: Array, base: int, row_key: Array, row_cell: Array, out_src:
    Array, out_dst: Array,
) -> int:  # fmt: skip
    """Write up to `SOME` of the edges that each row keeps; return how many there are.

    What the row keeps at least is at its place in `row_key` and `row_cell`, counted from `base`;
    edges with a key of 0 are not kept. There is room for one edge more.
    """
    n: Any = 0
    e: Any = 0
    while e < src.size:
        row = src[e]
        place = np.int64(row) - base
        weakest, last = row_key[place], row_cell[place]
        left: Any = SOME
        while left > 0 and e < src.size and src[e] == row:
            is_kept = (keys[e] > weakest) | ((keys[e] == weakest) & (dst[e] <= last))
            is_kept &= keys[e] > 0
            out_src[n] = row
            out_dst[n] = dst[e]
            n += is_kept
            left -= is_kept
            e += 1
        while e < src.size and src[e] == row:
            e += 1
    return int(n)


@compiled()
def mark_heavy(weights: Array, least: Array, kept: Array) -> None:
    """Clear the marks of edges with weights of less than ``least[0]``."""
    for e in range(weights.size):
        kept[e] &= weights[e] >= least[0]


@compiled(int)
def _level(key: Any, scale: Array) -> Any:
    """Return the level of a key, from 0 on: a larger key never has a smaller one."""
    return min(max(np.int64(np.uint64(key) >> np.uint64(scale[0])) - scale[1], 0), LEVELS - 1)


@compiled()
def find_levels(keys: Array, scale: Array, levels: Array) -> None:
    """Write the levels of keys: their bits from ``scale[0]`` on, less ``scale[1]``."""
    for k in range(keys.size):
        levels[k] = _level(keys[k], scale)


@compiled()
def mark_ranked(
    src: Array, dst: Array, keys: Array, row_key: Array, row_cell: Array, row_level: Array,
    scale: Array, places: Array, others: Array, levels: Array, kept: Array,
) -> None:  # fmt: skip
    """Clear the marks of edges that are weaker than the weakest that either row would keep.

    The row of the destination lies anywhere, so it is looked at only where that of the source does
    not keep the edge, for many edges in one go: so memory is waited for once; and of it only the
    level, of which more are in the caches, unless the edge has the same. Before the last are work
    space, as long as many edges that is: uint16, cells and uint8.
    """
    for begin in range(0, src.size, places.size):
        end = min(begin + places.size, src.size)
        some_src, some_dst, some_keys = src[begin:end], dst[begin:end], keys[begin:end]
        some_kept = kept[begin:end]
        left = 0
        for e in range(some_src.size):
            key = some_keys[e]
            i = np.int64(some_src[e])
            is_kept = (key > row_key[i]) | ((key == row_key[i]) & (some_dst[e] <= row_cell[i]))
            places[left] = e
            others[left] = some_dst[e]
            left += (not is_kept) & (some_kept[e] != 0)
        for p in range(left):
            levels[p] = row_level[np.int64(others[p])]
        for p in range(left):
            at = np.int64(places[p])
            key = some_keys[at]
            level = _level(key, scale)
            is_kept = level > levels[p]
            if level == levels[p]:
                j = np.int64(others[p])
                is_kept = key > row_key[j]
                if key == row_key[j]:
                    is_kept |= some_src[at] <= row_cell[j]
            some_kept[at] = is_kept


@compiled()
def mark_strongest(src: Array, dst: Array, keys: Array, cut: Array, kept: Array) -> None:
    """Clear the marks of edges that are weaker than a cut: a key, and the cells of an edge.

    Of those that are as strong, the edges that are not behind that one are kept.
    """
    for e in range(src.size):
        key = np.uint64(keys[e])
        is_kept: Any = key >= cut[0]
        if key == cut[0]:
            small = np.uint64(min(src[e], dst[e]))
            large = np.uint64(max(src[e], dst[e]))
            is_kept = small < cut[1] or (small == cut[1] and large <= cut[2])
        kept[e] &= is_kept


@compiled(int, int)
def take_kept(
    src: Array, dst: Array, keys: Array, kept: Array, both: int, ends: Array
) -> tuple[int, int]:
    """Move edges with marks to the front; return how many there are, and how many rows have some.

    Unless `both`, edges of which the source is larger are left out. Edges are sorted by source;
    `ends` (int64) has the first and the last row, and gets how many marks these have, after the
    most of any row.
    """
    n: Any = np.uint64(0)
    n_rows = 0
    first_row, last_row = ends[1], ends[2]
    ends[:] = 0
    row: Any = 0
    of_row: Any = 0
    for e in range(src.size + 1):
        if e == 0 or e == src.size or src[e] != row:  # the row before ends here
            ends[0] = max(ends[0], of_row)
            if of_row and row == first_row:
                ends[1] = of_row
            if of_row and row == last_row:
                ends[2] = of_row
            n_rows += of_row > 0
            of_row = 0
            if e == src.size:
                break
            row = src[e]
        src[n] = row
        dst[n] = dst[e]
        keys[n] = keys[e]
        n += np.uint64((kept[e] != 0) & ((both != 0) | (row < dst[e])))
        of_row += kept[e]
    return int(np.int64(n)), n_rows


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
    weights, ends = keys.view(f"f{keys.itemsize}"), np.zeros(3, np.int64)
    table, found = np.zeros((1, FEW), key_dtype), cells.copy()
    tabulate(cells, cells, keys, 0, 1, 1, 0, keys, keys, found, table, ends)
    note_weakest(cells, cells, keys, 1, 0, keys, found, table, ends)
    strongest_of(keys, 1, keys, ends)
    marks, place = np.zeros(1, np.uint8), np.zeros(1, np.uint16)
    sample_kept(cells[:0], cells[:0], keys[:0], 0, keys, cells, found, cells)
    mark_heavy(weights, np.zeros(1), marks)
    find_levels(keys, ends, marks)
    mark_ranked(
        cells, cells, keys, keys, cells, marks, ends, place, found, marks.copy(), marks.copy()
    )
    mark_strongest(cells, cells, keys, np.zeros(3, np.uint64), marks)
    take_kept(cells, cells, keys, marks, 1, ends)
    count_digits(keys, 0, 0, np.zeros(1 << DIGIT_BITS, np.int64))
