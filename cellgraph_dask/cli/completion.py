"""What a shell completes: files, folders, and the names in the store on the line.

A shell runs this for every Tab, so it must be quick, print nothing of its own, and never fail.
Names come from stores, which may be a stranger's, and shells insert them as they are: only those
without signs that mean something to a shell are offered.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from ..machine.remote import is_url, local_path, plain_name
from ..source import listing

PROGRAM, VARIABLE = "cellgraph-dask", "_CELLGRAPH_DASK_COMPLETE"

Completion = Callable[[click.Context, click.Parameter, str], list[Any]]  # of CompletionItem

_MOST_BYTES = 2**20
_START_ZSH = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }"
_PLAIN = re.compile(r"[\w.+@%/-]+")  # names that mean nothing else to any shell


def paths(kind: str) -> Completion:
    """Return what completes the paths of any "file" or of a "dir"; the shell knows them."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return [CompletionItem(incomplete, type=kind)]

    return complete


def names(find: Callable[[listing.Names], list[str]], *of: str) -> Completion:
    """Return what completes names in a store, which one of the parameters `of` names."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        store = next(filter(None, (_given(ctx, name) for name in of)), None)
        with suppress(Exception):  # of whatever is there
            name = plain_name(os.path.expandvars(store or ""))
            if name and not is_url(name):
                with listing.listing(_source_of(local_path(name))) as store_names:
                    found = find(store_names)
                found += [f"obsp/{key}" for key in found if "/" in incomplete and "/" not in key]
                return [
                    CompletionItem(name)
                    for name in found
                    if name.startswith(incomplete) and _PLAIN.fullmatch(name)
                ]
        return []

    return complete


def _source_of(path: Path) -> Path:
    """Return the store that an export was made from, if it is one and tells; else the path."""
    for file in (path / "connectivity/provenance.json", path / "_graph.json"):
        if file.is_file() and file.stat().st_size <= _MOST_BYTES:
            return Path(json.loads(file.read_bytes())["source"])
    return path


def _given(ctx: click.Context, name: str) -> str | None:
    """Return the value of a parameter; click leaves arguments alone before an unfinished option."""
    value = ctx.params.get(name)
    if value is None:
        arguments = [p.name for p in ctx.command.params if isinstance(p, click.Argument)]
        given = dict(zip(arguments, ctx.args, strict=False))
        value = given.get(name)
    return value


FILES, FOLDERS = paths("file"), paths("dir")
KEYS = names(listing.matrices, "source", "path")
TO_KEYS = names(listing.matrices, "out_dir", "path")
GRAPHS = names(listing.graphs, "source", "path")
EMBEDDINGS = names(listing.embeddings, "source", "path")
COLUMNS = names(listing.columns, "source", "path")


class _Quiet(ShellComplete):
    """Completes in silence: what cannot be completed is not."""

    def source(self) -> str:
        """Return the script for the shell."""
        return self.source_template % self.source_vars()

    def complete(self) -> str:
        """Return the completions, as the script takes them."""
        with suppress(Exception), redirect_stderr(io.StringIO()):
            return super().complete()
        return ""


@add_completion_class
class _Bash(_Quiet, BashComplete):
    """Completion in bash, which takes words with ``=`` and ``:`` apart."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, and that one."""
        parts, incomplete = super().get_completion_args()
        words: list[str] = []
        for before, part in zip(["", *parts], parts, strict=False):
            if words and ":" in (before, part):
                words[-1] += part
            elif part != "=":
                words.append(part)
        return words, incomplete


@add_completion_class
class _Zsh(_Quiet, ZshComplete):
    """Completion in zsh, whose system of completion is started if it has not been.

    What is completed after ``--key=`` is the rest of the word.
    """

    source_template = (
        ZshComplete.source_template.replace("\n\n", f"\n\n{_START_ZSH}\n\n", 1)
        .replace("    local -a response\n", "    local -a response\n    compset -P '--*='\n", 1)
        .replace("compadd -U", "compadd")
    )


@add_completion_class
class _Fish(_Quiet, FishComplete):
    """Completion in fish, which takes ``--key=name`` for one word."""

    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, and that one."""
        words, incomplete = super().get_completion_args()
        option, equals, _ = incomplete.partition("=")
        self._before = option + equals if equals and option.startswith("--") else ""
        return words, incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return a completion as the script takes it."""
        if item.type == "plain":
            item.value = self._before + item.value
        return super().format_completion(item)


SHELLS = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def script(cli: click.Command, shell: str) -> str:
    """Return what a shell has to run to complete commands."""
    made: Any = SHELLS[shell](cli, {}, PROGRAM, VARIABLE)
    return str(made.source())
