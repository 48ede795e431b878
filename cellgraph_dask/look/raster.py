"""Edges become counts by pixel: the one module that knows datashader.

Each thread draws slabs of edges and adds them to counts of its own, so that memory is bound by the
slabs, the points and the pixels, and not by the edges.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InvalidExportError, OutputError
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.progress import Progress
from .edges import Edges, Part
from .points import Points

SLAB_EDGES = 1 << 17
_CHANCE_PAIRS = 20_000
_MOST_HIGHLIGHTED = 100_000  # edges of the cells that are highlighted
_EDGE_BYTES = 120  # of an edge that is drawn: its cells, ends, length, as datashader has them


def check_extra() -> None:
    """Raise an OutputError if the extra for pictures is not installed."""
    try:
        import datashader  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "pictures are drawn with datashader and matplotlib, which are not installed "
            "(pip install 'cellgraph-dask[plot]')."
        ) from error


@dataclass
class Sums:
    """What was drawn, by pixel (rows from the bottom) and in all."""

    counts: Array  # of edges
    sums: list[Array]  # of what edges bring along, in float64
    n_drawn: int = 0
    n_without_place: int = 0  # edges with an end that has no place
    n_longer: int = 0  # than the median pair of cells at random
    highlighted: list[Array] = field(default_factory=list)  # (2, n): cells of edges
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Canvas:
    """Where edges are drawn: pixels, and the stretch of the embedding that they show."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]


@dataclass(frozen=True)
class Paint:
    """What each edge brings along: sums of its values give the color of a pixel.

    Of categories `values` are codes, and an edge brings red, green and blue of the category of both
    its ends, or of the last row of `colors` if they differ. Of numbers it brings the mean of both
    ends, and a one if that is a number.
    """

    values: Array
    colors: Array | None = None  # (categories + 1, 3) float32

    @property
    def n_sums(self) -> int:
        """Number of sums by pixel."""
        return 2 if self.colors is None else 3

    def of_edges(self, src: Array, dst: Array) -> list[Array]:
        """Return what edges bring along."""
        one, other = self.values[src], self.values[dst]
        if self.colors is None:
            mean = (one + other) / 2
            known = np.isfinite(mean)
            return [np.where(known, mean, np.float32(0)), known.astype(np.float32)]
        found = self.colors[np.where(one == other, one, -1)]
        return [np.ascontiguousarray(found[:, k]) for k in range(3)]


def drawing_bytes(edges: Edges, canvas: Canvas, n_sums: int, threads: int) -> int:
    """Return the most bytes that `draw` needs, besides points and paint."""
    pixels = canvas.width * canvas.height
    of_pixels = pixels * (4 + 8 * n_sums)
    slab = SLAB_EDGES * (_EDGE_BYTES + 24 * n_sums)
    of_thread = slab + edges.part_bytes + 2 * of_pixels + pixels
    return of_pixels + edges.stream_bytes + threads * of_thread


