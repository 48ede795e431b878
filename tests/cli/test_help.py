"""Help: commands and options under headings, examples that parse, narrow terminals."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from cellgraph_dask._version import __version__
from cellgraph_dask.cli.commands import cli
from cellgraph_dask.cli.help import SECTIONS
from tests.helpers.command import run, run_process

EXAMPLES = {name: command.examples for name, command in cli.commands.items()}


def test_every_command_has_its_heading():
    text = run("--help").stdout
    places = [text.index(f"\n{heading}:\n") for heading in SECTIONS]
    assert places == sorted(places)
    assert "Other commands" not in text
    assert all(text.count(f"\n  {name}  ") == 1 for name in cli.commands)
    assert "..." not in text.split("\n", 1)[1]  # nothing is cut off


@pytest.mark.parametrize("name", cli.commands)
def test_options_are_under_headings_once_each(name):
    lines = run(name, "--help").stdout.splitlines()
    command = cli.commands[name]
    for option in command.params:
        if isinstance(option, click.Option):
            flags = re.compile(rf"  {', '.join(option.opts)}(\s|$)")
            assert len(list(filter(flags.match, lines))) == 1, option.opts
    messages = lines[lines.index("Messages:") :]
    assert any(line.startswith("  -h, --help") for line in messages)
    assert max(map(len, lines)) <= 80
    assert "x<=" not in "\n".join(lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_command_has_examples_that_parse(name):
    assert EXAMPLES[name]
    text = run(name, "--help").stdout
    for line in EXAMPLES[name]:
        assert f"  {line}\n" in text
        program, command, *words = shlex.split(line)
        assert (program, command) == ("cellgraph-dask", name)
        parent = click.Context(cli, **cli.context_settings)
        cli.commands[name].make_context(name, words, parent=parent)


def test_help_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    lines = run_process("plan", "--help").stdout.splitlines()
    examples = lines.index("Examples:")
    assert max(map(len, lines[:examples])) <= 50


def test_version_has_a_short_flag():
    assert run("-V").stdout == f"cellgraph-dask, version {__version__}\n"
