"""Where AnnData keeps a neighbor graph: today's `obsp`, the `uns` of old files, scanpy's names.

It works on whatever has groups with attributes and arrays in them: zarr, HDF5, and `Tree`, which
makes an AnnData in memory look the same.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..errors import CellgraphError, SourceError
from .arrays import check_access

Node = Any  # a group, or an array: something with a shape

_MOST_GROUPS = 30  # one in the other
_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
_OLD = "uns/neighbors"
_SEPARATORS = re.compile(r"[\[\](),;]")
_DIGITS = re.compile(r"[0-9]{1,16}")
_MOST_NAME_BYTES = 2**12
_MOST_VALUES = 2**48  # in an array or a chunk; beyond it is nonsense, and soon beyond int64


class Found(NamedTuple):
    """A matrix that has been found."""

    key: str  # its path from the root
    node: Node
    notes: tuple[str, ...]  # what the user should know about where it was found


class Tree:
    """An AnnData in memory, or what holds several, seen as groups: paths lead to what it holds."""

    attrs: Mapping[str, Any] = {}

    def __init__(self, content: Any) -> None:
        self._content = _members(content)

    def __getitem__(self, path: str) -> Node:
        """Return what a path leads to; a KeyError if nowhere."""
        node: Any = self._content
        for name in path.split("/"):
            node = _members(node)
            if not isinstance(node, Mapping):
                raise KeyError(path)
            node = node[name]
        node = _members(node)
        return Tree(node) if isinstance(node, Mapping) else node

    def keys(self) -> list[str]:
        """Return the names in it, as a group does."""
        return [str(name) for name in self._content]


def holds_matrices(value: Any) -> bool:
    """Whether an object in memory is AnnData or MuData, or has tables that are, as SpatialData."""
    return (hasattr(value, "obsp") and hasattr(value, "uns")) or isinstance(
        getattr(value, "tables", None), Mapping
    )


def _members(value: Any) -> Any:
    """Return what an AnnData, or what holds several, has by name; anything else as it is."""
    if isinstance(value, Mapping) or not holds_matrices(value):
        return value
    names = ("obsp", "uns", "obs", "obsm", "mod", "tables")
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


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
    node = get(root, full_key)
    if node is None and "/" not in key and neighbors_key is None:
        old = get(root, f"{_OLD}/{key}")
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
    return Found(full_key, node, notes)


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
        check_access(error, f"the metadata of {what}")
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


def get(group: Node, path: str) -> Node | None:
    """Return what is at a path of a group, or None."""
    with metadata_of(path):
        try:
            return group[path]
        except KeyError:
            return None


def is_array(node: Node) -> bool:
    """Whether a node is an array, and not a group."""
    return hasattr(node, "shape")


def text_of(value: Any) -> str | None:
    """Return the text of an attribute, or None; other languages write arrays of one text."""
    values = np.asarray(value, object)
    if values.ndim > 1 or values.size != 1:
        return None
    text = values.item()
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return str(text) if isinstance(text, str) else None


def integers_of(value: Any) -> list[int] | None:
    """Return an attribute as integers from 0 on, or None; some write them as floats, or as text."""
    if isinstance(value, bytes | str):
        value = _SEPARATORS.sub(" ", text_of(value) or "").split()
    found = []
    for item in np.ravel(np.asarray(value, object)).tolist():
        number: Any = item.decode(errors="replace") if isinstance(item, bytes) else item
        if isinstance(number, str):
            number = int(number) if _DIGITS.fullmatch(number.strip()) else -1
        elif isinstance(number, float | np.floating):
            number = int(number) if np.isfinite(number) and number == int(number) else -1
        is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not is_integer or not 0 <= number <= _MOST_VALUES:
            return None
        found.append(int(number))
    return found


def attributes_of(node: Node) -> Mapping[str, Any]:
    """Return what a group says of itself; nothing where that cannot be read."""
    try:
        return dict(node.attrs)
    except Exception:  # of strange metadata, libraries raise anything
        return {}


def format_of(node: Node) -> tuple[str | None, Any]:
    """Return the layout of a sparse group, or None, and what a node says of itself."""
    attributes = node.attrs
    encoding = attributes.get("encoding-type", attributes.get("h5sparse_format"))
    text = text_of(encoding)
    return _FORMATS.get(text or ""), encoding if text is None else text


def children(group: Node) -> list[str]:
    """Return the names in a group; none if it is an array, or cannot list them."""
    try:
        return sorted(str(name) for name in group.keys())  # noqa: SIM118 (not a dict)
    except Exception:  # of strange metadata, libraries raise anything
        return []


def arrays_below(node: Node, *, skip: str, path: str = "") -> Iterator[Node]:
    """Yield all arrays in a group but for those in `skip`.

    A SourceError if groups are in groups without end, as links in a circle make them.
    """
    if path.count("/") >= _MOST_GROUPS:
        raise SourceError(
            f"{path[:80]}… is a group in more than {_MOST_GROUPS} others; a link in it may lead "
            "back to where it is. Remove the link."
        )
    for name in children(node):
        child, inner = get(node, name), f"{path}/{name}".lstrip("/")
        if inner != skip:
            yield from [child] if is_array(child) else arrays_below(child, skip=skip, path=inner)


def _children(root: Node, path: str) -> list[str]:
    """Return the names in the group at a path; none if it is not there."""
    try:
        return children(root[path])
    except Exception:  # it is only for a message
        return []


def _graphs(root: Node) -> list[str]:
    """Return the names in `uns` of what scanpy calls neighbors."""
    marks = {"connectivities_key", "connectivities", "distances"}
    return [name for name in _children(root, "uns") if marks & set(_children(root, f"uns/{name}"))]


def _follow(root: Node, path: str, neighbors_key: str) -> str:
    """Return where the connectivities of one of scanpy's neighbor graphs are."""
    found = _connectivities_of(root, f"uns/{neighbors_key}")
    if found is not None:
        return found
    names = _graphs(root)
    inside = [_connectivities_of(root, f"{table}/uns/{neighbors_key}") for table in tables(root)]
    keys = [key for key in inside if key is not None]
    elsewhere = f" Its tables and modalities have them: {', '.join(keys)}." if keys else ""
    hint = suggestion(near(neighbors_key, names))
    raise SourceError(
        f"{path} has no neighbors {neighbors_key!r} in uns; there is "
        f"{', '.join(names) or 'nothing'}.{hint}{elsewhere} Name one "
        f"with `neighbors_key`, or the matrix itself with `key`{f' {keys[0]}' if keys else ''}."
    )


