"""The documentation is true: examples and code run, links and options exist, messages are real."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

import cellgraph_dask
from cellgraph_dask import errors
from cellgraph_dask.cli.commands import cli
from cellgraph_dask.edge_pairs.format import Manifest
from tests.house.test_layers import FLOOR, MODULES, room_of, siblings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cellgraph_dask"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.*"))
SCRIPTS = [path for path in EXAMPLES if path.suffix != ".ipynb"]  # test_notebooks runs those
ARGUMENTS = {"slurm_job.py": ["--dry-run", "cells.zarr", "export"]}  # runs without SLURM

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_GAP = "…"  # stands for what a message fills in


def _name(path: Path) -> str:
    return path.name


def _blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language, without their indent."""
    return [
        re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        for indent, found, code in _FENCE.findall(page.read_text())
        if found == language
    ]


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _run_python(*arguments: str, folder: Path) -> str:
    return _run(sys.executable, *arguments, folder=folder)


def _run(*command: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Examples and code blocks


def _example(path: Path) -> object:
    """Mark an example that starts a cluster."""
    starts = "cluster" in path.relative_to(ROOT).as_posix() and path.name not in ARGUMENTS
    marks = [pytest.mark.slow, pytest.mark.cluster] if starts else []
    return pytest.param(path, id=path.name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("example", [_example(path) for path in SCRIPTS])
def test_example_runs_in_an_empty_folder_and_prints_a_few_lines(
    example: Path, tmp_path: Path
) -> None:
    interpreter = "bash" if example.suffix == ".sh" else sys.executable
    arguments = ARGUMENTS.get(example.name, [])
    printed = _run(interpreter, str(example), *arguments, folder=tmp_path)
    assert 3 <= len(printed.splitlines()) <= 15


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder where `cellgraph-dask demo` has been run."""
    folder = tmp_path_factory.mktemp("demo")
    _run_python("-m", "cellgraph_dask", "demo", "--cells", "3000", "--no-picture", folder=folder)
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[] if p.name == "README.md" else pytest.mark.slow, id=_name(p))
        for p in PAGES
        if _blocks(p, "python")
    ],
)
def test_python_blocks_run_one_after_the_other(page: Path, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(_blocks(page, "python")))
    _run_python("-W", "ignore", str(script), folder=tmp_path)


def test_the_readme_example_has_five_lines() -> None:
    (code,) = _blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line]) <= 5


def _set_up() -> list[str]:
    """Return the commands with which the README begins."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Set up and run") :]
    return _FENCE.search(section)[3].splitlines()


def test_the_readme_first_installs_the_package_alone_and_then_tests_it() -> None:
    demo, tests = (re.split(r" && ", command) for command in _set_up())
    assert demo[-2:] == ["pip install .", "cellgraph-dask demo"]
    assert tests[-2:] == ["pip install '.[test]'", "pytest -n auto"]


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    """It takes them from the README: let it, and see that they are the right ones."""
    commands = _set_up()
    assert len(commands) == 2
    script = (ROOT / ".ci/run").read_text()
    taking = re.search(r"^mapfile -t commands.*?^\)$", script, re.MULTILINE | re.DOTALL)[0]
    taken = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", taking + "\nprintf '%s\\n' \"${commands[@]}\""],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert taken.stdout.splitlines() == commands
    assert re.findall(r'^bash .*-c "\$\{commands\[(\d)\]\}"$', script, re.MULTILINE) == ["0", "1"]


# Links


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


def test_the_readme_links_every_page_and_example() -> None:
    links = set(re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text()))
    for path in [*DOCS.rglob("*.md"), *EXAMPLES]:
        assert path.relative_to(ROOT).as_posix() in links


# Command line


def _documented_options(section: str) -> set[str]:
    """Return the options in the first column of a section's table."""
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return set(re.findall(r"`(--?[a-zA-Z-]+)`", "\n".join(cells)))


def _options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in [*parameter.opts, *parameter.secondary_opts]
    }


def test_command_line_page_names_exactly_the_commands_and_options() -> None:
    text = (DOCS / "reference/command-line.md").read_text()
    first, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert _documented_options(first) == _options(cli) | {"-h", "--help"}
    documented = {}
    for section in sections:
        title, _, body = section.partition("\n")
        if title not in {"Exit codes", "Examples"}:
            documented[title] = _documented_options(body)
    assert documented == {name: _options(command) for name, command in cli.commands.items()}


