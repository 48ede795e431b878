"""The commands to begin with: a demo, and completion in the shell."""

from __future__ import annotations

import json

import click

from .failures import INTERRUPTED
from .group import cli
from .options import json_option
from .streams import note_done


@cli.command(
    short_help="Make a small store, export its graph, check the export.",
    examples="""
    cellgraph-dask demo
    cellgraph-dask demo /scratch/demo --cells 1000000
    """,
)
@click.argument("directory", required=False, metavar="[DIR]")
@click.option(
    "--cells", type=click.IntRange(2), metavar="N", default=100_000, show_default=True,
    help="Number of cells.",
)  # fmt: skip
@json_option
@click.pass_context
def demo(context: click.Context, /, directory: str | None, cells: int, as_json: bool) -> None:
    """Make a small AnnData store in DIR, export its graph, and check the export."""
    from ..demo import run_demo

    context.meta[INTERRUPTED] = lambda: "The folder of the demo may be left behind."
    result = run_demo(directory, n_cells=cells)
    note_done()
    click.echo(json.dumps(result.to_dict()) if as_json else result.describe())
