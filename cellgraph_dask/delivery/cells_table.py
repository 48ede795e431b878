"""The table of cells beside the edges: number, name, and place in the best embedding.

Of selected cells there is always one; beside edge files it is a text with a name on each line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs import parquet_io
from ..edge_pairs.format import cells_name
from ..edge_pairs.parquet import CELLS, TableFile, table_columns
from ..machine.buffers import Array
from ..machine.files import append, opened
from ..source.embeddings import Embedding, stored_embeddings
from ..source.names import LEAVE, Names, open_names
from ..source.selection import Selection, lines_of
from ..source.texts import ADVICE

_AXES = ("x", "y", "z")
_ROWS = 1 << 17  # of a row group
_LINE_BYTES = 100  # of a name that is written, before and after it is encoded
_MOST_CHUNK_BYTES = 1 << 24  # of an embedding, that are read at once


@dataclass(frozen=True, eq=False)
class CellsTable:
    """What the table of cells is made from: the store of a matrix, and where in it that is.

    `n_cells` are in the store, and all of them in the table if there is no `selection`. Writing it
    needs at most `n_bytes` of memory.
    """

    source: Any = field(repr=False)
    storage_options: Mapping[str, Any] | None = field(repr=False)
    key: str
    n_cells: int
    n_bytes: int
    names_bytes: int  # the same, of the names alone
    selection: Selection | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What tells the selection from others; nothing if there is none."""
        return self.selection.options if self.selection is not None else {}

    def write(self, folder: Path) -> TableFile:
        """Write the table into a folder, durably."""
        n_cells = len(self.selection) if self.selection is not None else self.n_cells
        embedding, axes = self._embedding(self.n_cells)
        columns: dict[str, Any] = {"cell": table_columns(n_cells, weighted=False)["src"]}
        columns |= {"name": str} | axes
        metadata = {"n_cells": str(n_cells)}
        if embedding is not None:
            metadata["embedding"] = embedding.name
        with self._names() as names:
            groups = _groups(_parts(names, self.selection), columns, embedding)
            written = parquet_io.write_table(folder / CELLS, columns, metadata, 1, groups)
        return TableFile(CELLS, n_cells, *written)

    def check_names(self) -> None:
        """Raise a SourceError if the names of the selected cells cannot be written as a text."""
        assert self.selection is not None
        with self._names() as names:
            for _ in lines_of(names, self.selection):
                pass

    def write_names(self, folder: Path) -> str:
        """Write the names of the selected cells to a text beside edge files, durably.

        Return its SHA-256. A SourceError says that a cell has no name that a line can hold.
        """
        assert self.selection is not None
        digest = sha256()
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        with self._names() as names, opened(folder / cells_name(), flags) as fd:
            for lines in lines_of(names, self.selection):
                append(fd, lines)
                digest.update(lines)
            os.fsync(fd)
        return digest.hexdigest()

    def _names(self) -> AbstractContextManager[Names]:
        advice = LEAVE if self.selection is None else ADVICE
        options = self.storage_options
        return open_names(self.source, self.n_cells, options, key=self.key, advice=advice)

    def _embedding(self, n_cells: int) -> tuple[Embedding | None, dict[str, np.dtype[Any]]]:
        """Return the best embedding, and the dtypes of its first columns; none if there is none."""
        found, _ = stored_embeddings(
            self.source, n_cells, self.storage_options, key=self.key, most_bytes=_MOST_CHUNK_BYTES
        )
        if not found:
            return None, {}
        first = found[0].take(np.arange(min(n_cells, 1)))
        narrow = first.dtype.kind == "f" and first.dtype.itemsize <= 4
        dtype = np.dtype(np.float32 if narrow else np.float64)
        return found[0], dict.fromkeys(_AXES[: first.shape[1]], dtype)


def table_of_cells(
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, key: str = "",
    selection: Selection | None = None,
) -> CellsTable:  # fmt: skip
    """Return what the table of cells is made from; a SourceError if the cells have no names."""
    table = CellsTable(source, storage_options, key, n_cells, 0, 0, selection)
    with table._names() as names:
        row = 200 + 8 * (1 + len(_AXES))
        n_bytes = names.n_bytes + (1 + (selection is not None)) * _ROWS * row
        n_bytes += 2 * _MOST_CHUNK_BYTES
        names_bytes = names.n_bytes + _LINE_BYTES * names.step
    return replace(table, n_bytes=n_bytes, names_bytes=names_bytes)


def _parts(
    names: Names, selection: Selection | None
) -> Iterator[tuple[int, Array, list[str | None]]]:
    """Yield rows of the table: the first one's number, cells of the store, and their names."""
    if selection is None:
        for start in range(0, names.n_cells, _ROWS):
            stop = min(start + _ROWS, names.n_cells)
            yield start, np.arange(start, stop), names.read(start, stop)
        return
    first, cells, texts = 0, [np.empty(0, np.int64)], list[str | None]()
    for found, some in selection.names(names):
        cells.append(found)
        texts += some
        while len(texts) >= _ROWS:
            joined = np.concatenate(cells)
            yield first, joined[:_ROWS], texts[:_ROWS]
            first, cells, texts = first + _ROWS, [joined[_ROWS:]], texts[_ROWS:]
    if texts:
        yield first, np.concatenate(cells), texts


def _groups(
    parts: Iterable[tuple[int, Array, list[str | None]]], columns: Mapping[str, Any],
    embedding: Embedding | None,
) -> Iterator[list[Any]]:  # fmt: skip
    for first, cells, names in parts:
        numbers = np.arange(first, first + cells.size)
        group: list[Any] = [numbers.astype(columns["cell"]), names]
        if embedding is not None:
            places: Array = embedding.take(cells)
            axes = list(columns.values())[2:]
            group += [places[:, k].astype(dtype) for k, dtype in enumerate(axes)]
        yield group
