"""The options that several commands have in common."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import click

from ..machine.memory import parse_bytes
from .completion import FILES, GRAPHS, KEYS
from .failures import VERBOSE, Commands
from .help import CLUSTER, EDGES, MATRIX, MESSAGES, RUN, SIZES, WRITTEN, together, under

# Not imported: help has to be quick.
RULES = ("ones", "max", "min", "mean", "sum", "fuzzy")
STRONGEST = ("largest", "smallest")
TARGETS = ("cellucid-0.0.9", "cellucid-0.9.4", "cellucid-0.9.5")


class _Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Edges(click.ParamType):  # type: ignore[type-arg]
    name = "edges"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "viewer":
            return "viewer"
        return int(click.IntRange(1).convert(value, param, ctx))


class _Json(click.ParamType):  # type: ignore[type-arg]
    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail('not a JSON object, such as {"anon": true}', param, ctx)
        return found


class _InOptions(logging.Formatter):
    def __init__(self, commands: Commands) -> None:
        super().__init__("%(levelname)s: %(message)s")
        self._commands = commands

    def format(self, record: logging.LogRecord) -> str:
        return self._commands.in_options(super().format(record))


def _set_verbose(context: click.Context, _: click.Parameter, verbose: bool) -> None:
    verbose = context.meta[VERBOSE] = context.meta.get(VERBOSE, False) or verbose
    logging.basicConfig()
    commands = context.find_root().command
    assert isinstance(commands, Commands)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_InOptions(commands))
    logging.getLogger("cellgraph_dask").setLevel(logging.INFO if verbose else logging.WARNING)


verbose_option = under(
    MESSAGES,
    click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose,
                 help="Print more, and show where errors come from."),
)  # fmt: skip
key_option = under(
    MATRIX,
    click.option("--key", default="connectivities", show_default=True, metavar="NAME",
                 shell_complete=KEYS,
                 help="Matrix in obsp; with slashes, a path inside the store."),
)  # fmt: skip
source_options = under(
    MATRIX,
    click.option("--neighbors-key", metavar="NAME", shell_complete=GRAPHS,
                 help="Instead of --key: one of scanpy's neighbor graphs, by its name in uns."),
    click.option("--storage-options", type=_Json(), metavar="JSON",
                 help="For fsspec, if the source is a URL: endpoint, credentials and so on."),
)  # fmt: skip
size_options = under(
    SIZES,
    click.option("--memory-limit", type=_Size(), metavar="SIZE",
                 help="Upper bound on the resident memory of this process, such as 512MB; 384MB "
                      "or more.  [default: half of the machine's or cgroup's]"),
    click.option("--threads", type=click.IntRange(1, 2**31 - 1), metavar="N",
                 help="Largest number of threads.  [default: one for each core]"),
)  # fmt: skip
cells_option = under(
    EDGES,
    click.option(
        "--cells", metavar="FILE|obs:COLUMN=VALUE", shell_complete=FILES,
        help="Only these cells: a file with a name on each line, or those with a value in a column "
             "of obs.  [default: all]",
    ),
)  # fmt: skip
rule_option = click.option(
    "--rule", type=click.Choice(RULES),
    help="How the weights of both directions become one.  [default: they must be the same]",
)  # fmt: skip


def scratch_option(where: str, needed: str = "") -> Callable[[Any], Any]:
    """Return the option for the folder of temporary files, which by default are elsewhere."""
    return under(
        RUN,
        click.option("--scratch-dir", type=click.Path(file_okay=False), metavar="DIR",
                     help=f"Folder for temporary files{needed}.  [default: {where}]"),
    )  # fmt: skip


thinning_options = under(
    EDGES,
    click.option("--min-weight", type=click.FloatRange(0), metavar="W",
                 help="Keep edges with a weight of at least W."),
    click.option("--top-k", type=click.IntRange(1), metavar="K",
                 help="Keep an edge if it is among the K strongest of either of its cells."),
    click.option("--max-edges", type=_Edges(), metavar="N|viewer",
                 help="Keep the N strongest edges, or as many as the viewer of cellucid 0.9.1 to "
                      "0.9.4 draws."),
    click.option("--strongest", type=click.Choice(STRONGEST),
                 help="Which weights make the strongest edges; needed for distances.  [default: "
                      "largest]"),
)  # fmt: skip
run_options = together(
    key_option,
    source_options,
    cells_option,
    under(
        WRITTEN,
        click.option("--format", type=click.Choice(["cellucid", "parquet"]), default="cellucid",
                     show_default=True,
                     help="Edge files of cellucid, or a folder of Parquet files."),
        click.option("--compression", type=click.IntRange(1, 9), metavar="1-9",
                     help="Write gzip files of this level.  [default: plain files]"),
        click.option("--weights", is_flag=True,
                     help="Write weights too: the three files of cellucid 0.9.1 to 0.9.4."),
        rule_option,
        click.option("--directions", type=click.Choice(["one", "both"]), default="one",
                     show_default=True, help="Of Parquet: each edge once, or in both directions."),
        click.option("--cells-table", is_flag=True,
                     help="Of Parquet: write cells.parquet too, with the names of the cells and "
                          "the embedding."),
    ),
    thinning_options,
    size_options,
    scratch_option("beside the output"),
)  # fmt: skip
again_options = under(
    RUN,
    click.option("--keep-scratch", is_flag=True, help="Do not delete temporary files."),
    click.option("--force", is_flag=True, help="Replace an export, matrix or store that is there."),
    click.option("--resume", is_flag=True, help="Resume an interrupted run."),
)
cluster_options = under(
    CLUSTER,
    click.option("--scheduler-address", metavar="ADDRESS",
                 help="Run on the Dask cluster of this scheduler, such as tcp://host:8786; the "
                      "memory limit is then that of each worker."),
    click.option("--scheduler-file", type=click.Path(dir_okay=False), metavar="FILE",
                 help="The same, through the file that the scheduler has written."),
)  # fmt: skip
output_option = under(
    RUN,
    click.option("--output-storage-options", type=_Json(), metavar="JSON",
                 help="For fsspec, if OUT_DIR is a URL: endpoint, credentials and so on."),
)  # fmt: skip
json_option = together(
    under(MESSAGES, click.option("--json", "as_json", is_flag=True, help="Print JSON.")),
    verbose_option,
)
progress_option = under(
    MESSAGES,
    click.option("--progress/--no-progress", default=None,
                 help="Show progress bars.  [default: on a terminal]"),
)  # fmt: skip
