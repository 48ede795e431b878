"""A picture of all edges over an embedding, and what it shows in words and figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SourceError
from ..machine.amounts import counted
from ..machine.buffers import Array
from ..machine.memory import (
    SLACK_BYTES,
    limit_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
    round_reserved,
    too_small,
)
from ..machine.remote import is_url, plain_name
from ..runtime.progress import progress_bars
from ..runtime.threads import check_threads, default_threads
from ..source.columns import Column, ColumnReader, open_column
from .edges import Edges, changed, open_edges
from .figure import MOST_DOTS, axes_pixels, save
from .points import Places, Points, find_places, shown_range
from .raster import Canvas, Drawing, Paint, Sums, check_extra, drawing_bytes, pieces, warm_up
from .scene import PlotReport, Scene
from .shading import BACKGROUNDS, palette

SIZE = (1200, 1000)
_SIZES = (200, 20_000)  # pixels of a side
_SAMPLE = 1_000_000  # cells
_LIKE_CHANCE = 0.35  # of the edges are longer than the median random pair: so are shuffled ones
_LEAST_EDGES = 50  # of which the share is a sign
_MOST_HIGHLIGHTED = 1000  # cells
_PIXEL_BYTES = 64  # of a pixel while the picture is made: densities, colors, what is written
_FIGURE_BYTES = 24 * 2**20  # fonts, texts and the like


class Picture(Scene):
    """All edges, drawn."""

    @property
    def caption(self) -> str:
        """What it shows, in a few sentences."""
        return self.report.caption

    def save(self, target: Any, format: str | None = None) -> None:
        """Write it to a path or a binary file, as ``"png"``, ``"pdf"`` or ``"svg"``."""
        save(self, target, format)


def picture(
    path: Any, *, source: Any = None, key: str = "connectivities", neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None, embedding: str | None = None, color: str |
    None = None, size: int | tuple[int, int] = SIZE, background: str = "white", cells: int |
    Sequence[int] = 0, memory_limit: int | str | None = None, threads: int | None = None, progress:
    bool | None = False, pixels: tuple[int, int] | None = None,
) -> Picture:  # fmt: skip
    """Draw all edges of an export or a source; see `plot_graph`.

    `pixels` is the size of the part with the edges; by default what the texts leave of `size`.
    """
    began = time.perf_counter()
    width, height = _checked_size(size)
    if background not in BACKGROUNDS:
        raise ValueError(f"background must be white or black, not {background!r}")
    check_threads(threads)
    limit = limit_bytes(memory_limit)
    reset_peak()
    check_extra()
    with progress_bars(progress) as bars, ExitStack() as stack:
        edges = stack.enter_context(open_edges(path, key, neighbors_key, storage_options))
        if edges.is_export and key != "connectivities":
            edges = replace(edges, key=key)
        chosen = _chosen_cells(cells, edges.n_cells)
        places = find_places(edges, source, embedding, storage_options)
        reader = None
        if color is not None:
            reader = stack.enter_context(_open_color(edges, source, color, storage_options))
        warnings = []
        if source is None and (reader is not None or places.where == edges.source):
            warnings = [text for text in [changed(edges, storage_options)] if text]
        is_coded = reader is not None and reader.is_coded
        warm_up(edges, is_colored=reader is not None, is_coded=is_coded)
        if pixels is None:
            pixels = axes_pixels(width, height, is_colored=reader is not None)
        canvas = Canvas(*pixels, (0, 1), (0, 1))
        n_threads = _fitting_threads(
            limit, threads or default_threads(), edges, places, reader, canvas, (width, height)
        )
        points = places.read(edges.n_cells)
        canvas = Canvas(*pixels, shown_range(points.x), shown_range(points.y))
        column = reader.read() if reader is not None else None
        paint = None if column is None else _paint(column)
        mask = None
        if chosen.size:
            mask = np.zeros(edges.n_cells, bool)
            mask[chosen] = True
        sums = Drawing(points, canvas, paint, mask).draw(edges, n_threads, bars)
    facts: dict[str, Any] = {
        "color": color, "cells": tuple(chosen.tolist()), "size": (width, height),
        "background": background, "threads": n_threads, "memory_limit_bytes": limit,
    }  # fmt: skip
    report = _report(edges, points, canvas, sums, facts, warnings, began)
    return _composed(report, points, canvas, sums, column, chosen)


def _checked_size(size: Any) -> tuple[int, int]:
    width, height = (size, size) if isinstance(size, int) else size
    low, high = _SIZES
    if not (low <= width <= high and low <= height <= high):
        raise ValueError(f"a picture has {low} to {high} pixels a side, not {width} x {height}")
    return int(width), int(height)


def _open_color(
    edges: Edges, source: Any, color: str, storage_options: Mapping[str, Any] | None
) -> Any:
    store = source if source is not None else edges.source
    if store is None:
        raise SourceError(
            f"{edges.name} does not say which store it was made from, whose obs has the column "
            f"{color!r}. Name the store with `source`."
        )
    options = storage_options if is_url(plain_name(store)) else None
    return open_column(store, color, edges.n_cells, options, key=edges.key)


def _chosen_cells(cells: int | Sequence[int], n_cells: int) -> Array:
    """Return the cells to highlight: those named, or so many, evenly by number."""
    if isinstance(cells, int):
        n = min(max(cells, 0), n_cells)
        chosen = (2 * np.arange(n) + 1) * n_cells // (2 * max(n, 1))
    else:
        chosen = np.unique(np.array(cells, np.int64))
    outside = chosen[(chosen < 0) | (chosen >= n_cells)]
    if outside.size:
        raise SourceError(f"there is no cell {outside[0]}; cells are 0 to {n_cells - 1}.")
    if chosen.size > _MOST_HIGHLIGHTED:
        raise ValueError(f"up to {_MOST_HIGHLIGHTED} cells are highlighted, not {chosen.size}")
    return chosen


def _paint(column: Column) -> Paint:
    return Paint(column.values, palette(column) if column.categories else None)


def _fitting_threads(
    limit: int, threads: int, edges: Edges, places: Places, reader: ColumnReader | None, canvas:
    Canvas, size: tuple[int, int],
) -> int:  # fmt: skip
    """Return how many threads fit the limit; a MemoryLimitError if not even one does."""
    reserved = round_reserved(resident_bytes())
    n_cells = edges.n_cells
    held = 8 * n_cells + (0 if reader is None else 4 * n_cells) + n_cells
    n_pixels = max(canvas.width * canvas.height, size[0] * size[1])
    making = _FIGURE_BYTES + n_pixels * _PIXEL_BYTES
    reading = max(places.n_bytes, 0 if reader is None else reader.n_bytes)
    n_sums = 0 if reader is None else 3
    for n in range(threads, 0, -1):
        drawing = held + max(drawing_bytes(edges, canvas, n_sums, n), reading)
        needed = reserved + SLACK_BYTES + max(drawing, making + n_pixels * (4 + 8 * n_sums))
        if needed <= limit:
            return n
    raise too_small("picture", limit, reserved, needed)


def _report(
    edges: Edges, points: Points, canvas: Canvas, sums: Sums, facts: dict[str, Any], warnings:
    list[str], began: float,
) -> PlotReport:  # fmt: skip
    n_placed = sums.n_drawn - sums.n_without_place
    share = sums.n_longer / n_placed if n_placed else None
    outside = 0
    for x, y in pieces(points):
        inside = (x >= canvas.x_range[0]) & (x <= canvas.x_range[1])
        inside &= (y >= canvas.y_range[0]) & (y <= canvas.y_range[1])
        outside += int(np.count_nonzero(~inside & ~np.isnan(x)))
    if share is not None and _is_by_chance(share, n_placed):
        warnings.append(
            f"{share:.0%} of the edges are longer than the median pair of cells at random: the "
            f"graph does not look like one of the cells of {points.name}. They may be in another "
            "order, or the embedding of other data."
        )
    store = plain_name(edges.source)
    return PlotReport(
        path=edges.name, kind="export" if edges.is_export else "source",
        source=store if isinstance(store, str) else None, key=edges.key or None,
        n_cells=edges.n_cells, n_drawn=n_placed, embedding=points.name,
        share_longer_than_chance=None if share is None else round(share, 4),
        n_cells_without_place=points.n_without_place, n_edges_without_place=sums.n_without_place,
        n_cells_outside=outside, caption=" ".join(_sentences(edges, points, sums, share, outside)),
        warnings=tuple(warnings), seconds=round(time.perf_counter() - began, 3),
        peak_memory_bytes=peak_bytes(), **facts,
    )  # fmt: skip


def _sentences(
    edges: Edges, points: Points, sums: Sums, share: float | None, outside: int
) -> Iterator[str]:
    """Say what the picture shows."""
    what_one, what = ("edge", "edges") if edges.is_export else ("entry", "entries")
    if share is not None:
        text = f"{100 * share:.2f}" if share < 0.1 else f"{100 * share:.0f}"
        yield (
            f"{text} % of the {what} are longer than the median pair of cells at random; by chance "
            "it would be 50 %."
        )
        if _is_by_chance(share, sums.n_drawn - sums.n_without_place):
            yield "So the graph does not look like one of these cells."
    if points.n_without_place:
        yield (
            f"Left out: {counted(points.n_without_place, 'cell')} whose place is NaN or "
            f"infinite, with {counted(sums.n_without_place, what_one)}."
        )
    if outside:
        yield (
            f"{counted(outside, 'cell lies', 'cells lie')} beyond the border, far from all others."
        )


def _is_by_chance(share: float, n_edges: int) -> bool:
    """Whether edges, and not too few of them, are nearly as long as random pairs."""
    return n_edges >= _LEAST_EDGES and share > _LIKE_CHANCE


def _composed(
    report: PlotReport, points: Points, canvas: Canvas, sums: Sums, column: Column | None, chosen:
    Array,
) -> Picture:  # fmt: skip
    """Return the picture, with no more of the points than is drawn by itself."""
    x, y, dots = points.x, points.y, None
    if 0 < x.size <= MOST_DOTS:
        dots = x, y, np.zeros(0) if column is None else column.values
    if column is not None:  # of numbers some are enough for the scale
        column = replace(column, values=column.values[:: x.size // _SAMPLE + 1].copy())
    places = np.stack([x[chosen], y[chosen]], axis=1)
    pairs = np.concatenate([np.empty((2, 0), np.int64), *sums.highlighted], axis=1)
    pairs = pairs[:, np.lexsort(pairs[::-1])]  # threads are not in order
    lines = np.stack([np.stack([x[side], y[side]], axis=1) for side in pairs], axis=1)
    at = [np.minimum(np.searchsorted(chosen, side), max(chosen.size - 1, 0)) for side in pairs]
    owners = np.where(chosen[at[0]] == pairs[0], at[0], at[1]) if chosen.size else at[0]
    return Picture(report, canvas, sums, column, dots, places, lines, owners)
