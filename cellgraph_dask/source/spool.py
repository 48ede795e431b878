"""Matrices without row pointers: computed once, into raw CSR files in the scratch folder.

::

    chunks ──► convert ──► part files ──► indptr, table
               one task a part            this process

They are Dask arrays, and dense matrices in stores, which become Dask arrays of pieces of a bounded
size. Chunks of whole rows become parts as they are; where a matrix is cut both ways, the chunks of
a band of rows are put side by side first. Where it is cut by columns only, the parts hold columns,
and the matrix is CSC.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from ..machine.files import write_at
from ..machine.memory import format_bytes
from ..runtime.progress import Progress
from .arrays import EvenIndptr, MemoryArray, SpooledArray, read_file
from .checks import check_shape, check_weights
from .in_memory import Compressed, compress, index_dtype
from .matrix import Origin, Source, digest_of

Compute = Callable[[list[Any], Callable[[Any], None]], list[Any]]

_PIECE_BYTES = 1 << 24  # of a dense matrix on disk, read at once
_MOST_PIECES = 1 << 16  # of it: each is a task
_PART_ROWS = 1 << 15  # small chunks share a file, or there would be a file for each
_SAMPLES = 3


@dataclass(frozen=True, eq=False)
class LazyMatrix:
    """A cell × cell matrix, as a Dask array, whose entries nobody has counted; see `Source`."""

    origin: Origin
    key: str
    array: Any
    notes: tuple[str, ...] = ()
    piece_bytes: int = 0  # of values read at once from what is in a store
    stored: Any = None  # that dense matrix, or whatever has a stamp
    loads: tuple[int, ...] = ()  # of each band of chunks: what it counts for; by default its rows
    is_local: bool = False  # whether no other process can compute it

    @property
    def task_bytes(self) -> int:
        """Upper bound on the memory of reading a piece; 0 if it is a Dask array's own business."""
        return self.piece_bytes and 3 * self.piece_bytes + 2**25

    @property
    def path(self) -> str:
        """What the user called its origin."""
        return self.origin.path

    def fingerprint(self) -> str:
        """Return a digest that changes when the matrix is written again, if it is in a store."""
        told = f"{self.array.shape} {self.array.dtype}"
        return digest_of(self.origin, told, self.stored.stamp() if self.stored is not None else "")

    @property
    def n_cells(self) -> int:
        """Number of rows and of columns."""
        return int(self.array.shape[0])


def of_dask(
    origin: Origin, key: str, array: Any, n_cells: int | None, notes: tuple[str, ...]
) -> LazyMatrix:
    """Return a Dask array as a `LazyMatrix`, if it is a matrix over the cells."""
    if array.ndim != 2:
        raise SourceError(f"{key} is a Dask array of {array.ndim} dimensions; a matrix has two.")
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise SourceError(
            f"{key} is a Dask array whose chunks have unknown sizes. Call its "
            "compute_chunk_sizes() first."
        )
    check_shape(key, array.shape, n_cells)
    if array.dtype is not None and array.dtype.kind != "O":
        check_weights(key, array.dtype)
    return LazyMatrix(origin, key, array, notes)


