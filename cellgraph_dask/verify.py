"""Checking an export on disk, from its files alone, in bounded memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import kernels
from .edge_pairs import index_dtype, iter_edges, read_manifest
from .errors import CellgraphError, InvalidExportError
from .progress import Progress
from .publish import read_identity

_RANGE_CELLS = 1 << 24  # cells whose degrees are counted in one pass: 128 MB


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes
    ----------
    ok : bool
        Whether nothing is wrong.
    problems : tuple of str
        What is wrong, and where.
    n_cells, n_edges, max_neighbors : int or None
        What the manifest says; None if it could not be read.
    """

    ok: bool
    problems: tuple[str, ...]
    n_cells: int | None = None
    n_edges: int | None = None
    max_neighbors: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict())


def verify(out_dir: Path, progress: Progress) -> VerifyReport:
    """Check manifest, file sizes, dtype, order, largest degree, gzip, and the dataset's identity.

    Parameters
    ----------
    out_dir
        Folder of the export.
    progress
        Told of the edges looked at.

    Returns
    -------
    VerifyReport
    """
    try:
        manifest = read_manifest(out_dir)
    except InvalidExportError as error:
        return VerifyReport(False, (str(error),))
    problems: list[str] = []
    try:
        identity = read_identity(out_dir, manifest.n_cells)
    except CellgraphError as error:
        identity = None
        problems.append(str(error))
    if identity is not None:
        for name, expected in (("has_connectivity", True), ("n_edges", manifest.n_edges)):
            found = identity["stats"].get(name)
            # No number at all: an export was killed as it brought it up to date.
            if found != expected and not (name == "n_edges" and found is None):
                problems.append(
                    f"dataset_identity.json: stats.{name} is {found!r}, not {expected!r}."
                )
    try:
        problems += _check_edges(out_dir, progress)
    except InvalidExportError as error:
        problems.append(str(error))
    return VerifyReport(
        not problems, tuple(problems), manifest.n_cells, manifest.n_edges, manifest.max_neighbors
    )


def _check_edges(out_dir: Path, progress: Progress) -> list[str]:
    """Stream the edges; return what is wrong with them."""
    manifest = read_manifest(out_dir)
    item = index_dtype(manifest.n_cells).itemsize
    ranges = range(0, max(manifest.n_cells, 1), _RANGE_CELLS)
    progress.start("verify", manifest.n_edges * len(ranges), "edges")
    largest = 0
    for first_cell in ranges:
        degrees = np.zeros(min(_RANGE_CELLS, manifest.n_cells - first_cell), np.int64)
        last, position = (-1, -1), 0
        for src, dst in iter_edges(out_dir, manifest):
            bad = kernels.first_unsorted_edge(src, dst, *last, manifest.n_cells)
            if bad >= 0:
                before = (int(src[bad - 1]), int(dst[bad - 1])) if bad else last
                return [
                    f"edge {position + bad} (byte {(position + bad) * item}) is "
                    f"({src[bad]}, {dst[bad]}) after {before}; edges must rise, with source < "
                    f"destination < {manifest.n_cells}."
                ]
            for cells in (src, dst):
                kernels.count_in_range(cells, first_cell, degrees)
            if src.size:
                last = (int(src[-1]), int(dst[-1]))
            position += src.size
            progress.advance(src.size)
        largest = max(largest, int(degrees.max(initial=0)))
    if largest != manifest.max_neighbors:
        return [
            f"max_neighbors is {manifest.max_neighbors} in the manifest, but the largest degree of "
            f"the edges is {largest}."
        ]
    return []
