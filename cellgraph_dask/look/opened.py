"""Pictures in Python: `plot_graph`, and `open_export` whose graphs can be plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..edge_pairs import graph
from .figure import draw_on, new_axes
from .picture import picture


def plot_graph(
    path: Any,
    *,
    ax: Any = None,
    source: Any = None,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    embedding: str | None = None,
    color: str | None = None,
    size: int | tuple[int, int] = (1200, 1000),
    background: str = "white",
    cells: int | Sequence[int] = 0,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    progress: bool | None = False,
) -> Any:
    """Draw all edges of a graph over an embedding.

    The denser the edges at a pixel, the further is its color from the background, by rank. Below
    the picture is the share of the edges that are longer than the median pair of cells at random:
    near 0 if the graph belongs to the embedding, 50 % if it is shuffled.

    Parameters
    ----------
    path
        An export (a folder, a URL, or what `open_export` returns), or whatever
        `export_connectivities` takes: of a source each stored entry off the diagonal is drawn.
    ax
        Axes of matplotlib to draw on; by default those of a new figure.
    source
        The store with the embedding and `obs`, of an export that does not know it, or instead of
        the one that it knows.
    key, neighbors_key, storage_options
        As for `export_connectivities`.
    embedding
        A key of `obsm`, with or without ``X_``, or a file of points beside the export. By default
        the points beside the export, or else the first of umap, tsne, draw_graph, phate, pca and
        others.
    color
        A column of `obs`. An edge has the color of the category that both its ends are in, or is
        gray; or that of the mean of the numbers of both ends. Colors in ``uns["…_colors"]`` are
        used.
    size
        Pixels, across and down, of the figure.
    background
        ``"white"`` or ``"black"``.
    cells
        Cells whose edges are highlighted: so many, evenly by number, or their numbers.
    memory_limit, threads
        As for `plan_export`.
    progress
        As for `export_connectivities`.

    Returns
    -------
    matplotlib.axes.Axes
        Their `figure` can be saved.

    Raises
    ------
    SourceError
        If there is no such embedding or column, or one of another number of cells.
    InvalidExportError, DamagedGraphError
        If the graph cannot be read.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    OutputError
        If matplotlib is not installed.

    Examples
    --------
    >>> plot_graph("atlas.zarr", color="leiden").figure.savefig("graph.png")  # doctest: +SKIP
    """
    pixels = None
    if ax is not None:
        box = ax.get_window_extent()
        pixels = max(1, round(box.width)), max(1, round(box.height))
    drawn = picture(
        path, source=source, key=key, neighbors_key=neighbors_key,
        storage_options=storage_options, embedding=embedding, color=color, size=size,
        background=background, cells=cells, memory_limit=memory_limit, threads=threads,
        progress=progress, pixels=pixels,
    )  # fmt: skip
    if ax is None:
        from matplotlib import pyplot

        ax = new_axes(drawn, pyplot.figure)
    draw_on(drawn, ax)
    return ax


class ExportedGraph(graph.ExportedGraph):
    """The edges of an export, opened by `open_export`, which can be plotted."""

    __doc__ = graph.ExportedGraph.__doc__

    def plot(self, **options: Any) -> Any:
        """Draw all edges over an embedding; see `plot_graph`, whose options these are.

        Returns
        -------
        matplotlib.axes.Axes
        """
        return plot_graph(self, **options)


def open_export(
    out_dir: str | Path,
    *,
    scratch_dir: str | Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ExportedGraph:
    """Open the edges of an export."""
    return graph.open_as(ExportedGraph, out_dir, scratch_dir, storage_options)


open_export.__doc__ = graph.open_export.__doc__
