"""What has no row pointers is computed once, and kept as raw files of CSR in the scratch folder.

::

    chunks ──► convert ──► part files ──► indptr, table
               one task a chunk           this process

Chunks of whole rows become parts as they are. Where a matrix is cut by columns only, the parts hold
columns, and the matrix is CSC. Where it is cut both ways, the chunks of a band of rows are merged
row by row, a few rows at a time, so that memory is bounded by the chunks and not by the band.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from ..machine.files import read_at, write_at
from ..runtime.progress import Progress
from .arrays import EvenIndptr, MemoryArray, StoredArray
from .in_memory import Compressed, compress
from .lazy import LazyMatrix
from .matrix import Source
from .places import MemoryPlace, RawPlace

Compute = Callable[[list[Any], Callable[[Any], None]], list[Any]]

_PART_ROWS = 1 << 15  # small chunks share a file, or there would be a file for each
_MERGED_ENTRIES = 1 << 20  # entries of a band merged in one go
_SAMPLES = 3


class Part(NamedTuple):
    """A file of spooled entries: indices, then weights, then the lengths of its rows.

    Attributes
    ----------
    path : str
        The file.
    n_rows, n_entries : int
        Rows (or columns) and entries in it.
    weight_dtype : str
        Dtype of its weights.
    """

    path: str
    n_rows: int
    n_entries: int
    weight_dtype: str


def spool(matrix: LazyMatrix, folder: Path, compute: Compute, progress: Progress) -> Source:
    """Compute a matrix, each chunk once, and return it as a source of raw files.

    Parameters
    ----------
    matrix
        The matrix.
    folder
        Where the files go; empty, and seen by whatever computes.
    compute
        Computes delayed tasks, and tells of each result as it comes.
    progress
        Told what is done.

    Raises
    ------
    SourceError
        If a chunk is not what the array says.
    """
    array = matrix.array
    by_columns = array.numblocks[0] == 1 and array.numblocks[1] > 1
    along, across = (1, 0) if by_columns else (0, 1)
    index = _index_dtype(matrix.n_cells)
    convert = dask.delayed(_convert, pure=False)
    grid = array.to_delayed()
    if by_columns:
        grid = grid.T
    starts = [np.concatenate(([0], np.cumsum(sizes))) for sizes in array.chunks]
    tasks: list[Any] = []
    group: list[Any] = []
    n_grouped = 0
    for band, row in enumerate(grid):
        n_rows = int(array.chunks[along][band])
        converted = [
            convert(
                block, matrix.key, (n_rows, int(array.chunks[across][k])),
                int(starts[across][k]), by_columns, index.str,
            )
            for k, block in enumerate(row)
        ]  # fmt: skip
        name = str(folder / f"part-{len(tasks):06d}")
        if len(converted) > 1:
            write = dask.delayed(_write_part, pure=False)
            pieces = [write([one], f"{name}-{k:06d}") for k, one in enumerate(converted)]
            tasks.append(dask.delayed(_merge_band, pure=False)(pieces, name, index.str))
            continue
        group += converted
        n_grouped += n_rows
        if n_grouped >= _PART_ROWS or band == len(grid) - 1:
            tasks.append(dask.delayed(_write_part, pure=False)(group, name))
            group, n_grouped = [], 0
    progress.start("spool", matrix.n_cells, "rows")
    parts = compute(tasks, lambda part: progress.advance(part.n_rows))
    n_bytes = _finish(parts, folder, index)
    return Source(
        RawPlace(matrix.path, str(folder)),
        matrix.key,
        "csc" if by_columns else "csr",
        matrix.n_cells,
        sum(part.n_entries for part in parts),
        matrix.notes,
        n_bytes,
    )


def spool_memory(source: Source, folder: Path) -> Source:
    """Write a matrix that is in the memory of this process for others to see."""
    index = _index_dtype(source.n_cells)
    arrays = source.place.arrays(source.key)
    part = Part(
        str(folder / "part-000000"), source.n_cells, source.n_entries, arrays["data"].dtype.str
    )
    counts = np.zeros(source.n_cells, np.int64)
    for row, indptr in source.scan_indptr():
        counts[row : row + indptr.size - 1] = np.diff(indptr)
    fd = os.open(part.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        offset = 0
        for name, dtype in (("indices", index), ("data", arrays["data"].dtype)):
            for a, b in arrays[name].spans(0, source.n_entries):
                values = np.empty(b - a, arrays[name].dtype)
                arrays[name].read(a, b, values)
                offset = write_at(fd, _as_index(values, dtype), offset)
        write_at(fd, counts, offset)
    finally:
        os.close(fd)
    n_bytes = _finish([part], folder, index)
    place = RawPlace(source.path, str(folder))
    return Source(
        place, source.key, source.layout, source.n_cells, source.n_entries, source.notes, n_bytes
    )


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
    n_row_chunks, n_column_chunks = matrix.array.numblocks
    n_chunks = n_row_chunks * n_column_chunks
    chosen = sorted({n_chunks * (2 * k + 1) // (2 * _SAMPLES) for k in range(_SAMPLES)})
    count = dask.delayed(_count_entries, pure=False)
    tasks = [
        count(matrix.array.blocks[k // n_column_chunks, k % n_column_chunks], matrix.key)
        for k in chosen
        if k < n_chunks
    ]
    sampled = compute(tasks, lambda _: None)
    cells = sum(size for _, size in sampled)
    per_cell = sum(n for n, _ in sampled) / max(cells, 1)
    note = (
        f"The number of stored entries is an estimate, from {len(sampled)} of the {n_chunks:,} "
        "chunks of the array."
    )
    weights = matrix.array.dtype if matrix.array.dtype.kind in "biuf" else np.dtype(np.float64)
    source = _sketch(matrix.path, matrix.key, matrix.n_cells, int(per_cell * matrix.n_cells**2),
                     weights, (*matrix.notes, note))  # fmt: skip
    if n_column_chunks > 1 and n_row_chunks > 1:  # a band is there twice while it is merged
        return replace(source, spool_bytes=source.spool_bytes * (n_row_chunks + 1) // n_row_chunks)
    return source


def sketch(source: Source) -> Source:
    """Return a source of the size of one in memory, for plans of work elsewhere."""
    return _sketch(source.path, source.key, source.n_cells, source.n_entries,
                   source.stored_weight_dtype, source.notes)  # fmt: skip


def _sketch(
    path: str, key: str, n_cells: int, n_entries: int, weights: np.dtype[Any],
    notes: tuple[str, ...],
) -> Source:  # fmt: skip
    index = _index_dtype(n_cells)
    content: dict[str, StoredArray] = {
        "indptr": EvenIndptr(n_cells, n_entries),
        "indices": MemoryArray("indices", np.empty(0, index)),
        "data": MemoryArray("data", np.empty(0, weights)),
    }
    n_bytes = n_entries * (index.itemsize + weights.itemsize) + 8 * (n_cells + 1)
    return Source(MemoryPlace(path, content), key, "csr", n_cells, n_entries, notes, n_bytes)


def _index_dtype(n_cells: int) -> np.dtype[Any]:
    return np.dtype(np.int32 if n_cells <= np.iinfo(np.int32).max else np.int64)


def _count_entries(block: Any, name: str) -> tuple[int, int]:
    return int(compress(block, name).data.size), int(block.shape[0]) * int(block.shape[1])


def _convert(
    block: Any, name: str, shape: tuple[int, int], offset: int, by_columns: bool, index: str
) -> Compressed:
    """Return a chunk as rows (or columns) of entries, with indices of the whole matrix."""
    expected = shape[::-1] if by_columns else shape
    found = tuple(getattr(block, "shape", None) or np.shape(block))
    if found != expected:
        raise SourceError(
            f"a chunk of {name} has the shape {found}, but the Dask array says {expected}. Let the "
            "function that makes the chunks keep their shape."
        )
    compressed = compress(block, name)
    layout = "csc" if by_columns else "csr"
    if compressed.layout != layout:
        from scipy import sparse

        kind = sparse.csr_matrix if compressed.layout == "csr" else sparse.csc_matrix
        data = compressed.data
        places = np.arange(data.size)  # of any dtype, and kept apart where entries repeat
        turned = kind((places, compressed.indices, compressed.indptr), shape=found).asformat(layout)
        compressed = Compressed(layout, turned.indptr, turned.indices, data[turned.data], found)
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
    wide = indices.astype(np.dtype(index), copy=offset > 0)
    if offset:
        wide += offset
    return compressed._replace(indices=wide)


def _write_part(pieces: Sequence[Compressed], path: str) -> Part:
    """Write chunks that follow each other as one part, under its name only when it is whole."""
    data = [piece.data for piece in pieces]
    dtype = np.result_type(*{values.dtype.newbyteorder("=") for values in data})
    counts = np.concatenate([np.diff(piece.indptr).astype(np.int64) for piece in pieces])
    columns = [piece.indices for piece in pieces], [v.astype(dtype, copy=False) for v in data]
    _write_aside(Path(path), [*columns[0], *columns[1], counts])
    return Part(path, counts.size, sum(values.size for values in data), dtype.str)


def _write_aside(path: Path, arrays: Sequence[Array]) -> None:
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


def _read(part: Part, what: str, index: np.dtype[Any], start: int, stop: int) -> Array:
    """Return a part's indices, weights, or row lengths, from `start` to `stop`."""
    weight = np.dtype(part.weight_dtype)
    begins = {
        "indices": (0, index),
        "data": (part.n_entries * index.itemsize, weight),
        "counts": (part.n_entries * (index.itemsize + weight.itemsize), np.dtype(np.int64)),
    }
    offset, dtype = begins[what]
    out = np.empty(stop - start, dtype)
    fd = os.open(part.path, os.O_RDONLY)
    try:
        read_at(fd, out, offset + start * dtype.itemsize)
    finally:
        os.close(fd)
    return out


