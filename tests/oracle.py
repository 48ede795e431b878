"""The right answer, told without the package: Python numbers in dicts, numpy for the files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.helpers.stores import stored


def oracle_edges(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the sources and destinations of the nonzeros of C + C.T above the diagonal.

    `matrix` is scipy's CSR or CSC, or `Stored`. Whole numbers are summed as Python's, so exactly;
    floats as float64 in stored order, C[i, j] and C[j, i] each on its own and then together. For a
    matrix and its transpose C + C.T is the same, so CSC needs nothing of its own.
    """
    indptr, indices, data, _, _ = stored(matrix)
    number = float if data.dtype.kind == "f" else int
    above: dict[tuple[int, int], Any] = {}
    below: dict[tuple[int, int], Any] = {}
    ends = [int(end) for end in indptr]
    columns, weights = indices.tolist(), data.tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        for column, weight in zip(columns[start:end], weights[start:end], strict=True):
            if row == column:
                continue
            side = above if row < column else below
            pair = (row, column) if row < column else (column, row)
            side[pair] = side.get(pair, number(0)) + number(weight)
    edges = sorted(
        pair for pair in {**above, **below} if above.get(pair, 0) + below.get(pair, 0) != 0
    )
    src, dst = np.array(edges, np.int64).reshape(-1, 2).T
    return src, dst


def oracle_max_neighbors(matrix: Any) -> int:
    """Return the largest degree of the graph of `oracle_edges`."""
    src, dst = oracle_edges(matrix)
    return max(Counter([*src.tolist(), *dst.tolist()]).values(), default=0)


class Export(NamedTuple):
    """An export as a viewer reads it."""

    manifest: dict[str, Any]
    src: np.ndarray
    dst: np.ndarray


def read_export(out_dir: Path) -> Export:
    """Read an export by following its manifest; it must hold as many edges as that says."""
    manifest = json.loads((out_dir / "connectivity_manifest.json").read_text())
    sides = []
    for name in ("sourcesPath", "destinationsPath"):
        raw = (out_dir / manifest[name]).read_bytes()
        if manifest["compression"] is not None:
            raw = gzip.decompress(raw)
        assert len(raw) == manifest["n_edges"] * manifest["index_bytes"]
        sides.append(np.frombuffer(raw, np.dtype(manifest["index_dtype"]).newbyteorder("<")))
    return Export(manifest, *sides)


def assert_exported(out_dir: Path, matrix: Any) -> None:
    """Fail unless the export holds exactly the edges of `matrix`."""
    manifest, src, dst = read_export(out_dir)
    expected_src, expected_dst = oracle_edges(matrix)
    assert src.tolist() == expected_src.tolist()
    assert dst.tolist() == expected_dst.tolist()
    assert manifest["n_cells"] == stored(matrix).shape[0]
    assert manifest["max_neighbors"] == oracle_max_neighbors(matrix)