def of_dense(
    origin: Origin, key: str, dense: Any, n_cells: int | None, notes: tuple[str, ...]
) -> LazyMatrix:
    """Return a dense matrix in a store as a `LazyMatrix`, in pieces of whole chunks.

    It is picklable, and sliced as arrays of numpy are. `n_cells` is that of `obs`, if there is one.
    """
    import dask.array as da

    if len(dense.shape) != 2:
        raise SourceError(f"{key} is a dense array of shape {dense.shape}; a matrix has two.")
    check_shape(key, (int(dense.shape[0]), int(dense.shape[1])), n_cells)
    check_weights(key, dense.dtype)
    n_rows, n_columns = (max(1, int(n)) for n in dense.shape)
    rows, columns = (int(n) for n in dense.chunks or (1, n_columns))
    item = dense.dtype.itemsize
    if min(rows, columns) < 1:
        raise SourceError(f"{key} has chunks of shape {(rows, columns)}; write the matrix again.")
    columns = min(n_columns, columns * max(1, _PIECE_BYTES // (rows * columns * item)))
    rows = min(n_rows, rows * max(1, _PIECE_BYTES // (rows * columns * item)))
    if -(-n_rows // rows) * -(-n_columns // columns) > _MOST_PIECES:
        raise SourceError(
            f"{key} is a dense array of shape {dense.shape}; up to {_MOST_PIECES:,} pieces "
            f"of {format_bytes(_PIECE_BYTES)} are read. Write it as a sparse matrix."
        )
    pieces = (rows, columns)
    array = da.from_array(dense, chunks=pieces, name=False, asarray=False, inline_array=True)
    largest = max(rows * columns, math.prod(int(n) for n in dense.chunks or ()))
    return LazyMatrix(origin, key, array, notes, largest * item, dense)


class Part(NamedTuple):
    """A file of spooled entries: indices, then weights, then the lengths of its rows."""

    path: str
    n_rows: int  # or columns
    n_entries: int
    weight_dtype: str


def spool(matrix: LazyMatrix, folder: Path, compute: Compute, progress: Progress) -> Source:
    """Compute a matrix, each chunk once, into raw CSR files, and return it as their source.

    They go to an empty `folder` that is seen by whatever computes. `compute` computes delayed tasks
    and reports each result as it comes. Raises a SourceError if a chunk is not what the array says.
    """
    n_row_chunks, n_column_chunks = matrix.array.numblocks
    layout = "csc" if n_row_chunks == 1 and n_column_chunks > 1 else "csr"
    tasks = _part_tasks(matrix, layout, folder)
    progress.start("spool", matrix.n_cells, "rows")
    parts = compute(tasks, lambda part: progress.advance(part.n_rows))
    return _finish(matrix, layout, parts, folder)


def _part_tasks(matrix: LazyMatrix, layout: str, folder: Path) -> list[Any]:
    """Return the delayed tasks that write parts: of a band of chunks, or of several small ones."""
    import dask

    to_rows = dask.delayed(convert, pure=False)
    join = dask.delayed(_side_by_side, pure=False)
    write = dask.delayed(_write_part, pure=False)
    along, across = (1, 0) if layout == "csc" else (0, 1)
    grid = matrix.array.to_delayed()
    grid = grid.T if layout == "csc" else grid
    sizes = [[int(size) for size in chunks] for chunks in matrix.array.chunks]
    loads = matrix.loads or sizes[along]
    index = index_dtype(matrix.n_cells)
    tasks: list[Any] = []
    group: list[Any] = []
    n_grouped = 0
    for band, row in enumerate(grid):
        converted = [
            to_rows(block, matrix.key, (sizes[along][band], sizes[across][k]), layout)
            for k, block in enumerate(row)
        ]
        group.append(converted[0] if len(converted) == 1 else join(converted))
        n_grouped += loads[band]
        if n_grouped >= _PART_ROWS or len(converted) > 1 or band == len(grid) - 1:
            tasks.append(write(group, str(folder / f"part-{len(tasks):06d}"), index.str))
            group, n_grouped = [], 0
    return tasks


def spool_memory(source: Source, folder: Path) -> Source:
    """Write a matrix that is in the memory of this process for others to see."""
    path = folder / "part-000000"
    _write_aside(path, _values_of_part(source))
    part = Part(str(path), source.n_cells, source.n_entries, source.data.dtype.str)
    return _finish(source, source.layout, [part], folder)


def _values_of_part(source: Source) -> Iterator[Array]:
    """Yield what a part of the whole matrix holds, piece by piece."""
    for array in (source.indices, source.data):
        for a, b in array.spans(0, source.n_entries):
            values = array.values(a, b)
            is_index = array is source.indices
            yield _as_index(values, index_dtype(source.n_cells)) if is_index else values
    for _, indptr in source.scan_indptr():
        yield np.diff(indptr)


def _as_index(values: Array, dtype: np.dtype[Any]) -> Array:
    """Convert indices without hiding those that do not fit: they stay invalid."""
    if values.dtype == dtype or values.dtype.kind not in "iu":
        return values
    info = np.iinfo(dtype)
    if values.dtype.kind == "u" and values.dtype.itemsize >= dtype.itemsize:
        return np.minimum(values, info.max).astype(dtype)
    return np.clip(values, -1, info.max).astype(dtype)


def estimate(matrix: LazyMatrix, compute: Compute) -> Source:
    """Return a source of the size of a matrix, for plans: from the entries of a few chunks."""
    import dask

    blocks, (n_rows, n_columns) = matrix.array.blocks, matrix.array.numblocks
    n_chunks = n_rows * n_columns
    chosen = sorted({n_chunks * (2 * k + 1) // (2 * _SAMPLES) for k in range(_SAMPLES)})
    count = dask.delayed(_count_entries, pure=False)
    places = [divmod(k, n_columns) for k in chosen if k < n_chunks]
    tasks = [count(blocks[place], matrix.key) for place in places]
    sampled = compute(tasks, lambda _: None)
    cells = sum(size for _, size in sampled)
    per_cell = sum(n for n, _ in sampled) / max(cells, 1)
    note = (
        f"The number of stored entries is an estimate, from {len(sampled)} of the {n_chunks:,} "
        "chunks of the array."
    )
    weights = matrix.array.dtype if matrix.array.dtype.kind in "biuf" else np.dtype(np.float64)
    return _sketch(matrix, int(per_cell * matrix.n_cells**2), weights, (*matrix.notes, note))


def sketch(source: Source) -> Source:
    """Return a source of the size of one in memory, for plans of work on a cluster."""
    return _sketch(source, source.n_entries, source.data.dtype, source.notes)


def _sketch(
    of: LazyMatrix | Source, n_entries: int, weights: np.dtype[Any], notes: tuple[str, ...]
) -> Source:
    index, n_cells = index_dtype(of.n_cells), of.n_cells
    indptr = EvenIndptr(n_cells, n_entries)
    indices = MemoryArray("indices", np.empty(0, index))
    data = MemoryArray("data", np.empty(0, weights))
    n_bytes = n_entries * (index.itemsize + weights.itemsize) + 8 * (n_cells + 1)
    return Source(
        indptr, indices, data, of.origin, of.key, "csr", n_cells, n_entries, notes, n_bytes
    )


def _count_entries(block: Any, name: str) -> tuple[int, int]:
    return int(compress(block, name).data.size), int(block.shape[0]) * int(block.shape[1])


def convert(block: Any, name: str, shape: tuple[int, int], layout: str) -> Compressed:
    """Return a chunk as rows of entries, or for "csc" as columns; `shape` counts these first."""
    expected = shape[::-1] if layout == "csc" else shape
    found = tuple(getattr(block, "shape", None) or np.shape(block))
    if found != expected:
        raise SourceError(
            f"a chunk of {name} has the shape {found}, but the Dask array says {expected}. Let the "
            "function that makes the chunks keep their shape."
        )
    compressed = compress(block, name)
    if compressed.layout != layout:
        compressed = _turned(compressed, layout)
    if compressed.data.dtype.kind not in "biuf" or compressed.data.dtype.itemsize > 8:
        raise SourceError(
            f"a chunk of {name} has dtype {compressed.data.dtype}; weights must be bool, integers, "
            "or floats of up to 64 bits."
        )
    indices = compressed.indices
    if indices.size and not 0 <= indices.min() <= indices.max() < shape[1]:
        raise SourceError(
            f"a chunk of {name} holds the index {indices.max()}, beyond its shape {found}."
        )
    return compressed


def _turned(compressed: Compressed, layout: str) -> Compressed:
    """Return a matrix in the other layout."""
    from scipy import sparse

    kind = sparse.csr_matrix if compressed.layout == "csr" else sparse.csc_matrix
    data = compressed.data
    places = np.arange(data.size)  # of any dtype, and kept apart where entries repeat
    arrays = (places, compressed.indices, compressed.indptr)
    turned = kind(arrays, shape=compressed.shape).asformat(layout)
    return Compressed(layout, turned.indptr, turned.indices, data[turned.data], compressed.shape)


def _side_by_side(pieces: Sequence[Compressed]) -> Compressed:
    """Return the chunks of a band of rows as one, with the columns of the whole matrix."""
    from scipy import sparse

    data = _joined([piece.data for piece in pieces])
    ends = np.cumsum([piece.data.size for piece in pieces])
    places = []
    for piece, end in zip(pieces, ends, strict=True):
        arrays = (np.arange(end - piece.data.size, end), piece.indices, piece.indptr)
        places.append(sparse.csr_matrix(arrays, shape=piece.shape))
    band = sparse.hstack(places, format="csr")
    return Compressed("csr", band.indptr, band.indices, data[band.data], band.shape)


def _joined(data: Sequence[Array]) -> Array:
    """Return weights one after the other, in a dtype that holds them all."""
    dtype = np.result_type(*{values.dtype.newbyteorder("=") for values in data})
    return np.concatenate([values.astype(dtype, copy=False) for values in data])


def _write_part(pieces: Sequence[Compressed], path: str, index: str) -> Part:
    """Write chunks that follow each other as one part, under its name only when it is whole."""
    data = _joined([piece.data for piece in pieces])
    indices = [piece.indices.astype(np.dtype(index), copy=False) for piece in pieces]
    counts = np.concatenate([np.diff(piece.indptr).astype(np.int64) for piece in pieces])
    _write_aside(Path(path), [*indices, data, counts])
    return Part(path, counts.size, data.size, data.dtype.str)


def _write_aside(path: Path, arrays: Iterable[Array]) -> None:
    """Write arrays one after the other; two attempts at one file may run at once."""
    aside = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    fd = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        offset = 0
        for array in arrays:
            offset = write_at(fd, np.ascontiguousarray(array), offset)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _finish(of: LazyMatrix | Source, layout: str, parts: Sequence[Part], folder: Path) -> Source:
    """Write `indptr` and the table, cut the row lengths off, and return what the files hold."""
    index = index_dtype(of.n_cells)
    fd = os.open(folder / "indptr", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    n_bytes = n_entries = 0
    try:
        offset = write_at(fd, np.zeros(1, np.int64), 0)
        for part in parts:
            size = part.n_entries * (index.itemsize + np.dtype(part.weight_dtype).itemsize)
            counts = np.empty(part.n_rows, np.int64)
            read_file(part.path, counts, size)
            offset = write_at(fd, n_entries + np.cumsum(counts), offset)
            n_entries += part.n_entries
            os.truncate(part.path, size)
            n_bytes += size
    finally:
        os.close(fd)
    np.savez(
        folder / "table.npz",
        starts=np.cumsum([0, *(part.n_entries for part in parts)]),
        weights=np.array([part.weight_dtype for part in parts]),
    )
    weights = np.result_type(*{np.dtype(part.weight_dtype) for part in parts})
    path, key, n_cells = folder.absolute(), of.key, of.n_cells
    origin = Origin(of.origin.path, str(path), is_shared=True, known_as=of.origin.name)
    indptr = SpooledArray(f"{key}/indptr", n_cells + 1, np.dtype(np.int64), path)
    indices = SpooledArray(f"{key}/indices", n_entries, index, path)
    data = SpooledArray(f"{key}/data", n_entries, weights, path, after=index.itemsize)
    n_bytes += offset
    return Source(
        indptr, indices, data, origin, key, layout, n_cells, n_entries, of.notes, n_bytes, n_bytes
    )
