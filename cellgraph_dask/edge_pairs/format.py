"""The edge-pair format of the Cellucid viewer, and only here: dtypes, names, manifest, checks.

The files are those that cellucid 0.0.9 writes: two parallel arrays of flat little-endian unsigned
integers without a header, each undirected edge once with source < destination, sorted, and a JSON
manifest beside them. Those of cellucid 0.9.1 to 0.9.4 have a third array, of weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidExportError, OutputError
from ..machine.files import is_readable
from ..machine.remote import AnyPath

MANIFEST = "connectivity_manifest.json"
FOLDER = "connectivity"
IDENTITY = "dataset_identity.json"
SIDES = ("src", "dst")
WEIGHTS = "weights"
WEIGHT_DTYPE = np.dtype("<f8")
FORMAT = "edge_pairs"

# The name of an edge file, as `file_name` gives it.
EDGE_FILE = re.compile(
    rf"edges\.({'|'.join((*SIDES, WEIGHTS))})(\.(?P<tag>[0-9a-f]{{8}}))?(\.f64)?\.bin(\.gz)?"
)
# The name of a text with the names of cells, as `cells_name` gives it.
CELLS_FILE = re.compile(r"cells(\.(?P<tag>[0-9a-f]{8}))?\.txt")
ABSENT = (FileNotFoundError, NotADirectoryError)
_TAGGED = re.compile(rf"{FOLDER}/edges\.src\.([0-9a-f]{{8}})\.bin")

# What manifests of cellucid 0.9.1 to 0.9.4 have besides those of 0.0.9.
WEIGHT_KEYS = ("weightsPath", "weight_dtype", "weight_bytes")


def index_dtype(n_cells: int, *, weighted: bool = False) -> np.dtype[Any]:
    """Return the smallest dtype that the format allows for that many cells.

    In files with weights, 2¹⁶ cells fit 16 bits, and 2³² fit 32; more are not allowed there.
    """
    if n_cells <= 65_535 + weighted:
        return np.dtype("<u2")
    return np.dtype("<u4") if n_cells <= 4_294_967_295 + weighted else np.dtype("<u8")


# What cellucid 0.9.1 to 0.9.4 takes: most cells, and bytes in the browser.
MOST_WEIGHTED_CELLS = 2**32
VIEWER_BYTES = 2**29


def viewer_bytes(n_cells: int, n_edges: int) -> int:
    """Return the bytes that a graph takes in the viewer of cellucid 0.9.1 to 0.9.4."""
    return 4 * n_cells + n_edges * (48 if index_dtype(n_cells, weighted=True).itemsize == 2 else 44)


def most_viewer_edges(n_cells: int) -> int:
    """Return how many edges of so many cells that viewer draws at most."""
    alone = viewer_bytes(n_cells, 0)
    return max(VIEWER_BYTES - alone, 0) // (viewer_bytes(n_cells, 1) - alone)


def file_name(side: str, compression: int | None, tag: str = "") -> str:
    """Return the name of an edge file inside the folder.

    A `tag` tells apart the files of an export that is to replace another one under the same names.
    """
    kind = ".f64" if side == WEIGHTS else ""
    return f"edges.{side}{'.' if tag else ''}{tag}{kind}.bin" + (".gz" if compression else "")


def cells_name(tag: str = "") -> str:
    """Return the name of the text with the names of cells, for an export of some of them."""
    return f"cells{'.' if tag else ''}{tag}.txt"


def edge_columns(n_cells: int, *, weighted: bool = False) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of the edge files, by their side."""
    columns = dict.fromkeys(SIDES, index_dtype(n_cells, weighted=weighted))
    return columns | ({WEIGHTS: WEIGHT_DTYPE} if weighted else {})


