"""How a command ends before it is done: errors and signals, in the words of the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..errors import CellgraphError, redact
from ..machine.interrupts import SIGNALS, Hold, holding
from .help import Command, write_commands, write_examples

FAILED, DIFFERENT = 1, 3  # exit codes

# Keys of a context's `meta`, which a command shares with the group.
_JSON, VERBOSE, INTERRUPTED = (f"{__name__}.{name}" for name in ("json", "verbose", "interrupted"))
_PARAMETER = re.compile(r"`(\w+)(=\w+)?`")


class Commands(click.Group):
    """The group of all commands, which tells of what goes wrong in any of them.

    Errors are told on standard error, and with ``--json`` on standard output too. A command may put
    a function under `INTERRUPTED` that says what an interruption has left.
    """

    command_class = Command
    examples: Sequence[str] = ()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under headings, and examples."""
        write_commands(self, ctx, formatter)
        write_examples(formatter, self.examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        ctx.meta[_JSON] = "--json" in args
        ctx.color = wants_color()  # else only on a terminal
        with self._told(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _signals() as hold, self._told(ctx):
            result = None
            try:
                result = super().invoke(ctx)
            except KeyboardInterrupt:
                if not hold.shown:  # else it has succeeded, whatever comes
                    raise
            if hold.noted:
                text = "the export is complete; only tidying up was interrupted."
                click.echo(f"{_head('Warning')} {text}", err=True)
            return result

    @contextmanager
    def _told(self, context: click.Context) -> Iterator[None]:
        try:
            yield
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:  # which click prints
            _print_json(context, error, error.format_message())
            raise
        except (CellgraphError, OSError) as error:  # of ours, or what the system refuses
            message = self.in_options(redact(str(error)))
            _print_json(context, error, message)
            text = f"{_head('Error')} {message}"
            if context.meta.get(VERBOSE):
                text = redact(traceback.format_exc())
            click.echo(text, err=True)
            context.exit(FAILED)
        except KeyboardInterrupt as interrupt:
            left: Callable[[], str] = context.meta.get(
                INTERRUPTED, lambda: "Nothing is left behind."
            )
            message = f"Interrupted. {left()}"
            _print_json(context, interrupt, message)
            click.echo(message, err=True)
            context.exit(128 + getattr(interrupt, "number", signal.SIGINT))
        except Exception as error:  # a mistake of ours, and Python shows where
            _print_json(context, error, redact(str(error)))
            raise

    def in_options(self, text: str) -> str:
        """Return a message with options instead of the parameters of Python.

        Messages name them as `force=True` and `memory_limit`, in backquotes.
        """
        names = {option.name for command in self.commands.values() for option in command.params}

        def option(match: re.Match[str]) -> str:
            return f"--{match[1].replace('_', '-')}" if match[1] in names else match[0]

        return _PARAMETER.sub(option, text)

    def print_all(self, word: str, texts: Iterable[str]) -> None:
        """Print messages on standard error."""
        for text in texts:
            click.echo(f"{_head(word)} {self.in_options(text)}", err=True)


def wants_color() -> bool | None:
    """Return what the user's environment says about colors; None if nothing."""
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("CLICOLOR") == "0":
        return False
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        if environment.get(name):
            return environment[name] != "0"
    return False if environment.get("TERM") == "dumb" else None


def _head(word: str) -> str:
    """Return the word that a message begins with; colors are taken out where none are wanted."""
    return click.style(f"{word}:", fg="yellow" if word == "Warning" else "red", bold=True)


def _print_json(context: click.Context, error: BaseException, message: str) -> None:
    if context.meta[_JSON]:
        name = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        click.echo(json.dumps({"error": {"type": name, "message": message}}))


class _Ended(KeyboardInterrupt):
    """A signal: Ctrl-C, the end of a batch job's time, a terminal that is closed."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end(number: int, _: Any) -> None:
    for other in SIGNALS:  # what follows is tidying up, which no second signal should cut short
        signal.signal(other, _pass)
    raise _Ended(number)


def _pass(_number: int, _frame: Any) -> None:
    """Do nothing about a signal, as the process ends because of another one."""


@contextmanager
def _signals() -> Iterator[Hold]:
    """Let signals that end the process end the work in order, as Ctrl-C does.

    Those that are ignored, as ``nohup`` has it, stay ignored. Given is what tells whether signals
    came once an export was shown.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        with holding(deliver=False) as hold:
            yield hold
    finally:
        if not hold.is_held:
            for number, handler in before.items():
                if signal.getsignal(number) is not _pass:  # until the very end
                    signal.signal(number, handler)
