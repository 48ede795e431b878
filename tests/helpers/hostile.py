"""Claims, bombs and hard graphs in a cgroup of exactly the limit: refused or right, never killed.

``python -m tests.helpers.hostile [--match REGEX] [--list]``: a line of JSON for each case, and exit
code 1 if any went wrong. A case is a source and the commands that are given it, each in a cgroup of
its own. Nothing but exit code 0 with right edges, or a message and exit code 1 or 3, is well.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numcodecs import Shuffle

from tests.benchmarks.cgroup import memory_cgroup
from tests.benchmarks.convert_store import write_h5ad, write_zarr
from tests.benchmarks.make_store import make_store
from tests.benchmarks.measure import Run, run_measured
from tests.helpers.bombs import (
    FLAT,
    GB,
    GRAPH,
    OBSP,
    claiming_export,
    claims_of_cells,
    deflated,
    hdf5_cells,
    key_string,
    shard_of,
    sound_export,
    with_array,
    with_dataset,
    zeros,
    zip_bomb,
    zip_of_chunks,
)
from tests.helpers.stores import Stored, write_store
from tests.oracle import oracle_edges, read_export

LIMIT = 400_000_000
SECONDS = 120  # and no command takes longer
LARGE = 1 << 40

PLAN, EXPORT = ("plan", "{s}"), ("export", "{s}", "{o}")
INSPECT, VERIFY = ("inspect", "{s}"), ("verify", "{o}", "--source", "{s}")

Edges = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """A source, and what is done with it."""

    make: Callable[[Path], Path]  # writes it below a folder
    commands: tuple[tuple[str, ...], ...] = (PLAN, EXPORT)
    limit: int | None = LIMIT  # None for the smallest that is accepted
    edges: Callable[[Path], Edges] | None = None  # of the source; None if it must be refused
    is_exported: bool = False  # whether a sound export lies there beforehand
    is_open: bool = False  # whether right and refused are both well


def made(writer: Callable[..., Path], *args: Any, **options: Any) -> Callable[[Path], Path]:
    """Return a writer that still needs its folder."""
    return lambda folder: writer(*args, folder=folder, **options)


# Hard graphs whose edges are known.


def pairs_of(rows: np.ndarray, columns: np.ndarray) -> Edges:
    """Return the edges of entries with positive weights."""
    low, high = np.minimum(rows, columns).astype(np.int64), np.maximum(rows, columns)
    keys = np.unique((low << 32 | high)[low < high])
    return keys >> 32, keys & (2**32 - 1)


def edges_of_store(store: Path) -> Edges:
    """Return the edges of a store that zarr reads, with positive weights."""
    import zarr

    group = zarr.open_group(store, mode="r")[OBSP]
    indptr, indices = group["indptr"][:].astype(np.int64), group["indices"][:]
    return pairs_of(np.repeat(np.arange(indptr.size - 1), np.diff(indptr)), indices)


def edges_of_h5ad(path: Path) -> Edges:
    """Return the edges of an h5ad as HDF5 reads it: lossy filters make zeros of small weights."""
    import h5py

    with h5py.File(path) as file:
        group = file[OBSP]
        indptr, kept = group["indptr"][:].astype(np.int64), group["data"][:] != 0
        rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
        return pairs_of(rows[kept], group["indices"][:][kept])


def matrix_of(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, n: int) -> Stored:
    """Return entries, in any order, as they would be stored."""
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(n + 1))
    return Stored(indptr, columns[order].astype("i4"), weights[order], (n, n))


def repeats(n_repeats: int, dtype: str, folder: Path) -> Path:
    """Write a graph in which one pair is stored over and over."""
    rows, columns = np.full(n_repeats, 5), np.full(n_repeats, 9)
    rows, columns = np.append(rows, [9, 11]), np.append(columns, [5, 3])
    weights = np.ones(rows.size, dtype)
    if dtype[0] == "f" and dtype != "f2":
        weights[1::2] = 0.5
    matrix = matrix_of(rows, columns, weights, 1000)
    return write_store(folder / "s.zarr", matrix, chunk=1 << 20)


def cancelled(n_repeats: int, dtype: str, folder: Path) -> Path:
    """Write a graph in which one pair is stored over and over, and its sum is zero."""
    weights = np.ones(n_repeats, dtype)
    weights[::2] = -1
    rows, columns = np.full(n_repeats, 5), np.full(n_repeats, 9)
    weights = np.append(weights, np.array([1], dtype))
    matrix = matrix_of(np.append(rows, 11), np.append(columns, 3), weights, 1000)
    return write_store(folder / "s.zarr", matrix, chunk=1 << 20)


def hubs(n: int, n_hubs: int, folder: Path) -> Path:
    """Write a graph in which some cells have every other."""
    rows = np.repeat(np.arange(n_hubs), n)
    columns = np.tile(np.arange(n), n_hubs)
    back = slice(0, n, 2)
    rows, columns = np.append(rows, columns[back]), np.append(columns, rows[back])
    return write_store(
        folder / "s.zarr", matrix_of(rows, columns, np.ones(rows.size, "f4"), n), chunk=1 << 19
    )


def empty_rows(n: int, folder: Path) -> Path:
    """Write a graph of many cells of which a thousand have neighbors."""
    rng = np.random.default_rng(0)
    rows, columns = np.sort(rng.integers(0, n, 1000)), rng.integers(0, n, 1000)
    matrix = matrix_of(rows, columns, np.ones(1000, "f4"), n)
    store = write_store(folder / "s.zarr", matrix._replace(indptr=np.zeros(1, int)), obs=False,
                        consolidated=False, chunk=1 << 16)  # fmt: skip
    import zarr

    group = zarr.open_group(store, mode="a", use_consolidated=False)[OBSP]
    array = group.create_array("indptr", shape=(n + 1,), dtype="i4", chunks=(1 << 20,),
                               fill_value=0, overwrite=True,
                               config={"write_empty_chunks": True})  # fmt: skip
    array[:] = matrix.indptr
    return store


@functools.cache
def ring(kind: str, n_cells: int) -> Path:
    """Return a large store, made once; the folder goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    return make_store(folder / "s.zarr", n_cells=n_cells, n_neighbors=15, kind=kind)


