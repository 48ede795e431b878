"""Where AnnData keeps a neighbor graph: today's `obsp`, the `uns` of old files, scanpy's names.

It works on whatever has groups with attributes and arrays in them: zarr, HDF5, and `Tree`, which
makes an AnnData in memory look the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..errors import CellgraphError, SourceError

Node = Any  # a group, or an array: something with a shape

_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
_OLD = "uns/neighbors"
_MOST_VALUES = 2**48  # in an array or a chunk; beyond it is nonsense, and soon beyond int64


class Found(NamedTuple):
    """A matrix that has been found."""

    key: str  # its path from the root
    node: Node
    n_cells: int | None  # in the `obs` that it belongs to, if there is one
    notes: tuple[str, ...]  # what the user should know about where it was found


class Tree:
    """An AnnData in memory, seen as groups: paths lead to what it holds."""

    attrs: Mapping[str, Any] = {}

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __getitem__(self, path: str) -> Node:
        """Return what a path leads to; a KeyError if nowhere."""
        node: Any = self._content
        for name in path.split("/"):
            if not isinstance(node, Mapping):
                raise KeyError(path)
            node = node[name]
        return Tree(node) if isinstance(node, Mapping) else node

    def keys(self) -> list[str]:
        """Return the names in it, as a group does."""
        return [str(name) for name in self._content]


def find_matrix(root: Node, path: str, key: str, neighbors_key: str | None) -> Found:
    """Find a matrix in an AnnData, or in what holds several; `path` is what errors call that.

    A `key` is one of `obsp`, or with slashes a path from the root; a `neighbors_key` names one of
    scanpy's graphs in `uns`, which says where the matrix is. The SourceError if there is no such
    matrix lists what there is.
    """
    if neighbors_key is not None:
        full_key = _follow(root, path, neighbors_key)
    else:
        full_key = key.strip("/") if "/" in key else f"obsp/{key}"
    node = _get(root, full_key)
    if node is None and "/" not in key and neighbors_key is None:
        old = _get(root, f"{_OLD}/{key}")
        if old is not None and (is_array(old) or format_of(old)[0]):
            full_key, node = f"{_OLD}/{key}", old
    if node is None:
        raise _not_found(root, path, full_key)
    notes: tuple[str, ...] = ()
    if full_key.startswith("uns/"):
        notes = (
            f"{path} has no obsp/{full_key.rsplit('/', 1)[1]}; {full_key} is exported, where "
            "AnnData kept it before version 0.7.",
        )
    return Found(full_key, node, _count_cells(root, full_key), notes)


@contextmanager
def metadata_of(what: str) -> Iterator[None]:
    """Turn any error while metadata are read into a SourceError that names what they describe.

    Libraries raise anything when metadata are strange.
    """
    try:
        yield
    except CellgraphError:
        raise
    except Exception as error:
        raise SourceError(
            f"the metadata of {what} cannot be used ({told(error)}). Copy the store again, or "
            "write the matrix again."
        ) from error


def told(error: Exception) -> str:
    """Return the text of an error, on one line and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _get(group: Node, path: str) -> Node | None:
    """Return what is at a path of a group, or None."""
    with metadata_of(path):
        try:
            return group[path]
        except KeyError:
            return None


def is_array(node: Node) -> bool:
    """Whether a node is an array, and not a group."""
    return hasattr(node, "shape")


def format_of(node: Node) -> tuple[str | None, Any]:
    """Return the layout of a sparse group, or None, and what a node says of itself."""
    attributes = node.attrs
    encoding = attributes.get("encoding-type", attributes.get("h5sparse_format"))
    encoding = encoding.decode(errors="replace") if isinstance(encoding, bytes) else encoding
    return _FORMATS.get(encoding) if isinstance(encoding, str) else None, encoding


def _children(root: Node, path: str) -> list[str]:
    """Return the names in a group; none if it is not there or cannot list them."""
    try:
        return sorted(str(name) for name in root[path].keys())  # noqa: SIM118 (not a dict)
    except Exception:  # it is only for a message
        return []


def _graphs(root: Node) -> list[str]:
    """Return the names in `uns` of what scanpy calls neighbors."""
    marks = {"connectivities_key", "connectivities", "distances"}
    return [name for name in _children(root, "uns") if marks & set(_children(root, f"uns/{name}"))]


