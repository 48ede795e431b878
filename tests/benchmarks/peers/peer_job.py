"""What every peer script shares: its command line, the edge files it writes, the line it prints.

A peer is run as ``python peers/NAME.py STORE OUT_DIR``, so this module is imported by its bare name
and depends on NumPy and zarr alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
import zarr
from numpy.typing import NDArray

SIDES = ("src", "dst")


@dataclass(frozen=True)
class PeerJob:
    """The arguments of a peer.

    Attributes
    ----------
    store, out_dir
        Source and target. The edge files go to ``out_dir/connectivity``.
    compression
        gzip level, or None.
    memory_limit
        Bytes; only peers that can be told heed it.
    n_edges
        Size of the result, if known; only the floor needs it.
    """

    store: Path
    out_dir: Path
    compression: int | None
    memory_limit: int
    n_edges: int | None


@dataclass(frozen=True)
class Result:
    """What a peer found. A peer that does not learn a number says None."""

    n_edges: int
    max_neighbors: int | None


def run_peer(peer: Callable[[PeerJob], Result]) -> None:
    """Parse the command line, run `peer`, and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--compression", type=int, choices=range(1, 10), metavar="1..9")
    parser.add_argument("--memory-limit", type=parse_bytes, default="1GB")
    parser.add_argument("--n-edges", type=int)
    job = PeerJob(**vars(parser.parse_args()))
    edge_dir(job.out_dir).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    result = peer(job)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "n_edges": result.n_edges,
                "max_neighbors": result.max_neighbors,
                "seconds": round(seconds, 3),
            }
        )
    )


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a size such as ``512MB`` or ``4GiB``."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    digits = text.strip().rstrip("BKMGIbkmgi ")
    unit = text.strip()[len(digits) :].strip().upper().removesuffix("B")
    try:
        return int(float(digits) * units[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"not a size: {text!r}") from None


def edge_dir(out_dir: Path) -> Path:
    """Return the folder of the edge files."""
    return out_dir / "connectivity"


def open_matrix(store: Path) -> Any:
    """Return the group of the graph, which holds ``data``, ``indices`` and ``indptr``."""
    if store.suffix == ".h5ad":
        import h5py

        return h5py.File(store, "r")["obsp/connectivities"]
    return zarr.open_group(store, mode="r")["obsp/connectivities"]


def edge_dtype(n_cells: int) -> np.dtype[Any]:
    """Return the smallest index type of the format that counts `n_cells`."""
    return np.dtype("<u2" if n_cells <= 65_535 else "<u4")


class EdgeFiles:
    """The two edge files, open for appending batches of edges.

    Parameters
    ----------
    job
        Names the folder and the gzip level.
    n_cells
        Decides the index type.
    """

    def __init__(self, job: PeerJob, n_cells: int) -> None:
        self._job = job
        self._dtype = edge_dtype(n_cells)
        self._stack = ExitStack()
        self._files: list[BinaryIO] = []

    def __enter__(self) -> EdgeFiles:
        level = self._job.compression
        for side in SIDES:
            path = edge_dir(self._job.out_dir) / f"edges.{side}.bin"
            if level is None:
                file: Any = self._stack.enter_context(open(path, "wb"))
            else:
                raw = self._stack.enter_context(open(f"{path}.gz", "wb"))
                file = self._stack.enter_context(
                    gzip.GzipFile("", "wb", compresslevel=level, fileobj=raw, mtime=0)
                )
            self._files.append(cast("BinaryIO", file))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, sources: NDArray[Any], destinations: NDArray[Any]) -> None:
        """Write a batch of edges."""
        for file, values in zip(self._files, (sources, destinations), strict=True):
            file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
