"""The edge-pair format of the Cellucid viewer, and only here: dtypes, names, manifest, checks.

The files are those that cellucid 0.0.9 writes: two parallel arrays of flat little-endian unsigned
integers without a header, each undirected edge once with source < destination, sorted, and a JSON
manifest beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ..errors import InvalidExportError
from ..machine.files import is_readable

MANIFEST = "connectivity_manifest.json"
FOLDER = "connectivity"
IDENTITY = "dataset_identity.json"
SIDES = ("src", "dst")
FORMAT = "edge_pairs"

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, mtime 0, unknown system

_TAGGED = re.compile(rf"{FOLDER}/edges\.src\.([0-9a-f]{{8}})\.bin")

# The viewer of cellucid 0.9.1 to 0.9.4 refuses graphs that need more than this while it loads them.
VIEWER_LIMIT = 512 * 2**20


class AnyPath(Protocol):
    """A file or folder: a `pathlib.Path`, or one in remote storage."""

    def __truediv__(self, name: str, /) -> AnyPath:
        """Return a path below this one."""

    def read_text(self, encoding: str) -> str:
        """Return the text of a file."""

    def open(self, mode: str) -> IO[Any]:
        """Open a file."""


def index_dtype(n_cells: int) -> np.dtype[Any]:
    """Return the smallest dtype that the format allows for that many cells."""
    if n_cells <= 65_535:
        return np.dtype("<u2")
    return np.dtype("<u4") if n_cells <= 4_294_967_295 else np.dtype("<u8")


def file_name(side: str, compression: int | None, tag: str = "") -> str:
    """Return the name of an edge file inside the folder.

    `side` is "src" or "dst". A `tag` tells apart the files of an export that is on its way to
    replace another one under the same names.
    """
    return f"edges.{side}{'.' if tag else ''}{tag}.bin" + (".gz" if compression else "")


def viewer_bytes(n_cells: int, n_edges: int) -> int:
    """Return what the viewer of cellucid 0.9.1 to 0.9.4 needs to load a graph, in bytes."""
    return (48 if index_dtype(n_cells).itemsize == 2 else 44) * n_edges + 4 * n_cells


@dataclass(frozen=True)
class Manifest:
    """What ``connectivity_manifest.json`` says.

    Attributes
    ----------
    n_cells, n_edges : int
        Numbers of cells and of undirected edges.
    max_neighbors : int
        The largest degree in the exported graph.
    compression : int or None
        Level of gzip, 1 to 9; None for plain files.
    tag : str
        Part of the file names; empty but for a moment while one export replaces another.
    """

    n_cells: int
    n_edges: int
    max_neighbors: int
    compression: int | None
    tag: str = ""

    def path(self, side: str) -> str:
        """Return the path of an edge file, relative to the export's folder."""
        return f"{FOLDER}/{file_name(side, self.compression, self.tag)}"

    def to_json(self) -> str:
        """Return the manifest's text: the keys, their order and the spacing of cellucid 0.0.9."""
        dtype = index_dtype(self.n_cells)
        return json.dumps(
            {
                "format": FORMAT,
                "n_cells": self.n_cells,
                "n_edges": self.n_edges,
                "max_neighbors": self.max_neighbors,
                "index_bytes": dtype.itemsize,
                "index_dtype": dtype.name,
                "sourcesPath": self.path("src"),
                "destinationsPath": self.path("dst"),
                "compression": self.compression,
            }
        )


