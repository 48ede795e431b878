"""Matrices in memory, of any library, as the three arrays of CSR or CSC.

Nothing is added up on the way: repeated entries stay, so that their sum is the exact one that the
export makes, whatever their dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array

_DENSE_VALUES = 1 << 22  # of a dense matrix looked at in one go


class Compressed(NamedTuple):
    """A matrix as CSR or CSC."""

    layout: str  # "csr" or "csc"
    indptr: Array
    indices: Array
    data: Array
    shape: tuple[int, int]


def index_dtype(n_cells: int) -> np.dtype[Any]:
    """Return the dtype of indices: int32, or int64 from 2³¹ cells on."""
    return np.dtype(np.int32 if n_cells <= np.iinfo(np.int32).max else np.int64)


def compress(matrix: Any, name: str) -> Compressed:
    """Return a matrix as CSR or CSC; what is either already is not copied.

    It is of scipy or PyData sparse, in any format, or what numpy makes an array of. `name` is what
    the SourceError calls it if it is none of these, or most of it is not zero.
    """
    if hasattr(matrix, "fill_value") and hasattr(matrix, "todense") and matrix.ndim == 2:
        return _of_pydata(matrix, name)
    if hasattr(matrix, "tocsr"):
        return _of_scipy(matrix)
    try:
        dense = np.asarray(matrix)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{name} is of type {type(matrix).__name__}, which is not a matrix ({error}). Give a "
            "path, an AnnData, a sparse matrix, an array or a Dask array."
        ) from error
    if dense.ndim != 2:
        raise SourceError(
            f"{name} is of type {type(matrix).__name__} with {dense.ndim} dimensions; a matrix has "
            "two. Give a path, an AnnData, a sparse matrix, an array or a Dask array."
        )
    return _of_dense(dense)


def _of_scipy(matrix: Any) -> Compressed:
    if getattr(matrix, "format", None) == "coo":
        return _of_coordinates(matrix.row, matrix.col, matrix.data, matrix.shape)
    if getattr(matrix, "format", None) not in ("csr", "csc"):
        matrix = matrix.tocsr()  # no other format can repeat an entry
    stored = int(matrix.indptr[-1])  # scipy allows more room than is used
    indices, data = matrix.indices[:stored], matrix.data[:stored]
    return Compressed(matrix.format, matrix.indptr, indices, data, matrix.shape)


def _of_pydata(matrix: Any, name: str) -> Compressed:
    if matrix.fill_value != 0:  # NaN too
        raise SourceError(
            f"{name} has the fill value {matrix.fill_value}: nearly all cells would be neighbors. "
            "Make it a matrix whose fill value is 0."
        )
    if hasattr(matrix, "compressed_axes"):
        layout = "csr" if tuple(matrix.compressed_axes) == (0,) else "csc"
        return Compressed(layout, matrix.indptr, matrix.indices, matrix.data, matrix.shape)
    if not hasattr(matrix, "coords"):  # a DOK
        matrix = matrix.to_coo()
    return _of_coordinates(matrix.coords[0], matrix.coords[1], matrix.data, matrix.shape)


def _of_coordinates(rows: Array, columns: Array, data: Array, shape: tuple[int, int]) -> Compressed:
    n_rows = shape[0]
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    if rows.size and (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        columns, data = columns[order], data[order]
    return Compressed("csr", indptr, columns, data, shape)


def _of_dense(matrix: Array) -> Compressed:
    n_rows, n_columns = matrix.shape
    counts = np.zeros(n_rows, np.int64)
    index = index_dtype(n_columns)
    columns: list[Array] = [np.zeros(0, index)]
    data: list[Array] = [np.zeros(0, matrix.dtype)]
    step = max(1, _DENSE_VALUES // max(n_columns, 1))
    for first in range(0, n_rows, step):
        part = np.asarray(matrix[first : first + step])
        row, column = np.nonzero(part)
        counts[first : first + step] = np.bincount(row, minlength=part.shape[0])
        columns.append(column.astype(index))
        data.append(part[row, column])
    indptr = np.concatenate(([0], np.cumsum(counts)))
    return Compressed("csr", indptr, np.concatenate(columns), np.concatenate(data), matrix.shape)
