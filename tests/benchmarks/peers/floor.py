"""Lower bound: decode every chunk once on two threads, and write files as large as the result.

Nothing is computed, so no exporter that reads the whole store can be faster by much. The files hold
arbitrary bytes and are never compressed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
from peer_job import SIDES, PeerJob, Result, edge_dir, edge_dtype, open_matrix, run_peer
from zarr.codecs import BytesCodec, ZstdCodec

N_THREADS = 2
WRITE_BYTES = 4 << 20


def export(job: PeerJob) -> Result:
    """Decode everything, then write two files of `n_edges` indices (half the entries if unsaid)."""
    group = open_matrix(job.store)
    n_entries = int(group["indices"].shape[0])
    n_edges = (n_entries + 1) // 2 if job.n_edges is None else job.n_edges
    n_bytes = n_edges * edge_dtype(int(group.attrs["shape"][0])).itemsize
    with ThreadPoolExecutor(N_THREADS) as pool:
        for name in ("indices", "data", "indptr"):
            decode = chunk_decoder(group[name], job.store / "obsp/connectivities" / name)
            unit = (group[name].shards or group[name].chunks)[0]
            for _ in pool.map(decode, range(-(-group[name].shape[0] // unit))):
                pass
        for _ in pool.map(lambda side: write(job.out_dir, side, n_bytes), SIDES):
            pass
    return Result(n_edges, None)


def chunk_decoder(array: Any, folder: Path) -> Callable[[int], None]:
    """Return a function that decodes the chunk, or shard, of a given number.

    Local chunks with one known codec are decoded straight from their files; all others (shards,
    other codecs) are read through zarr.
    """
    codec = None
    if array.metadata.zarr_format == 2:
        codec, prefix = array.metadata.compressor, ""
    else:
        match array.metadata.codecs:
            case (BytesCodec(), ZstdCodec()):
                codec, prefix = numcodecs.Zstd(), "c/"

    if codec is not None:

        def from_file(number: int) -> None:
            path = folder / f"{prefix}{number}"
            if path.exists():
                codec.decode(path.read_bytes())

        return from_file
    unit = (array.shards or array.chunks)[0]

    def through_zarr(number: int) -> None:
        array[number * unit : (number + 1) * unit]

    return through_zarr


def write(out_dir: Path, side: str, n_bytes: int) -> None:
    """Write one file of `n_bytes`."""
    block = bytes(WRITE_BYTES)
    with open(edge_dir(out_dir) / f"edges.{side}.bin", "wb") as file:
        for start in range(0, n_bytes, WRITE_BYTES):
            file.write(block[: n_bytes - start])


if __name__ == "__main__":
    run_peer(export)
