"""What can be wrong with the files of an export besides their edges.

The same edges can be compressed in many ways, so a bit can change in a gzip file and leave every
edge as it was. No reader sees such a change. Compressing the edges once more shows it, as our bytes
depend on nothing but the edges, the level, and the versions of the compression libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs import gzip_member
from ..edge_pairs.format import (
    FOLDER,
    MANIFEST,
    SIDES,
    Manifest,
    check_readable,
    file_name,
    read_identity,
)
from ..edge_pairs.generation import check_generation
from ..edge_pairs.gzip_member import GZIP_HEADER, check_gzip_header, deflate_edges
from ..edge_pairs.reader import open_plain, read_edges
from ..errors import CellgraphError, InvalidExportError, OutputError
from ..machine.remote import AnyPath

# Compressing is slow; of larger exports it is left out.
MOST_EDGES = 1 << 23
_MOST_DEFLATE = 1040  # deflate makes no file so many times smaller


def is_export(out_dir: AnyPath) -> bool:
    """Whether there is anything of an export: a manifest, whatever it says, or an edge file.

    Where that cannot be found out, there may be one.
    """
    names = [f"{FOLDER}/{file_name(side, level)}" for side in SIDES for level in (None, 1)]
    try:
        return any((out_dir / name).exists() for name in (MANIFEST, *names))
    except Exception:  # libraries of storage raise anything
        return True


def check_texts(out_dir: Path, manifest: Manifest) -> list[str]:
    """Say what is wrong with all that is not edges, in an export whose manifest can be read."""
    problems = []
    path = out_dir / MANIFEST
    if path.read_bytes() != manifest.to_json().encode():
        problems.append(f"{path} is not spaced as the format has it; its text was changed.")
    with suppress(InvalidExportError):  # which is said below
        try:
            check_generation(out_dir, weighted=manifest.weighted)
        except OutputError as error:
            problems.append(str(error))
    try:
        identity = read_identity(out_dir, manifest.n_cells)
    except CellgraphError as error:
        identity = None
        problems.append(str(error))
    if identity is not None:
        for name, expected in (("has_connectivity", True), ("n_edges", manifest.n_edges)):
            found = identity["stats"].get(name)
            # No number at all: an export was killed as it brought it up to date.
            if found != expected and not (name == "n_edges" and found is None):
                problems.append(
                    f"dataset_identity.json: stats.{name} is {found!r}, not {expected!r}."
                )
    if manifest.compression is not None:
        for side in manifest.columns:
            try:
                check_readable(out_dir / manifest.path(side), out_dir)
                check_gzip_header(out_dir / manifest.path(side))
            except InvalidExportError as error:
                problems.append(str(error))
    return problems


def check_figures(out_dir: Path, manifest: Manifest) -> None:
    """Raise `InvalidExportError` for figures that the files cannot bear out.

    That is before memory is shared out by them.
    """
    if manifest.n_cells >= 2**63:
        raise InvalidExportError(
            f"{out_dir / MANIFEST}: n_cells is {manifest.n_cells}; no graph has 2⁶³ cells."
        )
    for side in manifest.columns:
        check_readable(out_dir / manifest.path(side), out_dir)
    if manifest.compression is None:
        open_plain(out_dir, manifest).close()
        return
    for side, dtype in manifest.columns.items():
        path, n_bytes = out_dir / manifest.path(side), manifest.n_edges * dtype.itemsize
        if path.is_file() and n_bytes > _MOST_DEFLATE * (path.stat().st_size + 1):
            raise InvalidExportError(f"{path} cannot hold {n_bytes} bytes of edges.")


def differing_files(out_dir: Path, manifest: Manifest) -> list[tuple[Path, int]]:
    """Return the sound gzip files that we would write otherwise, and the first byte that differs.

    Files with the gzip header of another program are left out, as are exports that are too large.
    """
    if manifest.compression is None or manifest.n_edges > MOST_EDGES:
        return []
    found = []
    for side, dtype in manifest.columns.items():
        path = out_dir / manifest.path(side)
        at = 0
        with path.open("rb") as file:
            if file.read(len(GZIP_HEADER)) != GZIP_HEADER:
                continue
            at = len(GZIP_HEADER)
            for expected in _parts(path, manifest, dtype):
                stored = file.read(len(expected))
                if stored != expected:
                    same = np.frombuffer(stored, np.uint8) == np.frombuffer(
                        expected[: len(stored)], np.uint8
                    )
                    found.append((path, at + int(np.append(same, False).argmin())))
                    break
                at += len(expected)
    return found


def _parts(path: Path, manifest: Manifest, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield the deflate parts that an export would write."""
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
