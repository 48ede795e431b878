"""The picture on paper: axes, texts, legend and scales; the one module that knows matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..machine.buffers import Array
from .scene import Scene
from .shading import (
    color_map,
    density_image,
    distinct,
    equalized,
    mixed_image,
    number_colors,
    palette,
)

MOST_DOTS = 20_000  # cells that are drawn themselves; more would cover the edges
_MOST_NAMED = 24  # categories in the legend
_LEFT, _RIGHT, _RIGHT_COLORED, _TOP, _BOTTOM = 0.04, 0.12, 0.2, 0.075, 0.1
_COLUMNS = 120  # characters of a line of the caption, at the default size
_ALARM = "#d62728"
_SOURCE_SHOWN = 70  # characters


def axes_pixels(width: int, height: int, *, is_colored: bool) -> tuple[int, int]:
    """Return the pixels that texts and scales leave of a picture for the edges."""
    across = 1 - _LEFT - (_RIGHT_COLORED if is_colored else _RIGHT)
    return max(1, round(width * across)), max(1, round(height * (1 - _TOP - _BOTTOM)))


def new_axes(picture: Scene, new_figure: Callable[..., Any]) -> Any:
    """Return axes of a new figure, whose pixels are those of the edges."""
    width, height = picture.report.size
    dpi = min(width, height) / 10
    figure = new_figure(
        figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=picture.report.background
    )
    w, h = picture.canvas.width, picture.canvas.height
    left, bottom = round(width * _LEFT), round(height * _BOTTOM)
    return figure.add_axes((left / width, bottom / height, w / width, h / height))


def save(picture: Scene, target: Any, format: str | None) -> None:
    """Write a picture to a path or a binary file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = new_axes(picture, Figure)
    figure = axes.figure
    FigureCanvasAgg(figure)
    draw_on(picture, axes)
    kind = format or Path(str(target)).suffix.lstrip(".").lower() or "png"
    metadata = {"png": {"Software": None, "Description": picture.report.caption},
                "pdf": {"CreationDate": None, "Subject": picture.report.caption},
                "svg": {"Date": None, "Description": picture.report.caption}}[kind]  # fmt: skip
    with rc_context({"svg.hashsalt": kind}):  # so that the same picture is the same file
        figure.savefig(target, format=kind, dpi=figure.dpi, facecolor=picture.report.background,
                       metadata=metadata)  # fmt: skip


def draw_on(picture: Scene, axes: Any) -> None:
    """Draw a picture on axes."""
    report, sums, canvas = picture.report, picture.sums, picture.canvas
    density, values, ranks = equalized(sums.counts)
    column = picture.column
    gray = column is None and bool(report.cells)
    if column is None:
        image = density_image(density, sums.counts, report.background, gray=gray)
    else:
        image = mixed_image(density, sums.counts, _colors(picture), report.background)
    extent = (*canvas.x_range, *canvas.y_range)
    axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="none")
    ink = "black" if report.background == "white" else "white"
    axes.set_facecolor(report.background)
    _draw_dots(picture, axes, ink)
    _draw_highlights(picture, axes, ink)
    axes.set_xlim(*canvas.x_range)
    axes.set_ylim(*canvas.y_range)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(ink)
        side.set_alpha(0.3)
    axes.set_title(_title(picture), loc="left", color=ink, fontsize=13)
    lines = textwrap.wrap(report.caption, _COLUMNS)
    told = _ALARM if report.warnings else ink
    axes.set_xlabel("\n".join([f"{report.embedding} [0]", *lines]), color=told, loc="left")
    axes.set_ylabel(f"{report.embedding} [1]", color=ink, loc="bottom")
    if column is not None and column.categories:
        _draw_legend(picture, axes, ink)
    elif column is not None:
        _draw_scale(axes, _number_map(picture), column.name, ink, None)
    elif values.size:
        ticks = np.unique([values[0], *(10.0 ** np.arange(1, 10)), values[-1]])
        ticks = ticks[(ticks >= values[0]) & (ticks <= values[-1])]
        places = np.interp(ticks, values, ranks)
        kept = np.append(np.diff(places) > 0.04, True)  # those before are too near to be read
        ticks, places = ticks[kept], places[kept]
        _draw_scale(
            axes, _density_map(report.background, gray), f"{_what(picture)} at a pixel", ink,
            {float(p): f"{int(t):,}" for p, t in zip(places, ticks, strict=True)},
        )  # fmt: skip


def _what(picture: Scene) -> str:
    return "edges" if picture.report.kind == "export" else "entries"