def _follow(root: Node, path: str, neighbors_key: str) -> str:
    """Return where the connectivities of one of scanpy's neighbor graphs are."""
    where = f"uns/{neighbors_key}/connectivities_key"
    named = _get(root, where)
    if named is not None:
        with metadata_of(where):
            if is_array(named) and math.prod(named.shape) != 1:
                raise SourceError(f"{where} has the shape {named.shape}; one name is needed.")
            value = named[()] if is_array(named) else named
        value = np.asarray(value).reshape(-1)[0]
        return f"obsp/{value.decode() if isinstance(value, bytes) else value}"
    old = f"uns/{neighbors_key}/connectivities"
    if _get(root, old) is not None:
        return old
    names = _graphs(root)
    raise SourceError(
        f"{path} has no neighbors {neighbors_key!r} in uns; there is "
        f"{', '.join(names) or 'nothing'}.{_suggestion(neighbors_key, names)} Name one with "
        "`neighbors_key`, or the matrix itself with `key`."
    )


def _suggestion(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _not_found(root: Node, path: str, full_key: str) -> SourceError:
    parent, _, name = full_key.rpartition("/")
    if not _children(root, parent):
        parent = "obsp"
    names = _children(root, parent)
    old = [
        f"uns/{graph}/{matrix}"
        for graph in _graphs(root)
        for matrix in _children(root, f"uns/{graph}")
        if matrix in ("connectivities", "distances")
    ]
    elsewhere = f" In old places: {', '.join(old)}." if old else ""
    modalities = _children(root, "mod")
    inside = [f"mod/{m}/obsp/{k}" for m in modalities for k in _children(root, f"mod/{m}/obsp")]
    if inside and not full_key.startswith("mod/"):
        elsewhere += f" In its modalities: {', '.join(inside)}."
    others = [*old, *inside]
    hint = _suggestion(name, names) or _suggestion(full_key, others)
    if not hint:  # the same name, or nearly, somewhere else
        near = difflib.get_close_matches(name, [key.rpartition("/")[2] for key in others], n=1)
        same = [key for key in others if near and key.endswith(f"/{near[0]}")]
        hint = "".join(f" Did you mean {key!r}?" for key in same)
    return SourceError(
        f"{path} has no {full_key}; {parent} holds {', '.join(names) or 'nothing'}.{elsewhere}"
        f"{hint} Name the matrix with `key`, or compute it with scanpy.pp.neighbors."
    )


def _count_cells(root: Node, full_key: str) -> int | None:
    """Return the cells in the nearest `obs` above a matrix, or None if there is none."""
    parts = full_key.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        above = "/".join([*parts[:depth], "obs"])
        if depth and parts[depth - 1] in ("obsp", "uns", "mod"):
            continue
        obs = _get(root, above)
        if obs is None:
            continue
        with metadata_of(above):
            if is_array(obs):  # a structured array (AnnData before 0.7), or a DataFrame
                return int(obs.shape[0])
            index = obs.attrs.get("_index")
            index = index.decode() if isinstance(index, bytes) else index
            values = _get(obs, index) if isinstance(index, str) else None
            return int(values.shape[0]) if values is not None and is_array(values) else None
    return None


def sparse_layout(full_key: str, node: Node) -> tuple[str, int, int]:
    """Return the format of a sparse group, "csr" or "csc", and its rows and columns."""
    with metadata_of(full_key):
        layout, encoding = format_of(node)
        shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
        shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if layout is None:
        raise SourceError(
            f"{full_key} has encoding-type {_short(encoding)}; csr_matrix and csc_matrix can be "
            "exported."
        )
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(type(n) is int and 0 <= n <= _MOST_VALUES for n in shape)
    ):
        raise SourceError(
            f"{full_key} has the shape {_short(shape)} in its attributes; two integers are needed."
        )
    return layout, shape[0], shape[1]


def open_array(node: Node, full_key: str, name: str) -> Any:
    """Return one of the three arrays of a sparse group; a SourceError if it is not one."""
    array = _get(node, name)
    if array is None:
        raise SourceError(
            f"{full_key} has no array {name!r}: it is not a whole sparse matrix. Copy the store "
            "again, or write the matrix again."
        )
    with metadata_of(f"{full_key}/{name}"):
        shape: Any = getattr(array, "shape", None) or ()
        chunks = getattr(array, "chunks", None)
    if len(shape) != 1:
        raise SourceError(
            f"{full_key}/{name} is not a one-dimensional array by its metadata. Copy the store "
            "again, or write the matrix again."
        )
    for what, n in (("values", shape[0]), ("values in a chunk", chunks[0] if chunks else 1)):
        if not 0 <= int(n) <= _MOST_VALUES:
            raise SourceError(f"{full_key}/{name} has {_short(n)} {what}; write the matrix again.")
    return array
