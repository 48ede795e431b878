"""Every bit of an export matters: flips, cuts, additions and swaps, all of them tried.

Some flips leave a well-formed export of another graph, such as a larger number of cells. Those are
what ``--source`` is for, so all mutants are verified against the source.

Flips inside a deflate stream may stand for the same bytes (padding, and matches that may lie at
several distances), and a gzip level in the manifest may be another one. No reader can tell; a
warning does, unless the files are exactly those of the other level.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellgraph_dask import export_connectivities
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.verify import checks
from tests.helpers.effort import PART
from tests.helpers.planting import gzip_member
from tests.helpers.stores import directed_graph, snapshot, symmetric_graph, write_store

MANIFEST, PROVENANCE = "connectivity_manifest.json", "connectivity/provenance.json"
GRAPHS = {"symmetric": symmetric_graph(40, 3), "directed": directed_graph(36, 3)}
WEIGHTED = symmetric_graph(9, 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "weighted": {"weights": True},
    "thinned": {"weights": True, "top_k": 1, "max_edges": 5},
}


class Bench:
    """A sound export, and how to damage it."""

    def __init__(self, folder: Path, graph: str, compression: int | None) -> None:
        self.out_dir = folder / "out"
        self.options = OPTIONS.get(graph, {})
        matrix = GRAPHS.get(graph, WEIGHTED)
        self.store = write_store(folder / "s.zarr", matrix)
        export_connectivities(self.store, self.out_dir, compression=compression, **self.options)
        # Of another level it would tell; test_provenance changes every bit of it.
        self.is_told = graph == "thinned"
        if not self.is_told:
            (self.out_dir / PROVENANCE).unlink()
        self.files = {
            name: content
            for name, content in snapshot(self.out_dir).items()
            if content is not None and name != PROVENANCE
        }
        self.source = open_source(self.store)
        self.counts: Counter[str] = Counter()
        assert self.verify().ok

    def verify(self):
        return checks.verify(
            self.out_dir, Progress(), source=self.source, limit=4 * 10**9, threads=1
        )  # fmt: skip

    def try_with(self, kind: str, **changed: bytes) -> None:
        """Verify the export with some files changed; it must not be taken for sound."""
        assert all(self.files[name] != content for name, content in changed.items())
        for name, content in changed.items():
            (self.out_dir / name).write_bytes(content)
        report = self.verify()
        for name in changed:
            (self.out_dir / name).write_bytes(self.files[name])
        if not report.ok:
            assert report.problems
            self.counts[f"{kind}: found"] += 1
            return
        assert len(changed) == 1
        ((name, content),) = changed.items()
        if any("not compressed as this version does" in text for text in report.warnings):
            self.counts[f"{kind}: warned of"] += 1
            return
        assert name == MANIFEST, f"{kind} of {name} was not found"
        self.assert_export_of_another_level(content)
        self.counts[f"{kind}: a sound export of another level"] += 1

    def assert_export_of_another_level(self, manifest: bytes) -> None:
        level = json.loads(manifest)["compression"]
        out_dir = self.out_dir.with_name(f"level-{level}")
        export_connectivities(
            self.store, out_dir, compression=level, force=True, **self.options
        )  # fmt: skip
        assert not self.is_told
        (out_dir / PROVENANCE).unlink()
        written = {name: data for name, data in snapshot(out_dir).items() if data is not None}
        assert written == self.files | {MANIFEST: manifest}


@pytest.fixture(autouse=True)
def _one_look(monkeypatch):
    """Look once whether the matrix seems symmetric: half of a small verification goes to that."""
    monkeypatch.setattr(checks, "looks_symmetric", cache(checks.looks_symmetric))


KINDS = [*((g, c) for g in (*GRAPHS, "weighted") for c in (None, 6)), ("thinned", None)]


@pytest.fixture(params=KINDS, ids=str)
def bench(request, tmp_path):
    return Bench(tmp_path, *request.param)


@pytest.mark.slow
def test_every_kind_of_corruption_is_found(bench, record_property):
    for name, content in bench.files.items():
        for bit in range(0, 8 * len(content), PART):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            bench.try_with("flip", **{name: bytes(flipped)})
        for n in range(0, len(content), PART):
            bench.try_with("cut", **{name: content[:n]})
        for more in (b"\0", b"\n", b" ", b"\xff\xff", content, content[-1:], b"\0" * 64):
            bench.try_with("appended", **{name: content + more})
            bench.try_with("prepended", **{name: more + content})
        bench.try_with("second member", **{name: content + gzip_member(b"")})
        bench.try_with("second member", **{name: content + gzip_member(content)})
    names = sorted(bench.files)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            bench.try_with("swap", **{one: bench.files[other], other: bench.files[one]})
    assert bench.verify().ok
    n_bits = sum(len(range(0, 8 * len(content), PART)) for content in bench.files.values())
    flips = {kind: n for kind, n in bench.counts.items() if kind.startswith("flip")}
    assert sum(flips.values()) == n_bits
    assert bench.counts["flip: found"] > 0.98 * n_bits
    assert bench.counts["flip: a sound export of another level"] <= 3
    assert all(kind.endswith("found") for kind in bench.counts if kind not in flips)
    for kind, n in sorted(bench.counts.items()):
        record_property(kind, n)
        print(f"{kind}: {n:,}")


def test_the_same_files_of_another_export(bench, tmp_path):
    """A file of the export of another graph, of the same size or not."""
    matrix = GRAPHS["directed"].copy()
    matrix.indices[:] = (matrix.indices + 1) % matrix.shape[0]
    other = write_store(tmp_path / "other.zarr", matrix)
    compression = 6 if any(name.endswith(".gz") for name in bench.files) else None
    export_connectivities(other, tmp_path / "other", compression=compression)
    for name, content in snapshot(tmp_path / "other").items():
        if content is not None and name != PROVENANCE and content != bench.files[name]:
            bench.try_with("of another export", **{name: content})
    assert bench.counts["of another export: found"] >= 1


@pytest.mark.slow
def test_flips_of_the_edges_themselves(tmp_path):
    """Compressed again soundly, so that no checksum helps: only the source can tell."""
    bench = Bench(tmp_path, "directed", 6)
    n = 0
    for name in ("connectivity/edges.src.bin.gz", "connectivity/edges.dst.bin.gz"):
        raw = zlib.decompress(bench.files[name], 31)
        for bit in range(0, 8 * len(raw), PART):
            flipped = np.frombuffer(raw, np.uint8).copy()
            flipped[bit // 8] ^= 1 << bit % 8
            bench.try_with("flip", **{name: gzip_member(flipped.tobytes())})
            n += 1
    assert bench.counts == {"flip: found": n}