def read_manifest(out_dir: AnyPath) -> Manifest:
    """Read and check the manifest of an export.

    Raises
    ------
    InvalidExportError
        If it is missing, or not exactly what this format's manifest is.
    """
    path = out_dir / MANIFEST
    check_readable(path, out_dir)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidExportError(
            f"{out_dir} holds no {MANIFEST}; there is no export, or it was never finished."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidExportError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidExportError(f"{path} holds {type(found).__name__}, not an object.")
    numbers = {}
    for key in ("n_cells", "n_edges", "max_neighbors"):
        value = found.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidExportError(f"{path}: {key} is {value!r}, not a count.")
        numbers[key] = value
    level = found.get("compression")
    if level is not None and (type(level) is not int or not 1 <= level <= 9):
        raise InvalidExportError(f"{path}: compression is {level!r}, not null or 1 to 9.")
    tag = _TAGGED.match(str(found.get("sourcesPath")))
    manifest = Manifest(**numbers, compression=level, tag=tag[1] if tag else "")
    expected = json.loads(manifest.to_json())
    for key in [*expected, *found]:
        if key not in found or key not in expected or found[key] != expected[key]:
            raise InvalidExportError(
                f"{path}: {key} is {found.get(key)!r}; {expected.get(key)!r} was expected."
            )
    if list(found) != list(expected):
        raise InvalidExportError(f"{path}: the keys are in another order than the format has.")
    return manifest


def check_readable(path: Any, out_dir: Any) -> None:
    """Refuse a file of an export that is a link out of its folder, a pipe or a device.

    Raises
    ------
    InvalidExportError
        If it is one.
    """
    if isinstance(path, Path) and not is_readable(path, out_dir):
        raise InvalidExportError(
            f"{path} is not a file inside {out_dir}; links that leave the folder are not followed."
        )


def read_edges(path: AnyPath, compression: int | None, n_bytes: int) -> Generator[bytes]:
    """Yield the decompressed bytes of an edge file in parts of at most 4 MiB.

    Parameters
    ----------
    path
        The file.
    compression
        As in the manifest.
    n_bytes
        How many there must be.

    Raises
    ------
    InvalidExportError
        If the file is missing, shorter, longer, or not one whole gzip member with a right checksum.
    """
    try:
        with path.open("rb") as file:
            n = 0
            for part in _parts(file, path) if compression else iter(lambda: file.read(2**22), b""):
                n += len(part)
                if n > n_bytes:
                    break
                yield part
    except OSError as error:
        raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error
    if n != n_bytes:
        more = "more than" if n > n_bytes else f"{n} instead of"
        raise InvalidExportError(f"{path} holds {more} {n_bytes} bytes of edges.")


def _parts(file: Any, path: AnyPath) -> Iterator[bytes]:
    from zlib_ng import zlib_ng

    inflate = zlib_ng.decompressobj(wbits=31)
    pending = b""
    try:
        while not inflate.eof:
            encoded = pending or file.read(2**20)
            if not encoded:
                raise InvalidExportError(f"{path} ends inside its gzip member.")
            yield inflate.decompress(encoded, 2**22)
            pending = inflate.unconsumed_tail
    except zlib_ng.error as error:  # type: ignore[misc]
        raise InvalidExportError(f"{path} is not sound gzip: {error}.") from error
    if inflate.unused_data or pending or file.read(1):
        raise InvalidExportError(
            f"{path} goes on after its gzip member; browsers refuse such files."
        )


def check_gzip_header(path: Path) -> None:
    """Refuse a gzip header that neither we nor cellucid 0.0.9 write.

    Nothing in the checksum covers the header, and readers skip most of it. Python's gzip module,
    with which cellucid writes, notes time and name there.

    Raises
    ------
    InvalidExportError
        If it is another one, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error
    by_cellucid = (
        head[:4] == b"\x1f\x8b\x08\x08"
        and head[8:9] in (b"\x00", b"\x02", b"\x04")
        and head[9:10] == b"\xff"
        and head[10:].startswith(path.stem.encode() + b"\x00")
    )
    if head[:10] != GZIP_HEADER and not by_cellucid:
        raise InvalidExportError(
            f"{path} has the gzip header {head[:10].hex()}, not {GZIP_HEADER.hex()}: it was "
            "changed, or compressed by another program."
        )


def iter_edges(out_dir: AnyPath, manifest: Manifest) -> Iterator[tuple[Any, Any]]:
    """Yield the edges of an export as pairs of equally long arrays, in order.

    Raises
    ------
    InvalidExportError
        As for `read_edges`.
    """
    dtype = index_dtype(manifest.n_cells)
    n_bytes = manifest.n_edges * dtype.itemsize
    for side in SIDES:
        check_readable(out_dir / manifest.path(side), out_dir)
    readers = [
        read_edges(out_dir / manifest.path(side), manifest.compression, n_bytes) for side in SIDES
    ]
    pending = [b"", b""]
    while True:
        # Both sides are read to their very end, where length and checksum are judged.
        parts = [next(reader, None) for reader in readers]
        if parts == [None, None]:
            return
        pending = [rest + (part or b"") for rest, part in zip(pending, parts, strict=True)]
        n = min(map(len, pending)) // dtype.itemsize * dtype.itemsize
        yield tuple(np.frombuffer(rest[:n], dtype) for rest in pending)  # type: ignore[misc]
        pending = [rest[n:] for rest in pending]
