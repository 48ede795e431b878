"""Mutants of small stores: chunks and metadata deleted, cut, swapped, flipped. All from a seed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from tests.helpers.stores import ARRAYS, Stored, directed_graph, symmetric_graph, write_store
from tests.oracle import oracle_edges

Files = dict[str, bytes]
OBSP = "obsp/connectivities"
N_CELLS = 24


class Base(NamedTuple):
    """A sound store, as files in memory, and those of them that concern the matrix."""

    name: str
    files: Files
    targets: list[str]


class Mutant(NamedTuple):
    """A store with one thing wrong with it."""

    name: str
    files: Files


LAYOUTS: dict[str, dict[str, Any]] = {
    "v2 blosc": {"chunk": 30},
    "v2 blosc one chunk": {"consolidated": False},
    "v2 zlib": {"chunk": 30, "codec": "zlib", "consolidated": False},
    "v2 lz4": {"chunk": 30, "codec": "lz4"},
    "v2 lzma": {"chunk": 60, "codec": "lzma"},
    "v2 bz2": {"chunk": 60, "codec": "bz2", "consolidated": False},
    "v2 plain": {"chunk": 16, "codec": "none"},
    "v2 csc": {"chunk": 50, "layout": "csc", "codec": "zstd"},
    "v2 symmetric": {"chunk": 64, "graph": "symmetric"},
    "v3 zstd": {"zarr_format": 3, "chunk": 30, "codec": "zstd"},
    "v3 plain": {"zarr_format": 3, "chunk": 30, "codec": "none", "consolidated": False},
    "v3 gzip csc": {"zarr_format": 3, "chunk": 50, "codec": "gzip", "layout": "csc"},
    "v3 shards": {"zarr_format": 3, "chunk": 15, "shard": 60, "codec": "blosc"},
    "v3 plain shards": {
        "zarr_format": 3, "chunk": 12, "shard": 48, "codec": "none", "consolidated": False,
        "graph": "symmetric",
    },
}  # fmt: skip


def make_bases(folder: Path) -> list[Base]:
    """Write each layout once and take it into memory."""
    bases = []
    for name, settings in LAYOUTS.items():
        options = dict(settings)
        make = symmetric_graph if options.pop("graph", "") == "symmetric" else directed_graph
        matrix = make(N_CELLS, 4, seed=3).asformat(options.pop("layout", "csr"))
        path = write_store(folder / name, matrix, **options)
        files = {
            str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
        }
        shutil.rmtree(path)
        targets = [
            file for file in files
            if file.startswith((OBSP, "obs/")) or "/" not in file or file.startswith("obsp/.")
        ]  # fmt: skip
        bases.append(Base(name, files, targets))
    return bases


def write_files(path: Path, files: Files, before: Files | None = None) -> None:
    """Make a folder hold these files; `before` is what it is known to hold."""
    if before is None:
        shutil.rmtree(path, ignore_errors=True)
        before = {}
    for name in before.keys() - files.keys():
        (path / name).unlink()
    for name, content in files.items():
        if before.get(name) != content:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)


def mutate(base: Base, random_: random.Random) -> Mutant:
    """Return the store with one thing wrong with it, or rarely two."""
    files = dict(base.files)
    names = []
    for _ in range(1 if random_.random() < 0.85 else 2):
        # As often a chunk as metadata, whatever their numbers.
        kinds = [[t for t in base.targets if t in files and is_json(t) == j] for j in (True, False)]
        target = random_.choice(random_.choice([kind for kind in kinds if kind]))
        change = random_.choice(_JSON_CHANGES if is_json(target) else _CHUNK_CHANGES)
        names.append(f"{change.__name__[1:]} {target}")
        change(files, target, base, random_)
    return Mutant(f"{base.name}: {', '.join(names)}", files)


def is_json(name: str) -> bool:
    """Tell whether a file holds metadata."""
    return name.rpartition("/")[2] in ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")


def _delete(files: Files, target: str, _: Base, __: random.Random) -> None:
    del files[target]


def _truncate(files: Files, target: str, _: Base, random_: random.Random) -> None:
    files[target] = files[target][: random_.randrange(max(1, len(files[target])))]


def _append(files: Files, target: str, _: Base, random_: random.Random) -> None:
    files[target] += random_.randbytes(random_.randint(1, 40))


def _swap(files: Files, target: str, base: Base, random_: random.Random) -> None:
    other = random_.choice(
        [t for t in base.targets if t in files and is_json(t) == is_json(target)]
    )
    files[target], files[other] = files[other], files[target]


def _flip_bit(files: Files, target: str, _: Base, random_: random.Random) -> None:
    raw = bytearray(files[target])
    if raw:
        raw[random_.randrange(len(raw))] ^= 1 << random_.randrange(8)
    files[target] = bytes(raw)


def _flip_bits(files: Files, target: str, base: Base, random_: random.Random) -> None:
    for _ in range(random_.randint(2, 12)):
        _flip_bit(files, target, base, random_)


def _flip_header(files: Files, target: str, _: Base, random_: random.Random) -> None:
    raw = bytearray(files[target])
    for _ in range(random_.randint(1, 3)):
        if raw:
            raw[random_.randrange(min(20, len(raw)))] = random_.choice((0, 1, 127, 128, 255))
    files[target] = bytes(raw)


def _noise(files: Files, target: str, _: Base, random_: random.Random) -> None:
    files[target] = random_.randbytes(len(files[target]))


def _zeros(files: Files, target: str, _: Base, random_: random.Random) -> None:
    files[target] = bytes(len(files[target]))


_ODD_VALUES: list[Any] = [
    None, True, 0, 1, -1, 23, 24, 25, 30, 96, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, 1e308,
    float("nan"), float("inf"), "", "x", "../..", "<i4", "<i8", ">i4", "<u1", "<f4", "<f8", "|O",
    "<M8[ns]", "int64", "uint8", "float32", "big", "F", "/", ".", [], [24], [24, 24], [[1]], {},
    {"id": "pickle"}, [{"id": "pickle"}], {"id": "zlib", "level": 1}, {"id": "blosc"},
    {"name": "gzip"}, [{"name": "bytes"}], "\0", "é" * 50,
]  # fmt: skip


def _json_value(files: Files, target: str, base: Base, random_: random.Random) -> None:
    """Replace, remove or add a value somewhere in the metadata."""
    try:
        document = json.loads(files[target])
    except ValueError:
        return
    places = [place for place in _places(document, ()) if _concerns(target, place)]
    if not places:
        return
    *path, last = random_.choice(places)
    holder = document
    for step in path:
        holder = holder[step]
    if random_.random() < 0.2:
        del holder[last]
    else:
        holder[last] = random_.choice(_ODD_VALUES)
    files[target] = json.dumps(document).encode()


def _places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    return [place for key in keys for place in [(*path, key), *_places(value[key], (*path, key))]]


def _concerns(target: str, place: tuple[Any, ...]) -> bool:
    """Tell whether a place in consolidated metadata has to do with the matrix."""
    if target not in (".zmetadata", "zarr.json") or "metadata" not in place:
        return True
    after = place[place.index("metadata") + 1 :]
    return not after or str(after[0]).startswith((OBSP, "obs/", ".z", "obsp/.z"))


_CHUNK_CHANGES: list[Callable[[Files, str, Base, random.Random], None]] = [
    _delete, _truncate, _append, _swap, _flip_bit, _flip_bit, _flip_bits, _flip_header, _noise,
    _zeros,
]  # fmt: skip
_JSON_CHANGES: list[Callable[[Files, str, Base, random.Random], None]] = [
    _delete, _truncate, _append, _swap, _flip_bit, _flip_bits, _zeros, _json_value, _json_value,
    _json_value, _json_value,
]  # fmt: skip


def decoded(path: Path) -> Stored:
    """Return what zarr itself reads from a store; whatever it raises is the store's fault.

    The consolidated copy of the metadata is not looked at, as we do not on this machine.
    """
    files = {
        str(file.relative_to(path)): default_buffer_prototype().buffer.from_bytes(file.read_bytes())
        for file in path.rglob("*") if file.is_file()
    }  # fmt: skip
    group = zarr.open_group(MemoryStore(files, read_only=True), mode="r", use_consolidated=False)
    matrix = group[OBSP]
    arrays = [matrix[name] for name in ARRAYS]
    assert all(a.ndim == 1 and a.shape[0] < 10_000 and a.chunks[0] < 10**6 for a in arrays)
    values = [np.asarray(array[:]) for array in arrays]
    layout = {"csr_matrix": "csr", "csc_matrix": "csc"}[matrix.attrs["encoding-type"]]
    n_rows, n_columns = matrix.attrs["shape"]
    if "obs" in group:  # a store need not tell how many cells it has
        obs = group["obs"]
        name = obs.attrs.get("_index")
        if isinstance(name, str) and name in obs and isinstance(obs[name], zarr.Array):
            assert obs[name].shape == (n_rows,)
    return Stored(*values, (n_rows, n_columns), layout)


def edges_of(found: Stored) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a matrix that keeps the rules; AssertionError if it breaks one."""
    indptr, indices, data, (n_rows, n_columns), _ = found
    assert n_rows == n_columns == indptr.size - 1
    assert indices.size == data.size
    assert indptr.dtype.kind in "iu"
    assert indices.dtype.kind in "iu"
    assert data.dtype.kind in "biuf"
    ends = [int(end) for end in indptr]
    assert ends[0] == 0
    assert ends[-1] == indices.size
    assert ends == sorted(ends)
    assert all(0 <= int(column) < n_columns for column in indices)
    assert np.isfinite(data).all()
    return oracle_edges(found)
