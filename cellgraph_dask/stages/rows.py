"""A matrix made symmetric in scratch, for stages that look at whole rows more than once.

Its rows come from the merge, each edge in both directions. A piece is a file of its own::

    columns || weights || entries of each row
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import opened, write_at
from ..source.arrays import RawArray
from ..source.matrix import Origin, Source
from . import loops
from .job import Job
from .keep import key_dtype
from .runs import RunReader, Scratch, write_run

_SLICE = 1 << 20  # row pointers written at once


@dataclass(frozen=True, eq=False)
class RowSink:
    """Takes the rows of pieces into files of the scratch folder; an `EdgeSink`, picklable."""

    scratch: Scratch
    dtype: np.dtype[Any]  # of the weights
    n_checked: ClassVar[int | None] = None

    def place(self, number: int, src: Array) -> int:
        """Return the number of the piece."""
        return number

    def write(self, position: int, *columns: Array) -> None:
        """Write the rows of piece `position` to a file of its own."""
        src, dst, weights = columns
        first = int(src[0]) if src.size else 0
        counts = np.zeros(int(src[-1]) - first + 1 if src.size else 0, np.uint32)
        loops.count_edges_per_source(src, first, counts)
        sections: list[tuple[dict[str, Array], Array]] = [
            ({"dst": dst, "weight": weights}, np.array([dst.size])),
            ({"n": counts}, np.array([first, counts.size])),
        ]
        write_run(self.scratch.run("rows", position), sections)

    def read(self, position: int, *columns: Array) -> None:
        """Read the rows of piece `position` back."""
        src, dst, weights = columns
        with self.open(position, dst.dtype) as piece:
            first, counts = _counts(piece)
            piece.read(0, "dst", 0, dst)
            piece.read(0, "weight", 0, weights)
        if counts.sum(dtype=np.int64) != src.size:
            raise ValueError("its rows are not as long as they say")
        src[:] = np.repeat(np.arange(first, first + counts.size), counts)

    def open(self, number: int, cell_dtype: np.dtype[Any]) -> RunReader:
        """Open the file of a piece."""
        layout: list[tuple[dict[str, np.dtype[Any]], int]] = [
            ({"dst": cell_dtype, "weight": self.dtype}, 1), ({"n": np.dtype(np.uint32)}, 2),
        ]  # fmt: skip
        return RunReader(self.scratch.run("rows", number), layout)

    def edge(self, number: int, at: int, cell_dtype: np.dtype[Any]) -> tuple[int, int]:
        """Return source and destination of an entry of a piece."""
        dst = np.empty(1, cell_dtype)
        with self.open(number, cell_dtype) as piece:
            piece.read(0, "dst", at, dst)
            first, counts = _counts(piece)
        row = np.searchsorted(np.cumsum(counts, dtype=np.int64), at, side="right")
        return first + int(row), int(dst[0])


def row_bytes(job: Job, n_entries: int, n_sources: int) -> int:
    """Return the most bytes that writing a piece takes, besides what merging it does."""
    return n_entries * key_dtype(job).itemsize + 4 * n_sources


def _counts(piece: RunReader) -> tuple[int, Array]:
    """Return the first row of a piece, and the number of entries in it and in those after it."""
    first, n_rows = (int(n) for n in piece.starts(1, 0, 1))
    if not 0 <= 4 * n_rows <= piece.n_bytes:
        raise ValueError(f"it does not have {n_rows} rows")
    counts = np.empty(n_rows, np.uint32)
    piece.read(1, "n", 0, counts)
    return first, counts


class RowsArray(RawArray):
    """An array of such a matrix."""

    advice = "Export again, and leave the scratch folder alone meanwhile."

    def __init__(
        self, name: str, size: int, dtype: np.dtype[Any], scratch: Scratch, after: int = 0
    ) -> None:
        self.name = name
        self.size = size
        self.dtype = dtype
        self.where = scratch.folder
        self._scratch = scratch
        self._after = after  # bytes that each entry of a piece has before these values

    @cached_property
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        """See `RawArray`."""
        if self.name == "indptr":
            return np.array([0, self.size]), np.zeros(1, np.int64), [self.dtype]
        starts = np.fromfile(self._scratch.run("row-starts", 0), np.int64)
        return starts, np.diff(starts) * self._after, [self.dtype] * (starts.size - 1)

    def path_of(self, k: int) -> Path:
        """See `RawArray`."""
        return self._scratch.run("row-pointers" if self.name == "indptr" else "rows", k)


def row_sink(job: Job) -> RowSink:
    """Return a sink for the rows of a job's graph."""
    return RowSink(job.scratch, job.merged_dtype)


def source_of_rows(job: Job, sink: RowSink, sizes: Sequence[int]) -> Source:
    """Return the matrix whose rows are in the pieces of a sink, which have these many entries."""
    scratch = sink.scratch
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    new = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    with opened(scratch.run("row-starts", 0), new, 0o600) as fd:
        write_at(fd, starts, 0)
    with opened(scratch.run("row-pointers", 0), new, 0o600) as fd:
        at = write_at(fd, np.zeros(1, np.int64), 0)
        for ends in _row_ends(sink, job.cell_dtype, sizes, job.source.n_cells):
            at = write_at(fd, ends, at)
    return described(job, sink, int(starts[-1]))


def described(job: Job, sink: RowSink, n_entries: int) -> Source:
    """Return the matrix of the pieces of a sink; its files need not be there yet."""
    n_cells, cell, scratch = job.source.n_cells, job.cell_dtype, sink.scratch
    return Source(
        RowsArray("indptr", n_cells + 1, np.dtype(np.int64), scratch),
        RowsArray("indices", n_entries, cell, scratch),
        RowsArray("data", n_entries, sink.dtype, scratch, cell.itemsize),
        Origin(job.source.origin.path, scratch.folder, is_shared=True),
        job.source.key, "csr", n_cells, n_entries,
    )  # fmt: skip


def rows_job(job: Job, source: Source) -> Job:
    """Return the job that reads such a matrix: it is symmetric, so of two weights either will do.

    It was checked when it was made.
    """
    return replace(
        job, source=source, method="symmetric", rule="max", strict=False, refuse_diagonal=False
    )


def _row_ends(
    sink: RowSink, cell: np.dtype[Any], sizes: Sequence[int], n_cells: int
) -> Iterator[Array]:
    """Yield where each row ends, some at a time; a row may go on in the next piece."""
    row = total = 0  # the first row whose end is not known yet, and the entries so far
    for number, size in enumerate(sizes):
        if not size:
            continue
        with sink.open(number, cell) as piece:
            first, counts = _counts(piece)
        yield from _repeated(total, first - row)
        for a in range(0, counts.size, _SLICE):
            ends = np.cumsum(counts[a : a + _SLICE], dtype=np.int64) + total
            total = int(ends[-1])
            yield ends[:-1] if a + _SLICE >= counts.size else ends
        row = first + counts.size - 1
    yield from _repeated(total, n_cells - row)
    buffers.release()


def _repeated(value: int, n: int) -> Iterator[Array]:
    for a in range(0, n, _SLICE):
        yield np.full(min(_SLICE, n - a), value, np.int64)
