"""connectivity/provenance.json: what an export was made from, told by verify and inspect."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import __version__, export_connectivities, inspect_path, verify_export
from cellgraph_dask.edge_pairs.format import Manifest, read_manifest
from cellgraph_dask.edge_pairs.provenance import Provenance, _parse, read_provenance
from cellgraph_dask.errors import InvalidExportError
from tests.helpers.command import run
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_anndata

PATH = "connectivity/provenance.json"
GRAPHS = {"connectivities": symmetric_graph(), "other": directed_graph(40, 5, seed=1)}


@pytest.fixture
def made(tmp_path):
    """Give a store of two graphs, and the export of one of them."""
    store = write_anndata(tmp_path / "s.zarr", **GRAPHS)
    export_connectivities(store, tmp_path / "out", key="other")
    return store, tmp_path / "out"


def test_what_it_holds(made):
    store, out_dir = made
    told = json.loads((out_dir / PATH).read_text())
    assert list(told) == [
        "source", "key", "options", "fingerprint", "version", "graph", "sha256",
    ]  # fmt: skip
    assert told["source"] == str(store)
    assert told["key"] == "obsp/other"
    assert told["options"] == {"compression": None}
    assert told["version"] == __version__
    assert len(told["fingerprint"]) == 64
    assert inspect_path(out_dir).export.provenance.key == "obsp/other"
    assert f"made from:      obsp/other of {store}, by version" in run("inspect", out_dir).stdout
    manifest = (out_dir / "connectivity_manifest.json").read_text()
    assert manifest == read_manifest(out_dir).to_json()  # knows nothing of it


def test_it_is_the_same_whatever_does_not_decide_the_bytes(made, tmp_path):
    store, out_dir = made
    export_connectivities(store, tmp_path / "again", key="obsp/other", memory_limit="4GB",
                          threads=1, scratch_dir=tmp_path / "scratch")  # fmt: skip
    assert snapshot(tmp_path / "again") == snapshot(out_dir)


def test_a_wrong_key_is_told_apart_from_damage(made):
    store, out_dir = made
    outcome = run("verify", out_dir, "--source", store)
    assert outcome.exit_code == 3
    first, *_, second = outcome.stderr.strip().splitlines()
    assert first == (
        f"Wrong: the export was made from obsp/other of {store}, but it was compared with "
        f"obsp/connectivities of {store}. Name the matrix with --key, if it is the wrong one."
    )
    assert "edge" in second
    assert run("verify", out_dir, "--source", store, "--key", "other").exit_code == 0
    edges = out_dir / "connectivity/edges.dst.bin"
    edges.write_bytes(edges.read_bytes()[:-2] + b"\0\0")
    outcome = run("verify", out_dir, "--source", store, "--key", "other")
    assert outcome.exit_code == 3
    assert "was made from" not in outcome.stderr
    assert "written again" not in outcome.stderr


def test_another_store_and_one_written_again(made, tmp_path):
    store, out_dir = made
    other = write_anndata(tmp_path / "t.zarr", other=directed_graph(39, 5, seed=2))
    problems = verify_export(out_dir, source=other, key="other").problems
    assert f"was made from obsp/other of {store}, but" in problems[0]
    assert "n_cells is 40" in problems[1]
    same = write_anndata(tmp_path / "copy.zarr", other=GRAPHS["other"])
    assert verify_export(out_dir, source=same, key="other").ok  # it holds the same edges
    again = write_anndata(tmp_path / "new.zarr", other=directed_graph(40, 5, seed=3))
    store.rename(tmp_path / "old.zarr")
    again.rename(store)
    problems = verify_export(out_dir, source=store, key="other").problems
    assert problems[0] == f"{store} has been written again since the export was made from it."


def test_it_goes_with_its_export(made):
    store, out_dir = made
    before = (out_dir / PATH).read_text()
    for options in ({}, {"compression": 6}, {"key": "other"}):
        export_connectivities(store, out_dir, force=True, **options)
        assert verify_export(out_dir).ok
        key = options.get("key", "connectivities")
        assert verify_export(out_dir).provenance.key == f"obsp/{key}"
    assert (out_dir / PATH).read_text() == before
    (out_dir / PATH).unlink()
    report = verify_export(out_dir)
    assert report.ok
    assert report.provenance is None


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("obsp/other", "obsp/others"),
        lambda text: text[:-1],
        lambda text: text + " ",
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"sha256": 1}',
        lambda text: "[" * 100_000,
        lambda text: text.replace('"version"', '"version": "\\u001b[2J", "versions"'),
    ],
)
def test_a_changed_one_is_found(made, change):
    _, out_dir = made
    (out_dir / PATH).write_text(change((out_dir / PATH).read_text()))
    report = verify_export(out_dir)
    assert not report.ok
    assert "provenance.json is not as an export has written it. Remove it" in report.problems[0]


def test_every_bit_of_it_matters(made):
    _, out_dir = made
    manifest, raw = read_manifest(out_dir), (out_dir / PATH).read_bytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidExportError, match="not as an export has written it"):
            _parse(out_dir / PATH, bytes(flipped), manifest)


def test_one_of_another_export_is_found(made):
    store, out_dir = made
    text = (out_dir / PATH).read_text()
    export_connectivities(store, out_dir, force=True)
    (out_dir / PATH).write_text(text)
    (problem,) = verify_export(out_dir).problems
    assert "provenance.json is of another export: it tells of" in problem
    (out_dir / PATH).unlink()
    (out_dir / PATH).symlink_to("/etc/hostname")
    (problem,) = verify_export(out_dir).problems
    assert "links that leave the folder are not followed" in problem


def test_what_is_in_memory_has_no_fingerprint(tmp_path):
    for k in range(2):
        matrix = sparse.csr_matrix(GRAPHS["connectivities"])
        export_connectivities(matrix, tmp_path / str(k))
    told = read_provenance(tmp_path / "0", read_manifest(tmp_path / "0"))
    assert (told.source, told.fingerprint) == ("csr_matrix in memory", None)
    assert snapshot(tmp_path / "0") == snapshot(tmp_path / "1")
    assert verify_export(tmp_path / "0", source=matrix).ok
    dense = GRAPHS["connectivities"].toarray()
    export_connectivities(dense, tmp_path / "2")
    assert verify_export(tmp_path / "2").provenance.fingerprint is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("s3://key:secret@bucket/a.zarr?X-Amz-Signature=secret", "s3://…@bucket/a.zarr?…"),
        ("https://host/a@b.zarr?token=secret", "https://host/a@b.zarr?…"),
        ("/data/a?b#c@d.zarr", "/data/a?b#c@d.zarr"),
        (os.fsdecode(b"/data/\xff\x1b[2J"), "/data/\\udcff\\x1b[2J"),
    ],
)
def test_names_are_printable_and_hold_no_secret(tmp_path, name, told):
    manifest = Manifest(3, 1, 1, None)
    (tmp_path / "connectivity").mkdir()
    provenance = Provenance(name, "obsp/a", {}, None, "1")
    (tmp_path / PATH).write_text(provenance.to_json(manifest))
    assert read_provenance(tmp_path, manifest).source == told
    assert read_provenance(tmp_path, manifest).differs(name, "obsp/a", None) is None
    with pytest.raises(InvalidExportError, match="is of another export"):
        read_provenance(tmp_path, Manifest(3, 2, 2, None))


def test_at_a_url(made):
    store, _ = made
    url = "memory://bucket/provenance"
    export_connectivities(store, url, key="other")
    assert verify_export(url).provenance.key == "obsp/other"
    assert "was made from obsp/other" in verify_export(url, source=store).problems[0]
    export_connectivities(store, url, force=True)
    assert verify_export(url, source=store).ok
    assert np.isfinite(verify_export(url).seconds)