def large(kind: str, form: str, folder: Path, n_cells: int = 300_000) -> Path:
    """Write a large graph in a form."""
    store = ring(kind, n_cells)
    if form == "zarr":
        shutil.copytree(store, folder / "s.zarr")
        return folder / "s.zarr"
    if form == "zip":
        return deflated(store, folder / "s.zip")
    if form.startswith("h5ad"):
        options: dict[str, dict[str, Any]] = {
            "h5ad": {}, "h5ad gzip": {"compression": "gzip", "compression_opts": 1},
            "h5ad small chunks": {"chunks": (100,)},
            "h5ad one chunk": {"chunks": (15 * n_cells,), "compression": "lzf"},
            "h5ad scaleoffset": {"scaleoffset": 0, "chunks": (1 << 20,)},
        }  # fmt: skip
        return write_h5ad(store, folder / "s.h5ad", **options[form])
    settings: dict[str, Any] = {"zarr_format": 3, "chunk": 1 << 20, "shard": None,
                                "compressors": "auto"}  # fmt: skip
    settings |= {
        "sharded": {"shard": 1 << 22}, "one chunk": {"chunk": 1 << 23},
        "tiny chunks in shards": {"chunk": 1 << 8, "shard": 1 << 20},
    }[form]  # fmt: skip
    return write_zarr(store, folder / "s.zarr", **settings)


def edges_of_ring(kind: str, n_cells: int, _: Path) -> Edges:
    """Return the edges of a large graph."""
    return edges_of_store(ring(kind, n_cells))


def no_edges(_: Path) -> Edges:
    """Return no edges."""
    return np.empty(0, np.int64), np.empty(0, np.int64)


def sound_edges(_: Path) -> Edges:
    """Return the edges of the small sound graph."""
    return oracle_edges(GRAPH)


# The cases.


