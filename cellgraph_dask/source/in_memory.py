"""Matrices in memory, of any library, as the three arrays of CSR or CSC.

Nothing is added up on the way: repeated entries stay, so that their sum is the exact one that the
export makes, whatever their dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from .checks import check_weights

_WITH_ENTRIES = ("csr", "csc", "coo")  # formats of scipy whose data are entries, one by one
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
    ndim = getattr(matrix, "ndim", 2)
    if ndim != 2 and hasattr(matrix, "shape"):
        raise _not_a_matrix(matrix, name, ndim)
    if hasattr(matrix, "fill_value") and hasattr(matrix, "todense"):
        found = _of_pydata(matrix, name)
        return found._replace(data=_unmasked(found.data))
    if hasattr(matrix, "tocsr"):
        found = _of_scipy(matrix, name)
        return found._replace(data=_unmasked(found.data))
    if hasattr(matrix, "columns") and hasattr(matrix, "index"):
        return _of_frame(matrix, name)
    try:
        dense = matrix if isinstance(matrix, np.ma.MaskedArray) else np.asarray(matrix)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{name} is of type {type(matrix).__name__}, which is not a matrix ({error}). Give a "
            "path, an AnnData, a sparse matrix, an array or a Dask array."
        ) from error
    if dense.ndim != 2:
        raise _not_a_matrix(matrix, name, dense.ndim)
    if dense.dtype.kind == "O":  # whose values need not even be true or false
        check_weights(name, dense.dtype)
    return _of_dense(dense)


def _not_a_matrix(matrix: Any, name: str, ndim: int) -> SourceError:
    return SourceError(
        f"{name} is of type {type(matrix).__name__} with {ndim} dimensions; a matrix has two. Give "
        "a path, an AnnData, a sparse matrix, an array or a Dask array."
    )


def _unmasked(values: Array) -> Array:
    """Return weights of which those that are masked, so that nobody knows them, are zeros."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    filled: Array = values.filled(0) if np.ma.is_masked(values) else values.data
    return filled


def _of_frame(frame: Any, name: str) -> Compressed:
    """Return a pandas data frame, whose labels must not say another order of the cells."""
    rows, columns = frame.index, frame.columns
    if not rows.equals(columns) and len(rows) == len(columns) and set(rows) == set(columns):
        raise SourceError(
            f"the rows of the data frame {name} have another order than its columns. Put both in "
            "the order of the cells, for example with frame.loc[names, names]."
        )
    if len(columns) and all(getattr(kind, "fill_value", None) == 0 for kind in frame.dtypes):
        return _of_scipy(frame.sparse.to_coo(), name)  # of sparse columns
    return compress(frame.to_numpy(), name)


def _of_scipy(matrix: Any, name: str) -> Compressed:
    layout = getattr(matrix, "format", None)
    parts = ("indptr", "indices", "row", "col", *(() if layout in _WITH_ENTRIES else ("data",)))
    for part in parts:
        if np.ma.is_masked(getattr(matrix, part, None)):
            raise SourceError(
                f"{name} is a sparse matrix whose {part} is partly masked. Make it a CSR matrix "
                "whose data alone has a mask, or none."
            )
    if layout == "coo":
        return _of_coordinates(matrix.row, matrix.col, matrix.data, matrix.shape)
    if layout not in ("csr", "csc"):
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
        part = np.asarray(_unmasked(matrix[first : first + step]))
        row, column = np.nonzero(part)
        counts[first : first + step] = np.bincount(row, minlength=part.shape[0])
        columns.append(column.astype(index))
        data.append(part[row, column])
    indptr = np.concatenate(([0], np.cumsum(counts)))
    return Compressed("csr", indptr, np.concatenate(columns), np.concatenate(data), matrix.shape)
