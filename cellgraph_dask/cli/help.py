"""How help is laid out: commands and options under headings, and examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `verify` found something wrong; 129, 130 and "
    "143 after SIGHUP, Ctrl-C (SIGINT) and SIGTERM."
)
SECTIONS = {
    "Look first": ("inspect", "plan", "check"),
    "Make": ("export", "symmetrize"),
    "See what was made": ("verify", "plot", "report"),
    "Start": ("demo", "completion"),
}
PICTURE, MATRIX, EDGES, WRITTEN, RUN, SIZES, CLUSTER, MESSAGES = (
    "The picture", "Which matrix", "Which edges", "What is written", "How it is run",
    "Memory and threads", "Dask cluster", "Messages",
)  # fmt: skip
_OTHERS, _OPTIONS = "Other commands", "Options"
_RANGE = re.compile(r"  \[\d+<=x<=\d+\]")  # which a metavar tells, or nobody reaches
_WHOLE = 1000  # characters, for click not to cut a sentence off


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what adds several options to a command, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def under(heading: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what adds several options to a command, under a heading of its help."""

    def add(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", ()))
        command = together(*options)(command)
        for option in command.__click_params__[before:]:
            option.heading = heading
        return command

    return add


class Command(click.Command):
    """A command whose help has its options under headings, and examples.

    Headings come in the order of their first options; options without one come first.
    """

    def __init__(self, *arguments: Any, examples: str = "", **options: Any) -> None:
        super().__init__(*arguments, **({"epilog": EXIT_CODES} | options))
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {_OPTIONS: []}
        for option in self.get_params(ctx):
            record = None if isinstance(option, click.Argument) else option.get_help_record(ctx)
            if record is not None:
                usual = MESSAGES if "--help" in option.opts else _OPTIONS
                name, text = record
                heading = getattr(option, "heading", usual)
                sections.setdefault(heading, []).append((name, _RANGE.sub("", text)))
        _write(formatter, sections)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line, and the exit codes."""
        write_examples(formatter, self.examples)
        super().format_epilog(ctx, formatter)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write command lines as they are."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_commands(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group with what they do, under their headings."""
    names = group.list_commands(ctx)
    known = {name for section in SECTIONS.values() for name in section}
    sections = SECTIONS | {_OTHERS: tuple(name for name in names if name not in known)}
    _write(
        formatter,
        {
            heading: [
                (name, group.commands[name].get_short_help_str(_WHOLE))
                for name in section
                if name in names
            ]
            for heading, section in sections.items()
        },
    )


def _write(formatter: click.HelpFormatter, sections: dict[str, list[tuple[str, str]]]) -> None:
    """Write what has lines, all in the same two columns."""
    names = [name for section in sections.values() for name, _ in section]
    first = min(max(map(len, names), default=0), formatter.width // 3)
    for heading, section in sections.items():
        if section:
            with formatter.section(heading):
                padded = [(f"{name:<{first}}", text) for name, text in section]
                formatter.write_dl(padded, col_max=first)