@dataclass(frozen=True)
class Manifest:
    """What ``connectivity_manifest.json`` says."""

    n_cells: int
    n_edges: int  # undirected
    max_neighbors: int  # the largest degree in the exported graph
    compression: int | None  # level of gzip, 1 to 9; None for plain files
    tag: str = ""  # in the file names; empty but for a moment while one export replaces another
    weighted: bool = False  # whether there are weights, as cellucid 0.9.1 to 0.9.4 has them

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the cells in the edge files."""
        return index_dtype(self.n_cells, weighted=self.weighted)

    @property
    def side_bytes(self) -> int:
        """Bytes of the edges of one side, without compression."""
        return self.n_edges * self.dtype.itemsize

    @property
    def columns(self) -> dict[str, np.dtype[Any]]:
        """Dtypes of the edge files, by their side."""
        return edge_columns(self.n_cells, weighted=self.weighted)

    @property
    def files(self) -> list[str]:
        """Names of the edge files, relative to `FOLDER`."""
        return [file_name(side, self.compression, self.tag) for side in self.columns]

    def path(self, side: str) -> str:
        """Return the path of an edge file, relative to the export's folder."""
        return f"{FOLDER}/{file_name(side, self.compression, self.tag)}"

    @property
    def cells_path(self) -> str:
        """Path of the names of cells, if there are any, relative to the export's folder."""
        return f"{FOLDER}/{cells_name(self.tag)}"

    def to_json(self) -> str:
        """Return the manifest's text: the keys, their order and the spacing of cellucid."""
        weights = (self.path(WEIGHTS), WEIGHT_DTYPE.name, WEIGHT_DTYPE.itemsize)
        return json.dumps(
            {
                "format": FORMAT,
                "n_cells": self.n_cells,
                "n_edges": self.n_edges,
                "max_neighbors": self.max_neighbors,
                "index_bytes": self.dtype.itemsize,
                "index_dtype": self.dtype.name,
                "sourcesPath": self.path("src"),
                "destinationsPath": self.path("dst"),
                **(dict(zip(WEIGHT_KEYS, weights, strict=True)) if self.weighted else {}),
                "compression": self.compression,
            }
        )


def read_manifest(out_dir: AnyPath) -> Manifest:
    """Return the manifest of an export; InvalidExportError if it is not exactly of this format."""
    path = out_dir / MANIFEST
    try:
        found = read_json(path, out_dir)
    except ABSENT:
        raise InvalidExportError(
            f"{out_dir} holds no {MANIFEST}; there is no export, or it was never finished."
        ) from None
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
    weighted = any(key in found for key in WEIGHT_KEYS)
    manifest = Manifest(**numbers, compression=level, tag=tag[1] if tag else "", weighted=weighted)
    expected = json.loads(manifest.to_json())
    for key in [*expected, *found]:
        if key not in found or key not in expected or found[key] != expected[key]:
            raise InvalidExportError(
                f"{path}: {key} is {found.get(key)!r}; {expected.get(key)!r} was expected."
            )
    if list(found) != list(expected):
        raise InvalidExportError(f"{path}: the keys are in another order than the format has.")
    return manifest


def read_json(path: AnyPath, out_dir: AnyPath) -> Any:
    """Return what a file of an export holds; one of `ABSENT` if it is not there."""
    check_readable(path, out_dir)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ABSENT:
        raise
    except OSError as error:
        raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidExportError(f"{path} cannot be read as JSON: {error}") from error


def check_readable(path: AnyPath, out_dir: AnyPath) -> None:
    """Refuse a file of an export that is a link out of its folder, a pipe or a device."""
    if isinstance(path, Path) and not is_readable(path, Path(str(out_dir))):
        raise InvalidExportError(
            f"{path} is not a file inside {out_dir}; links that leave the folder are not followed."
        )


@contextmanager
def named_read_errors(path: AnyPath) -> Iterator[None]:
    """Turn the system's refusal to read a file of an export into an InvalidExportError."""
    try:
        yield
    except OSError as error:
        raise InvalidExportError(f"{path} cannot be read: {error.strerror}.") from error


def check_length(path: AnyPath, found: int, expected: int) -> None:
    """Refuse an edge file that does not hold the bytes of the edges that the manifest tells."""
    if found != expected:
        more = "more than" if found > expected else f"{found} instead of"
        raise InvalidExportError(f"{path} holds {more} {expected} bytes of edges.")


def read_identity(out_dir: AnyPath, n_cells: int) -> dict[str, Any] | None:
    """Return the content of ``dataset_identity.json``, or None if there is none.

    An InvalidExportError says that it is not an object with `stats`, an OutputError that it belongs
    to a dataset with another number of cells.
    """
    path = out_dir / IDENTITY
    try:
        identity = read_json(path, out_dir)
    except ABSENT:
        return None
    if not isinstance(identity, dict) or not isinstance(identity.get("stats"), dict):
        raise InvalidExportError(f"{path} is not a Cellucid identity: it has no stats.")
    found = identity["stats"].get("n_cells")
    if found != n_cells:
        raise OutputError(
            f"{path} is of a dataset with {found} cells, but the graph has {n_cells}. Export into "
            "the folder of the same dataset."
        )
    return identity


def identity_tells(identity: dict[str, Any], n_edges: int) -> bool:
    """Whether an identity has the graph's figures already."""
    stats = identity["stats"]
    return stats.get("has_connectivity") is True and stats.get("n_edges") == n_edges


def identity_text(identity: dict[str, Any], n_edges: int) -> str:
    """Return the identity with the graph's figures; all else stays, in its order."""
    stats = identity["stats"] | {"has_connectivity": True, "n_edges": n_edges}
    return json.dumps(identity | {"stats": stats}, indent=2)
