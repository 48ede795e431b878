"""Does the graph belong to the cells' order? Edges held against an embedding.

If the rows of the matrix were in another order than the cells, every file would be sound and the
picture nonsense. But neighbors lie near each other in an embedding of the same cells. So some
edges ``(i, j)`` are picked at random, and the distance of i and j in the embedding is compared with
that of i and j', the other end of another picked edge. The *alignment* is the share of edges that
are the shorter of the two, ties counting half: near 1 if graph and embedding belong together, near
1/2 if one is shuffled against the other. It does not depend on the embedding's scale or outliers,
nor on some cells having more neighbors than others.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..machine.buffers import Array
from ..machine.files import is_readable
from ..source.embeddings import Embedding
from .observer import Observer

N_SAMPLES = 4_096  # edges that are picked
LEAST_SAMPLES = 50  # fewer tell nothing
SHUFFLED_BELOW = 0.65  # an alignment that graphs of the same cells have not been seen to have
_READ_BYTES = 1 << 22
Stored = tuple[list[Embedding], str]  # embeddings; if there are none, why


@dataclass(frozen=True)
class Alignment:
    """How the graph lies in an embedding, by edges sampled at random."""

    embedding: str
    n_sampled: int
    value: float  # share of edges shorter than a random pair: near 1 is good, near 0.5 is random
    shuffled: bool  # whether the graph looks shuffled against the embedding


def find_embeddings(
    out_dir: Path, n_cells: int, stored: Callable[[], Stored] | None
) -> Iterator[Stored]:
    """Yield embeddings that could be looked at, best first: files of cellucid, then `obsm`.

    Where there are none, a reason is yielded with an empty list.
    """
    names = [f"points_{dim}d.bin{suffix}" for dim in (2, 3) for suffix in ("", ".gz")]
    found = [name for name in names if (out_dir / name).is_file()]
    for name in found:
        if is_readable(out_dir / name, out_dir):
            yield [_points(out_dir / name, int(name[7]), n_cells)], ""
        else:
            yield [], f"{name} is a link out of the export's folder"
    if not found:
        yield [], "no points_2d.bin or points_3d.bin is beside the export"
    yield stored() if stored is not None else ([], "no source with embeddings was named")


def align(
    samples: Array, embedding: Embedding, observer: Observer | None = None
) -> Alignment | None:
    """Compare sampled edges, ``(2, n)``, with random pairs; None if there are too few."""
    n = samples.shape[1]
    if n < LEAST_SAMPLES:
        return None
    samples = samples[:, np.random.default_rng(0).permutation(n)]
    src, dst = samples
    other = np.roll(dst, 1)  # they are in random order
    cells, places = np.unique(np.concatenate([src, dst]), return_inverse=True)
    coordinates = embedding.take(cells).astype(np.float64)
    at_src, at_dst = coordinates[places[:n]], coordinates[places[n:]]
    usable = np.isfinite(at_src).all(1) & np.isfinite(at_dst).all(1)
    usable &= np.roll(usable, 1)
    usable &= (other != src) & (other != dst)
    edge = ((at_src - at_dst) ** 2).sum(1)[usable]
    random = ((at_src - np.roll(at_dst, 1, axis=0)) ** 2).sum(1)[usable]
    if edge.size < LEAST_SAMPLES:
        return None
    value = float(((edge < random) + 0.5 * (edge == random)).mean())
    if observer is not None:
        observer.measured(np.sqrt(edge), np.sqrt(random))
    # Few samples scatter: only what is clearly below the line is called shuffled.
    doubt = 2 * math.sqrt(0.25 / edge.size)
    return Alignment(
        embedding.name, int(edge.size), round(value, 4), value + doubt < SHUFFLED_BELOW
    )


def _points(path: Path, dim: int, n_cells: int) -> Embedding:
    """Return the points of a file of cellucid: float32, cell after cell."""
    row_bytes = 4 * dim

    def check(n_bytes: int, more: str = "") -> None:
        if n_bytes != n_cells * row_bytes:
            raise ValueError(
                f"it has {n_bytes}{more} bytes, but {n_cells} cells need {n_cells * row_bytes}"
            )

    def take(cells: Array) -> Array:
        out = np.empty((cells.size, dim), "<f4")
        if path.suffix != ".gz":
            check(path.stat().st_size)
            with path.open("rb") as file:
                for k, cell in enumerate(cells.tolist()):
                    row = os.pread(file.fileno(), row_bytes, row_bytes * cell)
                    out[k] = np.frombuffer(row, "<f4")
            return out
        with gzip.open(path) as unpacked:
            n_rows = _READ_BYTES // row_bytes
            for first in range(0, n_cells, n_rows):
                raw = unpacked.read(row_bytes * n_rows)
                if len(raw) != row_bytes * min(n_rows, n_cells - first):
                    check(first * row_bytes + len(raw))
                rows = np.frombuffer(raw, "<f4").reshape(-1, dim)
                a, b = np.searchsorted(cells, [first, first + n_rows])
                out[a:b] = rows[cells[a:b] - first]
            if unpacked.read(1):
                check(n_cells * row_bytes + 1, " or more")
        return out

    return Embedding(path.name, take)
