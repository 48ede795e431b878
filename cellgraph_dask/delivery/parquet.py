"""Delivery as Parquet across processes: files of pieces in scratch, Parquet files from them.

Each task of the stage "write" makes one file, of a range of sources. Files end at the first border
between two sources at or after a multiple of `FILE_ROWS`, so they do not depend on how the work was
cut; the edges of a hub are in one file, however many they are.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._version import __version__
from ..edge_pairs import parquet_io
from ..edge_pairs.parquet import (
    GRAPH,
    MOST_ROWS,
    TableFile,
    edges_name,
    metadata_of,
    table_columns,
)
from ..machine.buffers import Array
from ..machine.files import fsync_folder
from ..runtime.stage import ResumableExecutor, Stage
from ..stages.job import Job
from .parts import COLUMNS, FromPieces, PieceSink, positions_of, read_column

# As many rows in a file, and those of its last source besides: mostly all are one row group.
FILE_ROWS = 15 << 16


class FileRange(NamedTuple):
    """The rows ``[start, stop)`` of all, which one file holds."""

    number: int
    start: int
    stop: int


class FileSummary(NamedTuple):
    """What a written file leaves behind: its size and SHA-256."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Target:
    """What a task must know to write a file."""

    job: Job
    folder: Path
    metadata: tuple[tuple[str, str], ...] = ()
    positions: tuple[int, ...] = (0,)  # of each piece's first row, and the end
    row_group: int = MOST_ROWS

    @property
    def columns(self) -> dict[str, np.dtype[Any]]:
        """The columns of a file."""
        return table_columns(self.job.source.n_cells, weighted=self.job.weights)

    def read(self, column: str, start: int, stop: int) -> Array:
        """Read a column of the rows ``[start, stop)`` into this thread's buffer for it."""
        scratch, dtypes = self.job.scratch, self.job.edge_dtypes
        name = f"parquet {column}"
        return read_column(scratch, self.positions, dtypes, column, start, stop, name=name)


class ParquetDelivery(FromPieces):
    """Makes a folder of Parquet files of the files of pieces; a `Delivery`.

    Every worker sees `folder` and the scratch folder of the job. After `finish`, `read_files` tells
    of the files.
    """

    def __init__(self, job: Job, folder: Path, executor: ResumableExecutor) -> None:
        super().__init__(PieceSink(job.scratch), executor)
        self._target = Target(job, folder)

    def finish(self, counts: Sequence[int]) -> int:
        """Write the files from the pieces; return their bytes."""
        positions = positions_of(counts)
        metadata = graph_metadata(self._target.job, positions[-1])
        target = replace(self._target, positions=positions, metadata=tuple(metadata.items()))
        ranges = cut_files(target)
        sizes = [rows.stop - rows.start for rows in ranges]
        task, holds = partial(write_file, target), partial(file_holds, target)
        stage = Stage("write", task, ranges, sizes, "edges", FileSummary, holds)
        written = self._executor.run(stage)
        fsync_folder(target.folder)
        row_bytes = sum(dtype.itemsize for dtype in target.job.edge_dtypes)
        self.scratch_bytes = positions[-1] * row_bytes
        return tell_files(target.folder, sizes, written)


def tell_files(folder: Path, rows: Sequence[int], written: Sequence[tuple[int, str]]) -> int:
    """Write down what `read_files` tells: of each file its rows, and bytes and digest.

    All their bytes together are returned.
    """
    files = [
        TableFile(edges_name(k), n_rows, *summary)
        for k, (n_rows, summary) in enumerate(zip(rows, written, strict=True))
    ]
    (folder / GRAPH).write_text(json.dumps([asdict(file) for file in files]))
    return sum(file.n_bytes for file in files)


def read_files(folder: Path) -> tuple[TableFile, ...]:
    """Return what `finish` has written, before the manifest takes its place."""
    return tuple(TableFile(**told) for told in json.loads((folder / GRAPH).read_text()))


def graph_metadata(job: Job, n_rows: int) -> dict[str, str]:
    """Return the metadata of all files, given how many rows they have together."""
    source = job.source
    return metadata_of(
        source.n_cells, n_rows // job.n_directions, job.rule or "ones",
        "both" if job.both else "one", source.origin.name, source.key, __version__,
    )  # fmt: skip


def parquet_bytes(job: Job) -> int:
    """Return the most bytes that writing a file needs on one thread."""
    columns = table_columns(job.source.n_cells, weighted=job.weights)
    row = sum(dtype.itemsize for dtype in job.edge_dtypes)
    # Cells of more than 2³¹ take more room in the file than in the pieces.
    wider = columns["src"].itemsize if columns["src"].itemsize > job.cell_dtype.itemsize else 0
    return MOST_ROWS * (row + 2 * wider) + parquet_io.writing_bytes(columns)


def cut_files(target: Target) -> list[FileRange]:
    """Cut all rows into the ranges of files; there is one even if there are no rows."""
    n_rows = target.positions[-1]
    cuts = [0]
    for multiple in range(FILE_ROWS, n_rows, FILE_ROWS):
        if multiple > cuts[-1]:
            cuts.append(_border(target, multiple))
    ends = [*(cut for cut in cuts[1:] if cut < n_rows), n_rows]
    return [FileRange(k, start, stop) for k, (start, stop) in enumerate(pairwise([0, *ends]))]


def _border(target: Target, at: int) -> int:
    """Return the first row from `at` on that has another source than the row before it."""

    def source_of(row: int) -> int:
        return int(target.read("src", row, row + 1)[0])

    rows = range(target.positions[-1])
    return bisect_right(rows, source_of(at - 1), lo=at, key=source_of)


def write_file(target: Target, rows: FileRange) -> FileSummary:
    """Write a file; doing it twice, or twice at once, gives the same bytes."""

    def groups() -> Iterator[list[Array]]:
        for start in range(rows.start, rows.stop, target.row_group):
            stop = min(start + target.row_group, rows.stop)
            yield [
                signed(target.read(name, start, stop), dtype)
                for name, dtype in zip(COLUMNS, target.columns.values(), strict=False)
            ]

    path = target.folder / edges_name(rows.number)
    columns, metadata = target.columns, dict(target.metadata)
    return FileSummary(*parquet_io.write_table(path, columns, metadata, 2, groups()))


def signed(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return cells, or weights, in the dtype of a file; a copy only if that is wider."""
    return values.view(dtype) if values.itemsize == dtype.itemsize else values.astype(dtype)


def file_holds(target: Target, kept: tuple[FileRange, FileSummary]) -> bool:
    """Whether a file is still what the summary says."""
    rows, summary = kept
    try:
        found = parquet_io.digest_of(target.folder / edges_name(rows.number))
    except OSError:
        return False
    return tuple(found) == tuple(summary)
