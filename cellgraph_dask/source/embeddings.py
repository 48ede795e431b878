"""Embeddings that a store keeps in `obsm`: where each cell is, in two dimensions or more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import CellgraphError
from ..machine.amounts import counted
from ..machine.buffers import Array
from ..machine.memory import format_bytes
from .cells import levels
from .layout import children, get, is_array, near, suggestion, told
from .opening import Root, is_container, open_root
from .selection import Selection

_PREFERRED = ("X_umap", "X_tsne", "X_draw_graph_fa", "X_phate", "X_pca")
_MOST_COLUMNS = 10  # of wide embeddings, such as X_pca, the first ones tell enough
_MOST_BYTES = 2**30  # that are worth reading for this
_MOST_CHUNK_BYTES = 2**26
_UNCHUNKED_ROWS = 2**14


def _no_rows(_n_columns: int) -> Iterator[Array]:
    return iter(())


class Embedding(NamedTuple):
    """An embedding that can be looked at."""

    name: str
    take: Callable[[Array], Array]  # gives the coordinates of some cells, which must rise, as rows
    rows: Callable[[int], Iterator[Array]] = (
        _no_rows  # gives so many columns of all cells, in parts
    )
    n_bytes: int = 0  # of what is decoded at once


def stored_embeddings(
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, *,
    key: str = "", most_bytes: int = _MOST_CHUNK_BYTES, name: str | None = None,
) -> tuple[list[Embedding], str]:  # fmt: skip
    """Return the embeddings of a store, file or AnnData, best first; if there are none, say why.

    They are in the `obsm` that is nearest to a matrix's `key`, by default at the root. Only names
    that begin with ``X_``, as scanpy's do, are taken: tissue coordinates (`spatial`) need not have
    anything to do with the neighbors. Two dimensions come first, then three. What is read at once
    of one has no more than `most_bytes`. With a `name`, with or without ``X_``, only that one is
    taken, whatever it is.
    """
    if not is_container(source):
        return [], "the matrix was given without the embeddings of its cells"
    arrays: dict[str, Any] = {}
    why: list[str] = []
    try:
        with open_root(source, storage_options) as root:
            where, obsm = _nearest(root.node, key)
            members = children(obsm) if obsm is not None else []
            for member in _wanted(members, name):
                try:
                    arrays[member] = _opened(root, obsm[member])
                except Exception as error:  # of strange metadata, libraries raise anything
                    why.append(f"{where}/{member} cannot be used ({told(error)})")
    except CellgraphError as error:
        return [], str(error)
    most = min(most_bytes, _MOST_CHUNK_BYTES)
    problems = {member: _problem(array, n_cells, most) for member, array in arrays.items()}
    why += [f"{where}/{member} {problem}" for member, problem in problems.items() if problem]

    def rank(member: str) -> tuple[int, int, str]:
        known = _PREFERRED.index(member) if member in _PREFERRED else len(_PREFERRED)
        return min(int(arrays[member].shape[1]), 4), known, member

    names = sorted((member for member, problem in problems.items() if not problem), key=rank)
    found = [
        Embedding(f"{where}/{member}", partial(_take, arrays[member]),
                  partial(_rows, arrays[member]), _bytes_at_once(arrays[member]))
        for member in names
    ]  # fmt: skip
    return found, "; ".join(why[:3]) or _nothing(where, members, name)


def _wanted(members: list[str], name: str | None) -> list[str]:
    """Return the members of `obsm` that are looked at."""
    if name is None:
        return [m for m in members if m.startswith("X_") and "spatial" not in m]
    return [m for m in (name, f"X_{name}") if m in members][:1]


def _nothing(where: str, members: list[str], name: str | None) -> str:
    """Say that no member of `obsm` will do, and which there are."""
    what = "no embedding with a name such as X_umap" if name is None else f"no {name}"
    holds = f", but {', '.join(members[:20])}" if members else ""
    asked = suggestion(near(name or "", members)).replace(" Did", "; did", 1)
    return f"{where} holds {what}{holds}{asked}"


def restrict(embedding: Embedding, selection: Selection) -> Embedding:
    """Return the same embedding of some cells, by their own numbers."""

    def take(cells: Array) -> Array:
        return embedding.take(selection.original(cells))

    return embedding._replace(take=take, rows=_no_rows)


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


def _rows(array: Any, n_columns: int) -> Iterator[Array]:
    n_rows = _unit(array)[0]
    for first in range(0, array.shape[0], n_rows):
        yield np.asarray(array[first : first + n_rows, :n_columns])
