"""The commands that make exports and look at them: parsing and printing."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from typing import Any

import click

from ..errors import shown
from ..machine.amounts import counted
from ..machine.interrupts import holding
from ..source.listing import is_store
from . import look, reporting, starting  # noqa: F401 (their commands)
from .completion import FILES, FOLDERS, KEYS, TO_KEYS
from .failures import DIFFERENT, INTERRUPTED
from .group import (
    MADE,
    check_keys,
    cli,
    client,
    command_to_resume,
    imports,
    refuse_made,
    what_is_left,
)
from .help import MATRIX, WRITTEN, under
from .options import (
    RULES,
    TARGETS,
    again_options,
    cells_option,
    cluster_options,
    json_option,
    key_option,
    output_option,
    progress_option,
    rule_option,
    run_options,
    scratch_option,
    size_options,
    source_options,
    thinning_options,
)
from .streams import finish, note_done, prepare
from .words import describe_inspection, describe_plan, describe_run, describe_verification


@cli.command(
    short_help="Show what an export would do and need; write nothing.",
    examples="""
    cellgraph-dask plan atlas.zarr --memory-limit 512MB
    cellgraph-dask plan atlas.h5ad exports/atlas --compression 6 --json
    """,
)
@click.argument("source", shell_complete=FILES)
@click.argument("out_dir", required=False, shell_complete=FOLDERS)
@run_options
@output_option
@cluster_options
@json_option
@click.pass_context
def plan(
    context: click.Context, /, source: str, out_dir: str | None, as_json: bool, **options: Any
) -> None:
    """Show what an export of SOURCE would do and need; write nothing."""
    check_keys(options)
    with imports():
        from ..export.api import plan_export

    with client(options) as workers:
        result = plan_export(source, out_dir, client=workers, **options)
    click.echo(result.to_json() if as_json else cli.in_options(describe_plan(result)))


@cli.command(
    short_help="Export the graph of an AnnData store.",
    examples="""
    cellgraph-dask export atlas.zarr out --memory-limit 512MB --compression 6
    cellgraph-dask export atlas.h5ad out --neighbors-key wide --force
    cellgraph-dask export atlas.zarr graph --format parquet --weights --rule max
    cellgraph-dask export s3://lab/a.zarr out --storage-options '{"anon": true}'
    """,
)
@click.argument("source", shell_complete=FILES)
@click.argument("out_dir", shell_complete=FOLDERS)
@run_options
@again_options
@output_option
@cluster_options
@json_option
@progress_option
@click.pass_context
def export(
    context: click.Context, /, source: str, out_dir: str, as_json: bool, **options: Any
) -> None:
    """Export the graph of SOURCE, an AnnData store, to OUT_DIR.

    SOURCE is a zarr store (a folder, a zip archive or a URL) or an .h5ad or .h5mu file; OUT_DIR is
    a folder or a URL.
    """
    check_keys(options)
    context.meta[INTERRUPTED] = partial(what_is_left, out_dir, options["scratch_dir"])
    with imports():
        from ..export.api import export_connectivities

    with client(options) as workers:
        report = export_connectivities(source, out_dir, client=workers, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
    else:
        click.echo(describe_run(report, "", report.out_dir))
        if report.kept_tasks:
            kept = counted(report.kept_tasks, "finished task")
            were = "was" if report.kept_tasks == 1 else "were"
            click.echo(f"{kept} of the interrupted run {were} kept.")


@cli.command(
    short_help="Check an export; prove that its edges are those of a matrix.",
    examples="""
    cellgraph-dask verify exports/atlas
    cellgraph-dask verify exports/atlas --source atlas.zarr --memory-limit 512MB
    cellgraph-dask verify viewer.zarr --source atlas.zarr --rule max
    """,
)
@click.argument("out_dir", shell_complete=FOLDERS)
@under(
    MATRIX,
    click.option("--source", metavar="SOURCE", shell_complete=FILES,
                 help="Prove that the edges are exactly those of a matrix of this store."),
)  # fmt: skip
@key_option
@source_options
@size_options
@scratch_option("in OUT_DIR", ", if --source needs any")
@click.option(
    "--components/--no-components", default=None,
    help="Count connected components.  [default: up to 16 million edges]",
)  # fmt: skip
@click.option("--to-key", metavar="NAME", shell_complete=TO_KEYS,
              help="Of a store that symmetrize has written: the matrix in its obsp.  [default: "
                   "connectivities]")  # fmt: skip
@click.option("--rule", type=click.Choice(RULES),
              help="Of such a matrix: the rule that it was made with, if any.")  # fmt: skip
@thinning_options
@output_option
@json_option
@progress_option
@click.pass_context
def verify(context: click.Context, /, out_dir: str, as_json: bool, **options: Any) -> None:
    """Check the export in OUT_DIR, or the matrix in a store; exit with 3 if anything is wrong.

    --to-key, --rule and the options of thinning are for a matrix that symmetrize has written, which
    does not say how it was made; an export does.
    """
    check_keys(options)
    report = _verified(out_dir, options)
    note_done()
    if as_json:
        click.echo(report.to_json())
    elif report.ok:
        click.echo(describe_verification(shown(out_dir), report))
    else:
        cli.print_all("Wrong", report.problems)
    cli.print_all("Warning", report.warnings)
    context.exit(0 if report.ok else DIFFERENT)


def _verified(place: str, options: dict[str, Any]) -> Any:
    """Verify an export, or a matrix if there is a store in its place."""
    made = {name: options.pop(name) for name in MADE}
    if is_store(place):
        with imports():
            from ..verify.element import verify_element

        if options.pop("components") or options.pop("output_storage_options"):
            raise click.UsageError("--components and --output-storage-options are for exports")
        made["to_key"] = made["to_key"] or "connectivities"
        return verify_element(place, **made, **options)
    refuse_made(made)
    with imports():
        from ..verify.api import verify_export

    return verify_export(place, **options)


@cli.command(
    short_help="Check whether a graph meets the rules of a reader.",
    examples="""
    cellgraph-dask check atlas.h5ad
    cellgraph-dask check atlas.h5ad --key distances --for cellucid-0.9.4
    """,
)
@click.argument("source", shell_complete=FILES)
@key_option
@source_options
@click.option("--for", "target", type=click.Choice(TARGETS), default=TARGETS[-1], show_default=True,
              help="Reader whose rules are checked.")  # fmt: skip
@size_options
@scratch_option("the system's", ", if any are needed")
@json_option
@progress_option
@click.pass_context
def check(context: click.Context, /, source: str, as_json: bool, **options: Any) -> None:
    """Check whether the graph of SOURCE meets the rules of a reader; exit with 3 if not."""
    check_keys(options)
    with imports():
        from ..export.check import check_connectivities

    report = check_connectivities(source, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
    elif report.ok:
        click.echo(f"{report.key} of {shown(source)} meets the rules of {report.target}.")
    else:
        cli.print_all("Broken", [rule.text for rule in report.broken])
    context.exit(0 if report.ok else DIFFERENT)


@cli.command(
    short_help="Make a graph symmetric, for the current viewer.",
    examples="""
    cellgraph-dask symmetrize atlas.zarr viewer.zarr --rule max
    cellgraph-dask symmetrize atlas.zarr viewer.zarr --key distances --rule min
    """,
)
@click.argument("source", shell_complete=FILES)
@click.argument("dest", shell_complete=FOLDERS)
@key_option
@source_options
@under(
    WRITTEN,
    rule_option,
    click.option("--to-key", default="connectivities", show_default=True, metavar="NAME",
                 help="Name of the new matrix in obsp of DEST."),
    click.option("--drop-diagonal", is_flag=True,
                 help="Leave out weights on the diagonal.  [default: they are an error]"),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32",
                 show_default=True, help="Dtype of the weights."),
    click.option("--zarr-format", type=click.Choice(["2", "3"]),
                 help="Of a new store.  [default: that of SOURCE, or 2]"),
)  # fmt: skip
@cells_option
@thinning_options
@size_options
@scratch_option("beside DEST")
@again_options
@cluster_options
@json_option
@progress_option
@click.pass_context
def symmetrize(
    context: click.Context, /, source: str, dest: str, as_json: bool, **options: Any
) -> None:
    """Make the graph of SOURCE symmetric, for the current viewer, in the zarr store DEST.

    DEST is a new folder, to which the rest of the AnnData is copied, or SOURCE itself.
    """
    check_keys(options)
    context.meta[INTERRUPTED] = partial(what_is_left, dest, options["scratch_dir"])
    with imports():
        from ..export.symmetrize import symmetrize_connectivities

    zarr_format = options.pop("zarr_format")
    options["zarr_format"] = None if zarr_format is None else int(zarr_format)
    with client(options) as workers:
        report = symmetrize_connectivities(source, dest, client=workers, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
        return
    where = f"obsp/{options['to_key']} of {report.out_dir}"
    click.echo(describe_run(report, ", in both directions,", where))


@cli.command(
    short_help="Show what is at a path: a store, an export, a scratch folder.",
    examples="""
    cellgraph-dask inspect atlas.h5ad
    cellgraph-dask inspect exports/atlas
    cellgraph-dask inspect atlas.zarr --key distances --json
    """,
)
@click.argument("path", shell_complete=FILES)
@under(
    MATRIX,
    click.option("--key", metavar="NAME", shell_complete=KEYS,
                 help="Only this matrix of a store; with slashes, a path inside it."),
)  # fmt: skip
@source_options
@size_options
@json_option
@progress_option
@click.pass_context
def inspect(context: click.Context, /, path: str, as_json: bool, **options: Any) -> None:
    """Show what is at PATH: an AnnData store, an export, or the scratch folder of a run."""
    check_keys(options)
    with imports():
        from ..inspection import inspect_path

    report = inspect_path(path, **options)
    click.echo(report.to_json() if as_json else describe_inspection(report))
    if report.run is not None and not report.running and not as_json:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # it may be anybody's
            click.echo(f"Resume with:\n{command_to_resume(report.run)}")
    export = report.export
    if export is not None and not as_json:
        cli.print_all("Wrong", export.problems)
        cli.print_all("Warning", export.warnings)


def main() -> None:
    """Run the command line."""
    # numpy's BLAS starts its threads when numpy is imported, and they wait busily. Nothing here
    # multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    prepare()
    with holding(deliver=False):  # what is done stays done until the very end
        try:
            cli()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            logging.shutdown()
            code = finish(code)
            # All files are closed and all threads have ended. Taking Python and LLVM apart object
            # by object would cost a small export a third of its time.
            os._exit(code)
