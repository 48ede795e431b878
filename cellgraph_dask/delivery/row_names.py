"""The index of a data frame as one array of texts, as all readers of AnnData take it.

AnnData 0.13 writes an index as a group: texts, and which of them are missing. An index of
categories is a group too. Today's viewer looks for an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..machine.buffers import Array
from ..source.layout import Node, attributes_of, children, get, is_array, metadata_of, text_of
from ..source.opening import Root
from .zarr_files import CHUNK_VALUES

TEXT_BYTES = 200  # of a name, as Python and its codec have it
_OPENED = ("obs", "var", "raw/var")  # the data frames that the viewer opens
_AT_ONCE = 1 << 20  # values that are looked at together, and categories


class Index(NamedTuple):
    """An index that is a group: what reads it as texts, or why that cannot be."""

    path: str  # from its AnnData
    length: int = 0
    texts: Any = None
    n_categories: int = 0
    flaw: str = ""

    @property
    def n_bytes(self) -> int:
        """The most bytes that categories and a chunk of their texts take."""
        return TEXT_BYTES * (self.n_categories and self.n_categories + 2 * CHUNK_VALUES)

    @property
    def note(self) -> str:
        """What the user should know of an index that cannot be written as texts, if it counts."""
        if not self.flaw or self.path.rpartition("/")[0] not in _OPENED:
            return ""
        return _note(self.path, f"{self.flaw}: it is copied as it is", "Name all rows before.")


class _Categories:
    """Texts of which an array has the numbers; picklable where that is."""

    def __init__(self, codes: Any, categories: Array) -> None:
        self._codes, self._categories = codes, categories
        self.shape, self.chunks = codes.shape, getattr(codes, "chunks", None)

    def __getitem__(self, corner: Any) -> Array:
        """Return texts, as objects."""
        texts: Array = self._categories[np.asarray(self._codes[corner])]
        return texts


def index_groups(root: Root, node: Node, *, skip: str, path: str = "") -> Iterator[Index]:
    """Yield the indexes that are groups, of all data frames below a group but for those in `skip`.

    What tells which names are missing is read for that.
    """
    named = text_of(attributes_of(node).get("_index"))
    for name in children(node):
        child, inner = get(node, name), f"{path}/{name}".lstrip("/")
        if inner == skip or is_array(child):
            continue
        if name == named:
            with metadata_of(inner):
                yield _index(root, child, inner)
        else:
            yield from index_groups(root, child, skip=skip, path=inner)


def _note(path: str, what: str, remedy: str) -> str:
    return (
        f"{path} {what}, and `cellucid serve` opens a store only if the names of cells and genes "
        f"are arrays of texts. {remedy}"
    )


def notes_in_place(anndata: Node) -> Iterator[str]:
    """Yield what the user should know of the indexes of a store that stays as it is."""
    for path in _OPENED:
        frame = get(anndata, path)
        named = None if frame is None else text_of(attributes_of(frame).get("_index"))
        index = get(frame, named) if named else None
        if index is not None and not is_array(index):
            remedy = "Write to a new store, in which they are."
            yield _note(f"{path}/{named}", "is a group, as anndata 0.13 writes it", remedy)


def texts_in(root: Root, array: Node) -> Any:
    """Return what reads an array of texts: zarr itself, or what opens the file for each part."""
    return array if hasattr(array, "objects") else root.dense(array)


def unnamed_in(adata: Any) -> list[str]:
    """Return the notes on the indexes of an AnnData in memory."""
    raw = getattr(adata, "raw", None)
    frames = (adata.obs, adata.var, getattr(raw, "var", None))
    return [
        Index(f"{path}/index", flaw=_unnamed(int(frame.index.isna().argmax()))).note
        for path, frame in zip(_OPENED, frames, strict=True)
        if getattr(getattr(frame, "index", None), "hasnans", False)
    ]


def _index(root: Root, node: Node, path: str) -> Index:
    values, mask, codes, categories = (
        get(node, name) for name in ("values", "mask", "codes", "categories")
    )
    length, n = _length(values), _length(categories)
    if length is not None and length == _length(mask):
        missing = _first(root.dense(mask), length, lambda part: part != 0)
        return Index(path, length, texts_in(root, values), flaw=_unnamed(missing))
    length = _length(codes)
    if n is None or length is None:
        return Index(path, flaw="is of a kind that only anndata knows")
    if n > _AT_ONCE:
        return Index(path, flaw=f"has {n:,} categories, which is too many to write it anew")
    reader = root.dense(codes)
    missing = _first(reader, length, lambda part: (part < 0) | (part >= n))
    found = np.asarray(texts_in(root, categories)[0:n]).tolist()
    texts = np.array([x.decode() if isinstance(x, bytes) else str(x) for x in found], object)
    return Index(path, length, _Categories(reader, texts), n, _unnamed(missing))


def _length(node: Node | None) -> int | None:
    """Return the length of an array with one dimension; None of anything else."""
    if node is None or not is_array(node) or len(node.shape or ()) != 1:
        return None
    return int(node.shape[0])


def _first(reader: Any, length: int, test: Callable[[Array], Array]) -> int:
    """Return where the first value is that passes a test; -1 if none does."""
    for start in range(0, length, _AT_ONCE):
        found = np.flatnonzero(test(np.asarray(reader[start : start + _AT_ONCE])))
        if found.size:
            return start + int(found[0])
    return -1


def _unnamed(row: int) -> str:
    return "" if row < 0 else f"has no name for row {row}"
