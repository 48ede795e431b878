"""The names of cells that a store keeps as the index of `obs`, read some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import SourceError
from .cells import levels
from .layout import Node, attributes_of, get, is_array, metadata_of, text_of
from .opening import is_container, open_root

_MOST_AT_ONCE = 1 << 20  # names in a chunk, and categories
_NAME_BYTES = 160  # about, of a name as Python holds it, with what it is decoded from
_LEAVE = "Leave the table of cells out."
_INDEXES = ("_index", "index")


class Names:
    """The names of cells; good as long as what they are in is open.

    `n_at_once` names are decoded at once. What cannot be read raises a SourceError.
    """

    def __init__(self, node: Node, path: str, n_cells: int) -> None:
        self._node, self._path = node, path
        if is_array(node):
            self._parts = {"values": node}
        elif hasattr(node, "keys"):
            self._parts = {name: part for name in ("values", "codes", "mask", "categories")
                           if (part := get(node, name)) is not None}  # fmt: skip
        else:
            self._parts = {}
        first = self._parts.get("values", self._parts.get("codes"))
        if first is None or len(first.shape) != 1 or first.shape[0] != n_cells:
            raise SourceError(
                f"the names of the cells, {path}, cannot be read: {n_cells} texts are needed. "
                f"{_LEAVE}"
            )
        self.n_at_once = max(unit_of(part) for part in self._parts.values())
        n_categories = int(self._parts["categories"].shape[0]) if "codes" in self._parts else 0
        if max(self.n_at_once, n_categories) > _MOST_AT_ONCE:
            raise SourceError(
                f"the names of the cells, {path}, come in chunks of {self.n_at_once:,} texts or "
                f"{n_categories:,} categories; up to {_MOST_AT_ONCE:,} are read. {_LEAVE}"
            )
        self.n_bytes = _NAME_BYTES * (2 * self.n_at_once + n_categories)

    def read(self, start: int, stop: int) -> list[str | None]:
        """Return the names of the cells ``[start, stop)``; None where one is missing."""
        with metadata_of(self._path):
            if "codes" not in self._parts:
                names = self._texts("values", start, stop)
            else:
                categories = self._texts("categories", 0, int(self._parts["categories"].shape[0]))
                codes = np.asarray(read_values(self._parts["codes"], start, stop))
                names = [categories[k] if 0 <= k < len(categories) else None for k in codes]
            if "mask" in self._parts:
                mask = np.asarray(read_values(self._parts["mask"], start, stop), bool)
                names = [None if gone else name for name, gone in zip(names, mask, strict=True)]
            return names

    def _texts(self, part: str, start: int, stop: int) -> list[str | None]:
        return [as_text(value) for value in read_values(self._parts[part], start, stop)]


def read_values(node: Any, start: int, stop: int) -> Any:
    """Return values of a one-dimensional array; those of a structured one are its index."""
    check = getattr(node, "check_codecs", None)
    if check is not None:
        check()
    values = node[start:stop]
    fields = getattr(getattr(values, "dtype", None), "names", None)
    if fields:
        values = values[next((name for name in _INDEXES if name in fields), fields[0])]
    return np.asarray(values).tolist()


def as_text(value: Any) -> str | None:
    """Return a value that a text is stored as; None where it is missing."""
    if value is None or value != value:  # NaN stands for what is missing
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def unit_of(node: Any) -> int:
    """Return how many values are decoded at once."""
    chunks = getattr(node, "shards", None) or getattr(node, "chunks", None)
    return int(chunks[0]) if chunks else 0


@contextmanager
def open_names(
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, *, key: str = ""
) -> Iterator[Names]:
    """Open the names of cells: the index of the `obs` that is nearest to a matrix's `key`.

    A SourceError says that there are none, or none that can be read.
    """
    if not is_container(source):
        raise SourceError(
            "the matrix was given without the names of its cells, which the table of cells holds. "
            "Give the AnnData or the store that it is in, or leave the table out."
        )
    with open_root(source, storage_options) as root:
        for level in levels(key):
            path = f"{level}/obs".lstrip("/")
            obs = get(root.node, path)
            if obs is not None:
                yield Names(*_index_of(obs, path), n_cells)
                return
        raise SourceError(f"{root.origin.path} has no obs, whose index names the cells. {_LEAVE}")


def _index_of(obs: Node, path: str) -> tuple[Node, str]:
    """Return the index of a data frame, and its path."""
    index = getattr(obs, "index", None)
    if index is not None and hasattr(obs, "columns"):  # of pandas, or of anndata's lazy ones
        return np.asarray(getattr(index, "values", index), object), f"{path}.index"
    if is_array(obs):  # a structured array, as before AnnData 0.7
        return obs, path
    told = text_of(attributes_of(obs).get("_index"))
    for name in dict.fromkeys((told, *_INDEXES)):
        if name and ".." not in name.split("/"):
            found = get(obs, name)
            if found is not None:
                return found, f"{path}/{name}"
    raise SourceError(f"{path} has no index, which names the cells. {_LEAVE}")
