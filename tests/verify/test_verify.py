"""Verification finds every kind of damage that the files alone can tell."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellgraph_dask import export_connectivities, verify_export
from tests.helpers.command import run
from tests.helpers.planting import gzip_member, plant
from tests.helpers.stores import snapshot, symmetric_graph, write_store
from tests.oracle import read_export

N_CELLS = 300
GRAPH = symmetric_graph(N_CELLS, 6)
MANIFEST = "connectivity_manifest.json"

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return the files of a plain and of a gzip export."""
    folder = tmp_path_factory.mktemp("sound")
    source = write_store(folder / "s.zarr", GRAPH)
    files = {}
    for compression in (None, 6):
        export_connectivities(source, folder / "out", compression=compression, force=True)
        files[compression] = snapshot(folder / "out")
    return files


@pytest.fixture
def place(tmp_path, sound):
    """Return a function that puts a sound export into the test's folder."""

    def put(compression: int | None) -> Path:
        out_dir = tmp_path / "out"
        for name, content in sound[compression].items():
            path = out_dir / name
            if content is None:
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return out_dir

    return put


def file_of(out_dir: Path, side: str) -> Path:
    return next(out_dir.glob(f"connectivity/edges.{side}.bin*"))


def change(name: str, change_value: Callable) -> Damage:
    """Change one value of the manifest."""

    def damage(out_dir: Path) -> None:
        path = out_dir / MANIFEST
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {name: change_value(manifest[name])}))

    return damage


