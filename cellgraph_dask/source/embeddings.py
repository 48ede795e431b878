"""Embeddings that a store keeps in `obsm`: where each cell is, in two dimensions or more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import CellgraphError
from ..machine.amounts import counted
from ..machine.buffers import Array
from ..machine.memory import format_bytes
from .cells import levels
from .layout import children, get, is_array, told
from .opening import Root, is_container, open_root

_PREFERRED = ("X_umap", "X_tsne", "X_draw_graph_fa", "X_phate", "X_pca")
_MOST_COLUMNS = 10  # of wide embeddings, such as X_pca, the first ones tell enough
_MOST_BYTES = 2**30  # that are worth reading for this
_MOST_CHUNK_BYTES = 2**26
_UNCHUNKED_ROWS = 2**14


class Embedding(NamedTuple):
    """An embedding that can be looked at."""

    name: str
    take: Callable[[Array], Array]  # gives the coordinates of some cells, which must rise, as rows


def stored_embeddings(
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, *,
    key: str = "", most_bytes: int = _MOST_CHUNK_BYTES,
) -> tuple[list[Embedding], str]:  # fmt: skip
    """Return the embeddings of a store, file or AnnData, best first; if there are none, say why.

    They are in the `obsm` that is nearest to a matrix's `key`, by default at the root. Only names
    that begin with ``X_``, as scanpy's do, are taken: tissue coordinates (`spatial`) need not have
    anything to do with the neighbors. Two dimensions come first, then three. What is read at once
    of one has no more than `most_bytes`.
    """
    if not is_container(source):
        return [], "the matrix was given without the embeddings of its cells"
    arrays: dict[str, Any] = {}
    why: list[str] = []
    try:
        with open_root(source, storage_options) as root:
            where, obsm = _nearest(root.node, key)
            for name in children(obsm):
                if name.startswith("X_") and "spatial" not in name:
                    try:
                        arrays[name] = _opened(root, obsm[name])
                    except Exception as error:  # of strange metadata, libraries raise anything
                        why.append(f"{where}/{name} cannot be used ({told(error)})")
    except CellgraphError as error:
        return [], str(error)
    most = min(most_bytes, _MOST_CHUNK_BYTES)
    problems = {name: _problem(array, n_cells, most) for name, array in arrays.items()}
    why += [f"{where}/{name} {problem}" for name, problem in problems.items() if problem]

    def rank(name: str) -> tuple[int, int, str]:
        known = _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)
        return min(int(arrays[name].shape[1]), 4), known, name

    names = sorted((name for name, problem in problems.items() if not problem), key=rank)
    found = [Embedding(f"{where}/{name}", partial(_take, arrays[name])) for name in names]
    return found, "; ".join(why[:3]) or f"{where} holds no embedding with a name such as X_umap"


def _nearest(root: Any, key: str) -> tuple[str, Any]:
    """Return the `obsm` that is nearest above a matrix, and its path."""
    where = "obsm"
    for level in levels(key):
        where = f"{level}/obsm".lstrip("/")
        obsm = get(root, where)
        if obsm is not None:
            return where, obsm
    return where, None


def _opened(root: Root, node: Any) -> Any:
    if hasattr(node, "to_numpy"):  # a data frame
        node = node.to_numpy()
    return root.dense(node) if is_array(node) else node


def _problem(array: Any, n_cells: int, most_bytes: int) -> str:
    """Say why a member of `obsm` is not looked at; nothing if it is an array of such numbers."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or not hasattr(array, "__getitem__") or hasattr(array, "tocsr"):
        return "is not a dense array"
    if len(array.shape) != 2 or array.shape[1] < 2 or dtype.kind not in "fiu":
        return f"has the shape {array.shape} and dtype {dtype}"
    if array.shape[0] != n_cells:
        return f"has {counted(array.shape[0], 'row')} for {counted(n_cells, 'cell')}"
    if math.prod(array.shape) * dtype.itemsize > _MOST_BYTES:
        return f"has more than {format_bytes(_MOST_BYTES)}"
    if not 0 < _bytes_at_once(array) <= most_bytes:
        return f"has chunks of {_unit(array)} values; up to {format_bytes(most_bytes)} are read"
    return ""


def _unit(array: Any) -> tuple[int, ...]:
    """Return the shape of what is decoded at once: a chunk, or rows where there are none."""
    chunks = getattr(array, "chunksize", None) or getattr(array, "chunks", None)
    return chunks or (_UNCHUNKED_ROWS, int(array.shape[1]))


def _bytes_at_once(array: Any) -> int:
    """Return the bytes of the chunks, side by side, that the first columns are in."""
    rows, columns = _unit(array)
    if rows < 1 or columns < 1:
        return 0
    across = -(-min(array.shape[1], _MOST_COLUMNS) // columns)
    return int(rows * columns * across * array.dtype.itemsize)


def _take(array: Any, cells: Array) -> Array:
    n_columns = min(array.shape[1], _MOST_COLUMNS)
    out = np.empty((cells.size, n_columns), array.dtype)
    n_rows = _unit(array)[0]
    for first in range(0, array.shape[0], n_rows):
        a, b = np.searchsorted(cells, [first, first + n_rows])
        if a < b:
            rows = np.asarray(array[first : first + n_rows, :n_columns])
            out[a:b] = rows[cells[a:b] - first]
    return out
