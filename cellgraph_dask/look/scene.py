"""What is in a picture: figures in words, edges by pixel, and what is drawn over them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..machine.buffers import Array
from ..machine.report import Report
from ..source.columns import Column
from .raster import Canvas, Sums


@dataclass(frozen=True)
class PlotReport(Report):
    """What a picture shows.

    Attributes
    ----------
    path, kind : str
        What was drawn, and whether it is an ``"export"`` or a ``"source"``.
    source, key : str or None
        The store and the matrix in it, as far as that is known.
    n_cells, n_drawn : int
        Cells; edges drawn, or stored entries off the diagonal of a source.
    embedding : str
        Its name.
    share_longer_than_chance : float or None
        Share of the edges that are longer than the median pair of cells at random: near 0 if the
        graph belongs to the embedding, 0.5 if it is shuffled. None without edges.
    n_cells_without_place, n_edges_without_place, n_cells_outside : int
        Cells whose coordinates are NaN or infinite, and their edges, which are not drawn; cells
        beyond the border, as they lie far away from all others.
    color : str or None
        Column of `obs` that gives the colors.
    cells : tuple of int
        Cells whose edges are highlighted.
    size : tuple of int
        Pixels, across and down.
    background : str
        ``"white"`` or ``"black"``.
    caption : str
        The same in a few sentences, as it is under the picture.
    warnings : tuple of str
        What looks wrong.
    threads, seconds, memory_limit_bytes, peak_memory_bytes : int, float, int, int
        Threads that drew; from start to end; limit and measured.
    """

    _title = "Picture"

    path: str
    kind: str
    source: str | None
    key: str | None
    n_cells: int
    n_drawn: int
    embedding: str
    share_longer_than_chance: float | None
    n_cells_without_place: int
    n_edges_without_place: int
    n_cells_outside: int
    color: str | None
    cells: tuple[int, ...]
    size: tuple[int, int]
    background: str
    caption: str
    warnings: tuple[str, ...]
    threads: int
    seconds: float
    memory_limit_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Scene:
    """All edges, drawn by pixel, and what goes with them.

    Attributes
    ----------
    report : PlotReport
        What it shows.
    """

    report: PlotReport
    canvas: Canvas = field(repr=False)
    sums: Sums = field(repr=False)
    column: Column | None = field(repr=False)
    dots: tuple[Array, Array, Array] | None = field(repr=False)  # x, y and values of few cells
    marks: Array = field(repr=False)  # (n, 2): places of the cells that are highlighted
    lines: Array = field(repr=False)  # (n, 2, 2): ends of their edges
    owners: Array = field(repr=False)  # which of these cells an edge belongs to
