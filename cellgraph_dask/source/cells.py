"""How many cells there are beside a matrix, however their names and columns are written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from ..errors import CellgraphError
from .layout import Node, attributes_of, children, get, integers_of, is_array, text_of

_HOLDERS = ("mod", "tables", "table")  # at the root: they hold an AnnData each
_CATEGORIES = "__categories"  # of columns, before AnnData 0.8: as long as they have categories


def levels(full_key: str) -> Iterator[str]:
    """Yield the paths of what may be the AnnData of a matrix, the nearest first; "" is the root."""
    parts = full_key.strip("/").split("/")
    for depth in range(len(parts) - 1, -1, -1):
        above = parts[depth - 1] if depth else ""
        if above not in ("obsp", "uns") and not (depth == 1 and above in _HOLDERS):
            yield "/".join(parts[:depth])


def count_cells(root: Node, path: str, full_key: str) -> tuple[int | None, tuple[str, ...]]:
    """Return the number of cells that a matrix belongs to; or None, and a note that says why.

    It is the length of the index of the nearest `obs` above the matrix, or of any column; else the
    rows of what lies beside `obs`.
    """
    has_obs = False
    for level in levels(full_key):
        begin = f"{level}/" if level else ""
        obs = _peek(root, f"{begin}obs")
        has_obs |= obs is not None
        length = next(chain(_lengths(obs), _lengths_beside(root, begin)), None)
        if length is not None:
            return length, ()
        if obs is not None:
            break
    what = "of its obs no length can be read, nor of X, layers or obsm" if has_obs else "it has no "
    what += "" if has_obs else "obs, X, layers or obsm beside the matrix"
    return None, (
        f"The rows of {full_key} could not be compared with the cells of {path}: {what}. Make sure "
        "that the matrix has one row for each cell, in the same order.",
    )


def _peek(group: Node, path: str) -> Node | None:
    """Return what is at a path, or None, also if its metadata are of a kind that nobody reads."""
    try:
        return get(group, path)
    except CellgraphError:
        return None


def _lengths(frame: Node | None) -> Iterator[int]:
    """Yield the length of a data frame by its index; if that cannot be read, by its columns."""
    if frame is None or is_array(frame):  # a structured array (AnnData before 0.7), or pandas'
        yield from _length_of_column(frame)
        return
    attributes = attributes_of(frame)
    columns = np.ravel(np.asarray(attributes.get("column-order", ()), object)).tolist()
    names = [text_of(name) for name in (attributes.get("_index"), "_index", "index", *columns)]
    names += [name for name in children(frame) if name != _CATEGORIES]
    for name in dict.fromkeys(names):
        if name and ".." in name.split("/"):
            get(frame, name)  # zarr refuses names that lead out of the store
        elif name:
            yield from _length_of_column(_peek(frame, name))


def _lengths_beside(root: Node, begin: str) -> Iterator[int]:
    """Yield the rows of what has a row for each cell."""
    yield from _length(_peek(root, f"{begin}X"))
    for name in ("layers", "obsm"):
        group = _peek(root, f"{begin}{name}")
        if group is not None and not is_array(group):
            for child in children(group):
                yield from _length(_peek(group, child))


def _length(node: Node | None) -> Iterator[int]:
    """Yield the length of what has a row for each cell: a matrix, a data frame, or a column."""
    if node is not None and not is_array(node) and "_index" in attributes_of(node):
        yield from _lengths(node)
    else:
        yield from _length_of_column(node)


def _length_of_column(node: Node | None) -> Iterator[int]:
    """Yield the length of an array, of whatever else a column can be, or of a matrix.

    A column is no data frame, such as that which it is of: its name may be "/" or that of a link.
    """
    if node is None:
        return
    if is_array(node):
        if node.shape:  # of one value it is (), of none, in HDF5, None
            yield int(node.shape[0])
        return
    attributes = attributes_of(node)
    for name in ("shape", "h5sparse_shape", "length"):  # of sparse matrices, of awkward arrays
        found = integers_of(attributes.get(name))
        if found:
            yield found[0]
            return
    for name in ("codes", "values", "mask"):  # of categories, and of what can be missing
        part: Any = _peek(node, name)
        if part is not None and is_array(part):
            yield from _length_of_column(part)
            return
