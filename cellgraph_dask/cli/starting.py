"""The commands to begin with: a demo, and completion in the shell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from .completion import FOLDERS, SHELLS, script
from .failures import INTERRUPTED
from .group import cli
from .options import json_option, verbose_option
from .streams import note_done


@cli.command(
    short_help="Make a small store, export its graph, check the export.",
    examples="""
    cellgraph-dask demo
    cellgraph-dask demo /scratch/demo --cells 1000000
    cellgraph-dask demo pbmc --pbmc
    """,
)
@click.argument("directory", required=False, metavar="[DIR]", shell_complete=FOLDERS)
@click.option("--cells", type=click.IntRange(2), metavar="N",
              help="Number of cells.  [default: 100000]")  # fmt: skip
@click.option("--pbmc", is_flag=True,
              help="Take blood cells instead: pbmc68k_reduced, which scanpy has.")  # fmt: skip
@click.option("--picture/--no-picture", default=None,
              help="Draw the graph.  [default: if the extra plot is installed]")  # fmt: skip
@json_option
@click.pass_context
def demo(
    context: click.Context, /, directory: str | None, cells: int | None, pbmc: bool,
    picture: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a small AnnData store in DIR, export its graph, check and draw it, and tell how.

    Each step is told as it begins, with its command.
    """
    if pbmc and cells is not None:
        raise click.UsageError("--cells is for cells that are made; --pbmc has its own")
    from ..demo import run_demo

    context.meta[INTERRUPTED] = lambda: "The folder of the demo may be left behind."
    say = (lambda _: None) if as_json else click.echo
    result = run_demo(directory, n_cells=cells or 100_000, pbmc=pbmc, picture=picture, say=say)
    note_done()
    click.echo(json.dumps(result.to_dict()) if as_json else result.describe())


@cli.command(
    short_help="Print the script that completes commands in a shell.",
    examples="""
    cellgraph-dask completion bash
    cellgraph-dask completion fish
    """,
)
@click.argument("shell", required=False, type=click.Choice(list(SHELLS)))
@verbose_option
def completion(shell: str | None) -> None:
    """Print the script with which SHELL completes commands, options, paths and keys.

    By default it is that of $SHELL. To have it in every session, add the line to the file:

    \b
    ~/.bashrc                  eval "$(cellgraph-dask completion bash)"
    ~/.zshrc                   eval "$(cellgraph-dask completion zsh)"
    ~/.config/fish/config.fish cellgraph-dask completion fish | source
    """  # noqa: D301 (a backspace, which keeps click from wrapping)
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise click.UsageError(f"name a shell: {', '.join(SHELLS)}")
    click.echo(script(cli, shell))