def claims() -> Iterator[tuple[str, Case]]:
    """Yield metadata that promise what no machine holds."""
    shapes = {"whole": (LARGE, LARGE), "nothing": (0, 0), "single": (1, 1), "rows": (1, LARGE),
              "columns": (LARGE, 1), "squares": (1000, 1000)}  # fmt: skip
    for name, chunks in shapes.items():
        for version in (2, 3):
            make = made(with_array, version, OBSP, (LARGE, LARGE), chunks, dtype="f4")
            yield f"dense of 2^40, chunks {name}, zarr {version}", Case(make)
        if 0 not in chunks and max(chunks) < 2**32:
            make = made(with_dataset, OBSP, (LARGE, LARGE), chunks, dtype="f4")
            yield f"dense of 2^40, chunks {name}, h5ad", Case(make)
    for version in (2, 3):
        make = made(with_array, version, OBSP, (40, 40), (LARGE, 40), dtype="f4",
                    content=lambda: {"0.0": bytes(6400)})  # fmt: skip
        yield f"dense of 40, chunk of 2^40, zarr {version}", Case(make)
        for n in (2**36, 2**47):
            yield (
                f"2^{n.bit_length() - 1} cells, zarr {version}",
                Case(made(claims_of_cells, version, n)),
            )
        for size in (2**26, 2**31):
            make = made(with_array, version, f"{OBSP}/indices", (200,), (size,), codec="gzip")
            yield f"a chunk of {size} indices, zarr {version}", Case(make)
        for name, shape in (("wide", (40, LARGE)), ("long", (LARGE, 2))):
            make = made(with_array, version, "obsm/X_umap", shape, (shape[0], 1), dtype="f4")
            yield (
                f"{name} obsm, zarr {version}",
                Case(make, (INSPECT, VERIFY), edges=sound_edges, is_exported=True),
            )
        make = made(with_array, version, "obsm/X_umap", (40, 2), (2**34, 2), dtype="f4")
        yield (
            f"obsm in a chunk of 2^34, zarr {version}",
            Case(make, (INSPECT, VERIFY), edges=sound_edges, is_exported=True),
        )
        by_key = (*EXPORT, "--neighbors-key", "neighbors"), (*PLAN, "--neighbors-key", "neighbors")
        for name, settings in {
            "of 2^40": {"shape": (LARGE,), "chunks": (LARGE,)},
            "in a chunk of 2^40": {"shape": (1,), "chunks": (LARGE,)},
        }.items():
            make = made(key_string, version, **settings)
            yield f"key {name}, zarr {version}", Case(make, by_key)
    wide_text = made(key_string, 2, dtype="<U250000000", shape=(1,), chunks=(1,))
    yield "key of a gigabyte, zarr 2", Case(wide_text, by_key)
    yield "2^36 cells, h5ad", Case(made(hdf5_cells, 2**36))
    make = made(with_dataset, f"{OBSP}/indices", (200,), (2**29,), maxshape=(None,))
    yield "a chunk of 2^29 indices, h5ad", Case(make)
    make = made(with_dataset, "obsm/X_umap", (40, LARGE), (1, 1000), dtype="f4")
    yield "wide obsm, h5ad", Case(make, (INSPECT, VERIFY), edges=sound_edges, is_exported=True)
    make = made(with_dataset, "uns/neighbors/connectivities_key", (), None, dtype="S2000000000")
    yield "key of two gigabytes, h5ad", Case(make, by_key)
    for n in (2**20, 2**30, 2**40):
        make = made(with_array, 3, f"{OBSP}/indices", (200,), (1,), shards=(n,),
                    content=lambda: {"0": bytes(100)})  # fmt: skip
        yield f"shards of {n} chunks", Case(make)
    for figures in ({"n_cells": 10**9}, {"n_cells": LARGE}, {"n_cells": 2**32},
                    {"n_edges": LARGE}, {"max_neighbors": LARGE}):  # fmt: skip
        ((name, value),) = figures.items()
        make = made(claiming_export, **figures)
        yield f"an export with {name} of {value}, and its source", Case(make, (VERIFY,))
        # More cells without neighbors are well-formed, if they can be counted.
        yield f"an export with {name} of {value}", Case(make, (("verify", "{o}"),), is_open=True)


