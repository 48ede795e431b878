"""Columns of `obs`, as texts, however they are written: one cell after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from .layout import Node, attributes_of, children, get, is_array, near, suggestion, text_of
from .names import INDEXES, Names, open_obs, parts_of

ADVICE = "Name the cells themselves, or give an AnnData of them alone."
_OLD = "__categories"  # of columns, before AnnData 0.8
_MOST_SHOWN = 20


@contextmanager
def open_texts(
    source: Any, n_cells: int, text: str, storage_options: Mapping[str, Any] | None, *, key: str
) -> Iterator[tuple[Names, str]]:
    """Open the column that the text ``COLUMN=VALUE`` names, in the `obs` nearest to a matrix.

    Give the value, too. Where several signs of equality leave a choice, the first column that there
    is counts. A SourceError lists the columns, or says that this one cannot be read.
    """
    with open_obs(source, storage_options, key, ADVICE) as (root, obs, path):
        names = _columns(obs)
        ends = [k for k, sign in enumerate(text) if sign == "="]
        for end in ends:
            name = text[:end]
            if name in names:
                found = _column(root, obs, path, name)
                yield Names(found, f"{path}/{name}", n_cells, ADVICE), text[end + 1 :]
                return
        name = text[: ends[0]]
        told = ", ".join(names[:_MOST_SHOWN]) + (" …" if len(names) > _MOST_SHOWN else "")
        raise SourceError(
            f"{path} has no column {name!r}; it has {told or 'none'}."
            f"{suggestion(near(name, names))}"
        )


def _columns(obs: Node) -> list[str]:
    """Return the names of the columns, in their order."""
    if hasattr(obs, "columns"):
        return [str(name) for name in obs.columns]
    if is_array(obs):
        fields = list(obs.dtype.names or ())
        return [name for name in fields if name not in INDEXES]
    attributes = attributes_of(obs)
    index = text_of(attributes.get("_index"))
    listed = attributes.get("column-order", ())
    order = [text_of(name) for name in ([listed] if isinstance(listed, str) else list(listed))]
    there = [name for name in children(obs) if name not in (index, *INDEXES, _OLD)]
    first = [name for name in order if name in there]
    return list(dict.fromkeys([*first, *there]))


def _column(root: Node, obs: Node, path: str, name: str) -> dict[str, Node]:
    """Return the arrays that hold a column."""
    if hasattr(obs, "columns"):
        series = obs[next(column for column in obs.columns if str(column) == name)]
        return {"values": _Sliced(series)}
    if is_array(obs):
        above = path.removesuffix("obs").rstrip("/")
        categories = get(root, f"{above}/uns/{name}_categories".lstrip("/"))
        parts: dict[str, Node] = {"values": _Field(obs, name)}
    else:
        node = get(obs, name)
        if hasattr(node, "dims"):  # of xarray
            return {"values": _Sliced(node)}
        parts = parts_of(node)
        categories = get(obs, f"{_OLD}/{name}") if set(parts) == {"values"} else None
    if categories is not None and is_array(categories):
        return {"codes": parts["values"], "categories": categories}
    return parts


class _Field:
    """One field of a structured array."""

    def __init__(self, node: Node, name: str) -> None:
        self._node, self._name = node, name
        self.shape, self.dtype = node.shape, node.dtype[name]
        self.chunks = getattr(node, "chunks", None)
        self.shards = getattr(node, "shards", None)

    def __getitem__(self, index: slice) -> Array:
        """Return some values."""
        check = getattr(self._node, "check_codecs", None)
        if check is not None:
            check()
        values: Array = self._node[index][self._name]
        return values


class _Sliced:
    """A column in memory, or of anndata's lazy data frames, of any type."""

    def __init__(self, series: Any) -> None:
        self._series = series
        self.shape = (len(series),)
        self.dtype = getattr(series.dtype, "categories", series).dtype

    def __getitem__(self, index: slice) -> Array:
        """Return some values, as objects."""
        part = getattr(self._series, "iloc", self._series)[index]
        return np.asarray(getattr(part, "values", part), object)
