"""The edges in a folder of Parquet files, one row group after the other, with every row checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..errors import InvalidExportError
from ..machine.buffers import Array
from .format import check_readable
from .parquet import GraphTable, TableFile
from .parquet_io import TableReader, reading_bytes
from .reader import SLAB_EDGES, Slab


def edges_bytes(table: GraphTable) -> int:
    """Return the most bytes that `stream_edges` needs: a row group, its checks and its half.

    A slab of it may be looked at too.
    """
    row = sum(dtype.itemsize for dtype in table.columns.values())
    return reading_bytes(table.columns) + table.row_group * (row + 8) + SLAB_EDGES * 128


def stream_edges(
    out_dir: Path, table: GraphTable, look: Callable[[Slab], None] | None = None
) -> Iterator[Slab]:
    """Yield all edges with source < destination, in order; those of a row group at a time.

    `look` is called with all rows, both directions if there are both. An InvalidExportError says
    that a file is missing or is not of this graph, or that rows do not rise or name no cells.
    """
    before = (-1, -1)
    first = n_edges = 0
    for file in table.files:
        with closing(_open(out_dir, table, file)) as reader:
            start = 0
            for group in range(reader.n_groups):
                src, dst, *weights = reader.read(group)
                bad = _first_bad(table, src, dst, before)
                if bad >= 0:
                    previous = (int(src[bad - 1]), int(dst[bad - 1])) if bad else before
                    raise InvalidExportError(
                        f"row {start + bad} of {out_dir / file.name} is ({src[bad]}, {dst[bad]}) "
                        f"after {previous}; rows must rise, of cells below {table.n_cells}, with "
                        f"source {'other than' if table.directions == 'both' else '<'} destination."
                    )
                rows = Slab(first + start, src, dst, *weights)
                if look is not None:
                    look(rows)
                if table.directions == "both":
                    upper = src < dst
                    rows = Slab(0, src[upper], dst[upper], *(column[upper] for column in weights))
                yield rows._replace(start=n_edges)
                n_edges += rows.src.size
                start += src.size
                before = (int(src[-1]), int(dst[-1]))
            first += file.rows


def _open(out_dir: Path, table: GraphTable, file: TableFile) -> TableReader:
    """Open a file of edges; what it says of the graph must be what the manifest says."""
    check_readable(out_dir / file.name, out_dir)
    reader = TableReader(out_dir / file.name, table.columns, file.rows, table.row_group)
    found = reader.metadata
    if found != table.metadata:
        reader.close()
        raise InvalidExportError(
            f"{out_dir / file.name} is of another graph: it tells of {found}, and the manifest of "
            f"{table.metadata}."
        )
    return reader


def _first_bad(table: GraphTable, src: Array, dst: Array, before: tuple[int, int]) -> int:
    """Return the first row that is out of order, of no cell or of one alone; -1 if none is."""
    bad = (src < 0) | (dst < 0) | (src >= table.n_cells) | (dst >= table.n_cells)
    bad |= src >= dst if table.directions == "one" else src == dst
    bad[1:] |= (src[1:] < src[:-1]) | ((src[1:] == src[:-1]) & (dst[1:] <= dst[:-1]))
    if src.size:
        bad[0] |= (int(src[0]), int(dst[0])) <= before
    return int(np.argmax(bad)) if bad.any() else -1
