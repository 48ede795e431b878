"""Neighbour graphs of any size whose rows are computed on demand, each from nothing but its number.

Cells sit on a ring. Cell ``i`` has position ``p = place(i)``; the map is the identity in spatial
order, and in random order a bijection made of odd multiplications and xor-shifts on the next
power of two, walked until it lands below ``n_cells``. Candidates of a cell are the cells at most
``reach`` positions away on the ring, ``2 * reach`` of them:

    symmetric   the pair {p, q} is an edge if hash(min, max) is below a threshold. Both rows ask the
                same question, so the graph is symmetric by construction. Row lengths vary.
    directed    the row keeps the ``n_neighbors`` candidates of lowest score; the score mixes a hash
                of the pair with a hash of the direction, so that about half of the neighbours are
                mutual, as in a real k-nearest-neighbour graph.

Nothing is stored, so any block of rows can be made by any thread in any order.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Kind = Literal["symmetric", "directed"]
Order = Literal["random", "spatial"]

REACH_PER_NEIGHBOR = 2.5
_U64 = np.uint64
_MASK64 = (1 << 64) - 1


class RingGraph(NamedTuple):
    """All that defines a graph: 64-bit numbers only, so that compiled code takes it as it is."""

    n_cells: np.int64
    n_neighbors: np.int64
    reach: np.int64
    directed: np.int64
    shuffled: np.int64
    threshold: np.uint64
    key: np.uint64
    mask: np.uint64
    shift: np.uint64
    add: np.uint64
    mul_1: np.uint64
    mul_2: np.uint64
    mul_3: np.uint64
    inv_1: np.uint64
    inv_2: np.uint64
    inv_3: np.uint64


def ring_graph(
    n_cells: int, n_neighbors: int, *, kind: Kind, order: Order, seed: int = 0
) -> RingGraph:
    """Define a graph.

    Parameters
    ----------
    n_cells
        Rows and columns.
    n_neighbors
        Stored entries per row: the mean (symmetric) or the exact number (directed).
    kind, order
        See the module's text.
    seed
        Another seed gives another graph.

    Raises
    ------
    ValueError
        If a row cannot have that many neighbours.
    """
    if not 0 < n_neighbors < n_cells:
        raise ValueError(f"n_neighbors is {n_neighbors}: allowed are 1 to {n_cells - 1}")
    reach = min(math.ceil(REACH_PER_NEIGHBOR * n_neighbors), (n_cells - 1) // 2)
    if n_neighbors > 2 * reach:
        raise ValueError(f"{n_neighbors} neighbours need more than {n_cells} cells")
    bits = max(2, (n_cells - 1).bit_length())
    modulus = 1 << bits
    words = [_splitmix(seed * 8 + k) for k in range(5)]
    multipliers = [(word % modulus) | 1 for word in words[:3]]
    inverses = [pow(m, -1, modulus) for m in multipliers]
    return RingGraph(
        np.int64(n_cells),
        np.int64(n_neighbors),
        np.int64(reach),
        np.int64(kind == "directed"),
        np.int64(order == "random"),
        _U64(min(1 << 32, round((1 << 32) * n_neighbors / (2 * reach)))),
        _U64(words[3]),
        _U64(modulus - 1),
        _U64((bits + 1) // 2),
        _U64(words[4] % modulus),
        *(_U64(m) for m in multipliers),
        *(_U64(m) for m in inverses),
    )


def _splitmix(x: int) -> int:
    """Return the splitmix64 hash of a small integer."""
    x = (x + 1) * 0x9E3779B97F4A7C15 & _MASK64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


@numba.njit(nogil=True, cache=True, inline="always")
def _hash(key: np.uint64, a: np.uint64, b: np.uint64) -> np.uint64:
    """Return a 64-bit hash of the ordered pair (a, b)."""
    x = (a * _U64(0x9E3779B97F4A7C15)) ^ (b * _U64(0xC2B2AE3D27D4EB4F)) ^ key
    x = (x ^ (x >> _U64(32))) * _U64(0xD6E8FEB86659FD93)
    x = (x ^ (x >> _U64(32))) * _U64(0xD6E8FEB86659FD93)
    return x ^ (x >> _U64(32))


@numba.njit(nogil=True, cache=True)
def place(graph: RingGraph, cell: int) -> int:
    """Return the ring position of a cell."""
    if graph.shuffled == 0:
        return cell
    x = _U64(cell)
    n = _U64(graph.n_cells)
    while True:
        x = ((x + graph.add) * graph.mul_1) & graph.mask
        x = ((x ^ (x >> graph.shift)) * graph.mul_2) & graph.mask
        x = ((x ^ (x >> graph.shift)) * graph.mul_3) & graph.mask
        x ^= x >> graph.shift
        if x < n:
            return np.int64(x)


@numba.njit(nogil=True, cache=True)
def cell_at(graph: RingGraph, position: int) -> int:
    """Return the cell at a ring position: the inverse of `place`."""
    if graph.shuffled == 0:
        return position
    x = _U64(position)
    n = _U64(graph.n_cells)
    while True:
        x ^= x >> graph.shift
        x = (x * graph.inv_3) & graph.mask
        x = ((x ^ (x >> graph.shift)) * graph.inv_2) & graph.mask
        x = ((x ^ (x >> graph.shift)) * graph.inv_1) & graph.mask
        x = (x - graph.add) & graph.mask
        if x < n:
            return np.int64(x)


@numba.njit(nogil=True, cache=True, inline="always")
def _ring(graph: RingGraph, position: int) -> int:
    """Bring a position at most one turn off back onto the ring."""
    if position < 0:
        return position + graph.n_cells
    if position >= graph.n_cells:
        return position - graph.n_cells
    return position


@numba.njit(nogil=True, cache=True, inline="always")
def _pair_hash(graph: RingGraph, p: int, q: int) -> np.uint64:
    """Return a hash of the unordered pair of positions."""
    return _hash(graph.key, _U64(min(p, q)), _U64(max(p, q)))


@numba.njit(nogil=True, cache=True)
def count_rows(graph: RingGraph, first_row: int, out: NDArray[np.int32]) -> None:
    """Write the number of stored entries of the rows from `first_row` on into `out`."""
    for k in range(out.size):
        if graph.directed != 0:
            out[k] = graph.n_neighbors
            continue
        p = place(graph, first_row + k)
        count = 0
        for step in range(1, graph.reach + 1):
            for q in (_ring(graph, p - step), _ring(graph, p + step)):
                count += (_pair_hash(graph, p, q) >> _U64(32)) < graph.threshold
        out[k] = count


@numba.njit(nogil=True, cache=True)
def _symmetric_row(
    graph: RingGraph, row: int, columns: NDArray[np.int64], weights: NDArray[np.float32]
) -> int:
    """Fill in one row, unsorted, and return its length. Weights fall with the distance."""
    p = place(graph, row)
    count = 0
    for step in range(1, graph.reach + 1):
        for q in (_ring(graph, p - step), _ring(graph, p + step)):
            h = _pair_hash(graph, p, q)
            if (h >> _U64(32)) < graph.threshold:
                uniform = np.float64(h & _U64(0xFFFFFFFF)) / 4294967296.0
                columns[count] = cell_at(graph, q)
                weights[count] = np.float32(math.exp(-6.0 * uniform * step / graph.reach))
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _directed_row(
    graph: RingGraph,
    row: int,
    columns: NDArray[np.int64],
    weights: NDArray[np.float32],
    scores: NDArray[np.uint64],
) -> int:
    """Fill in one row, unsorted, and return its length. Weights are distances, at least 0.5."""
    p = place(graph, row)
    count = 0
    for step in range(1, graph.reach + 1):
        for q in (_ring(graph, p - step), _ring(graph, p + step)):
            h = _hash(~graph.key, _U64(p), _U64(q))
            score = _U64(2) * (_pair_hash(graph, p, q) >> _U64(32)) + (h >> _U64(32))
            if count == graph.n_neighbors and score >= scores[count - 1]:
                continue
            slot = count if count < graph.n_neighbors else count - 1
            while slot > 0 and scores[slot - 1] > score:
                scores[slot] = scores[slot - 1]
                columns[slot] = columns[slot - 1]
                weights[slot] = weights[slot - 1]
                slot -= 1
            scores[slot] = score
            columns[slot] = q
            uniform = np.float64(h & _U64(0xFFFFFFFF)) / 4294967296.0
            weights[slot] = np.float32(0.5 + uniform + 4.0 * step / graph.reach)
            count = min(count + 1, graph.n_neighbors)
    for k in range(count):
        columns[k] = cell_at(graph, columns[k])
    return count


@numba.njit(nogil=True, cache=True)
def _sort_row(columns: NDArray[np.int64], weights: NDArray[np.float32], count: int) -> None:
    """Sort the first `count` columns, and their weights with them."""
    for k in range(1, count):
        column, weight = columns[k], weights[k]
        slot = k
        while slot > 0 and columns[slot - 1] > column:
            columns[slot] = columns[slot - 1]
            weights[slot] = weights[slot - 1]
            slot -= 1
        columns[slot] = column
        weights[slot] = weight


@numba.njit(nogil=True, cache=True)
def fill_entries(
    graph: RingGraph,
    row: int,
    offset: int,
    start: int,
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
) -> None:
    """Write the stored entries ``[start, start + indices.size)`` of the matrix.

    Parameters
    ----------
    graph
        The graph.
    row, offset
        A row that begins at or before `start`, and its ``indptr``. Rows before it are not made.
    start
        Number of the first stored entry wanted.
    indices, data
        Filled in: column indices, increasing in each row, and weights.
    """
    width = 2 * graph.reach
    columns = np.empty(width, np.int64)
    weights = np.empty(width, np.float32)
    scores = np.empty(width, np.uint64)
    stop = start + indices.size
    while offset < stop:
        if graph.directed != 0:
            count = _directed_row(graph, row, columns, weights, scores)
        else:
            count = _symmetric_row(graph, row, columns, weights)
        _sort_row(columns, weights, count)
        for k in range(max(0, start - offset), min(count, stop - offset)):
            indices[offset + k - start] = columns[k]
            data[offset + k - start] = weights[k]
        offset += count
        row += 1
