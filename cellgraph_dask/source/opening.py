"""Where the arrays of a matrix are: a zarr store of any kind, an HDF5 file, raw files, memory.

A *place* is small and can be pickled, unless it is in memory; every process opens it for itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .arrays import MemoryArray
from .checks import check_arrays, check_shape, check_weights
from .in_memory import compress
from .layout import Found, Tree, find_matrix, is_array, open_array, sparse_layout
from .lazy import LazyMatrix, of_dask, of_dense
from .matrix import Source
from .places import ARRAYS, HDF5Place, MemoryPlace, ZarrPlace, locate, place_of_group

if TYPE_CHECKING:
    pass


def open_source(
    source: Any,
    key: str = "connectivities",
    *,
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source | LazyMatrix:
    """Open a matrix, wherever it is, and check what its metadata tell.

    Parameters
    ----------
    source
        A path or URL of a zarr store or an HDF5 file; a `zarr.Group`, or a store of zarr; an
        AnnData in memory, backed or lazy; a matrix of scipy or PyData sparse, or anything that
        numpy makes a two-dimensional array of; a Dask array.
    key
        A key of `obsp`, or with slashes a path from the root.
    neighbors_key
        The name of one of scanpy's neighbour graphs, instead of `key`.
    storage_options
        What fsspec is to be told about a URL.

    Returns
    -------
    Source or LazyMatrix
        A `LazyMatrix` has no row pointers yet: it has to be computed or searched first.

    Raises
    ------
    SourceError
        If there is no such store or key, or it is not a matrix over the cells.
    DamagedGraphError
        If its arrays do not fit together.
    """
    if neighbors_key is not None and key != "connectivities":
        raise ValueError("give key or neighbors_key, not both")
    if isinstance(source, str | os.PathLike):
        place = locate(source, storage_options)
        return _open_place(place, key, neighbors_key)
    if storage_options:
        raise ValueError("storage options are for URLs")
    if _is(source, "zarr", "Group"):
        return _open_place(place_of_group(source), key, neighbors_key)
    if _is(source, "zarr.abc.store", "Store"):
        import zarr

        return _open_place(place_of_group(zarr.open_group(source, mode="r")), key, neighbors_key)
    if _is(source, "anndata", "AnnData") or (hasattr(source, "obsp") and hasattr(source, "uns")):
        path = "AnnData in memory"
        root = Tree({"obsp": source.obsp, "uns": source.uns, "obs": source.obs})
        found = find_matrix(root, path, key, neighbors_key)
        return _open_matrix(path, found)
    if neighbors_key is not None or key != "connectivities":
        raise ValueError("key and neighbors_key are for stores, files and AnnData")
    return _open_matrix(f"{type(source).__name__} in memory", Found("matrix", source, None, ()))


def _is(source: object, module: str, name: str) -> bool:
    """Tell whether an object is of a class, without importing its library."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


def _open_place(
    place: ZarrPlace | HDF5Place, key: str, neighbors_key: str | None
) -> Source | LazyMatrix:
    with place.open() as root:
        key, node, n_cells, notes = find_matrix(root, place.path, key, neighbors_key)
        if is_array(node):
            return of_dense(place, key, node, n_cells, notes)
        layout, n_rows, n_columns = sparse_layout(key, node)
        indptr, indices, data = (open_array(node, key, name) for name in ARRAYS)
        n_cells = check_shape(key, (n_rows, n_columns), n_cells)
        check_arrays(key, n_cells, indptr, indices, data)
        source = Source(place, key, layout, n_cells, int(indices.shape[0]), notes)
        # They are open already; and those that cannot be read are refused here.
        source.__dict__["_arrays"] = place.arrays_in(root, key)
        return source


def _open_matrix(path: str, found: Found) -> Source | LazyMatrix:
    """Open what is an object of Python."""
    key, matrix, n_cells, notes = found
    if _is(matrix, "dask.array", "Array"):
        return of_dask(path, key, matrix, n_cells, notes)
    group = getattr(matrix, "group", None)
    if group is not None and hasattr(matrix, "to_memory"):  # anndata's, of a matrix in a store
        if _is(group, "zarr", "Group"):
            place: ZarrPlace | HDF5Place = replace(place_of_group(group), prefix="")
            return _open_place(place, f"/{group.path}", None)
        return _open_place(HDF5Place(group.file.filename), group.name, None)
    layout, *arrays, shape = compress(matrix, key)
    n_cells = check_shape(key, (int(shape[0]), int(shape[1])), n_cells)
    check_weights(key, arrays[2].dtype)
    content = {
        name: MemoryArray(f"{key}/{name}", array)
        for name, array in zip(ARRAYS, arrays, strict=True)
    }
    return Source(MemoryPlace(path, content), key, layout, n_cells, arrays[1].size, notes)
