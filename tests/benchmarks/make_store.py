"""Write a synthetic AnnData zarr store of any size in little memory.

Rows are made where they are needed by `tests.benchmarks.ring_graph`. Rows are counted first, for
``indptr`` and for the number of entries; then every write unit (a shard, or a few chunks) of
``indices`` and ``data`` is a task of its own, on two threads.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, get_args

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from tests.benchmarks.ring_graph import (
    Kind,
    Order,
    RingGraph,
    count_rows,
    fill_entries,
    ring_graph,
)

STRIDE = 4_096
COUNT_BLOCK = 256 * STRIDE
UNIT_ENTRIES = 4 << 20
NAME_BLOCK = 1 << 18
N_THREADS = 2
MAX_INT32 = 2**31 - 1

_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
_DATAFRAME = {
    "encoding-type": "dataframe",
    "encoding-version": "0.2.0",
    "_index": "_index",
    "column-order": [],
}


def make_store(
    path: str | Path,
    *,
    n_cells: int,
    n_neighbors: int,
    kind: Kind = "symmetric",
    order: Order = "random",
    zarr_format: int = 2,
    chunk: int | None = None,
    shard: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a store that ``anndata.read_zarr`` reads, with ``obsp["connectivities"]``.

    Parameters
    ----------
    path
        The store, a directory that must not exist. It appears when it is complete.
    n_cells, n_neighbors, kind, order, seed
        As in `ring_graph`.
    zarr_format
        2 (blosc-lz4, level 5, byte shuffle) or 3 (zstd), compressed as anndata does.
    chunk
        Entries per chunk of ``indices`` and ``data``; by default what zarr chooses.
    shard
        Entries per shard, a multiple of `chunk`; zarr format 3 only.
    seed
        Another seed gives another graph.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If an argument is out of range or arguments do not fit together.
    FileExistsError
        If `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists")
    if n_cells > MAX_INT32:
        raise ValueError(f"n_cells is {n_cells}: int32 indices allow {MAX_INT32}")
    if shard is not None and (zarr_format != 3 or chunk is None or shard % chunk):
        raise ValueError("a shard needs zarr format 3, and a chunk that divides it")
    graph = ring_graph(n_cells, n_neighbors, kind=kind, order=order, seed=seed)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)

    root = zarr.open_group(partial, mode="w", zarr_format=zarr_format)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        root.create_group(name, attributes=_DICT)
    for name, length in (("obs", n_cells), ("var", 0)):
        _write_names(root.create_group(name, attributes=_DATAFRAME), length)
    matrix = root["obsp"].create_group(
        "connectivities",
        attributes={
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": [n_cells, n_cells],
        },
    )
    with ThreadPoolExecutor(N_THREADS) as pool:
        offsets = _write_indptr(matrix, graph, pool)
        _write_entries(matrix, graph, offsets, chunk, shard, pool)
    zarr.consolidate_metadata(partial)
    partial.rename(path)
    return path


def _compressors(zarr_format: int) -> Any:
    """Return what anndata compresses with: blosc-lz4 in format 2, zarr's default in format 3."""
    return numcodecs.Blosc(cname="lz4", clevel=5, shuffle=1) if zarr_format == 2 else "auto"


def _create(group: Any, name: str, length: int, dtype: Any, **options: Any) -> Any:
    """Create a one-dimensional array."""
    compressors = _compressors(group.metadata.zarr_format)
    return group.create_array(
        name, shape=(length,), dtype=dtype, compressors=compressors, **options
    )


def _write_names(frame: Any, length: int) -> None:
    """Write the index of a data frame, the row numbers as strings, block by block."""
    names = _create(
        frame,
        "_index",
        length,
        "str",
        chunks=(max(1, min(length, NAME_BLOCK)),),
        fill_value="",
        attributes={"encoding-type": "string-array", "encoding-version": "0.2.0"},
    )
    for start in range(0, length, NAME_BLOCK):
        stop = min(start + NAME_BLOCK, length)
        names[start:stop] = np.array([str(k) for k in range(start, stop)], dtype=object)


def _bounded(pool: ThreadPoolExecutor, task: Callable[[int], object], keys: Iterable[int]) -> None:
    """Run ``task(key)`` for every key, with few waiting at a time, and raise the first error."""
    waiting: set[Future[object]] = set()
    for key in keys:
        waiting.add(pool.submit(task, key))
        if len(waiting) > N_THREADS:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    for future in waiting:
        future.result()


