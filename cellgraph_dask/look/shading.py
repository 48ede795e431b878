"""Counts by pixel become colors, and categories get theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..source.columns import Column

BACKGROUNDS = ("white", "black")
_GRAY = 0.55  # of edges between two categories, and of cells without one
_FAINTEST = 0.25  # of edges that carry a color, where there are few


def equalized(counts: Array) -> tuple[Array, Array, Array]:
    """Return how dense each pixel is, from 0 to 1, by its rank among those with edges.

    Also returned are the counts that there are, rising, and the density of each.
    """
    found = counts > 0
    values, n = np.unique(counts[found], return_counts=True)
    middle = np.cumsum(n) - n / 2
    if values.size > 1:
        middle = (middle - middle[0]) / (middle[-1] - middle[0])
    else:
        middle = np.ones(values.size)
    density = np.zeros(counts.shape, np.float32)
    if values.size:
        density[found] = middle[np.searchsorted(values, counts[found])]
    return density, values, middle


def color_map(background: str, *, gray: bool) -> Any:
    """Return a perceptually uniform map that stands out from the background from its first color.

    Densest is what is furthest from the background.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name = "Greys" if gray else "magma_r"
    whole = colormaps[name if background == "white" else {"Greys": "Greys_r"}.get(name, "magma")]
    first, last = (0.2, 0.65) if gray else (0.18, 1.0)
    return ListedColormap(whole(np.linspace(first, last, 256)), f"cellgraph-{name}")


def number_colors(background: str) -> Any:
    """Return the colors of numbers, without those that are lost on the background."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    first, last = (0.0, 0.92) if background == "white" else (0.15, 1.0)
    return ListedColormap(colormaps["viridis"](np.linspace(first, last, 256)), "cellgraph-numbers")


def backdrop(background: str) -> Array:
    """Return red, green and blue of a background."""
    return np.full(3, 1.0 if background == "white" else 0.0, np.float32)


def density_image(density: Array, counts: Array, background: str, *, gray: bool) -> Array:
    """Return the picture of how many edges there are at each pixel: (rows, columns, 4) uint8."""
    table = np.round(color_map(background, gray=gray)(np.arange(256)) * 255).astype(np.uint8)
    image: Array = table[(density * 255).astype(np.uint8)]
    image[counts == 0, :3] = np.round(backdrop(background) * 255)
    return image


def mixed_image(density: Array, counts: Array, colors: Array, background: str) -> Array:
    """Return the picture of colors, ``(rows, columns, 3)`` from 0 to 1, stronger where denser.

    It is of red, green, blue and opacity, uint8.
    """
    strength = (_FAINTEST + (1 - _FAINTEST) * density) * (counts > 0)
    image = np.full((*counts.shape, 4), 255, np.uint8)
    for k, behind in enumerate(backdrop(background)):
        image[..., k] = (behind + strength * (colors[..., k] - behind)) * 255 + 0.5
    return image


def palette(column: Column) -> Array:
    """Return the colors of categories, and a gray one at the end: ``(n + 1, 3)`` float32."""
    from matplotlib.colors import to_rgb

    n = len(column.categories)
    try:
        colors = np.array([to_rgb(color) for color in column.colors])
    except ValueError:
        colors = np.zeros(0)
    if len(colors) != n:
        colors = distinct(n)
    return np.concatenate([colors.reshape(n, 3), np.full((1, 3), _GRAY)]).astype(np.float32)


def distinct(n: int) -> Array:
    """Return colors that are told apart, none of them gray: ``(n, 3)``."""
    from matplotlib import colormaps

    if n > 18:  # neighbors in the legend are far apart on the wheel
        return np.asarray(colormaps["turbo"](np.arange(n) * 0.618034 % 1))[:, :3]
    few = n <= 9
    colors = np.asarray(colormaps["tab10" if few else "tab20"](np.arange(10 if few else 20)))
    return np.delete(colors, [7] if few else [14, 15], axis=0)[:n, :3]
