"""The commands with which one looks at a graph."""

from __future__ import annotations

import re
from typing import Any

import click

from ..errors import shown
from ..machine.amounts import counted, format_time
from ..machine.memory import format_bytes
from .completion import COLUMNS, EMBEDDINGS, FILES
from .group import check_keys, cli
from .help import MATRIX, PICTURE, under
from .options import json_option, key_option, progress_option, size_options, source_options
from .streams import note_done


class _Pixels(click.ParamType):  # type: ignore[type-arg]
    name = "pixels"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Return pixels across and down: of ``1200``, or ``1200x1000``."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(value))
        width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not (200 <= width <= 20_000 and 200 <= height <= 20_000):
            self.fail(
                f"{value!r} is not from 200 to 20000 pixels, or such as 1200x1000", param, ctx
            )
        return width, height


class _Cells(click.ParamType):  # type: ignore[type-arg]
    name = "cells"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | list[int]:
        """Return how many cells, or which: of ``5`` or ``1,5,7``."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"\d{1,18}(,\d{1,18})*,?", value):
            self.fail(
                f"{value!r} is neither a number of cells nor a list such as 1,5,7", param, ctx
            )
        numbers = [int(text) for text in value.split(",") if text]
        if max(numbers[0] if "," not in value else len(numbers), 0) > 1000:
            self.fail("up to 1000 cells are highlighted", param, ctx)
        return numbers if "," in value else numbers[0]


@cli.command(
    short_help="Draw all edges over an embedding.",
    examples="""
    cellgraph-dask plot exports/atlas -o graph.png
    cellgraph-dask plot atlas.h5ad -o graph.png --color leiden --background black
    cellgraph-dask plot exports/atlas -o graph.pdf --source atlas.zarr --cells 5
    """,
)
@click.argument("path", shell_complete=FILES)
@under(
    PICTURE,
    click.option("-o", "--output", metavar="FILE", default="graph.png", show_default=True,
                 shell_complete=FILES,
                 help="The picture: a file whose name ends in .png, .pdf or .svg."),
    click.option("--force", is_flag=True, help="Replace a file that is there."),
    click.option("--embedding", metavar="NAME", shell_complete=EMBEDDINGS,
                 help="Where the cells are: a key of obsm, or a file of points beside the export.  "
                      "[default: the points, or the first of umap, tsne and pca]"),
    click.option("--color", metavar="COLUMN", shell_complete=COLUMNS,
                 help="Column of obs that gives the edges' colors."),
    click.option("--size", type=_Pixels(), metavar="PIXELS", default="1200x1000",
                 show_default=True, help="Of the picture: WIDTHxHEIGHT, or one number for both."),
    click.option("--background", type=click.Choice(["white", "black"]), default="white",
                 show_default=True, help="Color of the background."),
    click.option("--cells", type=_Cells(), metavar="N", default="0",
                 help="Highlight the edges of N cells, evenly by number, or of the cells of a list "
                      "such as 1,5,7; of one cell: 7,"),
)  # fmt: skip
@under(
    MATRIX,
    click.option("--source", metavar="SOURCE", shell_complete=FILES,
                 help="Store with the embedding and obs.  [default: the one that the export was "
                      "made from]"),
)  # fmt: skip
@key_option
@source_options
@size_options
@json_option
@progress_option
@click.pass_context
def plot(context: click.Context, /, path: str, output: str, as_json: bool, **options: Any) -> None:
    """Draw all edges over an embedding, shaded by their density.

    PATH is an export, or an AnnData store, of which the stored entries are drawn.
    """
    check_keys(options)
    from ..look.files import draw_file

    report = draw_file(path, output, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
    else:
        drawn = counted(report.n_drawn, "edge" if report.kind == "export" else "entry")
        click.echo(
            f"{drawn} of {counted(report.n_cells, 'cell')} over {report.embedding} in "
            f"{format_time(report.seconds)}, peak memory {format_bytes(report.peak_memory_bytes)}: "
            f"{shown(output)}\n{report.caption}"
        )
    cli.print_all("Warning", report.warnings)
