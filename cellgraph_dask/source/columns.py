"""Columns of `obs`: categories with their colors, or numbers, one for each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from ..machine.memory import format_bytes
from .cells import levels
from .layout import Node, children, get, is_array, metadata_of, near, suggestion, text_of
from .names import as_text, read_values, unit_of
from .opening import Root, is_container, open_root

_MOST_CATEGORIES = 1 << 10
_MOST_CHUNK_BYTES = 1 << 26
_TEXT_BYTES = 160  # about, of a text as Python holds it, with what it is decoded from
_AT_ONCE = 1 << 18  # values, where there are no chunks
_MISSING = ("NAType", "NaTType")  # of pandas
_OLD_CATEGORIES = "__categories"  # of AnnData before 0.8


@dataclass(frozen=True)
class Column:
    """What a column holds: of each cell a category by its number, or a number."""

    name: str
    values: Array  # int16, -1 where there is none; or float32, NaN where there is none
    categories: tuple[str, ...] = ()  # none of numbers
    colors: tuple[str, ...] = ()  # those that scanpy keeps in uns, one for each category, if any


class ColumnReader:
    """A column that has been found; good as long as what it is in is open.

    `n_bytes` are the most that reading it takes, with what comes out; `is_coded` tells categories
    from numbers.
    """

    def __init__(self, root: Root, level: str, name: str, node: Any, n_cells: int) -> None:
        self._root, self._level, self.name, self._n_cells = root, level, name, n_cells
        self._path = f"{level}/obs/{name}".lstrip("/")
        with metadata_of(self._path):
            self._parts = self._take_apart(node)
        first: Any = self._parts.get("codes", self._parts.get("values"))
        shape: tuple[int, ...] = getattr(first, "shape", ())
        if len(shape) != 1 or int(shape[0]) != n_cells:
            raise SourceError(
                f"{self._path} is not a column of values for {n_cells} cells: it has the shape "
                f"{tuple(shape)}. Name another column."
            )
        kind = first.dtype.kind
        self._are_texts = kind not in "biuf"
        item = _TEXT_BYTES if self._are_texts else int(first.dtype.itemsize)
        self._at_once = max(1, min(unit_of(first) or _AT_ONCE, n_cells))
        if self._at_once * item > 4 * _MOST_CHUNK_BYTES:
            raise SourceError(
                f"{self._path} has chunks of {self._at_once} values; up to "
                f"{format_bytes(_MOST_CHUNK_BYTES)} are read at once. Write it in smaller ones."
            )
        self.is_coded = self._are_texts or "categories" in self._parts or kind == "b"
        self.n_bytes = n_cells * (2 if self.is_coded else 4) + self._at_once * (2 * item + 16)

    def _take_apart(self, node: Any) -> dict[str, Any]:
        """Return codes and categories, or values, and the mask where something is missing."""
        if hasattr(node, "cat") and hasattr(node, "index"):  # of pandas, categorical
            return {"codes": np.asarray(node.cat.codes), "categories": list(node.cat.categories)}
        if hasattr(node, "to_numpy"):
            values = np.asarray(node.to_numpy())
            if values.dtype.kind not in "biuf":
                values = values.astype(object)
                values[[type(value).__name__ in _MISSING for value in values]] = None
            return {"values": values}
        if is_array(node):
            old = self._old_categories()
            return {"values": node} if old is None else {"codes": node, "categories": old}
        names = ("values", "codes", "mask", "categories")
        return {name: part for name in names if (part := get(node, name)) is not None}

    def _old_categories(self) -> Node | None:
        """Return the categories of a column where AnnData before 0.8 kept them."""
        place = f"{self._level}/obs/{_OLD_CATEGORIES}/{self.name}".lstrip("/")
        return get(self._root.node, place)

    def read(self) -> Column:
        """Return the column; a SourceError if it has too many values to be told apart."""
        categories = self._categories()
        if self._are_texts:
            return self._texts()
        part: Any = self._parts.get("codes", self._parts.get("values"))
        is_bool = part.dtype.kind == "b"
        if is_bool:
            categories = ("False", "True")
        values = np.empty(self._n_cells, np.int16 if categories else np.float32)
        for start, stop in self._spans():
            found = self._numbers(part, start, stop)
            if categories:
                found = np.where((found >= 0) & (found < len(categories)), found, -1)
            with np.errstate(over="ignore"):
                values[start:stop] = found
            if "mask" in self._parts:
                gone = self._numbers(self._parts["mask"], start, stop).astype(bool)
                values[start:stop][gone] = -1 if categories else np.nan
        return Column(self.name, values, categories, self._colors(len(categories)))

    def _spans(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._n_cells, self._at_once):
            yield start, min(start + self._at_once, self._n_cells)

    def _numbers(self, node: Any, start: int, stop: int) -> Array:
        dense = node if isinstance(node, np.ndarray) else self._root.dense(node)
        return np.asarray(dense[start:stop])

    def _categories(self) -> tuple[str, ...]:
        found = self._parts.get("categories")
        if found is None:
            return ()
        n = len(found) if isinstance(found, list) else int(self._texts_of(found).shape[0])
        if n > _MOST_CATEGORIES:
            raise self._too_many()
        values = found if isinstance(found, list) else read_values(self._texts_of(found), 0, n)
        return tuple(as_text(value) or "" for value in values)

    def _texts_of(self, node: Any) -> Any:
        """Return the array of texts, which newer AnnData puts into a group with a mask."""
        return node if is_array(node) else get(node, "values")

    def _texts(self) -> Column:
        """Read a column of texts, whose values become categories in their order."""
        numbers: dict[str, int] = {}
        values = np.full(self._n_cells, -1, np.int16)
        for start, stop in self._spans():
            texts = [as_text(v) for v in read_values(self._parts["values"], start, stop)]
            for text in set(texts) - {None} - set(numbers):
                numbers[str(text)] = len(numbers)
            if len(numbers) > _MOST_CATEGORIES:
                raise self._too_many()
            codes = np.array([-1 if text is None else numbers[text] for text in texts], np.int16)
            if "mask" in self._parts:
                codes[self._numbers(self._parts["mask"], start, stop).astype(bool)] = -1
            values[start:stop] = codes
        categories = tuple(sorted(numbers))
        order = np.full(len(numbers) + 1, -1, np.int16)
        order[[numbers[text] for text in categories]] = np.arange(len(categories))
        return Column(self.name, order[values], categories, self._colors(len(categories)))

    def _too_many(self) -> SourceError:
        return SourceError(
            f"{self._path} has more than {_MOST_CATEGORIES} different values, which no colors tell "
            "apart. Name a column of categories or of numbers."
        )

    def _colors(self, n: int) -> tuple[str, ...]:
        """Return the colors of the categories as scanpy keeps them; none if there are others."""
        try:
            node = get(self._root.node, f"{self._level}/uns/{self.name}_colors".lstrip("/"))
            if n == 0 or node is None:
                return ()
            texts = np.asarray(node) if isinstance(node, list) else self._texts_of(node)
            if tuple(texts.shape) != (n,):
                return ()
            return tuple(as_text(value) or "" for value in read_values(texts, 0, n))
        except Exception:  # of strange metadata, libraries raise anything; there are other colors
            return ()


@contextmanager
def open_column(
    source: Any, name: str, n_cells: int, storage_options: Mapping[str, Any] | None = None, *,
    key: str = "",
) -> Iterator[ColumnReader]:  # fmt: skip
    """Open a column of the `obs` that is nearest to a matrix's `key`.

    A SourceError says that there is none of that name, and which there are.
    """
    if not is_container(source):
        raise SourceError(
            "the matrix was given without the columns of its cells. Give the AnnData or the store "
            "that it is in."
        )
    with open_root(source, storage_options) as root:
        for level in levels(key):
            obs = get(root.node, f"{level}/obs".lstrip("/"))
            if obs is not None:
                yield ColumnReader(root, level, name, _column_of(obs, name, root), n_cells)
                return
        raise SourceError(f"{root.origin.path} has no obs with columns of its cells.")


def _column_of(obs: Node, name: str, root: Root) -> Any:
    """Return a column of a data frame."""
    if hasattr(obs, "columns"):  # of pandas, or of anndata's lazy ones
        names = [str(column) for column in obs.columns]
        if name in names:
            return obs[name]
    elif is_array(obs):  # a structured array, as before AnnData 0.7
        names = list(obs.dtype.names or ())
        if name in names:
            return np.asarray(obs[:][name])
    else:
        index = text_of(obs.attrs.get("_index"))
        names = [child for child in children(obs) if child not in (_OLD_CATEGORIES, index)]
        if name in names:
            return get(obs, name)
    raise SourceError(
        f"obs of {root.origin.path} has no column {name!r}; it has "
        f"{', '.join(names[:30]) or 'none'}.{suggestion(near(name, names))}"
    )
