"""Edges become counts by pixel.

Each thread draws slabs of edges on a canvas of its own, and these are added up, so that memory is
bound by the slabs, the points and the pixels, and not by the edges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from ..errors import InvalidExportError, OutputError
from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.progress import Progress
from . import lines
from .edges import Edges, Part
from .points import Points

SLAB_EDGES = 1 << 17
_CHANCE_PAIRS = 20_000
_MOST_HIGHLIGHTED = 100_000  # edges of the cells that are highlighted
_EDGE_BYTES = 8  # of an edge that is drawn: whether it is highlighted


def check_extra() -> None:
    """Raise an OutputError if the extra for pictures is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "pictures are drawn with matplotlib, which is not installed "
            "(pip install 'cellgraph-dask[plot]')."
        ) from error


@dataclass
class Sums:
    """What was drawn, by pixel (rows from the bottom) and in all."""

    counts: Array  # of edges
    sums: Array  # of what edges bring along, in float64: (sums, rows, columns)
    n_drawn: int = 0
    tally: Array = field(default_factory=lambda: np.zeros(2, np.int64))
    highlighted: list[Array] = field(default_factory=list)  # (2, n): cells of edges

    @property
    def n_without_place(self) -> int:
        """Edges with an end that has no place."""
        return int(self.tally[0])

    @property
    def n_longer(self) -> int:
        """Edges that are longer than the median pair of cells at random."""
        return int(self.tally[1])

    @property
    def n_highlighted(self) -> int:
        """Edges of the cells that are highlighted."""
        return sum(part.shape[1] for part in self.highlighted)

    def add(self, other: Sums) -> None:
        """Add what was drawn on another canvas."""
        self.highlighted += other.highlighted
        self.counts += other.counts
        self.sums += other.sums
        self.n_drawn += other.n_drawn
        self.tally += other.tally


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


def drawing_bytes(edges: Edges, canvas: Canvas, n_sums: int, threads: int) -> int:
    """Return the most bytes that drawing needs, besides points and paint."""
    of_pixels = canvas.width * canvas.height * (4 + 8 * n_sums)
    of_thread = of_pixels + edges.part_bytes + SLAB_EDGES * _EDGE_BYTES
    return edges.stream_bytes + threads * of_thread


def warm_up(edges: Edges, *, is_colored: bool, is_coded: bool) -> None:
    """Load what drawing takes, so that it is counted as taken."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    none = np.zeros(0, np.float32)
    paint = None
    if is_colored:
        paint = (
            Paint(none.astype(np.int16), np.zeros((1, 3), np.float32)) if is_coded else Paint(none)
        )
    canvas = Canvas(1, 1, (0, 1), (0, 1))
    drawing = Drawing(Points("", none, none, 0), canvas, paint, None)
    cells = np.zeros(0, edges.dtype)
    drawing.draw_slab(cells, cells, drawing.new_sums())


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
        (left, right), (bottom, top) = canvas.x_range, canvas.y_range
        across, up = canvas.width / (right - left), canvas.height / (top - bottom)
        self._view = np.array([left, bottom, across, up, chance_length(points)])

    def new_sums(self) -> Sums:
        """Return an empty canvas."""
        shape = (self._canvas.height, self._canvas.width)
        n_sums = 0 if self._paint is None else self._paint.n_sums
        return Sums(np.zeros(shape, np.uint32), np.zeros((n_sums, *shape)))

    def draw(self, edges: Edges, threads: int, progress: Progress) -> Sums:
        """Draw all edges on several threads."""
        progress.start("drawing", edges.n_edges, "edges" if edges.is_export else "entries")
        canvases = [self.new_sums() for _ in range(threads)]
        free: SimpleQueue[Sums] = SimpleQueue()
        for sums in canvases:
            free.put(sums)

        def draw_part(part: Part) -> None:
            sums = free.get()
            src, dst = part()
            for start in range(0, src.size, SLAB_EDGES):
                slab = slice(start, start + SLAB_EDGES)
                self.draw_slab(src[slab], dst[slab], sums)
                progress.advance(src[slab].size)
            free.put(sums)

        with ThreadPoolExecutor(threads, thread_name_prefix="cellgraph-draw") as pool:
            coming: deque[Future[None]] = deque()
            try:
                for part in edges.parts():
                    coming.append(pool.submit(draw_part, part))
                    while len(coming) > threads:
                        coming.popleft().result()
                for future in coming:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                buffers.release()
        for sums in canvases[1:]:
            canvases[0].add(sums)
        return canvases[0]

    def draw_slab(self, src: Array, dst: Array, sums: Sums) -> None:
        """Draw some edges."""
        points, paint = self._points, self._paint
        check_cells(src, dst, points.x.size)
        mode, values, colors = lines.COUNT, points.x[:0], np.zeros((1, 3), np.float32)
        if paint is not None:
            mode = lines.NUMBERS if paint.colors is None else lines.CATEGORIES
            values = paint.values
            colors = colors if paint.colors is None else paint.colors
        lines.draw_lines(
            np.ascontiguousarray(src), np.ascontiguousarray(dst), points.x, points.y, self._view,
            mode, values, colors, sums.counts, sums.sums, sums.tally,
        )  # fmt: skip
        sums.n_drawn += src.size
        room = _MOST_HIGHLIGHTED - sums.n_highlighted
        if self._chosen is not None and room > 0:
            found = np.flatnonzero(self._chosen[src] | self._chosen[dst])[:room]
            if found.size:
                sums.highlighted.append(np.stack([src[found], dst[found]]).astype(np.int64))


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
