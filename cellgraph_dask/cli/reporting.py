"""The command that makes a report."""

from __future__ import annotations

from typing import Any

import click

from ..errors import shown
from ..source.listing import is_store
from .completion import FILES, TO_KEYS
from .failures import DIFFERENT, Commands
from .group import check_keys, cli, refuse_made
from .help import MATRIX, PICTURE, under
from .options import (
    RULES,
    json_option,
    key_option,
    output_option,
    progress_option,
    scratch_option,
    size_options,
    source_options,
    thinning_options,
)
from .streams import note_done


@cli.command(
    short_help="Report what a graph is like, in one HTML page.",
    examples="""
    cellgraph-dask report exports/atlas -o report.html
    cellgraph-dask report exports/atlas -o report.html --source atlas.zarr
    cellgraph-dask report exports/atlas --json
    """,
)
@click.argument("path", shell_complete=FILES)
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE",
              shell_complete=FILES,
              help="The page, such as report.html; with --json it may be left out.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--components/--no-components", default=None,
              help="Count connected components.  [default: up to 16 million edges]")  # fmt: skip
@under(
    PICTURE,
    click.option("--picture/--no-picture", default=None,
                 help="Draw all edges, as plot does.  [default: if that is possible]"),
)  # fmt: skip
@under(
    MATRIX,
    click.option("--source", metavar="SOURCE", shell_complete=FILES,
                 help="Prove that the edges are exactly those of this matrix, and look for "
                      "embeddings there."),
    click.option("--to-key", metavar="NAME", shell_complete=TO_KEYS,
                 help="Of a store that symmetrize has written: the matrix in its obsp.  [default: "
                      "connectivities]"),
    click.option("--rule", type=click.Choice(RULES),
                 help="Of such a matrix: the rule that it was made with, if any."),
)  # fmt: skip
@thinning_options
@key_option
@source_options
@size_options
@scratch_option("in PATH", ", if any are needed")
@output_option
@json_option
@progress_option
@click.pass_context
def report(context: click.Context, /, path: str, as_json: bool, **options: Any) -> None:
    """Verify the export or store in PATH, and report what its graph is like in one HTML page.

    The page needs no network and no other file. Exit with 3 if anything is wrong; the page is
    written all the same, and says so.
    """
    check_keys(options)
    if options["output"] is None and not as_json:
        raise click.UsageError("name the page with -o, such as -o report.html, or give --json")
    from ..look.report import report_export

    if is_store(path):
        if options["output_storage_options"] is not None:
            raise click.UsageError("--output-storage-options are for exports")
    else:
        refuse_made(options)
    found = report_export(path, **options)
    note_done()
    commands = context.find_root().command
    assert isinstance(commands, Commands)
    if as_json:
        click.echo(found.to_json())
    else:
        for verdict in found.verdicts:
            click.echo(f"{verdict.question} {verdict.answer}. {verdict.text}")
        if found.no_picture is not None and options["picture"] is not False:
            click.echo(f"No picture: {commands.in_options(found.no_picture)}")
        click.echo(f"Report: {shown(options['output'])}")
    commands.print_all("Wrong", found.verification.problems)
    commands.print_all("Warning", found.verification.warnings)
    context.exit(0 if found.ok else DIFFERENT)