def _title(picture: Scene) -> str:
    report = picture.report
    what = "edges" if report.kind == "export" else "stored entries off the diagonal"
    first = f"{report.n_drawn:,} {what} of {report.n_cells:,} cells"
    where = _short(report.path)
    if report.kind == "source":
        where = f"{report.key} of {where}" if report.key else where
    elif report.source is not None:
        where += f", made from {report.key} of {_short(report.source)}"
    return f"{first}\n{where}"


def _short(path: str) -> str:
    """Return the end of a path that is long."""
    return path if len(path) <= _SOURCE_SHOWN else f"…{path[-_SOURCE_SHOWN:]}"


def _colors(picture: Scene) -> Array:
    """Return the color of each pixel, as the edges there have it on average."""
    sums, column = picture.sums, picture.column
    assert column is not None
    if column.categories:
        n = np.maximum(sums.counts, 1)[..., None]
        return np.asarray(np.moveaxis(sums.sums, 0, -1) / n, np.float32)
    total, known = sums.sums
    scale = _number_map(picture)
    colors: Array = scale.to_rgba(total / np.maximum(known, 1))[..., :3].astype(np.float32)
    colors[known == 0] = palette(column)[-1]
    return colors


def _number_map(picture: Scene) -> Any:
    """Return how numbers become colors: nearly all of them, from the first color to the last."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    column = picture.column
    assert column is not None
    sample = column.values[np.isfinite(column.values)]
    low, high = np.quantile(sample, [0.01, 0.99]) if sample.size else (0, 1)
    norm = Normalize(low, high if high > low else low + 1)
    return ScalarMappable(norm, number_colors(picture.report.background))


def _density_map(background: str, gray: bool) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), color_map(background, gray=gray))


def _draw_dots(picture: Scene, axes: Any, ink: str) -> None:
    """Draw the cells, if there are few."""
    if picture.dots is None:
        return
    x, y, values = picture.dots
    colors: Any = "gray" if picture.report.cells else ink
    if picture.column is not None and picture.column.categories:
        colors = palette(picture.column)[values]
    elif picture.column is not None:
        colors = _number_map(picture).to_rgba(values)
    axes.scatter(x, y, s=float(np.clip(6_000 / x.size, 0.3, 10)), c=colors, linewidths=0, zorder=2)


def _draw_highlights(picture: Scene, axes: Any, ink: str) -> None:
    """Draw the edges of some cells, and the cells, in colors of their own."""
    from matplotlib.collections import LineCollection

    if not picture.marks.size:
        return
    cycle = distinct(9)
    each = cycle[np.arange(len(picture.marks)) % len(cycle)]
    ends: Any = picture.lines
    lines = LineCollection(ends, colors=each[picture.owners], linewidths=0.8, zorder=3)
    axes.add_collection(lines, autolim=False)
    axes.scatter(*picture.marks.T, s=28, c=each, edgecolors=ink, linewidths=0.6, zorder=4)
    if len(picture.marks) <= len(cycle):
        for cell, place in zip(picture.report.cells, picture.marks, strict=True):
            if np.isfinite(place).all():
                axes.annotate(f"cell {cell}", place, (5, 5), textcoords="offset points",
                              color=ink, fontsize=8, zorder=5)  # fmt: skip


def _draw_legend(picture: Scene, axes: Any, ink: str) -> None:
    from matplotlib.lines import Line2D

    column = picture.column
    assert column is not None
    colors = palette(column)
    named = column.categories[:_MOST_NAMED]
    labels = [textwrap.shorten(name, 25, placeholder="…") or "(empty)" for name in named]
    handles = [Line2D([], [], color=c, linewidth=4) for c in colors[: len(named)]]
    rest = len(column.categories) - len(named)
    handles.append(Line2D([], [], color=colors[-1], linewidth=4))
    labels.append("between two, or without")
    if rest:
        labels[-2] += f" … and {rest} more"
    legend = axes.legend(
        handles, labels, title=column.name, loc="upper left", bbox_to_anchor=(1.0, 1.0),
        frameon=False, labelcolor=ink, fontsize=9, alignment="left", handlelength=1,
    )  # fmt: skip
    legend.get_title().set_color(ink)


def _draw_scale(
    axes: Any, scale: Any, label: str, ink: str, ticks: dict[float, str] | None
) -> None:
    place = axes.inset_axes((1.015, 0.0, 0.018, 0.5))
    bar = axes.figure.colorbar(scale, cax=place, extend="neither" if ticks else "both")
    if ticks:
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.set_label(label, color=ink)
    bar.outline.set_visible(False)
    place.tick_params(colors=ink, labelsize=8)
