"""The table of cells beside the edges: number, name, and place in the best embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs import parquet_io
from ..edge_pairs.parquet import CELLS, TableFile, table_columns
from ..machine.buffers import Array
from ..source.embeddings import Embedding, stored_embeddings
from ..source.names import Names, open_names

_AXES = ("x", "y", "z")
_ROWS = 1 << 17  # of a row group
_MOST_CHUNK_BYTES = 1 << 24  # of an embedding, that are read at once


@dataclass(frozen=True)
class CellsTable:
    """What the table of cells is made from: the store of a matrix, and where in it that is.

    Writing it needs at most `n_bytes` of memory.
    """

    source: Any = field(repr=False)
    storage_options: Mapping[str, Any] | None = field(repr=False)
    key: str
    n_cells: int
    n_bytes: int

    def write(self, folder: Path) -> TableFile:
        """Write the table into a folder, durably."""
        n_cells = self.n_cells
        embedding, axes = self._embedding(n_cells)
        columns: dict[str, Any] = {"cell": table_columns(n_cells, weighted=False)["src"]}
        columns |= {"name": str} | axes
        metadata = {"n_cells": str(n_cells)}
        if embedding is not None:
            metadata["embedding"] = embedding.name
        with open_names(self.source, n_cells, self.storage_options, key=self.key) as names:
            groups = _groups(n_cells, columns, names, embedding)
            written = parquet_io.write_table(folder / CELLS, columns, metadata, 1, groups)
        return TableFile(CELLS, n_cells, *written)

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
    source: Any, n_cells: int, storage_options: Mapping[str, Any] | None = None, key: str = ""
) -> CellsTable:
    """Return what the table of cells is made from; a SourceError if the cells have no names."""
    with open_names(source, n_cells, storage_options, key=key) as names:
        row = 200 + 8 * (1 + len(_AXES))
        n_bytes = names.n_bytes + _ROWS * row + 2 * _MOST_CHUNK_BYTES
    return CellsTable(source, storage_options, key, n_cells, n_bytes)


def _groups(
    n_cells: int, columns: Mapping[str, Any], names: Names, embedding: Embedding | None
) -> Iterator[list[Any]]:
    for start in range(0, n_cells, _ROWS):
        stop = min(start + _ROWS, n_cells)
        cells = np.arange(start, stop)
        group: list[Any] = [cells.astype(columns["cell"]), names.read(start, stop)]
        if embedding is not None:
            places: Array = embedding.take(cells)
            axes = list(columns.values())[2:]
            group += [places[:, k].astype(dtype) for k, dtype in enumerate(axes)]
        yield group
