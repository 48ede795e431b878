"""Completion: in real shells on a terminal, and what is offered where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import zarr
from click.shell_completion import get_completion_class

from cellgraph_dask.cli.commands import cli
from cellgraph_dask.cli.completion import SHELLS
from tests.helpers.command import run
from tests.helpers.stores import symmetric_graph, write_store
from tests.helpers.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a folder with stores of every kind, and the command as it is installed."""
    folder = tmp_path_factory.mktemp("completion")
    store = write_store(folder / "cells.zarr", symmetric_graph(40))
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name in ("distances", "ab cd", "a$(touch x)", "a;b"):
        root["obsp"].create_group(name)
    for name in ("X_umap", "X_pca", "spatial"):
        root.require_group("obsm").create_group(name)
    root.require_group("obs").create_group("cell_type")
    root.require_group("uns/wide").create_group("connectivities_key")
    root.require_group("uns/colors")
    shutil.make_archive(str(folder / "cells"), "zip", store)
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file.create_group("obsp/connectivities")
        file.create_group("uns/neighbors/distances")
    with h5py.File(folder / "both.h5mu", "w") as file:
        file.create_group("mod/rna/obsp/connectivities")
    with h5py.File(folder / "old.h5ad", "w") as file:
        file.create_group("uns/neighbors/connectivities")
        file.create_group("uns/neighbors/params")
    for name, text in (("made", json.dumps({"source": os.fspath(store)})), ("broken", "{")):
        (folder / name / "connectivity").mkdir(parents=True)
        (folder / name / "connectivity/provenance.json").write_text(text)
    (folder / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    os.mkfifo(folder / "pipe")
    command = folder / "bin/cellgraph-dask"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom cellgraph_dask.cli import main\nmain()\n")
    command.chmod(0o755)
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    root = str(Path(__file__).parents[2])
    return {
        "PATH": path, "PYTHONPATH": root, "HOME": str(folder), "TERM": "xterm", "PS1": "$ ",
        "LC_ALL": "C.UTF-8",
    }  # fmt: skip


def offered(monkeypatch, *words: str) -> list[str]:
    """Return what is offered for the last of these words."""
    made = get_completion_class("bash")(cli, {}, "cellgraph-dask", "_CELLGRAPH_DASK_COMPLETE")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["cellgraph-dask", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return made.complete().splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("export cells.zarr --key|", ["plain,connectivities", "plain,distances"]),
        ("export cells.zarr out --key|dis", ["plain,distances"]),
        ("export cells.zarr out --key =|dis", ["plain,distances"]),
        ("export cells.zip out --key|dis", ["plain,distances"]),
        ("export cells.h5ad --key|", ["plain,connectivities"]),
        ("export $PWD/cells.h5ad --key|", ["plain,connectivities"]),
        ("verify out --source cells.h5ad --key|", ["plain,connectivities"]),
        ("inspect cells.zarr --key|con", ["plain,connectivities"]),
        ("inspect cells.zarr --key|obsp/d", ["plain,obsp/distances"]),
        ("export both.h5mu --key|", ["plain,mod/rna/obsp/connectivities"]),
        ("export old.h5ad --key|", ["plain,uns/neighbors/connectivities"]),
        ("export cells.zarr --neighbors-key|", ["plain,wide"]),
        ("export cells.h5ad --neighbors-key|", ["plain,neighbors"]),
        ("verify cells.zarr --to-key|", ["plain,connectivities", "plain,distances"]),
        ("export|", ["file,"]),
        ("export cells.zarr|", ["dir,"]),
        ("export s3 : //bucket/cells.zarr|", ["dir,"]),
        ("inspect|ce", ["file,ce"]),
        ("verify out --source|", ["file,"]),
        ("export cells.zarr out --scratch-dir|", ["dir,"]),
        ("export --rule|me", ["plain,mean"]),
        ("plot cells.zarr --embedding|", ["plain,X_pca", "plain,X_umap", "plain,spatial"]),
        ("plot made --embedding|X_u", ["plain,X_umap"]),  # of the source that it names
        ("plot made --color|", ["plain,cell_type"]),
        ("plot broken --color|", []),
        # What cannot be looked at offers nothing, and says nothing.
        ("export nothing.zarr --key|", []),
        ("export broken.h5ad --key|", []),
        ("export pipe --key|", []),
        ("export s3 : //bucket/cells.zarr --key|", []),
        ("export --key|", []),
    ],
)
def test_what_is_offered(folder, monkeypatch, capfd, line, expected):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    before, _, last = line.partition("|")
    found = [word for word in offered(monkeypatch, *before.split(), last) if word]
    assert found == expected  # so nothing that a shell would run or take apart
    assert capfd.readouterr() == ("", "")


def test_it_is_quick_and_imports_nothing_heavy(folder):
    script = (
        "import sys; from cellgraph_dask.cli.commands import cli\n"
        "from cellgraph_dask.cli.completion import KEYS\n"
        "import click; context = click.Context(cli.commands['inspect'])\n"
        "context.params = {'path': 'cells.zarr'}\n"
        "assert len(KEYS(context, None, '')) == 2\n"
        "print({'numpy', 'zarr', 'h5py', 'dask'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment(folder), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_a_shell(shell, monkeypatch):
    text = run("completion", shell).stdout
    assert f"_CELLGRAPH_DASK_COMPLETE={shell}_complete" in text
    monkeypatch.setenv("SHELL", f"/usr/local/bin/{shell}")
    assert run("completion").stdout == text
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    outcome = run("completion")
    assert outcome.exit_code == 2
    assert "name a shell: bash, zsh, fish" in outcome.stderr


START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
SET_UP = {
    "bash": "bind 'set show-all-if-ambiguous on'; eval \"$(cellgraph-dask completion bash)\"",
    "zsh": 'PS1="$ "; eval "$(cellgraph-dask completion zsh)"',
    "fish": "cellgraph-dask completion fish | source",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_in_a_real_shell(folder, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    with Terminal(START[shell], cwd=folder, env=environment(folder)) as terminal:
        terminal.send(f"{SET_UP[shell]}; echo re''ady\n")
        terminal.read(r"[\r\n]ready")
        for typed, completed in (
            ("exp", "export"),
            ("export cells.za", "export cells.zarr"),
            ("export cells.zarr out --comp", "export cells.zarr out --compression"),
            ("export cells.zarr out --key dis", "export cells.zarr out --key distances"),
            ("export cells.h5ad out --key=con", "export cells.h5ad out --key=connectivities"),
            ("plan cells.zarr --neighbors-key ", "plan cells.zarr --neighbors-key wide"),
        ):
            terminal.send(f"cellgraph-dask {typed}\t")
            terminal.send("\x01echo \n")  # from its beginning: print the line as it is now
            terminal.read(rf"[\r\n]cellgraph-dask {completed}/? ?[\r\n]")
        terminal.send("cellgraph-dask inspect cells.zarr --key \t")
        terminal.read("connectivities.*distances")
    assert not (folder / "x").exists()
