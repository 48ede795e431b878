"""Exports of some of the cells: which those were, found again in the source, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ..edge_pairs.format import check_readable, named_read_errors, read_manifest
from ..edge_pairs.parquet import CELLS, is_parquet, read_graph_table
from ..edge_pairs.parquet_io import cell_names
from ..edge_pairs.provenance import read_provenance
from ..errors import InvalidExportError, SourceError
from ..machine.files import named_disk_errors
from ..runtime.progress import Progress
from ..runtime.threads import compute_on_threads
from ..source.matrix import Source
from ..source.names import open_names
from ..source.selected import selected
from ..source.selection import Selection, lines_of, select_cells
from ..source.spool import LazyMatrix, spool
from ..source.texts import ADVICE


class Chosen(NamedTuple):
    """What an export says of the cells that it is of."""

    told: Mapping[str, Any]
    names: Path  # the file with their names
    is_table: bool  # whether that is of Parquet


def chosen_cells(folder: Path) -> Chosen | None:
    """Return what an export says of its cells; None if it is of all, or that cannot be read."""
    with suppress(InvalidExportError):
        if is_parquet(folder):
            options, name = read_graph_table(folder).made_from.options, CELLS
        else:
            manifest = read_manifest(folder)
            provenance = read_provenance(folder, manifest)
            options, name = provenance.options if provenance else {}, manifest.cells_path
        told = options.get("cells")
        if isinstance(told, Mapping):
            return Chosen(told, folder / name, name == CELLS)
    return None


def check_names(chosen: Chosen, folder: Path) -> list[str]:
    """Say what is wrong with the names beside edge files; of a table, `_graph.json` tells."""
    if chosen.is_table:
        return []
    digest, path = sha256(), chosen.names
    try:
        check_readable(path, folder)
        with named_read_errors(path), path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except InvalidExportError as error:
        return [str(error)]
    if digest.hexdigest() == chosen.told.get("names_sha256"):
        return []
    return [f"{path} has been changed: its SHA-256 is not that of the provenance."]


def find_again(
    chosen: Chosen, matrix: Source | LazyMatrix, source: Any, key: str,
    storage_options: Mapping[str, Any] | None, limit: int,
) -> Selection:  # fmt: skip
    """Return the cells of an export, chosen again in the source: by a column, or by their names.

    An InvalidExportError says that they are not there, or others now.
    """
    given = str(chosen.told.get("given"))
    cells: Any = chosen.names
    if given.startswith("obs:"):
        cells = given
    elif chosen.is_table:
        cells = cell_names(chosen.names)
    try:
        found = select_cells(
            source, key, matrix.n_cells, cells, storage_options=storage_options, limit=limit
        )
        with open_names(source, matrix.n_cells, storage_options, key=key, advice=ADVICE) as names:
            digest = sha256()
            for lines in () if chosen.is_table else lines_of(names, found):
                digest.update(lines)
    except SourceError as error:
        raise InvalidExportError(
            f"the cells of the export cannot be found in {matrix.path}: {error}"
        ) from error
    is_same = found.options["cells"]["sha256"] == chosen.told.get("sha256")
    if not is_same or chosen.told.get("names_sha256", digest.hexdigest()) != digest.hexdigest():
        raise InvalidExportError(
            f"{given} now chooses other cells of {matrix.path}, or they have other names: "
            f"{len(found):,} cells, and {chosen.told.get('n_selected')} when the export was made."
        )
    return found


def restricted(
    matrix: Source | LazyMatrix, selection: Selection, folder: Path, limit: int, threads: int,
    progress: Progress,
) -> Source:  # fmt: skip
    """Return the graph of these cells, in temporary files."""
    part = selected(matrix, selection)
    compute = partial(
        compute_on_threads, n_threads=threads, limit=limit, task_bytes=part.task_bytes
    )
    with named_disk_errors(folder):
        return spool(part, folder, compute, progress)