def rewrite(side: str, new_bytes: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of an edge file as they are on disk."""

    def damage(out_dir: Path) -> None:
        path = file_of(out_dir, side)
        path.write_bytes(new_bytes(path.read_bytes()))

    return damage


def edit(change_edges: Callable[[np.ndarray, np.ndarray], None]) -> Damage:
    """Change edges in place, and compress them again properly."""

    def damage(out_dir: Path) -> None:
        manifest, src, dst = read_export(out_dir)
        src, dst = src.copy(), dst.copy()
        change_edges(src, dst)
        for side, values in (("src", src), ("dst", dst)):
            raw = values.tobytes()
            raw = gzip_member(raw) if manifest["compression"] else raw
            file_of(out_dir, side).write_bytes(raw)

    return damage


def swap_files(out_dir: Path) -> None:
    src, dst = file_of(out_dir, "src"), file_of(out_dir, "dst")
    content = src.read_bytes()
    src.write_bytes(dst.read_bytes())
    dst.write_bytes(content)


def swap_edges(src: np.ndarray, dst: np.ndarray) -> None:
    for values in (src, dst):
        values[[50, 500]] = values[[500, 50]]


def repeat_edge(src: np.ndarray, dst: np.ndarray) -> None:
    src[101], dst[101] = src[100], dst[100]


def turn_edge(src: np.ndarray, dst: np.ndarray) -> None:
    src[70], dst[70] = dst[70], src[70]


def loop_edge(src: np.ndarray, dst: np.ndarray) -> None:
    dst[0] = src[0]


def leave_the_cells(_src: np.ndarray, dst: np.ndarray) -> None:
    dst[-1] = N_CELLS


def flip_middle(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0x10]) + raw[middle + 1 :]


def wrong_crc(raw: bytes) -> bytes:
    crc, size = struct.unpack("<II", raw[-8:])
    return raw[:-8] + struct.pack("<II", crc ^ 1, size)


def wrong_size(raw: bytes) -> bytes:
    crc, size = struct.unpack("<II", raw[-8:])
    return raw[:-8] + struct.pack("<II", crc, size + 1)


def two_members(raw: bytes) -> bytes:
    raw = gzip.decompress(raw)
    return gzip.compress(raw[:100]) + gzip.compress(raw[100:])


# What was done: to which exports, how, and what must be said of it.
PLAIN, GZIP, BOTH = [None], [6], [None, 6]
DAMAGES: dict[str, tuple[list[int | None], Damage, str]] = {
    "no manifest": (BOTH, lambda d: (d / MANIFEST).unlink(), "holds no connectivity_manifest"),
    "manifest cut": (BOTH, lambda d: (d / MANIFEST).write_text('{"for'), "cannot be read as JSON"),
    "manifest a list": (BOTH, lambda d: (d / MANIFEST).write_text("[]"), "holds list, not an"),
    "one edge more": (BOTH, change("n_edges", lambda n: n + 1), "bytes of edges"),
    "one edge fewer": (BOTH, change("n_edges", lambda n: n - 1), "holds more than"),
    "a bit of n_edges": (BOTH, change("n_edges", lambda n: n ^ 64), "bytes of edges"),
    "negative edges": (BOTH, change("n_edges", lambda n: -n), "not a count"),
    "edges a word": (BOTH, change("n_edges", str), "not a count"),
    "fewer cells": (BOTH, change("n_cells", lambda n: n - 60), "destination < 240"),
    "other dtype's cells": (BOTH, change("n_cells", lambda n: n ^ 2**17), "index_bytes is 2"),
    "max_neighbors off": (BOTH, change("max_neighbors", lambda n: n + 1), "largest degree"),
    "a bit of max_neighbors": (BOTH, change("max_neighbors", lambda n: n ^ 8), "largest degree"),
    "another format": (BOTH, change("format", lambda _: "csr"), "format is 'csr'"),
    "another dtype": (BOTH, change("index_dtype", lambda _: "uint32"), "index_dtype is 'uint32'"),
    "another path": (BOTH, change("sourcesPath", lambda p: "../" + p), "sourcesPath is '../conn"),
    "level ten": (GZIP, change("compression", lambda _: 10), "compression is 10"),
    "said to be plain": (GZIP, change("compression", lambda _: None), "sourcesPath is"),
    "said to be gzip": (PLAIN, change("compression", lambda _: 6), "sourcesPath is"),
    "a key more": (BOTH, lambda d: (d / MANIFEST).write_text(
        (d / MANIFEST).read_text().replace("{", '{"more": 1, ')), "more is 1"),
    "keys reversed": (BOTH, lambda d: (d / MANIFEST).write_text(json.dumps(
        dict(reversed(json.loads((d / MANIFEST).read_text()).items())))), "another order"),
    "no sources": (BOTH, lambda d: file_of(d, "src").unlink(), "edges.src.bin"),
    "no destinations": (BOTH, lambda d: file_of(d, "dst").unlink(), "edges.dst.bin"),
    "sources cut": (BOTH, rewrite("src", lambda raw: raw[:-2]), "edges.src.bin"),
    "destinations cut": (BOTH, rewrite("dst", lambda raw: raw[:-1]), "edges.dst.bin"),
    "destinations halved": (BOTH, rewrite("dst", lambda raw: raw[: len(raw) // 2]), "edges.dst"),
    "destinations empty": (BOTH, rewrite("dst", lambda _: b""), "edges.dst.bin"),
    "two bytes more": (PLAIN, rewrite("src", lambda raw: raw + b"\1\0"), "holds more than"),
    "bytes after the member": (GZIP, rewrite("src", lambda raw: raw + b"\0"), "after its gzip"),
    "two members": (GZIP, rewrite("dst", two_members), "after its gzip member; browsers refuse"),
    "an empty second member": (GZIP, rewrite("src", lambda raw: raw + gzip.compress(b"")),
                               "after its gzip member"),
    "a wrong checksum": (GZIP, rewrite("dst", wrong_crc), "not sound gzip"),
    "a wrong length": (GZIP, rewrite("dst", wrong_size), "not sound gzip"),
    "a flipped bit": (BOTH, rewrite("src", flip_middle), "edge"),
    "a changed header": (GZIP, rewrite("src", lambda raw: b"\0" + raw[1:]), "not sound gzip"),
    "files swapped": (BOTH, swap_files, "edges must rise"),
    "edges swapped": (BOTH, edit(swap_edges), "edge 51 (byte 102) is"),
    "an edge twice": (BOTH, edit(repeat_edge), "edge 101 (byte 202) is"),
    "source above destination": (BOTH, edit(turn_edge), "edge 70 (byte 140) is"),
    "a self-edge": (BOTH, edit(loop_edge), "edge 0 (byte 0) is"),
    "a cell too many": (BOTH, edit(leave_the_cells), "destination < 300"),
}  # fmt: skip


@pytest.mark.parametrize("compression", [None, 6])
def test_a_sound_export(place, compression):
    out_dir = place(compression)
    before = snapshot(out_dir)
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 0, outcome
    manifest = read_export(out_dir).manifest
    assert f"{manifest['n_edges']:,} edges of 300 cells" in outcome.stdout
    report = verify_export(out_dir)
    assert report.ok
    assert report.problems == ()
    assert report.n_edges == manifest["n_edges"]
    assert snapshot(out_dir) == before


@pytest.mark.parametrize(
    ("compression", "name"),
    [(level, name) for name, (levels, _, _) in DAMAGES.items() for level in levels],
)
def test_damage_is_found(place, compression, name):
    _, damage, message = DAMAGES[name]
    out_dir = place(compression)
    before = snapshot(out_dir)
    damage(out_dir)
    assert snapshot(out_dir) != before
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("Wrong: ")
    assert message in outcome.stderr
    assert not verify_export(out_dir).ok


def test_what_it_says_as_json(place):
    out_dir = place(None)
    edit(turn_edge)(out_dir)
    outcome = run("verify", out_dir, "--json")
    assert outcome.exit_code == 3
    report = json.loads(outcome.stdout)
    assert report["ok"] is False
    assert len(report["problems"]) == 1
    assert report["n_cells"] == N_CELLS


@pytest.mark.parametrize(
    ("stats", "problem"),
    [
        ({"n_cells": 301}, "of a dataset with 301 cells"),
        ({"n_edges": 1}, "stats.n_edges is 1"),
        ({"has_connectivity": False}, "stats.has_connectivity is False"),
    ],
)
def test_the_identity_of_the_dataset(place, stats, problem):
    out_dir = place(None)
    n_edges = read_export(out_dir).manifest["n_edges"]
    right = {"n_cells": N_CELLS, "has_connectivity": True, "n_edges": n_edges}
    path = out_dir / "dataset_identity.json"
    path.write_text(json.dumps({"stats": right}))
    assert verify_export(out_dir).ok
    path.write_text(json.dumps({"stats": right | stats}))
    outcome = run("verify", out_dir)
    assert outcome.exit_code == 3
    assert problem in outcome.stderr


def test_every_single_bit_of_the_edges_is_watched(place):
    # Gzip's checksum covers what order and degrees do not.
    out_dir = place(6)
    path = file_of(out_dir, "dst")
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(sound) - 10, 60, replace=False) + 10:  # after the header
        bit = 1 << int(rng.integers(8))
        path.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
        assert not verify_export(out_dir).ok, at
    path.write_bytes(sound)
    assert verify_export(out_dir).ok


def test_a_folder_without_an_export(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        outcome = run("verify", path)
        assert outcome.exit_code == 1
        assert "Error: " in outcome.stderr
        assert "holds no connectivity_manifest.json" in outcome.stderr
    assert run("verify", "memory://bucket/no-export").exit_code == 1
    out_dir = plant(tmp_path / "out", [(0, 1)], 2)
    (out_dir / "connectivity_manifest.json").unlink()  # there was one
    assert run("verify", out_dir).exit_code == 3
