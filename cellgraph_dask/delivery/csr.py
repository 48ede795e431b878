"""Delivery as a sparse matrix across processes: rows become the element of an AnnData.

Every edge comes in both directions, so the pieces in order are the rows of a canonical CSR: columns
strictly rising, no zeros, no repeats, no diagonal. As in `parts`, the pieces lie in the scratch
folder until all are counted; then a stage writes the three zarr arrays, a chunk by one task, as
cellucid 0.9.5 writes them itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..machine.buffers import Array
from ..runtime.stage import ResumableExecutor, Stage
from ..stages.job import Job
from ..stages.runs import Scratch, Written, holds
from .parts import FromPieces, PieceSink, positions_of, read_column
from .zarr_files import (
    CHUNK_VALUES,
    ArrayFiles,
    ZarrFormat,
    chunk_bytes,
    encoding,
    group_documents,
    vector_chunks,
    write_documents,
)

_SLAB = 1 << 16  # edges read at once where rows are counted


class ChunkTask(NamedTuple):
    """A chunk of one of the three arrays."""

    number: int
    array: str
    chunk: int
    n_values: int


@dataclass(frozen=True)
class _Target:
    """What a task must know to write a chunk."""

    scratch: Scratch
    folder: Path
    zarr_format: ZarrFormat
    n_cells: int
    piece_dtypes: tuple[np.dtype[Any], ...]
    dtype: np.dtype[Any]  # of the weights
    positions: tuple[int, ...] = (0,)  # of each piece's first edge, and the end

    @property
    def n_edges(self) -> int:
        """Entries of the matrix."""
        return self.positions[-1]

    def array(self, name: str) -> ArrayFiles:
        """Return one of the three arrays, as it lies in the element's folder."""
        length = self.n_cells + 1 if name == "indptr" else self.n_edges
        dtype = self.dtype if name == "data" else integer_dtype(self._most(name))
        chunks = vector_chunks(length)
        return ArrayFiles(self.folder / name, self.zarr_format, (length,), chunks, dtype)

    def _most(self, name: str) -> int:
        return self.n_edges if name == "indptr" else self.n_cells

    def read(self, column: str, start: int, stop: int) -> Array:
        """Read a column of the edges ``[start, stop)`` from their pieces; see `read_column`."""
        return read_column(self.scratch, self.positions, self.piece_dtypes, column, start, stop)


def write_group(folder: Path, zarr_format: ZarrFormat, n_cells: int) -> None:
    """Write the metadata of an element without those of its arrays."""
    attributes = encoding("csr_matrix", "0.1.0") | {"shape": [n_cells, n_cells]}
    write_documents(folder, group_documents(zarr_format, attributes))


def integer_dtype(most: int) -> np.dtype[Any]:
    """Return int32 if it holds a number, else int64, as cellucid 0.9.5 does."""
    return np.dtype(np.int32 if most <= np.iinfo(np.int32).max else np.int64)


class CsrDelivery(FromPieces):
    """Makes the element of the files of pieces; a `Delivery`.

    Every worker sees `folder`, which becomes the element, and the job's scratch folder. The job has
    a rule, and finds edges in both directions.
    """

    def __init__(
        self, folder: Path, job: Job, executor: ResumableExecutor, *,
        dtype: np.dtype[Any], zarr_format: ZarrFormat,
    ) -> None:  # fmt: skip
        super().__init__(PieceSink(job.scratch), executor)
        n_cells = job.source.n_cells
        dtypes = tuple(job.edge_dtypes)
        self._target = _Target(job.scratch, folder, zarr_format, n_cells, dtypes, dtype)

    def finish(self, counts: Sequence[int]) -> int:
        """Write the element from the pieces; return the bytes of its chunks."""
        target = replace(self._target, positions=positions_of(counts))
        write_group(target.folder, target.zarr_format, target.n_cells)
        for name in ("indptr", "data", "indices"):
            target.array(name).write_metadata()
        tasks = cut_chunks(target)
        stage = Stage(
            "write", partial(write_chunk, target), tasks, [task.n_values for task in tasks],
            "values", Written, partial(chunk_holds, target), f"csr {target.zarr_format}",
        )  # fmt: skip
        written = self._executor.run(stage)
        self.scratch_bytes = target.n_edges * sum(dtype.itemsize for dtype in target.piece_dtypes)
        return sum(chunk.n_bytes for chunk in written)


def csr_bytes(job: Job, dtype: np.dtype[Any], n_pieces: int = 1) -> int:
    """Return the most bytes that a thread needs to write chunks, whichever delivery it is.

    Of those that it shares with others, two of each column are not full; as much take the values
    of one, as they are and converted.
    """
    item = max(8, dtype.itemsize)
    values = CHUNK_VALUES * (8 + item)
    rows = _SLAB * 5 * 8 + CHUNK_VALUES * 2 * 8
    return values + rows + chunk_bytes(item) + 8 * n_pieces


def cut_chunks(target: _Target) -> list[ChunkTask]:
    """Return the chunks of all three arrays; those of weights and columns that lie together."""
    indptr, data = target.array("indptr"), target.array("data")
    tasks = [
        ChunkTask(k, "indptr", k, min(CHUNK_VALUES, target.n_cells + 1 - k * CHUNK_VALUES))
        for k in range(indptr.n_chunks)
    ]
    for chunk in range(data.n_chunks):
        n = min(CHUNK_VALUES, target.n_edges - chunk * CHUNK_VALUES)
        tasks += [ChunkTask(len(tasks) + k, name, chunk, n) for k, name in enumerate(_COLUMN_OF)]
    return tasks


_COLUMN_OF = {"indices": "dst", "data": "weights"}


def write_chunk(target: _Target, task: ChunkTask) -> Written:
    """Write a chunk of one of the arrays. Doing it twice, or twice at once, changes nothing."""
    array = target.array(task.array)
    (place,) = array.corner(task.chunk)
    if task.array == "indptr":
        values = _row_starts(target, place.start, place.stop)
    else:
        values = target.read(_COLUMN_OF[task.array], place.start, place.stop)
    return array.write(task.chunk, values.astype(array.dtype, copy=False))


def chunk_holds(target: _Target, kept: tuple[ChunkTask, Written]) -> bool:
    """Return whether a written chunk is still there."""
    task, written = kept
    return holds(target.array(task.array).path(task.chunk), Written(*written))


def _row_starts(target: _Target, first: int, last: int) -> Array:
    """Return where the rows ``[first, last)`` start, of which the last may be the end; int64."""
    begin, end = _position_of(target, first), _position_of(target, last - 1)
    starts = np.zeros(last - first, np.int64)
    for a in range(begin, end, _SLAB):
        rows = target.read("src", a, min(a + _SLAB, end)).astype(np.int64) - first
        low = int(rows[0])
        counts = np.bincount(rows - low)
        starts[low + 1 : low + 1 + counts.size] += counts
    starts[0] = begin
    return np.cumsum(starts, out=starts)


def _position_of(target: _Target, row: int) -> int:
    """Return the position of the first edge of a row, or of one after it."""

    def source_at(position: int) -> int:
        return int(target.read("src", position, position + 1)[0])

    return bisect_left(range(target.n_edges), row, key=source_at)