def _command_lines() -> list[str]:
    lines = [
        part.strip()
        for page in PAGES
        for block in _blocks(page, "sh")
        for line in block.splitlines()
        for part in line.split("&&")
    ]
    return sorted({line for line in lines if line.startswith("cellgraph-dask ")})


@pytest.mark.parametrize("line", _command_lines())
def test_shown_command_lines_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "-v":
        words.pop(0)
    # Its parent, or the command would keep for other tests that there is no -h.
    parent = click.Context(cli, **cli.context_settings)
    cli.commands[words[0]].make_context(words[0], words[1:], parent=parent)


# Messages


def _text(node: ast.expr) -> str | None:
    """Return a string literal, or an f-string with a gap for each value; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or _GAP for part in node.values)
    return None


@cache
def _source_texts() -> tuple[str, ...]:
    """Return every string in the package's source."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr)]
    return tuple(text for text in map(_text, nodes) if text)


def _user_errors() -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CellgraphError)
    }


@cache
def _raised_texts() -> tuple[str, ...]:
    """Return the messages of the errors meant for users, where they are written in the raise."""
    names = _user_errors()
    raises = [
        node.exc
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    texts = [
        _text(call.args[0])
        for call in raises
        if isinstance(call.func, ast.Name) and call.func.id in names and call.args
    ]
    return tuple(text for text in texts if text)


def _pattern(heading: str) -> re.Pattern[str]:
    """Match the start of a message, with anything where the heading has a gap."""
    return re.compile(".+?".join(re.escape(part) for part in heading.split(_GAP)))


HEADINGS = re.findall(r"^## (.+)$", (DOCS / "guide/troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("heading", HEADINGS)
def test_troubleshooting_headings_are_messages_of_the_package(heading: str) -> None:
    assert any(_pattern(heading).match(text) for text in _source_texts())


def test_every_raised_message_has_a_heading() -> None:
    patterns = [_pattern(heading) for heading in HEADINGS]
    missing = [t for t in _raised_texts() if not any(p.match(t) for p in patterns)]
    assert not missing, "add a heading to docs/guide/troubleshooting.md"


# Names


def test_api_page_names_the_public_functions_fields_and_errors() -> None:
    text = (DOCS / "reference/api.md").read_text()
    names = set(cellgraph_dask.__all__) - {"__version__"}
    for public in list(names):
        value = getattr(cellgraph_dask, public)
        if dataclasses.is_dataclass(value):
            names |= {field.name for field in dataclasses.fields(value)}
    names |= _user_errors()
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


def _first_column(heading: str) -> list[str]:
    """Return the names in the first column of a table in the page on the house."""
    text = (DOCS / "design/house.md").read_text()
    section = re.split(r"^## ", text[text.index(f"## {heading}\n") + 3 :], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE)


def test_house_page_lists_the_rooms_from_the_ground_up() -> None:
    listed = [name.rstrip("/") for name in _first_column("Rooms")]
    assert set(listed) == {room_of(module) for module in MODULES if "/" in module}
    assert [FLOOR[room] for room in listed] == sorted(FLOOR[room] for room in listed)


def test_house_page_lists_the_modules_in_import_order() -> None:
    listed = _first_column("Modules")
    assert sorted(set(listed) ^ {module for module in MODULES if "/" in module}) == []
    for name in listed:
        later = listed[listed.index(name) :]
        assert not {other for other, _ in siblings(name)} & set(later), name


def test_house_page_walks_through_modules_that_exist_each_once() -> None:
    text = (DOCS / "design/house.md").read_text()
    walk = text[text.index("## The path of a graph") : text.index("## Where would I change")]
    passed = re.findall(r"`(\w+/\w+)`", walk)
    assert sorted(set(passed) - set(MODULES)) == []
    assert len(set(passed)) == len(passed)


def test_format_page_lists_the_keys_of_the_manifest() -> None:
    text = (DOCS / "reference/file-format.md").read_text()
    section = text[text.index("## Manifest") : text.index("## gzip")]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert listed == list(json.loads(Manifest(3, 2, 2, None).to_json()))
