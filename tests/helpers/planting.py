"""Exports with edges of a test's choice: well-formed, whatever the matrix says."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from cellgraph_dask.edge_pairs.format import MANIFEST, Manifest, index_dtype
from cellgraph_dask.edge_pairs.gzip_member import GZIP_HEADER
from tests.oracle import read_export


def gzip_member(raw: bytes) -> bytes:
    """Return `raw` as one gzip member with the header that exports have."""
    encoder = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = encoder.compress(raw) + encoder.flush()
    end = zlib.crc32(raw).to_bytes(4, "little") + (len(raw) % 2**32).to_bytes(4, "little")
    return GZIP_HEADER + body + end


def plant(out_dir: Path, edges: list[tuple[int, int]], n_cells: int, compression=None) -> Path:
    """Write an export of sorted edges, with a manifest that fits them."""
    pairs = np.array(sorted(edges), np.int64).reshape(-1, 2)
    degrees = np.bincount(pairs.ravel(), minlength=1)
    manifest = Manifest(n_cells, len(pairs), int(degrees.max()), compression)
    (out_dir / "connectivity").mkdir(parents=True, exist_ok=True)
    for side, column in (("src", 0), ("dst", 1)):
        raw = pairs[:, column].astype(index_dtype(n_cells)).tobytes()
        (out_dir / manifest.path(side)).write_bytes(gzip_member(raw) if compression else raw)
    (out_dir / MANIFEST).write_text(manifest.to_json())
    return out_dir


def edges_of(out_dir: Path) -> list[tuple[int, int]]:
    """Return the edges of an export."""
    _, src, dst = read_export(out_dir)
    return list(zip(src.tolist(), dst.tolist(), strict=True))