def warm_up(n_sums: int) -> None:
    """Load and compile what drawing takes, so that it is counted as taken."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    canvas = Canvas(8, 8, (0, 1), (0, 1))
    zeros = np.zeros(2, np.float32)
    _aggregate(canvas, {name: zeros for name in ("x0", "x1", "y0", "y1")}, [zeros] * n_sums)


def _aggregate(canvas: Canvas, ends: dict[str, Array], brought: list[Array]) -> Any:
    import datashader as ds
    import pandas as pd

    names = [f"sum{k}" for k in range(len(brought))]
    summary = {"counts": ds.count()} | {name: ds.sum(name) for name in names}
    frame = pd.DataFrame(ends | dict(zip(names, brought, strict=True)), copy=False)
    return ds.Canvas(canvas.width, canvas.height, canvas.x_range, canvas.y_range).line(
        frame, x=["x0", "x1"], y=["y0", "y1"], axis=1, agg=ds.summary(**summary)
    )


def chance_length(points: Points) -> float:
    """Return the median distance, squared, of pairs of two cells at random."""
    n = points.x.size
    if n < 2:
        return 0.0
    rng = np.random.default_rng(0)
    a = rng.integers(n, size=_CHANCE_PAIRS)
    b = (a + rng.integers(1, n, size=_CHANCE_PAIRS)) % n
    lengths = _lengths(points.x[a], points.x[b], points.y[a], points.y[b])
    lengths = lengths[np.isfinite(lengths)]
    return float(np.median(lengths)) if lengths.size else 0.0


def _lengths(x0: Array, x1: Array, y0: Array, y1: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((x0 - x1) ** 2 + (y0 - y1) ** 2)


class Drawing:
    """All edges on their way to pixels."""

    def __init__(
        self, points: Points, canvas: Canvas, paint: Paint | None, chosen: Array | None
    ) -> None:
        self._points, self._canvas, self._paint, self._chosen = points, canvas, paint, chosen
        self._chance = chance_length(points)
        shape = (canvas.height, canvas.width)
        n_sums = 0 if paint is None else paint.n_sums
        self.result = Sums(np.zeros(shape, np.uint32), [np.zeros(shape) for _ in range(n_sums)])

    def draw(self, edges: Edges, threads: int, progress: Progress) -> Sums:
        """Draw all edges on several threads."""
        progress.start("drawing", edges.n_edges, "edges" if edges.is_export else "entries")
        with ThreadPoolExecutor(threads, thread_name_prefix="cellgraph-draw") as pool:
            coming: deque[Future[None]] = deque()
            try:
                for part in edges.parts():
                    coming.append(pool.submit(self._draw_part, part, progress))
                    while len(coming) > threads:
                        coming.popleft().result()
                for future in coming:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                buffers.release()
        return self.result

    def _draw_part(self, part: Part, progress: Progress) -> None:
        src, dst = part()
        for start in range(0, src.size, SLAB_EDGES):
            stop = min(start + SLAB_EDGES, src.size)
            self._draw_slab(src[start:stop], dst[start:stop])
            progress.advance(stop - start)

    def _draw_slab(self, src: Array, dst: Array) -> None:
        points, result = self._points, self.result
        check_cells(src, dst, points.x.size)
        x0, x1, y0, y1 = points.x[src], points.x[dst], points.y[src], points.y[dst]
        lengths = _lengths(x0, x1, y0, y1)
        brought = [] if self._paint is None else self._paint.of_edges(src, dst)
        drawn = _aggregate(self._canvas, {"x0": x0, "x1": x1, "y0": y0, "y1": y1}, brought)
        highlighted = np.empty((2, 0), np.int64)
        if self._chosen is not None:
            found = np.flatnonzero(self._chosen[src] | self._chosen[dst])
            highlighted = np.stack([src[found], dst[found]]).astype(np.int64)
        with result.lock:
            result.counts += drawn["counts"].values.astype(np.uint32, copy=False)
            for k, total in enumerate(result.sums):
                np.add(total, drawn[f"sum{k}"].values, out=total,
                       where=drawn["counts"].values > 0)  # fmt: skip
            result.n_drawn += src.size
            result.n_without_place += int(np.count_nonzero(np.isnan(lengths)))
            result.n_longer += int(np.count_nonzero(lengths > self._chance))
            room = _MOST_HIGHLIGHTED - sum(part.shape[1] for part in result.highlighted)
            if highlighted.size and room > 0:
                result.highlighted.append(highlighted[:, :room])


def check_cells(src: Array, dst: Array, n_cells: int) -> None:
    """Refuse edges of cells that do not exist; nobody has checked those of an export."""
    if not src.size:
        return
    last = max(int(src.max()), int(dst.max()))
    if last >= n_cells or min(int(src.min()), int(dst.min())) < 0:
        raise InvalidExportError(
            f"an edge is of cell {last}, but there are {n_cells} cells. The export is damaged; "
            "a verification says where."
        )


def pieces(points: Points) -> Iterator[tuple[Array, Array]]:
    """Yield the places of the cells, some at a time."""
    for start in range(0, points.x.size, SLAB_EDGES):
        yield points.x[start : start + SLAB_EDGES], points.y[start : start + SLAB_EDGES]
