"""Whether gzip files are the very bytes that an export writes.

The same edges can be compressed in many ways, so a bit can change in a gzip file and leave every
edge as it was. No reader sees such a change. Compressing the edges once more shows it, as our bytes
depend on nothing but the edges, the level, and the versions of the compression libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..edge_pairs import gzip_member
from ..edge_pairs.format import SIDES, Manifest, index_dtype
from ..edge_pairs.gzip_member import GZIP_HEADER, deflate_edges
from ..edge_pairs.reader import read_edges

# Compressing is slow; of larger exports it is left out.
MOST_EDGES = 1 << 23


def differing_files(out_dir: Path, manifest: Manifest) -> list[tuple[Path, int]]:
    """Return the sound gzip files that we would write otherwise, and the first byte that differs.

    Files with the gzip header of another program are left out, as are exports that are too large.
    """
    if manifest.compression is None or manifest.n_edges > MOST_EDGES:
        return []
    found = []
    for side in SIDES:
        path = out_dir / manifest.path(side)
        at = 0
        with path.open("rb") as file:
            if file.read(len(GZIP_HEADER)) != GZIP_HEADER:
                continue
            at = len(GZIP_HEADER)
            for expected in _parts(path, manifest):
                stored = file.read(len(expected))
                if stored != expected:
                    same = np.frombuffer(stored, np.uint8) == np.frombuffer(
                        expected[: len(stored)], np.uint8
                    )
                    found.append((path, at + int(np.append(same, False).argmin())))
                    break
                at += len(expected)
    return found


def _parts(path: Path, manifest: Manifest) -> Iterator[bytes]:
    """Yield the deflate parts that an export would write."""
    dtype = index_dtype(manifest.n_cells)
    assert manifest.compression is not None
    size = gzip_member.PART_EDGES * dtype.itemsize
    pending = b""
    for raw in read_edges(path, manifest.compression, manifest.n_edges * dtype.itemsize):
        pending += raw
        while len(pending) >= size:
            yield deflate_edges(
                np.frombuffer(pending[:size], dtype), manifest.compression, last=False
            )[0]
            pending = pending[size:]
    yield deflate_edges(np.frombuffer(pending, dtype), manifest.compression, last=True)[0]
