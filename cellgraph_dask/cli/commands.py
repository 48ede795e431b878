"""The command line: parsing and printing."""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..errors import redact, shown
from ..machine.interrupts import holding
from ..machine.memory import format_bytes
from .failures import EXIT_CODES, INTERRUPTED, Commands
from .look import plot
from .options import (
    RULES,
    TARGETS,
    cells_option,
    cluster_options,
    json_option,
    key_option,
    output_option,
    progress_option,
    run_options,
    size_options,
    source_options,
    thinning_options,
    verbose_option,
)
from .streams import finish, note_done, prepare
from .words import describe_inspection, describe_plan, describe_thinned, describe_verification

DIFFERENT = 3  # exit code


@click.group(
    cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="cellgraph-dask")
@verbose_option
def cli() -> None:
    """Export the neighbor graph of an AnnData store, out of core, and check what was written."""


def _check_keys(options: dict[str, Any]) -> None:
    if options["neighbors_key"] is not None and options["key"] not in (None, "connectivities"):
        raise click.UsageError("give --key or --neighbors-key, not both")
    if options.get("format") == "parquet" and options["compression"] is not None:
        raise click.UsageError("--compression is for files of cellucid; Parquet has its own")
    if options.get("format") == "cellucid" and (
        options["directions"] != "one" or options["cells_table"]
    ):
        raise click.UsageError("--directions and --cells-table are for --format parquet")


@contextmanager
def _imports() -> Iterator[None]:
    """Import without garbage collections, and keep what was imported out of all later ones.

    Modules are many objects and no garbage; looking for some takes a tenth of a small export.
    """
    gc.disable()
    yield
    gc.enable()
    gc.freeze()


@contextmanager
def _client(options: dict[str, Any]) -> Iterator[Any]:
    """Connect to the cluster that options name, which are taken out; give None if they do not."""
    address, file = options.pop("scheduler_address"), options.pop("scheduler_file")
    if address is None and file is None:
        yield None
        return
    if address is not None and file is not None:
        raise click.UsageError("give --scheduler-address or --scheduler-file, not both")
    from ..runtime.cluster import connect

    if logging.getLogger("cellgraph_dask").level != logging.INFO:
        for handler in logging.getLogger().handlers:  # what it logs, our errors say in a line
            handler.addFilter(lambda record: not record.name.startswith("distributed"))
    with connect(address, file) as client:
        yield client


