"""Where the cells are: an embedding of a store, or the points beside an export."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.parquet import CELLS
from ..edge_pairs.parquet_io import embedding_of, read_places
from ..errors import SourceError
from ..machine.buffers import Array
from ..machine.files import is_readable
from ..machine.remote import is_url, plain_name
from ..source.embeddings import stored_embeddings
from .edges import Edges

_READ_ROWS = 1 << 18
_SAMPLE = 1 << 20
_POINTS = re.compile(r"(points_|embeddings/\d+_)([23])d\.bin(\.gz)?")


class Points(NamedTuple):
    """The first two coordinates of all cells in float32; NaN, both, where a cell has no place."""

    name: str
    x: Array
    y: Array
    n_without_place: int


@dataclass(frozen=True)
class Places:
    """An embedding that was found: what it is called, and how its rows are read in order."""

    name: str
    where: str  # the store or file
    rows: Callable[[], Iterator[Array]]
    n_bytes: int  # that reading needs

    def read(self, n_cells: int) -> Points:
        """Return the points; a SourceError if they are of another number of cells."""
        x, y = np.empty(n_cells, np.float32), np.empty(n_cells, np.float32)
        n = 0
        for rows in self.rows():
            if n + len(rows) <= n_cells:
                with np.errstate(over="ignore"):
                    x[n : n + len(rows)], y[n : n + len(rows)] = rows[:, 0], rows[:, 1]
            n += len(rows)
        if n != n_cells:
            raise SourceError(
                f"{self.name} of {self.where} has places for {n} cells, but the graph has "
                f"{n_cells}. Name an embedding of the same cells with `embedding`."
            )
        n_without = 0
        for start in range(0, n_cells, _READ_ROWS):
            part = slice(start, start + _READ_ROWS)
            bad = ~(np.isfinite(x[part]) & np.isfinite(y[part]))
            x[part][bad] = y[part][bad] = np.nan
            n_without += int(np.count_nonzero(bad))
        return Points(self.name, x, y, n_without)


def find_places(
    edges: Edges, source: Any, embedding: str | None, storage_options: Mapping[str, Any] | None
) -> Places:
    """Return the embedding of a name, or the best one.

    It is one of `source`, beside the export, or in the store that the export was made from. A
    SourceError says that there is none, and what there is.
    """
    why: list[str] = []
    beside = list(_beside(edges))
    if embedding is not None:
        beside = [p for p in beside if embedding in (p.name, Path(p.name).name)]
    if source is None and beside:
        return beside[0]
    stores = [source] if source is not None else [edges.source] if edges.source is not None else []
    for store in stores:
        options = storage_options if is_url(plain_name(store)) else None
        name = embedding.removeprefix("obsm/") if embedding is not None else None
        found, reason = stored_embeddings(store, edges.n_cells, options, key=edges.key, name=name)
        if found:
            name, _, rows, n_bytes = found[0]
            return Places(name, _called(store), partial(rows, 2), 3 * n_bytes)
        why.append(f"{_called(store)}: {reason}")
    if edges.is_export and source is None:
        names = ", ".join(places.name for places in _beside(edges))
        why.insert(0, f"beside the export there are {names or 'no points'}")
    what = "no embedding" if embedding is None else f"no embedding {embedding!r}"
    remedy = (
        "Name a store that has one with `source`"
        if edges.is_export
        else "Compute one, for example with scanpy.tl.umap"
    )
    raise SourceError(
        f"{edges.name} has {what} to be drawn in ({'; '.join(why)}). {remedy}, or name "
        "another with `embedding`."
    )


def _called(store: Any) -> str:
    name = plain_name(store)
    return name if isinstance(name, str) else f"{type(store).__name__} in memory"


def _beside(edges: Edges) -> Iterator[Places]:
    """Yield the points in the folder of an export, two dimensions first."""
    folder, table = edges.folder, edges.table
    if folder is None:
        return
    if table is not None:
        path = folder / CELLS
        name = embedding_of(path) if table.cells is not None else None
        if name is not None:
            yield Places(name, str(path), lambda: read_places(path, _READ_ROWS), 64 * _READ_ROWS)
        return
    names = [f"points_{d}d.bin{end}" for d in (2, 3) for end in ("", ".gz")]
    names += [f"embeddings/{p.name}" for p in sorted(folder.glob("embeddings/*d.bin*"))]
    found = [(m[2], name) for name in names if (m := _POINTS.fullmatch(name))]
    for dim, name in sorted(found, key=lambda pair: pair[0]):
        path = folder / name
        if path.is_file() and is_readable(path, folder):
            yield Places(name, str(folder), _rows_of(path, int(dim)), 12 * _READ_ROWS)


def _rows_of(path: Path, dim: int) -> Callable[[], Iterator[Array]]:
    """Return what reads a file of cellucid: float32, cell after cell."""

    def rows() -> Iterator[Array]:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            rest = b""
            while part := file.read(4 * dim * _READ_ROWS):
                rest += part
                n = len(rest) // (4 * dim)
                yield np.frombuffer(rest, "<f4", n * dim).reshape(n, dim)
                rest = rest[4 * dim * n :]

    return rows


def shown_range(values: Array) -> tuple[float, float]:
    """Return the range of coordinates that a picture shows: all, but for what lies far away.

    Values are far away that are further from nearly all others than those are from each other.
    """
    low, high = _ends(values)
    sample = values[:: max(1, values.size // _SAMPLE)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if sample.size:
        inner, outer = np.quantile(sample, [0.002, 0.998])
        reach = max(outer - inner, np.finfo(np.float32).tiny)
        low, high = max(low, inner - reach), min(high, outer + reach)
    margin = 0.02 * (high - low) or max(abs(high), 1.0) * 0.5
    return low - margin, high + margin


def _ends(values: Array) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for start in range(0, values.size, _READ_ROWS):
        part = values[start : start + _READ_ROWS]
        part = part[np.isfinite(part)]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return (low, high) if low <= high else (0.0, 0.0)
