"""Folders of cellucid 0.9.1 to 0.9.4, whose datasets our files would make unreadable."""

from __future__ import annotations

import json

import fsspec
import pytest

from cellgraph_dask import export_connectivities, open_export, plan_export, verify_export
from cellgraph_dask.errors import InvalidExportError, OutputError
from tests.helpers.command import run
from tests.helpers.stores import snapshot, symmetric_graph, write_store

GRAPH = symmetric_graph()
STATS = {"n_cells": GRAPH.shape[0], "has_connectivity": False, "n_edges": None}


def identity(**facts):
    return {"dataset_identity.json": json.dumps({"version": 2, **facts, "stats": STATS})}


# What is in a folder of each kind, and what the message says of it.
FOREIGN = {
    "0.9.1": (identity(cellucid_data_version="0.9.1"), "'0.9.1'"),
    "0.9.3": (identity(cellucid_data_version="0.9.3", version=3), "'0.9.3'"),
    "0.9.4 of another build": (identity(cellucid_data_version="v0.9.4.post1"), "'v0.9.4.post1'"),
    "version 3 alone": (identity(version=3), "version 3"),
    "no stats": ({"dataset_identity.json": '{"version": 3}'}, "version 3"),
    "embeddings alone": ({"embeddings/0_2d.bin": "points"}, "embeddings"),
    "weights": ({"connectivity_manifest.json": '{"weightsPath": "connectivity/w"}'}, "weightsPath"),
    "damaged weights": ({"connectivity_manifest.json": '{"weight_bytes": 8}'}, "weight_bytes"),
}  # fmt: skip
OURS = {
    "0.0.9": identity(cellucid_data_version="0.0.9"),
    "before versions": identity(),
    "version 1": identity(version=1),
    "a version in words": identity(cellucid_data_version="unknown", version="newest"),
    "embeddings is a file": {"embeddings": "text"},
    "nothing": {},
}


def prepared(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def source(tmp_path):
    return write_store(tmp_path / "s.zarr", GRAPH)


@pytest.mark.parametrize("options", [[], ["--force"], ["--resume"]])
@pytest.mark.parametrize("name", FOREIGN)
def test_an_export_into_such_a_folder_is_refused_and_nothing_touched(
    tmp_path, source, name, options
):
    files, sign = FOREIGN[name]
    folder = prepared(tmp_path / "out", files)
    before = snapshot(folder)
    outcome = run("export", source, folder, *options)
    assert outcome.exit_code == 1
    assert "was prepared by cellucid 0.9.1 to 0.9.4" in outcome.stderr
    assert sign in outcome.stderr
    assert "Prepare the folder with cellucid 0.0.9, or export into a folder" in outcome.stderr
    assert snapshot(folder) == before
    outcome = run("plan", source, folder)
    assert outcome.exit_code == 1
    assert "was prepared by cellucid 0.9.1 to 0.9.4" in outcome.stderr


@pytest.mark.parametrize("name", OURS)
def test_other_folders_are_exported_into(tmp_path, source, name):
    folder = prepared(tmp_path / "out", OURS[name])
    plan_export(source, folder)
    export_connectivities(source, folder)
    assert verify_export(folder).ok


def test_plan_without_a_folder_looks_at_the_disk_only(tmp_path, source, monkeypatch):
    monkeypatch.chdir(prepared(tmp_path / "out", FOREIGN["0.9.1"][0]))
    assert plan_export(source).n_cells == GRAPH.shape[0]


@pytest.mark.parametrize("name", FOREIGN)
def test_verify_exits_with_3_and_says_why(tmp_path, source, name):
    files, sign = FOREIGN[name]
    folder = tmp_path / "out"
    export_connectivities(source, folder)
    prepared(folder, files)
    outcome = run("verify", folder)
    assert outcome.exit_code == 3
    if "weights" in name:  # a manifest that says no more than that
        assert "n_cells is None" in outcome.stderr
    else:
        assert sign in outcome.stderr
        assert "cellucid 0.9.1 to 0.9.4" in outcome.stderr
    assert run("verify", folder, "--json").exit_code == 3


def test_such_a_graph_is_not_opened(tmp_path):
    folder = prepared(tmp_path, FOREIGN["weights"][0])
    with pytest.raises(InvalidExportError, match="n_cells is None"):
        open_export(folder)


@pytest.mark.parametrize("name", ["0.9.1", "embeddings alone", "weights"])
def test_at_a_url(source, name):
    files = fsspec.filesystem("memory")
    for file, text in FOREIGN[name][0].items():
        files.pipe_file(f"/bucket/{name}/{file}", text.encode())
    before = files.find(f"/bucket/{name}")
    url = f"memory://bucket/{name}"
    for function in (export_connectivities, plan_export):
        with pytest.raises(OutputError, match=r"was prepared by cellucid 0\.9\.1 to 0\.9\.4"):
            function(source, url)
    assert files.find(f"/bucket/{name}") == before
    ours = f"memory://bucket/ours of {name}"
    export_connectivities(source, ours)
    assert verify_export(ours).ok
    for file, text in FOREIGN[name][0].items():
        files.pipe_file(f"/bucket/ours of {name}/{file}", text.encode())
    (problem, *_) = verify_export(ours).problems
    assert ("n_cells is None" if name == "weights" else FOREIGN[name][1]) in problem


def test_a_folder_that_is_prepared_meanwhile(tmp_path, source, monkeypatch):
    from cellgraph_dask.publish import publish as publishing

    folder = tmp_path / "out"
    true = publishing.check_generation

    def prepare_first(path, **options):
        prepared(folder, FOREIGN["0.9.3"][0])
        true(path, **options)

    monkeypatch.setattr(publishing, "check_generation", prepare_first)
    with pytest.raises(OutputError, match="was prepared by"):
        export_connectivities(source, folder)
    assert list(snapshot(folder)) == ["dataset_identity.json"]