def _counts(graph: RingGraph, first: int) -> NDArray[np.int32]:
    """Return the row lengths of the block of rows that begins at `first`."""
    counts = np.empty(min(COUNT_BLOCK, int(graph.n_cells) - first), np.int32)
    count_rows(graph, first, counts)
    return counts


def _write_indptr(matrix: Any, graph: RingGraph, pool: ThreadPoolExecutor) -> NDArray[np.int64]:
    """Write ``indptr``, and return its value at every `STRIDE`-th row and at the end.

    Rows are counted twice: once for the number of entries, which decides the dtype and where each
    block begins, and once to write. That is cheaper than keeping the counts.
    """
    n_cells = int(graph.n_cells)
    totals = np.zeros(-(-n_cells // STRIDE), np.int64)

    def add_up(first: int) -> None:
        counts = _counts(graph, first)
        sums = np.add.reduceat(counts, np.arange(0, counts.size, STRIDE), dtype=np.int64)
        totals[first // STRIDE : first // STRIDE + sums.size] = sums

    _bounded(pool, add_up, range(0, n_cells, COUNT_BLOCK))
    offsets = np.concatenate([[0], np.cumsum(totals)])
    dtype = np.dtype(np.int32 if offsets[-1] <= MAX_INT32 else np.int64)
    indptr = _create(matrix, "indptr", n_cells + 1, dtype, chunks="auto")
    pending = np.zeros(1, dtype)
    written = 0
    (unit,) = indptr.chunks
    for first in range(0, n_cells, COUNT_BLOCK):
        ends = offsets[first // STRIDE] + np.cumsum(_counts(graph, first), dtype=np.int64)
        pending = np.concatenate([pending, ends.astype(dtype)])
        last = first + COUNT_BLOCK >= n_cells
        whole = pending.size if last else pending.size // unit * unit
        indptr[written : written + whole] = pending[:whole]
        written, pending = written + whole, pending[whole:]
    return offsets


def _write_entries(
    matrix: Any,
    graph: RingGraph,
    offsets: NDArray[np.int64],
    chunk: int | None,
    shard: int | None,
    pool: ThreadPoolExecutor,
) -> None:
    """Write ``indices`` and ``data``, a whole number of chunks or shards at a time."""
    n_entries = int(offsets[-1])
    chunks: Any = "auto" if chunk is None else (chunk,)
    shards = None if shard is None else (shard,)
    indices = _create(matrix, "indices", n_entries, np.int32, chunks=chunks, shards=shards)
    data = _create(matrix, "data", n_entries, np.float32, chunks=chunks, shards=shards)
    least = (indices.shards or indices.chunks)[0]
    unit = least * math.ceil(UNIT_ENTRIES / least)

    def fill(start: int) -> None:
        stop = min(start + unit, n_entries)
        columns = np.empty(stop - start, np.int32)
        weights = np.empty(stop - start, np.float32)
        stride = int(np.searchsorted(offsets, start, side="right")) - 1
        fill_entries(graph, stride * STRIDE, int(offsets[stride]), start, columns, weights)
        indices[start:stop] = columns
        data[start:stop] = weights

    _bounded(pool, fill, range(0, n_entries, unit))


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `make_store` and the runner share."""
    parser.add_argument("--neighbors", type=int, default=17, metavar="K")
    parser.add_argument("--chunk", type=int, metavar="ENTRIES")
    parser.add_argument("--shard", type=int, metavar="ENTRIES", help="zarr format 3 only")
    parser.add_argument("--seed", type=int, default=0)


def main(arguments: list[str] | None = None) -> None:
    """Write one store."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.make_store")
    parser.add_argument("path", type=Path, metavar="OUT.zarr")
    parser.add_argument("--cells", type=int, required=True, metavar="N")
    parser.add_argument("--kind", choices=get_args(Kind), default="symmetric")
    parser.add_argument("--order", choices=get_args(Order), default="random")
    parser.add_argument("--zarr-format", type=int, choices=(2, 3), default=2)
    add_graph_options(parser)
    options = parser.parse_args(arguments)
    make_store(
        options.path,
        n_cells=options.cells,
        n_neighbors=options.neighbors,
        kind=options.kind,
        order=options.order,
        zarr_format=options.zarr_format,
        chunk=options.chunk,
        shard=options.shard,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
