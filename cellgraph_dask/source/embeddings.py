"""Embeddings that a store keeps in `obsm`: where each cell is, in two dimensions or more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from .layout import is_array
from .opening import open_root

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
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None
) -> list[Embedding]:
    """Return the embeddings in `obsm` of a store, file or AnnData, best first.

    Only names that begin with ``X_``, as scanpy's do, are taken: tissue coordinates (`spatial`)
    need not have anything to do with the neighbors. Two dimensions come first, then three.
    """
    try:
        with open_root(source, storage_options) as root:
            obsm = root.node["obsm"]
            names = [str(name) for name in obsm.keys()]  # noqa: SIM118 (not a dict)
            nodes = {name: obsm[name] for name in names if name.startswith("X_")}
            arrays = {n: root.dense(node) for n, node in nodes.items() if is_array(node)}
    except (SourceError, KeyError, AttributeError):  # an array in its place has no keys
        return []
    usable = {name: array for name, array in arrays.items() if _is_usable(array, n_cells)}

    def rank(name: str) -> tuple[int, int, str]:
        known = _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)
        return min(int(usable[name].shape[1]), 4), known, name

    names = sorted((name for name in usable if "spatial" not in name), key=rank)
    return [Embedding(f"obsm/{name}", partial(_take, usable[name])) for name in names]


def _is_usable(array: Any, n_cells: int) -> bool:
    """Whether a member of `obsm` is an array of numbers for all cells, and not too large."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or len(array.shape) != 2 or array.shape[0] != n_cells:
        return False
    return bool(
        dtype.kind in "fiu"
        and array.shape[1] >= 2
        and math.prod(array.shape) * dtype.itemsize <= _MOST_BYTES
        and 0 < math.prod(_unit(array)) * dtype.itemsize <= _MOST_CHUNK_BYTES
    )


def _unit(array: Any) -> tuple[int, ...]:
    """Return the shape of what is read at once: a shard, a chunk, or rows where there are none."""
    shards, chunks = getattr(array, "shards", None), getattr(array, "chunks", None)
    return shards or chunks or (_UNCHUNKED_ROWS, int(array.shape[1]))


def _take(array: Any, cells: Array) -> Array:
    n_columns = min(array.shape[1], _MOST_COLUMNS)
    out = np.empty((cells.size, n_columns), array.dtype)
    n_rows = _unit(array)[0]
    for first in range(0, array.shape[0], n_rows):
        a, b = np.searchsorted(cells, [first, first + n_rows])
        if a < b:
            rows = array[first : first + n_rows, :n_columns]
            out[a:b] = rows[cells[a:b] - first]
    return out
