"""The rows of selected cells, of what an AnnData in a store holds for each cell.

Readers give an array as if it had these rows alone; they are sliced as stored arrays are, decode a
chunk at a time, and are small and picklable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from ..source.layout import Node, attributes_of, children, format_of, get, is_array, text_of
from ..source.selection import Selection

_ROWS_OF = 1 << 12  # of which the entries before the first one are known
_UNCHUNKED = 1 << 18  # values that are read at once where there are no chunks
_WHOLE = ("categories", "__categories")  # not of cells, though beside what is
_GROUPS = ("dataframe", "categorical", "nullable-integer", "nullable-boolean",
           "nullable-string-array", "dict", "raw", None)  # fmt: skip


def has_rows(path: str) -> bool:
    """Whether what is at a path in an AnnData has a row for each cell, or is a group of such."""
    top, *below = path.split("/")
    if any(name in _WHOLE for name in below):
        return False
    return top in ("obs", "obsm", "layers", "X") or path == "raw/X"


def check_rows(node: Node, n_cells: int, path: str = "") -> None:
    """Raise a SourceError if rows of what is below a node cannot be taken."""
    for name in children(node):
        here, child = f"{path}/{name}".lstrip("/"), get(node, name)
        if here == "obsp" or _can_be_taken(child, n_cells, here):
            continue
        if not is_array(child) and (not has_rows(here) or _kind(child) in _GROUPS):
            check_rows(child, n_cells, here)
            continue
        raise SourceError(
            f"{here} is stored so that the rows of some cells cannot be taken a chunk at "
            "a time (as CSC or records, say). Subset the AnnData in Python, and give that without "
            "`cells`."
        )


def _can_be_taken(node: Any, n_cells: int, path: str) -> bool:
    """Whether a node is an array whose rows can be taken, or a CSR matrix, or is copied whole."""
    if is_array(node):
        if not has_rows(path) or not node.shape:
            return True
        return bool(node.shape[0] == n_cells and node.dtype.kind != "V")
    if not has_rows(path) or format_of(node)[0] != "csr":
        return False
    indptr: Any = get(node, "indptr")
    return is_array(indptr) and tuple(indptr.shape) == (n_cells + 1,)


def _kind(group: Node) -> str | None:
    return text_of(attributes_of(group).get("encoding-type"))


class Rows:
    """An array of any dimensions of which some rows are there."""

    def __init__(self, reader: Any, selection: Selection) -> None:
        self._reader, self._selection = reader, selection

    def __getitem__(self, index: Any) -> Array:
        """Return the values at an index of slices."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        cells = self._selection.original(np.arange(first.start, first.stop))
        return pick(self._reader, cells, tuple(rest))


def pick(reader: Any, places: Array, rest: tuple[slice, ...] = ()) -> Array:
    """Return rows at rising places; each chunk that holds some of them is read once."""
    shape, chunks = reader.shape, getattr(reader, "chunks", None)
    unit = int(chunks[0]) if chunks else max(1, _UNCHUNKED // max(1, math.prod(shape[1:])))
    parts = []
    for k in np.unique(places // unit).tolist():
        first, last = k * unit, min((k + 1) * unit, int(shape[0]))
        a, b = np.searchsorted(places, [first, last])
        rows = np.asarray(reader[(slice(first, last), *rest)])
        parts.append(rows[places[a:b] - first])
    return np.concatenate(parts) if parts else np.asarray(reader[(slice(0, 0), *rest)])


class Entries:
    """The stored entries of the selected rows of a CSR matrix."""

    def __init__(self, indptr: Any, selection: Selection) -> None:
        self._indptr, self._selection = indptr, selection
        ends = [0]
        for first in range(0, len(selection), _ROWS_OF):
            ends.append(ends[-1] + int(self._lengths(first)[1].sum()))
        self._ends = np.array(ends)
        self.n_entries = ends[-1]

    def _lengths(self, first: int) -> tuple[Array, Array]:
        """Return where rows start in the store, and their lengths: of a stretch of rows."""
        last = min(first + _ROWS_OF, len(self._selection))
        cells = self._selection.original(np.arange(first, last))
        starts = pick(self._indptr, cells).astype(np.int64)
        return starts, pick(self._indptr, cells + 1).astype(np.int64) - starts

    def starts(self, first: int, last: int) -> Array:
        """Return the new `indptr`, from a row to another one, without the last one's end."""
        parts = []
        for k in range(first // _ROWS_OF, -(-last // _ROWS_OF)):
            lengths: Any = []
            if k * _ROWS_OF < len(self._selection):
                lengths = self._lengths(k * _ROWS_OF)[1]
            ends = self._ends[k] + np.concatenate([[0], np.cumsum(lengths)])
            stop = min(last - k * _ROWS_OF, _ROWS_OF)
            parts.append(ends[max(first - k * _ROWS_OF, 0) : stop])
        return np.concatenate(parts).astype(np.int64)

    def places(self, first: int, last: int) -> Array:
        """Return where the entries from one to another are in the store."""
        parts = [np.empty(0, np.int64)]
        k = int(np.searchsorted(self._ends, first, side="right")) - 1
        while first < last:
            starts, lengths = self._lengths(k * _ROWS_OF)
            ends = self._ends[k] + np.cumsum(lengths)
            stop = min(last, int(self._ends[k + 1]))
            low = np.searchsorted(ends, first, side="right")
            high = np.searchsorted(ends, stop, side="left") + 1
            begins = np.maximum(ends[low:high] - lengths[low:high], first)
            counts = np.minimum(ends[low:high], stop) - begins
            shifts = starts[low:high] - (ends[low:high] - lengths[low:high])
            parts.append(np.arange(first, stop) + np.repeat(shifts, counts))
            first, k = stop, k + 1
        return np.concatenate(parts)


class NewIndptr:
    """The `indptr` of selected rows."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __getitem__(self, index: Any) -> Array:
        """Return the values at an index, which is of one slice."""
        (part,) = index if isinstance(index, tuple) else (index,)
        return self._entries.starts(part.start, part.stop)


class NewEntries:
    """The `indices` or `data` of selected rows."""

    def __init__(self, reader: Any, entries: Entries) -> None:
        self._reader, self._entries = reader, entries

    def __getitem__(self, index: Any) -> Array:
        """Return the values at an index, which is of one slice."""
        (part,) = index if isinstance(index, tuple) else (index,)
        return pick(self._reader, self._entries.places(part.start, part.stop))


def shape_of(attributes: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """Return the attributes of a sparse matrix with so many rows."""
    name = "shape" if "shape" in attributes else "h5sparse_shape"
    return {**attributes, name: [n_rows, int(attributes[name][1])]}
