"""The rows of a symmetric graph become a CSR element while the threads of one process find them.

Every edge comes in both directions, so the pieces in order are the rows of a canonical CSR: columns
strictly rising, no zeros, no repeats, no diagonal. Columns and weights go to their chunks at once,
see `places`. Where each row ends is left in a temporary file, of which the row pointers are made
at the end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled
from ..machine.files import named_disk_errors, read_at, write_at
from ..runtime.stage import Journal, ResumableExecutor
from ..stages.job import EdgeSink, Job
from ..stages.runs import Written, holds
from .csr import integer_dtype, write_group
from .places import Filling, Places, cut_at_parts
from .zarr_files import CHUNK_VALUES, ArrayFiles, ZarrFormat, vector_chunks

_SLAB = 1 << 16  # row ends that are written at once
_ENDLESS = 2**62  # values of a column whose length is not known yet


def row_ends_bytes(job: Job) -> int:
    """Return the bytes of the temporary file."""
    return 8 * job.source.n_cells


class CsrFiles(Places):
    """The three arrays of an element while they are written; a `Delivery` and its `EdgeSink`.

    They are written to `folder`, which becomes the element. What an interrupted run has left there
    is resumed: full chunks that the journal tells of. The job has a rule, and finds edges in both
    directions.
    """

    kind = "csr"
    n_checked = 1  # chunks have checksums of their own
    scratch_bytes = 0

    def __init__(
        self, folder: Path, job: Job, executor: ResumableExecutor, *,
        dtype: np.dtype[Any], zarr_format: ZarrFormat,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sink: EdgeSink = self
        self._folder, self._zarr_format, self._job = folder, zarr_format, job
        dtypes = {"indices": integer_dtype(job.source.n_cells), "data": dtype}
        self._columns = [
            _Column(ArrayFiles(folder / name, zarr_format, (_ENDLESS,), (CHUNK_VALUES,), of),
                    executor.journal)
            for name, of in dtypes.items()
        ]  # fmt: skip
        self._rows = _RowEnds(job.scratch.run("row-ends", 0), executor.journal)

    def write(self, position: int, *columns: Array) -> None:
        """Write edges at a position."""
        src, dst, weights = columns
        self._rows.write(position, src)
        with named_disk_errors(self._folder):
            for column, values in zip(self._columns, (dst, weights), strict=True):
                column.write(position, values)

    def read(self, position: int, *columns: Array) -> None:
        """Read back edges that were written at a position; see `EdgeSink`."""
        src, dst, weights = columns
        for column, values in zip(self._columns, (dst, weights), strict=True):
            column.read(position, values)
        self._rows.read(position, src)

    def finish(self, counts: Sequence[int]) -> int:
        """Complete the element, and return the bytes of its chunks."""
        n_cells, n_edges = self._job.source.n_cells, sum(counts)
        self.scratch_bytes = row_ends_bytes(self._job)
        write_group(self._folder, self._zarr_format, n_cells)
        n_bytes = sum(column.finish(n_edges) for column in self._columns)
        array = ArrayFiles(
            self._folder / "indptr", self._zarr_format, (n_cells + 1,), vector_chunks(n_cells + 1),
            integer_dtype(n_edges),
        )  # fmt: skip
        array.write_metadata()
        end = 0
        written: list[Future[Written]] = []
        with ThreadPoolExecutor(1) as pool:  # a chunk is written while the next one is found
            for chunk in range(array.n_chunks):
                (place,) = array.corner(chunk)
                starts = self._rows.starts(place.start, place.stop, end)
                end = int(starts[-1])
                if written:
                    n_bytes += written.pop().result().n_bytes
                written.append(pool.submit(array.write, chunk, starts.astype(array.dtype)))
            return n_bytes + written.pop().result().n_bytes

    def close(self) -> None:
        """Close the file of row ends."""
        self._rows.close()


class _Column:
    """An array of a value for each edge."""

    def __init__(self, array: ArrayFiles, journal: Journal) -> None:
        self._array, self._journal = array, journal
        self._label = f"chunk {array.folder.name}"
        self._filling = Filling(CHUNK_VALUES, array.dtype)
        array.path(0).parent.mkdir(parents=True, exist_ok=True)
        found = journal.found(self._label, Written)
        self._known = {k: chunk for k, chunk in found.items() if holds(array.path(k), chunk)}

    def write(self, position: int, values: Array) -> None:
        values = values.view(self._array.dtype)
        for number, full in self._filling.add(position, values, self._known):
            self._known[number] = self._array.write(number, full)
            self._journal.add(self._label, number, self._known[number])

    def read(self, position: int, out: Array) -> None:
        for number, first, at, n in cut_at_parts(position, out.size, CHUNK_VALUES):
            if number not in self._known:
                raise EOFError(f"chunk {number} is not there")
            out[at : at + n] = self._array.read(number)[first : first + n]

    def finish(self, length: int) -> int:
        array = replace(self._array, shape=(length,), chunks=vector_chunks(length))
        array.write_metadata()
        n_bytes = sum(chunk.n_bytes for chunk in self._known.values())
        last, rest = divmod(length, CHUNK_VALUES)
        if rest:
            n_bytes += array.write(last, self._filling.rest(last, rest)).n_bytes
        return n_bytes


class _RowEnds:
    """Where rows end: an int64 for each, 0 for a row without edges.

    A row may go on in the next piece, so the end of a piece's last row is kept in memory, and in
    the journal: position of the piece, then its first row, its last row, and its end.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self._journal = journal
        self._pieces: dict[int, tuple[int, int, int]] = journal.found("row ends", _three)
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)

    def write(self, position: int, src: Array) -> None:
        if not src.size:
            return
        piece = int(src[0]), int(src[-1]), position + src.size
        end = 0
        for first in range(piece[0], piece[1], _SLAB):  # the last edge of a row stays
            ends = buffers.take("row ends", min(_SLAB, piece[1] - first), np.int64)
            begin, end = end, int(np.searchsorted(src, src.dtype.type(first + ends.size)))
            _find_ends(src[begin:end], first, position + begin, ends)
            write_at(self._fd, ends, 8 * first)
        if position not in self._pieces:
            self._journal.add("row ends", position, piece)
            self._pieces[position] = piece

    def read(self, position: int, src: Array) -> None:
        if not src.size:
            return
        if position not in self._pieces:
            raise EOFError("its rows are not there")
        first, last, end = self._pieces[position]
        ends = np.empty(last - first + 2, np.int64)
        read_at(self._fd, ends[1:-1], 8 * first)
        ends[0], ends[-1] = position, end
        src[:] = np.repeat(np.arange(first, last + 1, dtype=src.dtype), np.diff(ends))

    def starts(self, first: int, last: int, end: int) -> Array:
        """Return where the rows ``[first, last)`` start, given where the one before them does."""
        starts = np.zeros(last - first, np.int64)
        begin = max(first - 1, 0)
        size = os.fstat(self._fd).st_size // 8
        stored = starts[begin - (first - 1) :][: max(size - begin, 0)]
        read_at(self._fd, stored, 8 * begin)
        for _, row, at in self._pieces.values():
            if begin <= row < last - 1:
                starts[row - first + 1] = max(starts[row - first + 1], at)
        starts[0] = max(starts[0], end)
        return np.maximum.accumulate(starts, out=starts)

    def close(self) -> None:
        os.close(self._fd)


def _three(first: int, last: int, end: int) -> tuple[int, int, int]:
    return first, last, end


@compiled()
def _find_ends(src: Array, first: int, position: int, ends: Array) -> None:
    """Write where the rows from `first` on end: the edges of each, `position` being the first's."""
    ends[:] = 0
    for k in range(src.size):
        ends[np.uint64(src[k]) - np.uint64(first)] = position + k + 1
    end = position
    for r in range(ends.size):
        end = max(end, ends[r])
        ends[r] = end
