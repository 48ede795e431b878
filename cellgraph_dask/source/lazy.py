"""Matrices that have to be computed, or searched for their entries, before they can be exported.

Dask arrays, and dense matrices in stores, which become Dask arrays of pieces of a bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import SourceError
from .checks import check_shape, check_weights
from .places import HDF5Place, ZarrPlace

_PIECE_BYTES = 1 << 24  # of a dense matrix on disk, read at once


@dataclass(frozen=True)
class LazyMatrix:
    """A cell × cell matrix whose entries nobody has counted.

    Attributes
    ----------
    path, key : str
        What errors and reports call where it is, and the matrix there.
    array : dask.array.Array
        The matrix.
    notes : tuple of str
        What the user should know about it.
    place : ZarrPlace, HDF5Place or None
        Where it is stored, if that is known.
    """

    path: str
    key: str
    array: Any
    notes: tuple[str, ...] = ()
    place: ZarrPlace | HDF5Place | None = None

    @property
    def n_cells(self) -> int:
        """Number of rows and of columns."""
        return int(self.array.shape[0])

    def absolute(self) -> LazyMatrix:
        """Return the same matrix, for processes with another working directory."""
        if self.place is None:
            return self
        place = self.place.absolute()
        array = _dense_array(place, self.key, self.array.shape, self.array.dtype, self.array.chunks)
        return replace(self, array=array, place=place)


def of_dask(
    path: str, key: str, array: Any, n_cells: int | None, notes: tuple[str, ...]
) -> LazyMatrix:
    """Return a Dask array as a `LazyMatrix`.

    Raises
    ------
    SourceError
        If it is not a matrix over the cells, or its chunks are of unknown size.
    """
    if array.ndim != 2:
        raise SourceError(f"{key} is a Dask array of {array.ndim} dimensions; a matrix has two.")
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise SourceError(
            f"{key} is a Dask array whose chunks have unknown sizes. Call its "
            "compute_chunk_sizes() first."
        )
    check_shape(key, array.shape, n_cells)
    if array.dtype is not None and array.dtype.kind != "O":
        check_weights(key, array.dtype)
    return LazyMatrix(path, key, array, notes)


def of_dense(
    place: ZarrPlace | HDF5Place, key: str, node: Any, n_cells: int | None, notes: tuple[str, ...]
) -> LazyMatrix:
    """Return a dense matrix in a store as a `LazyMatrix`, in pieces of whole chunks.

    Raises
    ------
    SourceError
        If it is not a matrix over the cells.
    """
    if len(node.shape) != 2:
        raise SourceError(f"{key} is a dense array of shape {node.shape}; a matrix has two.")
    check_shape(key, (int(node.shape[0]), int(node.shape[1])), n_cells)
    check_weights(key, node.dtype)
    n_rows, n_columns = (max(1, int(n)) for n in node.shape)
    rows, columns = node.chunks or (1, n_columns)
    item = node.dtype.itemsize
    columns = min(n_columns, columns * max(1, _PIECE_BYTES // (rows * columns * item)))
    rows = min(n_rows, rows * max(1, _PIECE_BYTES // (rows * columns * item)))
    shape = tuple(int(n) for n in node.shape)
    array = _dense_array(place, key, shape, node.dtype, (rows, columns))
    return LazyMatrix(place.path, key, array, notes, place)


def _dense_array(place: Any, key: str, shape: Any, dtype: Any, chunks: Any) -> Any:
    import dask.array as da

    dense = _DenseArray(place, key, shape, np.dtype(dtype))
    return da.from_array(dense, chunks=chunks, name=False, asarray=False, inline_array=True)


class _DenseArray:
    """A dense matrix in a store, as Dask slices it; small, and picklable."""

    ndim = 2

    def __init__(self, place: Any, key: str, shape: Any, dtype: np.dtype[Any]) -> None:
        self._place = place
        self._key = key
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, index: Any) -> Any:
        import zarr

        with self._place.open() as root, zarr.config.set({"threading.max_workers": 1}):
            return np.asarray(root[self._key][index])