def _without_secrets(words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command as they may be shown, without --resume."""
    before = ""
    for word in words:
        name, equals, _ = word.partition("=")
        if before.endswith("storage-options"):
            yield "…"
        elif name.endswith("storage-options") and equals:
            yield f"{name}=…"
        elif word != "--resume":
            yield redact(word)
        before = word


def _what_is_left(out_dir: str, scratch_dir: str | None) -> str:
    """Say what an interrupted export has left, and how to resume it."""
    from ..export.run import is_interrupted

    if not is_interrupted(out_dir, scratch_dir):
        return "Nothing is left behind."
    command = ["cellgraph-dask", *_without_secrets(sys.argv[1:]), "--resume"]
    return f"What is finished is kept. Resume with:\n{shlex.join(command)}"


@cli.command(epilog=EXIT_CODES)
@click.argument("source")
@click.argument("out_dir", required=False)
@run_options
@output_option
@cluster_options
@json_option
@click.pass_context
def plan(
    context: click.Context, /, source: str, out_dir: str | None, as_json: bool, **options: Any
) -> None:
    """Show what an export of SOURCE would do and need; write nothing."""
    _check_keys(options)
    with _imports():
        from ..export.api import plan_export

    with _client(options) as client:
        result = plan_export(source, out_dir, client=client, **options)
    click.echo(result.to_json() if as_json else cli.in_options(describe_plan(result)))


@cli.command(epilog=EXIT_CODES)
@click.argument("source")
@click.argument("out_dir")
@run_options
@click.option("--keep-scratch", is_flag=True, help="Do not delete temporary files.")
@click.option("--force", is_flag=True, help="Replace an existing export.")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
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
    _check_keys(options)
    context.meta[INTERRUPTED] = partial(_what_is_left, out_dir, options["scratch_dir"])
    with _imports():
        from ..export.api import export_connectivities

    with _client(options) as client:
        report = export_connectivities(source, out_dir, client=client, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
    else:
        click.echo(
            f"{report.n_edges:,} edges of {report.n_cells:,} cells in {report.seconds:.1f} s, "
            f"peak memory {format_bytes(report.peak_memory_bytes)}: {report.out_dir}"
        )
        if report.thinned is not None:
            click.echo(describe_thinned(report.thinned))
        if report.kept_tasks:
            n = report.kept_tasks
            click.echo(f"{n:,} finished tasks of the interrupted run were kept.")


@cli.command(epilog=EXIT_CODES)
@click.argument("out_dir")
@click.option(
    "--source", metavar="SOURCE", help="Prove that the edges are exactly those of this matrix."
)
@key_option
@source_options
@size_options
@click.option(
    "--scratch-dir", type=click.Path(file_okay=False), metavar="DIR",
    help="Folder for temporary files, if --source needs any.  [default: in OUT_DIR]",
)  # fmt: skip
@click.option(
    "--components/--no-components", default=None,
    help="Count connected components.  [default: up to 16 million edges]",
)  # fmt: skip
@click.option("--to-key", metavar="NAME",
              help="Of a store that symmetrize has written: the matrix in its obsp.  [default: "
                   "connectivities]")  # fmt: skip
@click.option("--rule", type=click.Choice(RULES),
              help="Of such a matrix: the rule that it was made with, if any.")  # fmt: skip
@output_option
@json_option
@progress_option
@click.pass_context
def verify(context: click.Context, /, out_dir: str, as_json: bool, **options: Any) -> None:
    """Check the export in OUT_DIR, or the matrix in a store; exit with 3 if anything is wrong."""
    _check_keys(options)
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
    to_key, rule = options.pop("to_key"), options.pop("rule")
    if any(Path(place, name).is_file() for name in (".zgroup", "zarr.json")):
        with _imports():
            from ..verify.element import verify_element

        if options.pop("components") or options.pop("output_storage_options"):
            raise click.UsageError("--components and --output-storage-options are for exports")
        return verify_element(place, to_key=to_key or "connectivities", rule=rule, **options)
    if to_key is not None or rule is not None:
        raise click.UsageError("--to-key and --rule are for stores that symmetrize has written")
    with _imports():
        from ..verify.api import verify_export

    return verify_export(place, **options)


@cli.command(epilog=EXIT_CODES)
@click.argument("source")
@key_option
@source_options
@click.option("--for", "target", type=click.Choice(TARGETS), default=TARGETS[-1], show_default=True,
              help="Reader whose rules are checked.")  # fmt: skip
@size_options
@click.option(
    "--scratch-dir", type=click.Path(file_okay=False), metavar="DIR",
    help="Folder for temporary files, if any are needed.  [default: the system's]",
)  # fmt: skip
@json_option
@progress_option
@click.pass_context
def check(context: click.Context, /, source: str, as_json: bool, **options: Any) -> None:
    """Check whether the graph of SOURCE meets the rules of a reader; exit with 3 if not."""
    _check_keys(options)
    with _imports():
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


@cli.command(epilog=EXIT_CODES)
@click.argument("source")
@click.argument("dest")
@key_option
@source_options
@click.option("--rule", type=click.Choice(RULES),
              help="How the weights of both directions become one.  [default: they must be the "
                   "same]")  # fmt: skip
@cells_option
@thinning_options
@click.option("--to-key", default="connectivities", show_default=True, metavar="NAME",
              help="Name of the new matrix in obsp of DEST.")  # fmt: skip
@click.option("--drop-diagonal", is_flag=True,
              help="Leave out weights on the diagonal.  [default: they are an error]")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32",
              show_default=True, help="Dtype of the weights.")  # fmt: skip
@click.option("--zarr-format", type=click.Choice(["2", "3"]),
              help="Of a new store.  [default: that of SOURCE, or 2]")  # fmt: skip
@size_options
@click.option("--scratch-dir", type=click.Path(file_okay=False), metavar="DIR",
              help="Folder for temporary files.  [default: beside DEST]")  # fmt: skip
@click.option("--keep-scratch", is_flag=True, help="Do not delete temporary files.")
@click.option("--force", is_flag=True, help="Replace a matrix, or a store, that is there.")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
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
    _check_keys(options)
    context.meta[INTERRUPTED] = partial(_what_is_left, dest, options["scratch_dir"])
    with _imports():
        from ..export.symmetrize import symmetrize_connectivities

    zarr_format = options.pop("zarr_format")
    options["zarr_format"] = None if zarr_format is None else int(zarr_format)
    with _client(options) as client:
        report = symmetrize_connectivities(source, dest, client=client, **options)
    note_done()
    if as_json:
        click.echo(report.to_json())
        return
    click.echo(
        f"{report.n_edges:,} edges of {report.n_cells:,} cells, in both directions, in "
        f"{report.seconds:.1f} s, peak memory {format_bytes(report.peak_memory_bytes)}: "
        f"obsp/{options['to_key']} of {report.out_dir}"
    )
    if report.thinned is not None:
        click.echo(describe_thinned(report.thinned))


@cli.command(epilog=EXIT_CODES)
@click.argument("path")
@click.option("--key", help="Only this matrix of a store; with slashes, a path inside it.")
@source_options
@size_options
@json_option
@progress_option
@click.pass_context
def inspect(context: click.Context, /, path: str, as_json: bool, **options: Any) -> None:
    """Show what is at PATH: an AnnData store, an export, or the scratch folder of a run."""
    _check_keys(options)
    with _imports():
        from ..inspection import inspect_path

    report = inspect_path(path, **options)
    click.echo(report.to_json() if as_json else describe_inspection(report))
    export = report.export
    if export is not None and not as_json:
        cli.print_all("Wrong", export.problems)
        cli.print_all("Warning", export.warnings)


@cli.command(epilog=EXIT_CODES)
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


cli.add_command(plot)


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