def bombs() -> Iterator[tuple[str, Case]]:
    """Yield few bytes that decode to gigabytes."""
    for name in ("gzip", "zlib", "bz2", "lzma", "zstd", "zstd says", "blosc", "lz4"):
        codec = name.split()[0]
        for array in ("indices", "indptr"):
            size = 200 if array == "indices" else 41
            options = {"codec": codec, "content": lambda name=name: {"0": zeros(name)}}
            make = made(with_array, 2, f"{OBSP}/{array}", (size,), (FLAT,), **options)
            yield f"{name} bomb in {array}, zarr 2", Case(make)
        make = made(with_array, 3, f"{OBSP}/data", (200,), (FLAT,), dtype="f4", **options)
        yield f"{name} bomb, zarr 3", Case(make)
        if codec in ("gzip", "zstd", "blosc"):
            content = lambda name=name: {"0": shard_of(zeros(name), 4)}  # noqa: E731
            make = made(with_array, 3, f"{OBSP}/indices", (200,), (FLAT,), codec=codec,
                        shards=(4 * FLAT,), content=content)  # fmt: skip
            yield f"{name} bomb in a shard", Case(make)
    for name in ("gzip", "zstd", "lzma", "bz2"):
        dense = lambda name=name: {"0.0": zeros(name)}  # noqa: E731
        make = made(with_array, 2, OBSP, (40, 40), (1000, 1000), dtype="f4", codec=name,
                    content=dense)  # fmt: skip
        yield f"{name} bomb in a dense matrix", Case(make)
        make = made(with_array, 2, "obsm/X_umap", (40, 2), (40, 2), dtype="f4", codec=name,
                    content=dense)  # fmt: skip
        yield (
            f"{name} bomb in obsm",
            Case(make, (INSPECT, VERIFY), edges=sound_edges, is_exported=True),
        )
        key = lambda name=name: {"0": zeros(name)}  # noqa: E731
        make = made(key_string, 2, dtype="|O", shape=(1,), chunks=(1,), codec=name,
                    filters=[{"id": "vlen-utf8"}], content=key)  # fmt: skip
        yield f"{name} bomb in a key", Case(make, ((*EXPORT, "--neighbors-key", "neighbors"),))
        for way, settings in {
            "quantize": {"id": "quantize", "digits": 3, "dtype": "<f4"},
            "packed bits": {"id": "packbits"},
            "shuffle": Shuffle(4).get_config(),
        }.items():
            dtype = {"quantize": "f4", "packed bits": "|b1", "shuffle": "f4"}[way]
            make = made(with_array, 2, f"{OBSP}/data", (200,), (FLAT,), dtype=dtype, codec=name,
                        filters=[settings], content=key)  # fmt: skip
            yield f"{name} bomb behind {way}", Case(make)
    filters: dict[str, dict[str, Any]] = {
        "deflate": {"compression": "gzip"}, "deflate and shuffle": {"compression": "gzip",
                                                                    "shuffle": True},
        "szip": {"compression": "szip"}, "lzf": {"compression": "lzf"},
        "blosc": {"compression": 32001, "allow_unknown_filter": True},
        "lz4": {"compression": 32004, "allow_unknown_filter": True},
        "bzip2": {"compression": 307, "allow_unknown_filter": True},
        "zstd": {"compression": 32015, "allow_unknown_filter": True},
        "bitshuffle": {"compression": 32008, "allow_unknown_filter": True},
    }  # fmt: skip
    with_zeros = {"deflate": "zlib", "deflate and shuffle": "zlib", "blosc": "blosc",
                  "bzip2": "bz2", "zstd": "zstd says"}  # fmt: skip
    others = {
        "szip": (GB).to_bytes(4, "little") + bytes(60), "lzf": bytes([0xE0, 0xFF, 0]) * 20_000,
        "lz4": (LARGE).to_bytes(8, "big") + (2**30).to_bytes(4, "big") + bytes(40),
        "bitshuffle": (LARGE).to_bytes(8, "big") + (2**30).to_bytes(4, "big") + bytes(40),
    }  # fmt: skip
    for name, options in filters.items():
        chunk = partial(zeros, with_zeros[name]) if name in with_zeros else partial(
            others.__getitem__, name)  # fmt: skip
        for userblock in (0, 512):  # by HDF5 itself
            make = made(with_dataset, f"{OBSP}/indices", (200,), (FLAT,), maxshape=(None,),
                        chunk=chunk, file={"userblock_size": userblock}, **options)  # fmt: skip
            yield f"{name} bomb, h5ad, user block of {userblock}", Case(make)
    chunk = partial(zeros, "zlib")
    make = made(with_dataset, OBSP, (40, 40), (40, 40), dtype="f4", chunk=chunk,
                compression="gzip")  # fmt: skip
    yield "deflate bomb in a dense matrix, h5ad", Case(make)
    make = made(with_dataset, "obsm/X_umap", (40, 2), (40, 2), dtype="f4", chunk=chunk,
                compression="gzip")  # fmt: skip
    yield (
        "deflate bomb in obsm, h5ad",
        Case(make, (INSPECT, VERIFY), edges=sound_edges, is_exported=True),
    )
    for what in (f"{OBSP}/indices/0", f"{OBSP}/.zattrs", ".zattrs", f"{OBSP}/data/.zarray"):
        yield f"a deflated gigabyte for {what}", Case(made(zip_bomb, what))
    yield "sound zeros in a deflated archive", Case(zip_of_chunks, edges=no_edges)


