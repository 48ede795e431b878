"""The group of all commands, and what several of them need."""

from __future__ import annotations

import gc
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..errors import redact
from .failures import Commands
from .help import EXIT_CODES
from .options import verbose_option


@click.group(
    cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "-V", "--version", prog_name="cellgraph-dask")
@verbose_option
def cli() -> None:
    """Export the neighbor graph of an AnnData store, out of core, and check what was written.

    `cellgraph-dask COMMAND --help` shows the options of a command, with examples.
    """


assert isinstance(cli, Commands)
cli.examples = [
    "cellgraph-dask demo",
    "cellgraph-dask inspect atlas.h5ad",
    "cellgraph-dask export atlas.h5ad exports/atlas --memory-limit 512MB",
    "cellgraph-dask verify exports/atlas --source atlas.h5ad",
]


def check_keys(options: dict[str, Any]) -> None:
    """Refuse options that cannot be given together."""
    if options["neighbors_key"] is not None and options["key"] not in (None, "connectivities"):
        raise click.UsageError("give --key or --neighbors-key, not both")
    if options.get("format") == "parquet" and options["compression"] is not None:
        raise click.UsageError("--compression is for files of cellucid; Parquet has its own")
    if options.get("format") == "cellucid" and (
        options["directions"] != "one" or options["cells_table"]
    ):
        raise click.UsageError("--directions and --cells-table are for --format parquet")


MADE = ("to_key", "rule", "min_weight", "top_k", "max_edges", "strongest")


def refuse_made(options: dict[str, Any]) -> None:
    """Refuse options that tell how a matrix in a store was made."""
    given = [f"--{name.replace('_', '-')}" for name in MADE if options[name] is not None]
    if given:
        raise click.UsageError(
            f"{', '.join(given)}: for stores that symmetrize has written. An export says itself "
            "how it was made."
        )


@contextmanager
def imports() -> Iterator[None]:
    """Import without garbage collections, and keep what was imported out of all later ones.

    Modules are many objects and no garbage; looking for some takes a tenth of a small export.
    """
    gc.disable()
    yield
    gc.enable()
    gc.freeze()


_NETWORK = ("distributed", "tornado", "asyncio")  # loggers


@contextmanager
def client(options: dict[str, Any]) -> Iterator[Any]:
    """Connect to the cluster that options name, which are taken out; give None if they do not."""
    address, file = options.pop("scheduler_address"), options.pop("scheduler_file")
    if address is None and file is None:
        yield None
        return
    if address is not None and file is not None:
        raise click.UsageError("give --scheduler-address or --scheduler-file, not both")
    from ..runtime.cluster import connect

    if logging.getLogger("cellgraph_dask").level != logging.INFO:
        for handler in logging.getLogger().handlers:  # what they log, our errors say in a line
            handler.addFilter(lambda record: not record.name.startswith(_NETWORK))
    with connect(address, file) as client:
        yield client


def without_secrets(words: Sequence[str]) -> Iterator[str]:
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


def command_to_resume(run: Mapping[str, Any]) -> str:
    """Return the command that resumes a run, given its record, which may be anybody's.

    A ValueError says that there is none.
    """
    options: dict[str, Any] = dict(run["options"])
    name = "symmetrize" if "to_key" in options else "export"
    if "cells" in options:
        given = options["cells"] = str(options["cells"]["given"])
        if not given.startswith("obs:") and not Path(given).is_file():
            raise ValueError(f"the cells were given in Python, as {given}")
    key = str(run["key"])
    options["key"] = key.removeprefix("obsp/") if key.count("/") == 1 else key
    scratch = Path(str(run["scratch"])).parent
    if scratch.name.startswith("cellgraph-dask-"):
        options["scratch_dir"] = str(scratch.parent)
    words = ["cellgraph-dask", name, str(run["source"]), str(run["out_dir"])]
    for option in cli.commands[name].params:
        value = options.get(option.name or "")
        if value in (None, False) or value == option.default:
            continue
        words += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    plain = ["".join(c if c.isprintable() else "?" for c in word) for word in words]
    command = shlex.join([*plain, "--resume"])
    if any("://" in word for word in words[2:4]):
        command += "\nwith the storage options that it had, if any"
    return command


def what_is_left(out_dir: str, scratch_dir: str | None) -> str:
    """Say what an interrupted export has left, and how to resume it."""
    from ..export.run import is_interrupted

    if not is_interrupted(out_dir, scratch_dir):
        return "Nothing is left behind."
    command = ["cellgraph-dask", *without_secrets(sys.argv[1:]), "--resume"]
    return f"What is finished is kept. Resume with:\n{shlex.join(command)}"