def _merge_band(pieces: Sequence[Part], path: str, index_name: str) -> Part:
    """Merge the parts of a band, each of some columns, to one of whole rows."""
    index = np.dtype(index_name)
    n_rows = pieces[0].n_rows
    n_entries = sum(piece.n_entries for piece in pieces)
    dtype = np.result_type(*{np.dtype(piece.weight_dtype) for piece in pieces})
    total = np.zeros(n_rows, np.int64)
    for piece in pieces:
        total += _read(piece, "counts", index, 0, n_rows)
    ends = np.cumsum(total)
    target = Path(path)
    aside = target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    done = np.zeros(len(pieces), np.int64)  # entries of each piece that have been merged
    fd = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        first = at = 0
        while first < n_rows:
            last = max(first + 1, int(np.searchsorted(ends, at + _MERGED_ENTRIES, side="right")))
            n = int(ends[last - 1]) - at
            indices, data = np.empty(n, index), np.empty(n, dtype)
            begins = np.concatenate(([0], np.cumsum(total[first:last])))[:-1]
            for k, piece in enumerate(pieces):
                counts = _read(piece, "counts", index, first, last)
                length = int(counts.sum())
                # Where each entry goes: its row's next free place.
                shift = begins - (np.cumsum(counts) - counts)
                places = np.arange(length) + np.repeat(shift, counts)
                for what, out in (("indices", indices), ("data", data)):
                    out[places] = _read(piece, what, index, int(done[k]), int(done[k]) + length)
                begins += counts
                done[k] += length
            write_at(fd, indices, at * index.itemsize)
            write_at(fd, data, n_entries * index.itemsize + at * dtype.itemsize)
            first, at = last, at + n
        write_at(fd, total, n_entries * (index.itemsize + dtype.itemsize))
        aside.rename(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    for piece in pieces:
        with suppress(FileNotFoundError):
            Path(piece.path).unlink()
    return Part(path, n_rows, n_entries, dtype.str)


def _finish(parts: Sequence[Part], folder: Path, index: np.dtype[Any]) -> int:
    """Write `indptr` and the table, cut the row lengths off, and return all bytes on disk."""
    fd = os.open(folder / "indptr", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    n_bytes = 0
    try:
        offset = write_at(fd, np.zeros(1, np.int64), 0)
        entries = 0
        for part in parts:
            counts = _read(part, "counts", index, 0, part.n_rows)
            offset = write_at(fd, entries + np.cumsum(counts), offset)
            entries += part.n_entries
            size = part.n_entries * (index.itemsize + np.dtype(part.weight_dtype).itemsize)
            os.truncate(part.path, size)
            n_bytes += size
    finally:
        os.close(fd)
    np.savez(
        folder / "table.npz",
        starts=np.cumsum([0, *(part.n_entries for part in parts)]),
        weights=np.array([part.weight_dtype for part in parts]),
        index=np.array(index.str),
        n_rows=np.array(sum(part.n_rows for part in parts)),
    )
    return n_bytes + offset