def hard_graphs() -> Iterator[tuple[str, Case]]:
    """Yield sound graphs that are hard to hold, in the smallest limit."""
    both = (EXPORT, VERIFY)
    for n, dtype in ((20_000_000, "f4"), (20_000_000, "i8"), (3_000_000, "?")):
        yield f"{n} repeats of a pair, {dtype}", Case(
            made(repeats, n, dtype), both, None, lambda _: pairs_of(np.array([5, 3]),
                                                                    np.array([9, 11]))
        )  # fmt: skip
    for dtype in ("f4", "i4", "i8"):
        yield f"6000000 repeats that cancel, {dtype}", Case(
            made(cancelled, 6_000_000, dtype), both, None,
            lambda _: pairs_of(np.array([3]), np.array([11])),
        )  # fmt: skip
    for n, n_hubs in ((1_000_000, 1), (300_000, 8)):
        yield f"{n_hubs} hubs of {n} cells", Case(made(hubs, n, n_hubs), both, None, edges_of_store)
    for n in (5_000_000, 30_000_000):
        yield f"{n} cells, most of them alone", Case(made(empty_rows, n), both, None,
                                                     edges_of_store)  # fmt: skip
    forms = ["zarr", "zip", "h5ad", "h5ad gzip", "h5ad small chunks", "h5ad one chunk",
             "h5ad scaleoffset", "sharded", "one chunk", "tiny chunks in shards"]  # fmt: skip
    for form in forms:
        lossy = form == "h5ad scaleoffset"
        edges = edges_of_h5ad if lossy else partial(edges_of_ring, "directed", 300_000)
        yield f"directed, {form}", Case(made(large, "directed", form), both, None, edges)
    for options in (("--threads", "1"), ("--threads", "8"), ("--compression", "6")):
        commands = ((*EXPORT, *options), (*VERIFY, *options[: 2 * (options[0] == "--threads")]))
        for kind in ("directed", "symmetric"):
            edges = partial(edges_of_ring, kind, 300_000)
            yield (
                f"{kind}, {' '.join(options)}",
                Case(made(large, kind, "zarr"), commands, None, edges),
            )


WEIGHTED = (*EXPORT, "--weights", "--rule", "mean")


