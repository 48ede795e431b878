"""A graph as a folder of Parquet files: names, dtypes, and the manifest ``_graph.json``.

``edges-00000.parquet`` and so on hold the columns ``src``, ``dst`` and maybe ``weight``, sorted by
source and destination, each a range of sources. What begins with an underscore is passed over by
pandas, pyarrow and Spark when they read a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import accumulate
from typing import Any

import numpy as np

from ..errors import InvalidExportError
from ..machine.remote import AnyPath
from .format import ABSENT, MANIFEST, check_readable, read_json
from .provenance import Provenance, printable

GRAPH = "_graph.json"
CELLS = "cells.parquet"
FORMAT = "parquet"
MOST_ROWS = 1 << 20  # in a row group

DIRECTIONS = ("one", "both")
RULES = ("ones", "max", "min", "mean", "sum", "fuzzy")
_SHA256 = re.compile("[0-9a-f]{64}")


def edges_name(number: int) -> str:
    """Return the name of a file of edges."""
    return f"edges-{number:05d}.parquet"


def table_columns(n_cells: int, *, weighted: bool) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of the columns.

    Cells are signed, as libraries for graphs take them. Weights are as the rule gives them, so they
    are exact for every matrix and rule.
    """
    cell = np.dtype(np.int32 if n_cells <= 2**31 - 1 else np.int64)
    return {"src": cell, "dst": cell} | ({"weight": np.dtype(np.float64)} if weighted else {})


@dataclass(frozen=True)
class TableFile:
    """A Parquet file, as the manifest tells of it."""

    name: str
    rows: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphTable:
    """What ``_graph.json`` says.

    Attributes
    ----------
    n_cells, n_edges, max_neighbors : int
        Cells, undirected edges, the largest degree.
    rule : str
        How the weight of a pair comes of its two directions.
    directions : {"one", "both"}
        Whether an edge is there once, with source < destination, or in both directions.
    weighted : bool
        Whether there is a column `weight`, float64.
    row_group : int
        Rows of each row group of a file but the last one.
    made_from : Provenance
        Source, key, options, fingerprint and version.
    files : tuple of TableFile
        Files of edges, in order.
    cells : TableFile or None
        The table of cells, if there is one.
    """

    n_cells: int
    n_edges: int
    max_neighbors: int
    rule: str
    directions: str
    weighted: bool
    row_group: int
    made_from: Provenance
    files: tuple[TableFile, ...] = field(repr=False)
    cells: TableFile | None = None

    @property
    def columns(self) -> dict[str, np.dtype[Any]]:
        """Dtypes of the columns."""
        return table_columns(self.n_cells, weighted=self.weighted)

    @property
    def all_files(self) -> tuple[TableFile, ...]:
        """Files of edges, and of cells if there is one."""
        return (*self.files, *([self.cells] if self.cells is not None else []))

    @property
    def n_rows(self) -> int:
        """Rows of all files of edges."""
        return self.n_edges * (2 if self.directions == "both" else 1)

    @property
    def starts(self) -> list[int]:
        """Number of the first row of each file, and of all rows."""
        return [0, *accumulate(file.rows for file in self.files)]

    @property
    def metadata(self) -> dict[str, str]:
        """What each file says of the graph: its key-value metadata."""
        told = self.made_from
        return metadata_of(
            self.n_cells, self.n_edges, self.rule, self.directions, told.source, told.key,
            told.version,
        )  # fmt: skip

    def to_json(self) -> str:
        """Return the manifest's text; it ends in a digest of the rest."""
        told = {"format": FORMAT} | asdict(self)
        told["columns"] = {name: dtype.name for name, dtype in self.columns.items()}
        for name in ("source", "key"):
            told["made_from"][name] = printable(told["made_from"][name])
        digest = sha256(json.dumps(told).encode()).hexdigest()
        return json.dumps(told | {"sha256": digest}, indent=2) + "\n"


def metadata_of(
    n_cells: int, n_edges: int, rule: str, directions: str, source: str, key: str, version: str
) -> dict[str, str]:
    """Return the key-value metadata of the files."""
    return {
        "n_cells": str(n_cells),
        "n_edges": str(n_edges),
        "rule": rule,
        "directions": directions,
        "source": printable(source),
        "key": printable(key),
        "version": version,
    }


def is_parquet(out_dir: AnyPath) -> bool:
    """Whether a folder holds a graph in Parquet, and none in edge files."""
    return (out_dir / GRAPH).exists() and not (out_dir / MANIFEST).exists()


def read_graph_table(out_dir: AnyPath) -> GraphTable:
    """Return the manifest of a folder; InvalidExportError if it is not as it was written."""
    path = out_dir / GRAPH
    check_readable(path, out_dir)
    try:
        found = read_json(path, out_dir)
    except ABSENT:
        raise InvalidExportError(
            f"{out_dir} holds no {GRAPH}; there is no export, or it was never finished."
        ) from None
    try:
        table = _parse(found)
        whole = path.read_text() == table.to_json()
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        whole = False
    if not whole:
        raise InvalidExportError(
            f"{path} is not as an export has written it; its text was changed. Export again."
        )
    return table


def _parse(found: Mapping[str, Any]) -> GraphTable:
    """Return what a manifest says; an error if that cannot be."""
    names = ("n_cells", "n_edges", "max_neighbors", "rule", "directions", "weighted",
             "row_group")  # fmt: skip
    cells = found["cells"]
    table = GraphTable(
        **{name: found[name] for name in names},
        made_from=Provenance(**found["made_from"]),
        files=tuple(TableFile(**file) for file in found["files"]),
        cells=TableFile(**cells) if cells is not None else None,
    )
    files = table.all_files
    counts = [table.n_cells, table.n_edges, table.max_neighbors]
    counts += [n for file in files for n in (file.rows, file.n_bytes)]
    expected = [edges_name(k) for k in range(len(table.files))]
    expected += [CELLS] if table.cells is not None else []
    sound = (
        all(type(n) is int and 0 <= n < 2**63 for n in counts)
        and table.made_from.is_sound
        and table.rule in RULES
        and table.directions in DIRECTIONS
        and type(table.weighted) is bool
        and type(table.row_group) is int
        and 0 < table.row_group <= MOST_ROWS
        and table.starts[-1] == table.n_rows
        and [file.name for file in files] == expected
        and all(_SHA256.fullmatch(file.sha256) for file in files)
        and (table.cells is None or table.cells.rows == table.n_cells)
    )
    if not sound:
        raise ValueError("figures that cannot be")
    return table