def _connectivities_of(root: Node, graph: str) -> str | None:
    """Return the key of the connectivities of a graph in `uns`, or None if there are none."""
    where = f"{graph}/connectivities_key"
    named = get(root, where)
    if named is not None:
        above = graph.rpartition("uns/")[0]
        return f"{above}obsp/{_name_in(named, where) if is_array(named) else text_of(named)}"
    return f"{graph}/connectivities" if get(root, f"{graph}/connectivities") is not None else None


def _name_in(named: Node, where: str) -> str:
    """Read one name; what claims to be longer than a name can be is not read."""
    with metadata_of(where):
        if math.prod(named.shape) != 1:
            raise SourceError(f"{where} has the shape {named.shape}; one name is needed.")
        values = math.prod(getattr(named, "chunks", None) or (1,))
        if values * named.dtype.itemsize > _MOST_NAME_BYTES:
            raise SourceError(
                f"{where} has {_short(values * named.dtype.itemsize)} bytes by its metadata; a "
                f"name has up to {_MOST_NAME_BYTES}."
            )
        read = getattr(named, "read_small", None) or (lambda _: named[()])
        return text_of(np.asarray(read(_MOST_NAME_BYTES), object).ravel()) or ""


def tables(root: Node) -> list[str]:
    """Return the paths of all AnnData in MuData or SpatialData."""
    holders = ("mod", "tables", "table")
    return [f"{holder}/{name}" for holder in holders for name in _children(root, holder)]


def near(name: str, names: Sequence[str]) -> list[str]:
    """Return what may be meant by a name: the closest, or up to three that it is a part of."""
    part = name.lower()
    close = difflib.get_close_matches(name, names, n=1)
    longer = [known for known in names if part and part in known.lower()]
    shorter = [known for known in names if known and known.lower() in part]
    return close or longer[:3] or shorter[:3]


def suggestion(names: Sequence[str]) -> str:
    """Return the question whether one of these names is meant."""
    quoted = [repr(name) for name in names]
    either = " or ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))
    return f" Did you mean {either}?" if names else ""


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
    inside = [f"{t}/obsp/{k}" for t in tables(root) for k in _children(root, f"{t}/obsp")]
    if inside and parent == "obsp":
        elsewhere += f" In its tables and modalities: {', '.join(inside)}."
    others = [*old, *inside]
    meant = near(name, names) or near(full_key, others) or near(name, others)
    if not meant:  # the same name, or nearly, somewhere else
        elsewhere_near = near(name, [key.rpartition("/")[2] for key in others])
        meant = [key for key in others if key.rpartition("/")[2] in elsewhere_near]
    hint = suggestion(meant)
    graphs = _children(root, "col_graphs")
    if graphs or {"row_attrs", "col_attrs"} <= set(children(root)):
        return SourceError(
            f"{path} is a loom file, which has no {full_key}; its col_graphs hold "
            f"{', '.join(graphs) or 'nothing'}. In Python, make a matrix of a graph there, "
            "scipy.sparse.coo_array((w, (a, b)), shape), and export that."
        )
    example = f" {inside[0]}" if inside and not names and not hint else ""
    return SourceError(
        f"{path} has no {full_key}; {parent} holds {', '.join(names) or 'nothing'}.{elsewhere}"
        f"{hint} Name the matrix with `key`{example}, or compute it with scanpy.pp.neighbors."
    )


def sparse_layout(full_key: str, node: Node) -> tuple[str, int, int]:
    """Return the format of a sparse group, "csr" or "csc", and its rows and columns."""
    with metadata_of(full_key):
        layout, encoding = format_of(node)
        shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
        sizes = integers_of(shape)
    if layout is None:
        raise SourceError(
            f"{full_key} has encoding-type {_short(encoding)}; csr_matrix and csc_matrix can be "
            "exported."
        )
    if sizes is None or len(sizes) != 2:
        raise SourceError(
            f"{full_key} has the shape {_short(shape)} in its attributes; two integers are needed."
        )
    return layout, sizes[0], sizes[1]


def open_array(node: Node, full_key: str, name: str) -> Any:
    """Return one of the three arrays of a sparse group; a SourceError if it is not one."""
    array = get(node, name)
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