def weighted_graphs() -> Iterator[tuple[str, Case]]:
    """Yield graphs that are exported with weights, in the smallest limit."""
    commands = (WEIGHTED, VERIFY)
    for form in ("zarr", "h5ad", "one chunk"):
        yield f"weights, directed, {form}", Case(
            made(large, "directed", form), commands, None,
            partial(edges_of_ring, "directed", 300_000),
        )  # fmt: skip
    both = ((*WEIGHTED, "--compression", "6"), VERIFY)
    edges = partial(edges_of_ring, "symmetric", 300_000)
    yield "weights, symmetric, gzip", Case(made(large, "symmetric", "zarr"), both, None, edges)
    yield "weights, 6000000 repeats", Case(
        made(repeats, 6_000_000, "f4"), commands, None,
        lambda _: pairs_of(np.array([5, 3]), np.array([9, 11])),
    )  # fmt: skip


CASES = dict([*claims(), *bombs(), *hard_graphs(), *weighted_graphs()])


# Carrying them out.


def limited(command: list[str], limit: int) -> Run:
    """Run a command where more memory than the limit gets it killed."""
    words = ["timeout", "--kill-after=5", str(SECONDS), sys.executable, "-m", "cellgraph_dask"]
    with memory_cgroup(limit) as cgroup:
        return run_measured([*words, *command], cgroup=cgroup)


def smallest(command: list[str]) -> int | None:
    """Return the limit that is named when one megabyte is refused, in bytes; None if none is."""
    run = limited([*command, "--memory-limit", "1MB"], GB)
    found = re.search(r"smallest limit that will do is (\d+)MB", run.stderr)
    return int(found[1]) * 10**6 if found else None


def faults(run: Run, command: list[str], limit: int, *, must: int | None) -> Iterator[str]:
    """Yield what is wrong with what a command came to; `must` is the exit code it should have."""
    if run.oom_killed:
        yield "killed for its memory"
    elif run.returncode == 124:
        yield f"took longer than {SECONDS} seconds"
    elif run.returncode not in ((0, 1, 3) if must is None else (0,) if must == 0 else (1, 3)):
        yield f"exit code {run.returncode}"
    if "Traceback" in run.stderr or (run.returncode == 1 and "Error: " not in run.stderr):
        yield "no message"
    if run.peak_rss_bytes > limit:
        yield f"{run.peak_rss_bytes} bytes of {limit}"
    if run.returncode == 0 and "--json" in command:
        report = json.loads(run.stdout)
        if run.peak_rss_bytes > report.get("projected_memory_bytes", limit):
            yield f"{run.peak_rss_bytes} bytes of {report['projected_memory_bytes']} projected"


def attempt(case: Case) -> list[str]:
    """Carry out a case in a folder of its own; return what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        source, out = case.make(folder), folder / "out"
        if case.is_exported:
            sound_export(folder)
        problems = []
        for words in case.commands:
            command = [word.format(s=source, o=out) for word in words]
            limit = case.limit or smallest(command)
            if limit is None:
                problems.append(f"{words[0]}: 1 MB is not refused with a limit that would do")
                break
            if words[0] != "inspect" or not case.is_exported:
                command += ["--memory-limit", str(limit)]
            if words[0] in ("export", "verify"):
                command.append("--json")
            must = 1 if case.edges is None and words[0] in ("export", "verify") else None
            must = 0 if case.edges is not None else None if case.is_open else must
            run = limited(command, limit)
            told = f"{run.stderr[-600:]} ({run.seconds:.1f} s)"
            problems += [
                f"{words[0]} in {limit}: {fault}: {told}"
                for fault in faults(run, command, limit, must=must)
            ]
            if words[0] == "export" and run.returncode == 0 and case.edges is not None:
                found, expected = read_export(out), case.edges(source)
                if not all(map(np.array_equal, found[1:], expected)):
                    problems.append("wrong edges")
        return problems
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Carry out cases; 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="only cases whose names hold this expression")
    parser.add_argument("--list", action="store_true", help="only print their names")
    options = parser.parse_args()
    names = [name for name in CASES if re.search(options.match, name)]
    n_wrong = 0
    for name in names:
        began = time.perf_counter()
        problems = [] if options.list else attempt(CASES[name])
        n_wrong += bool(problems)
        seconds = round(time.perf_counter() - began, 1)
        print(json.dumps({"case": name, "seconds": seconds, "problems": problems}), flush=True)
    print(json.dumps({"cases": len(names), "wrong": n_wrong}))
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
