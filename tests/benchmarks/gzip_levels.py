"""Size and speed of the deflate libraries on edge files, level by level.

Each file is compressed as one stream, and in pieces of 1 Mi edges (4 MiB) that start afresh and end
in a sync flush, the way a parallel writer does. zlib is the yardstick of the relative sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellgraph_dask.edge_pairs.gzip_member import deflate_part
from tests.benchmarks.ring_graph import Order, count_rows, fill_entries, ring_graph

PIECE_BYTES = 4 << 20
RAW_DEFLATE = -15


@dataclass(frozen=True)
class Library:
    """A deflate implementation: how to make a raw compressor, and its levels."""

    name: str
    compressor: Callable[[int], Any]
    levels: range
    sync_flush: int


@dataclass(frozen=True)
class Measurement:
    """One library at one level on one file."""

    order: str
    n_cells: int
    file: str
    library: str
    level: int
    pieces: bool
    raw_bytes: int
    packed_bytes: int
    seconds: float


class ThisTool:
    """What the exporter makes of its parts, in the form of a compressor."""

    def __init__(self, level: int) -> None:
        self._level = level

    def compress(self, piece: memoryview) -> bytes:
        """Return a whole part."""
        return deflate_part(piece, self._level, last=False)

    def flush(self, _mode: int = 0) -> bytes:
        """Return nothing: a part is never half done."""
        return b""


def libraries() -> list[Library]:
    """Return zlib, this tool, and the optional libraries that are installed."""
    found = [
        Library(
            "zlib",
            lambda level: zlib.compressobj(level, zlib.DEFLATED, RAW_DEFLATE),
            range(1, 10),
            zlib.Z_SYNC_FLUSH,
        ),
        Library("ours", ThisTool, range(1, 10), 0),
    ]
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        print("zlib_ng is not installed: left out", file=sys.stderr)
    else:
        found.append(
            Library(
                "zlib_ng",
                lambda level: zlib_ng.compressobj(level, zlib_ng.DEFLATED, RAW_DEFLATE),
                range(1, 10),
                zlib_ng.Z_SYNC_FLUSH,
            )
        )
    try:
        from isal import isal_zlib
    except ImportError:
        print("isal is not installed: left out", file=sys.stderr)
    else:
        found.append(
            Library(
                "isal",
                lambda level: isal_zlib.compressobj(level, isal_zlib.DEFLATED, RAW_DEFLATE),
                range(4),
                isal_zlib.Z_SYNC_FLUSH,
            )
        )
    return found


def edge_files(n_cells: int, n_neighbors: int, order: Order) -> dict[str, bytes]:
    """Return the bytes of the source and destination files of a symmetric graph.

    Parameters
    ----------
    n_cells, n_neighbors, order
        As in `ring_graph`. The whole graph is held in memory.
    """
    graph = ring_graph(n_cells, n_neighbors, kind="symmetric", order=order)
    counts = np.empty(n_cells, np.int32)
    count_rows(graph, 0, counts)
    indices: NDArray[np.int32] = np.empty(int(counts.sum()), np.int32)
    fill_entries(graph, 0, 0, 0, indices, np.empty(indices.size, np.float32))
    rows = np.repeat(np.arange(n_cells, dtype=np.int32), counts)
    upper = rows < indices
    dtype = "<u2" if n_cells <= 65_535 else "<u4"
    return {
        "src": rows[upper].astype(dtype).tobytes(),
        "dst": indices[upper].astype(dtype).tobytes(),
    }


def compress(raw: bytes, library: Library, level: int, *, pieces: bool) -> int:
    """Compress `raw` and return the number of bytes that came out."""
    view = memoryview(raw)
    cuts = range(0, len(raw), PIECE_BYTES)
    packed = 0
    compressor = library.compressor(level)
    for start in cuts:
        packed += len(compressor.compress(view[start : start + PIECE_BYTES]))
        if pieces and start != cuts[-1]:
            packed += len(compressor.flush(library.sync_flush))
            compressor = library.compressor(level)
    return packed + len(compressor.flush())


def measure(
    n_cells: int, n_neighbors: int, order: Order, *, single_stream: bool = True
) -> list[Measurement]:
    """Measure every library and level on the two files of one graph."""
    result = []
    ways = (False, True) if single_stream else (True,)
    for name, raw in edge_files(n_cells, n_neighbors, order).items():
        for library, pieces in itertools.product(libraries(), ways):
            for level in library.levels:
                start = time.perf_counter()
                packed = compress(raw, library, level, pieces=pieces)
                seconds = time.perf_counter() - start
                result.append(
                    Measurement(
                        order,
                        n_cells,
                        name,
                        library.name,
                        level,
                        pieces,
                        len(raw),
                        packed,
                        seconds,
                    )
                )
    return result


def print_table(rows: list[Measurement]) -> None:
    """Print size as a share of the raw bytes, size against zlib's same level, and MB/s.

    The columns are the source file, the destination file, and both together. isal's levels 0 to 3
    mean other things than zlib's, so they are compared with zlib's level 6.
    """
    key = {
        (m.order, m.n_cells, m.pieces, m.library, m.level, m.file): (
            m.raw_bytes,
            m.packed_bytes,
            m.seconds,
        )
        for m in rows
    }

    def cell(case: tuple[str, int, bool], library: str, level: int, files: str) -> NDArray[Any]:
        names = ("src", "dst") if files == "both" else (files,)
        return np.sum([key[(*case, library, level, name)] for name in names], axis=0)

    for case in dict.fromkeys((m.order, m.n_cells, m.pieces) for m in rows):
        order, n_cells, pieces = case
        print(f"\n{order} order, {n_cells:,} cells, {'pieces' if pieces else 'single stream'}")
        print(f"{'library':>8} {'level':>5}   {'packed/raw':^20}   {'vs zlib':^20}   {'MB/s':^20}")
        print(f"{'':14}" + f"   {'src':>6} {'dst':>6} {'both':>6}" * 3)
        for library, level in dict.fromkeys((m.library, m.level) for m in rows):
            yardstick = 6 if library == "isal" else level
            line = f"{library:>8} {level:>5}"
            ours = [cell(case, library, level, files) for files in ("src", "dst", "both")]
            zlibs = [cell(case, "zlib", yardstick, files) for files in ("src", "dst", "both")]
            line += "   " + " ".join(f"{packed / raw:6.3f}" for raw, packed, _ in ours)
            pairs = zip(ours, zlibs, strict=True)
            line += "   " + " ".join(f"{a[1] / b[1]:6.3f}" for a, b in pairs)
            line += "   " + " ".join(f"{raw / seconds / 1e6:6.1f}" for raw, _, seconds in ours)
            print(line)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gzip_levels")
    parser.add_argument("--cells", type=int, nargs="+", default=[300_000])
    parser.add_argument("--neighbors", type=int, default=17)
    parser.add_argument("--order", nargs="+", default=["random", "spatial"])
    parser.add_argument("--pieces-only", action="store_true", help="leave out the single stream")
    parser.add_argument("--json", metavar="FILE", help="also write every measurement to FILE")
    options = parser.parse_args(arguments)
    rows: list[Measurement] = []
    for n_cells, order in itertools.product(options.cells, options.order):
        single = not options.pieces_only
        found = measure(n_cells, options.neighbors, order, single_stream=single)
        print_table(found)
        rows += found
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
