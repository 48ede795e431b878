"""The names of cells that a store keeps as the index of `obs`, read some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import SourceError
from .cells import levels
from .layout import Node, attributes_of, get, is_array, metadata_of, text_of
from .opening import is_container, open_root

_MOST_AT_ONCE = 1 << 20  # texts in a chunk, and categories
_MOST_NUMBERS = 1 << 24  # numbers in a chunk
_NAME_BYTES = 160  # about, of a name as Python holds it, with what it is decoded from
_FEW, _MANY = 1 << 16, 1 << 18  # texts, or numbers, that are read at once if chunks have fewer
_NUMBER_BYTES = 64  # about, of a number as Python holds it, and a reference to a text
_PARTS = ("values", "codes", "mask", "categories")
INDEXES = ("_index", "index")
LEAVE = "Leave the table of cells out."


class Names:
    """Texts, one for each cell; good as long as what they are in is open.

    A SourceError says that they cannot be read, and gives the `advice`.
    """

    def __init__(self, parts: Mapping[str, Node], path: str, n_cells: int, advice: str) -> None:
        self._parts, self._path, self.n_cells = parts, path, n_cells
        first = parts.get("values", parts.get("codes"))
        if first is None or len(first.shape) != 1 or first.shape[0] != n_cells:
            raise SourceError(
                f"{path} cannot be read: it is not an array of {n_cells} values. {advice}"
            )
        texts = [0, *(unit_of(part) for part in parts.values() if not _is_number(part))]
        numbers = [0, *(unit_of(part) for part in parts.values() if _is_number(part))]
        n_texts, n_categories = max(texts), 0
        if "codes" in parts:
            n_categories = int(parts["categories"].shape[0])
        if max(n_texts, n_categories) > _MOST_AT_ONCE or max(numbers) > _MOST_NUMBERS:
            raise SourceError(
                f"{path} comes in chunks of {max(n_texts, *numbers):,} values or "
                f"{n_categories:,} categories; up to {_MOST_AT_ONCE:,} texts, and "
                f"{_MOST_NUMBERS:,} numbers, are read. {advice}"
            )
        least, item = _FEW, _NAME_BYTES
        if not n_texts or n_categories:  # numbers, and references to the texts of categories
            least, item = _MANY, _NUMBER_BYTES
        self.step = -(-max(n_texts, least) // 64) * 64
        self.n_bytes = _NAME_BYTES * (2 * n_texts + n_categories) + 16 * max(numbers)
        self.n_bytes += item * least if n_texts < least else 0

    @property
    def is_number(self) -> bool:
        """Whether the texts are of numbers, or of true and false."""
        return _is_number(self._parts.get("categories", self._parts.get("values")))

    @cached_property
    def _categories(self) -> list[str | None]:
        return self._texts("categories", 0, int(self._parts["categories"].shape[0]))

    def read(self, start: int, stop: int) -> list[str | None]:
        """Return the texts of the cells ``[start, stop)``; None where one is missing."""
        with metadata_of(self._path):
            if "codes" not in self._parts:
                names = self._texts("values", start, stop)
            else:
                categories = self._categories
                codes = read_values(self._parts["codes"], start, stop)
                names = [categories[k] if 0 <= k < len(categories) else None for k in codes]
            if "mask" in self._parts:
                mask = read_values(self._parts["mask"], start, stop)
                names = [None if gone else name for name, gone in zip(names, mask, strict=True)]
            return names

    def steps(self) -> Iterator[tuple[int, list[str | None]]]:
        """Yield all texts, step by step, each with the number of its first cell."""
        for start in range(0, self.n_cells, self.step):
            yield start, self.read(start, min(start + self.step, self.n_cells))

    def _texts(self, part: str, start: int, stop: int) -> list[str | None]:
        values = read_values(self._parts[part], start, stop)
        return [value if type(value) is str else as_text(value) for value in values]


def parts_of(node: Node) -> dict[str, Node]:
    """Return the arrays that hold texts: values, codes of categories, what is missing."""
    if is_array(node):
        return {"values": node}
    if not hasattr(node, "keys"):
        return {}
    return {name: part for name in _PARTS if (part := get(node, name)) is not None}


def _is_number(node: Node) -> bool:
    return getattr(getattr(node, "dtype", None), "kind", "O") in "biuf"


def read_values(node: Any, start: int, stop: int) -> Any:
    """Return values of a one-dimensional array; those of a structured one are its index."""
    check = getattr(node, "check_codecs", None)
    if check is not None:
        check()
    values = node[start:stop]
    fields = getattr(getattr(values, "dtype", None), "names", None)
    if fields:
        values = values[next((name for name in INDEXES if name in fields), fields[0])]
    return np.asarray(values).tolist()


def as_text(value: Any) -> str | None:
    """Return a value that a text is stored as; None where it is missing."""
    try:
        if value is None or value != value:  # NaN stands for what is missing
            return None
    except TypeError:  # as does pandas.NA, which is neither true nor false
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def unit_of(node: Any) -> int:
    """Return how many values are decoded at once."""
    chunks = getattr(node, "shards", None) or getattr(node, "chunks", None)
    return int(chunks[0]) if chunks else 0


@contextmanager
def open_obs(
    source: Any, storage_options: Mapping[str, Any] | None, key: str, advice: str
) -> Iterator[tuple[Node, Node, str]]:
    """Open the `obs` that is nearest to a matrix's `key`; give the root too, and its path."""
    with open_root(source, storage_options) as root:
        for level in levels(key):
            path = f"{level}/obs".lstrip("/")
            obs = get(root.node, path)
            if obs is not None:
                yield root.node, obs, path
                return
        raise SourceError(f"{root.origin.path} has no obs, whose index names the cells. {advice}")


@contextmanager
def open_names(
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, *, key: str = "",
    advice: str = LEAVE,
) -> Iterator[Names]:  # fmt: skip
    """Open the names of cells: the index of the `obs` that is nearest to a matrix's `key`.

    A SourceError says that there are none, or none that can be read, and gives the `advice`.
    """
    if not is_container(source):
        raise SourceError(
            "the matrix was given without the names of its cells, which the table of cells holds. "
            "Give the AnnData or the store that it is in, or leave the table out."
        )
    with open_obs(source, storage_options, key, advice) as (_, obs, path):
        node, path = _index_of(obs, path, advice)
        yield Names(parts_of(node), path, n_cells, advice)


def _index_of(obs: Node, path: str, advice: str) -> tuple[Node, str]:
    """Return the index of a data frame, and its path."""
    index = getattr(obs, "index", None)
    if index is not None and hasattr(obs, "columns"):  # of pandas, or of anndata's lazy ones
        return np.asarray(getattr(index, "values", index), object), f"{path}.index"
    if is_array(obs):  # a structured array, as before AnnData 0.7
        return obs, path
    told = text_of(attributes_of(obs).get("_index"))
    for name in dict.fromkeys((told, *INDEXES)):
        if name and ".." not in name.split("/"):
            found = get(obs, name)
            if found is not None:
                return found, f"{path}/{name}"
    raise SourceError(f"{path} has no index, which names the cells. {advice}")
