"""Checking a folder of Parquet files: its files, its rows, and then its edges as of any export.

::

    manifest, digests ──► all rows ──────────────────────► survey, proof, embedding
                          order, range, both directions    of each edge once, in plain files

The edges are unpacked to the scratch folder, where all that is done with the edges of an export can
be done with them.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..edge_pairs import parquet_io
from ..edge_pairs.format import FOLDER, MANIFEST, Manifest, check_readable
from ..edge_pairs.parquet import GRAPH, GraphTable, TableFile, read_graph_table
from ..edge_pairs.parquet_edges import edges_bytes, stream_edges
from ..edge_pairs.reader import SLAB_EDGES, Slab
from ..errors import InvalidExportError
from ..machine.buffers import Array
from ..machine.files import named_disk_errors, write_at
from ..machine.temporary import clear_dead
from ..runtime.progress import Progress
from ..runtime.stage import Stage
from ..runtime.threads import Threads
from ..source.matrix import Source
from .checks import Check, StoredEmbeddings, VerifyReport, measured
from .kept import kept_of
from .observer import Observer

_NONE = np.zeros(1, np.uint64)  # for weights where there are none
_BYTE = re.compile(r" \(byte \d+\)")  # of plain files, which an export in Parquet has not


def verify_table(
    out_dir: Path, progress: Progress, *, source: Source | None = None, limit: int, threads: int,
    scratch_dir: Path | None = None, components: bool | None = None, stored: StoredEmbeddings | None
    = None, observer: Observer | None = None,
) -> VerifyReport:  # fmt: skip
    """Check a folder of Parquet files, and with a source prove its edges; see `checks.verify`."""
    check = Check(
        out_dir, progress, source, limit, threads, scratch_dir, components, None, stored, observer
    )
    return measured(check, partial(_run, check))


def _run(check: Check) -> VerifyReport:
    clear_dead(check.scratch_dir or check.out_dir)
    parquet_io.warm_up()
    try:
        table = read_graph_table(check.out_dir)
    except InvalidExportError as error:
        return VerifyReport(False, (str(error),))
    report = VerifyReport(
        ok=False,
        problems=(),
        provenance=table.made_from,
        n_cells=table.n_cells,
        n_edges=table.n_edges,
        max_neighbors=table.max_neighbors,
    )
    problems = [*_check_texts(check.out_dir, table), *_check_files(check, table)]
    if problems:
        return replace(report, problems=tuple(problems))
    if edges_bytes(table) > check.available():
        raise check.too_small(edges_bytes(table))
    with check.scratch() as folder, named_disk_errors(folder):
        try:
            manifest = _unpack(check, table, folder)
        except InvalidExportError as error:
            return replace(report, problems=(str(error),))
        found = replace(check, out_dir=folder).edges(manifest, table.made_from, [])
    texts = (_BYTE.sub("", text) for text in found.problems)
    names = (str(folder / MANIFEST), str(check.out_dir / GRAPH))
    return replace(found, problems=tuple(text.replace(*names) for text in texts))


def _check_texts(out_dir: Path, table: GraphTable) -> list[str]:
    """Say what in the manifest does not fit together, and which files readers would take in."""
    problems = []
    try:
        kept = kept_of(table.made_from)
    except InvalidExportError as error:
        return [str(error)]
    by_weight = table.weighted or kept.thinning is not None
    wanted = kept.rule or ("max" if by_weight else "ones")
    if table.rule != wanted:
        problems.append(
            f"{out_dir / GRAPH}: rule is {table.rule!r}, but the options it tells give {wanted!r}."
        )
    known = {file.name for file in table.all_files}
    problems += [
        f"{path} is not of this export, but readers of the folder would take it for edges."
        for path in sorted(out_dir.iterdir())
        if path.suffix == ".parquet" and path.name not in known and path.name[0] not in "._"
    ]
    return problems


def _check_files(check: Check, table: GraphTable) -> list[str]:
    """Compare size and digest of each file with the manifest; look into the table of cells."""
    files = table.all_files
    task = partial(_check_file, check.out_dir)
    sizes = [file.n_bytes for file in files]
    executor = Threads(check.threads, check.progress)
    found = executor.run(Stage("files", task, files, sizes, "bytes"))
    problems = [text for text in found if text]
    if not problems and table.cells is not None:
        try:
            parquet_io.check_cells(check.out_dir / table.cells.name, table.n_cells)
        except InvalidExportError as error:
            problems.append(str(error))
    return problems


def _check_file(out_dir: Path, file: TableFile) -> str | None:
    path = out_dir / file.name
    try:
        check_readable(path, out_dir)
        if path.stat().st_size == file.n_bytes:
            found = parquet_io.digest_of(path)
            if found == (file.n_bytes, file.sha256):
                return None
            return f"{path} has been changed: its SHA-256 is not that of {GRAPH}."
        return f"{path} holds {path.stat().st_size} bytes instead of {file.n_bytes}."
    except InvalidExportError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."


def _unpack(check: Check, table: GraphTable, folder: Path) -> Manifest:
    """Write each edge once to plain files; return the manifest that they would have."""
    manifest = Manifest(
        table.n_cells, table.n_edges, table.max_neighbors, None, weighted=table.weighted
    )
    (folder / FOLDER).mkdir()
    dtypes = list(manifest.columns.values())
    mirror = _Mirror() if table.directions == "both" else None
    check.progress.start("unpack", table.n_edges, "edges")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    fds: list[int] = []
    try:
        fds += (os.open(folder / manifest.path(side), flags, 0o600) for side in manifest.columns)
        look = mirror.look if mirror is not None else None
        n_edges = 0
        for start, *columns in stream_edges(check.out_dir, table, look):
            assert columns[0] is not None
            for fd, dtype, column in zip(fds, dtypes, columns, strict=False):
                assert column is not None
                write_at(fd, column.astype(dtype, copy=False), start * dtype.itemsize)
            n_edges += columns[0].size
            check.progress.advance(columns[0].size)
    finally:
        for fd in fds:
            os.close(fd)
    if mirror is not None and (mirror.differs or n_edges != table.n_edges):
        raise InvalidExportError(
            f"{check.out_dir}: the rows with source < destination and those with source > "
            "destination are not the same edges with the same weights."
        )
    return manifest


class _Mirror:
    """Compares rows with source < destination and the others, by sums of hashes with the weights.

    No row is there twice. So if the sums, 128 bits wide and with random seeds, are the same, then
    so are the edges, but for a chance of about 2⁻¹²⁸.
    """

    def __init__(self) -> None:
        self._seeds = np.frombuffer(os.urandom(32), np.uint64)
        self._totals = [0, 0]

    @property
    def differs(self) -> bool:
        """Whether an edge has no mirror image, or one with another weight."""
        return any(total % 2**64 for total in self._totals)

    def look(self, rows: Slab) -> None:
        """Take rows into account."""
        for at in range(0, rows.src.size, SLAB_EDGES):
            part = slice(at, at + SLAB_EDGES)
            bits = _NONE if rows.weights is None else rows.weights[part].view(np.uint64)
            self._add(rows.src[part], rows.dst[part], bits)

    def _add(self, src: Array, dst: Array, weights: Array) -> None:
        small, large = (pick(src, dst).astype(np.uint64) for pick in (np.minimum, np.maximum))
        is_lower = src > dst
        for lane in (0, 1):
            seed, factor = self._seeds[2 * lane], self._seeds[2 * lane + 1] | np.uint64(1)
            hashes = _scramble(_scramble(small ^ seed) + large * factor)
            hashes = _scramble(hashes ^ _scramble(weights + seed))
            lower = np.add.reduce(hashes[is_lower], dtype=np.uint64)
            self._totals[lane] += int(np.add.reduce(hashes)) - 2 * int(lower)


def _scramble(x: Array) -> Array:
    """Mix the bits of uint64 values: Murmur3's finalizer."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = x ^ (x >> np.uint64(33))
        x = x * np.uint64(factor)
    mixed: Array = x ^ (x >> np.uint64(33))
    return mixed
