"""What the arrays of a matrix must be: lengths and dtypes, and the values, in compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DamagedGraphError, SourceError
from ..machine.buffers import Array
from ..machine.compiled import compiled


@compiled(int)
def first_invalid_index(indices: Array, n_cells: int) -> int:
    """Return the position of the first index outside ``[0, n_cells)``, or -1."""
    invalid: Any = False
    for e in range(indices.size):  # no way out of the loop, so that it becomes vector code
        invalid |= (indices[e] < 0) | (indices[e] >= n_cells)
    if invalid:
        for e in range(indices.size):
            if indices[e] < 0 or indices[e] >= n_cells:
                return e
    return -1


@compiled(int)
def first_decrease(indptr: Array) -> int:
    """Return the first ``r`` with ``indptr[r + 1] < indptr[r]``, or -1."""
    decreases: Any = False
    for r in range(indptr.size - 1):  # no way out of the loop, so that it becomes vector code
        decreases |= indptr[r + 1] < indptr[r]
    if decreases:
        for r in range(indptr.size - 1):
            if indptr[r + 1] < indptr[r]:
                return r
    return -1


@compiled(int, int, int)
def scan_weights(weights: Array) -> tuple[int, int, int]:
    """Return the position of the first NaN or infinity (or -1), the number of zeros, negatives."""
    zeros = 0
    negatives = 0
    not_finite = 0
    for e in range(weights.size):
        w = weights[e]
        zeros += w == 0
        negatives += w < 0
        not_finite += w - w != 0  # NaN and infinity, and nothing else
    first = -1
    if not_finite:
        first = 0
        while weights[first] - weights[first] == 0:
            first += 1
    return first, zeros, negatives


@compiled()
def drop_stored_zeros(
    indices: Array, weights: Array, offset: int, indptr: Array, first_row: int
) -> None:
    """Turn stored zeros of a block into self-edges, in place; every later loop skips them.

    `weights` are those of the entries from `offset` on; ``indptr[0]`` is the start of `first_row`.
    """
    row = 0
    for e in range(weights.size):
        if weights[e] == 0:
            at = offset + e
            while indptr[row + 1] <= at:
                row += 1
            indices[at] = first_row + row


def check_shape(full_key: str, shape: tuple[int, int], n_cells: int | None) -> int:
    """Return the number of cells of a matrix; a SourceError if it is not square or not as `obs`."""
    if n_cells is not None and shape != (n_cells, n_cells):
        raise SourceError(
            f"Connectivity matrix shape {shape} does not match number of cells "
            f"{n_cells}. {full_key} must have one row and one column for each cell of obs."
        )
    if shape[0] != shape[1]:
        raise SourceError(
            f"{full_key} is not square: {shape[0]} by {shape[1]}; a neighbor graph has one row "
            "and one column for each cell."
        )
    return shape[0]


def check_arrays(full_key: str, n_cells: int, indptr: Any, indices: Any, data: Any) -> None:
    """Check that lengths and dtypes of the three arrays of a matrix fit together."""
    if indices.shape != data.shape:
        raise DamagedGraphError(
            f"{full_key}/indices has {indices.shape[0]} entries, but {full_key}/data has "
            f"{data.shape[0]}. The matrix is damaged; write it again."
        )
    if indptr.shape[0] != n_cells + 1:
        raise DamagedGraphError(
            f"{full_key}/indptr has {indptr.shape[0]} values; a matrix of {n_cells} cells needs "
            f"{n_cells + 1}. The matrix is damaged; write it again."
        )
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype.kind not in "iu":
            raise DamagedGraphError(
                f"{full_key}/{name} has dtype {array.dtype}; integers are needed. Write the "
                "matrix again with integer indices."
            )
    check_weights(full_key, data.dtype)


def check_weights(full_key: str, dtype: np.dtype[Any]) -> None:
    """Check that weights can be added: bool, integers, or floats of up to 64 bits."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DamagedGraphError(
            f"{full_key}/data has dtype {dtype}; weights must be bool, integers, or floats of "
            "up to 64 bits. Convert them, for example to float32."
        )


def warm_up(stored_indices: Array, indices: Array, weights: Array) -> None:
    """Load (or compile) the loops of this module for such arrays of one value each."""
    indptr = np.array([0, 1, 1])
    first_invalid_index(stored_indices, 1)
    first_decrease(indptr)
    scan_weights(weights)
    drop_stored_zeros(indices, weights, 0, indptr, 0)
