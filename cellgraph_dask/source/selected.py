"""The rows and columns of selected cells, as a matrix that is computed once into temporary files.

Nothing is added up: repeats, stored zeros and the diagonal stay for whoever judges them.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from ..machine.buffers import Array
from .blocks import cut_rows
from .in_memory import index_dtype
from .matrix import Block, Source
from .selection import Selection
from .spool import LazyMatrix, convert

_BLOCK_ENTRIES = 1 << 18
_ENTRIES_OF_ROW = 16  # that are about as much work as a row


class _Stamped(NamedTuple):
    """What tells that the matrix is another one: what it is taken from, and the selection."""

    matrix: Source | LazyMatrix
    digest: str

    def stamp(self) -> str:
        return f"{self.matrix.fingerprint()} {self.digest}"


def selected(matrix: Source | LazyMatrix, selection: Selection) -> LazyMatrix:
    """Return the graph of the selected cells, which have the numbers of the selection."""
    stamped = _Stamped(matrix, selection.options["cells"]["sha256"])
    if isinstance(matrix, LazyMatrix):
        array = _of_chunks(matrix, selection)
        return LazyMatrix(
            matrix.origin, matrix.key, array, matrix.notes, matrix.piece_bytes, stamped,
            is_local=matrix.is_local,
        )  # fmt: skip
    blocks = cut_rows(matrix, max(_BLOCK_ENTRIES, matrix.chunk_size))
    sizes = [_count(selection, block.first_row, block.last_row) for block in blocks]
    blocks = [block for block, size in zip(blocks, sizes, strict=True) if size]
    sizes = [size for size in sizes if size]
    entries = [block.stop - block.start for block in blocks]
    loads = [max(n, size // _ENTRIES_OF_ROW) for n, size in zip(sizes, entries, strict=True)]
    n_rows = max(block.last_row - block.first_row for block in blocks)
    most = max(entries)
    piece = matrix.block_bytes(most, n_rows, signed=True)
    piece += most * (matrix.indices.dtype.itemsize + matrix.data.dtype.itemsize)
    return LazyMatrix(
        matrix.origin, matrix.key, _Blocks(matrix, selection, blocks, sizes), matrix.notes,
        piece, stamped, tuple(loads), is_local=not matrix.origin.is_shared,
    )  # fmt: skip


def _count(selection: Selection, start: int, stop: int) -> int:
    return int(selection.count(stop) - selection.count(start))


def _name() -> str:
    return f"selected-{os.urandom(8).hex()}"  # the file may be written again


class _Blocks:
    """Blocks of whole rows, or of whole columns, as tasks: as much as is looked at of a Dask array.

    Those need 150 MB more.
    """

    def __init__(
        self, source: Source, selection: Selection, blocks: list[Block], sizes: list[int]
    ) -> None:
        import dask

        name, by_columns, n_cells = _name(), source.layout == "csc", len(selection)
        held = [
            dask.delayed(value, name=f"{what}-{name}", traverse=False)
            for what, value in (("source", source), ("cells", selection))
        ]
        take = dask.delayed(_take_rows, pure=False)
        self.dtype, self.shape = source.data.dtype, (n_cells, n_cells)
        self.chunks = ((n_cells,), tuple(sizes)) if by_columns else (tuple(sizes), (n_cells,))
        self.numblocks = tuple(map(len, self.chunks))
        self.blocks = np.empty(self.numblocks, object)
        for k, block in enumerate(blocks):
            self.blocks[(0, k) if by_columns else (k, 0)] = take(*held, tuple(block))

    def to_delayed(self) -> Array:
        """Return the tasks."""
        return self.blocks


def _take_rows(source: Source, selection: Selection, block: tuple[int, int, int, int, int]) -> Any:
    """Read whole rows (or columns), and return what is selected of them as a sparse matrix."""
    rows = Block(*block)
    indptr, indices, data = source.read_rows(rows)
    return _restricted(
        source.layout, indptr, indices, data, selection, (rows.first_row, 0), source.n_cells
    )


def _of_chunks(matrix: LazyMatrix, selection: Selection) -> Any:
    """Return a Dask array of what is selected of each chunk of a Dask array."""
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    name, array = _name(), matrix.array
    kept: list[list[tuple[int, int, int, int]]] = []  # number, start, cells, and of these selected
    for sizes in array.chunks:
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        counts = np.diff(selection.count(starts))
        spans = zip(range(len(sizes)), starts.tolist(), sizes, counts.tolist(), strict=False)
        kept.append([(k, start, int(size), count) for k, start, size, count in spans if count])
    graph: dict[Any, Any] = {f"cells-{name}": selection}
    for i, (row_chunk, first_row, n_rows, _) in enumerate(kept[0]):
        for j, (column_chunk, first_column, n_columns, _) in enumerate(kept[1]):
            graph[name, i, j] = (
                _take_chunk, (array.name, row_chunk, column_chunk), f"cells-{name}", matrix.key,
                (first_row, first_column), (n_rows, n_columns),
            )  # fmt: skip
    layered = HighLevelGraph.from_collections(name, graph, dependencies=[array])
    chunks = tuple(tuple(count for *_, count in spans) for spans in kept)
    return da.Array(layered, name, chunks, meta=_meta(array.dtype))


def _take_chunk(
    block: Any, selection: Selection, key: str, corner: tuple[int, int], shape: tuple[int, int]
) -> Any:
    found = convert(block, key, shape, "csr")
    n_columns = shape[1]
    return _restricted("csr", found.indptr, found.indices, found.data, selection, corner, n_columns)


def _meta(dtype: np.dtype[Any]) -> Any:
    from scipy import sparse

    return sparse.csr_matrix((0, 0), dtype=np.float32 if dtype == np.float16 else dtype)


def _restricted(
    layout: str, indptr: Array, indices: Array, data: Array, selection: Selection,
    corner: tuple[int, int], n_across: int,
) -> Any:  # fmt: skip
    """Return the selected rows and columns of a part of a matrix whose corner is at two cells."""
    from scipy import sparse

    first, across = corner
    rows = selection.rank(np.arange(first, first + indptr.size - 1)) >= 0
    counts = np.diff(indptr)
    kept = np.repeat(rows, counts)
    before, index = int(selection.count(across)), index_dtype(len(selection))
    columns = []
    for a in range(0, indices.size, _BLOCK_ENTRIES):  # ranks take several times the indices
        part = slice(a, a + _BLOCK_ENTRIES)
        ranks = selection.rank(indices[part].astype(np.int64, copy=False) + across)
        kept[part] &= ranks >= 0
        columns.append((ranks[kept[part]] - before).astype(index))
    filled = counts > 0
    n_kept = np.zeros(counts.size, np.int64)
    n_kept[filled] = np.add.reduceat(kept, indptr[:-1][filled], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(n_kept[rows])])
    weights = data[kept]
    if weights.dtype == np.float16:  # scipy knows no half precision
        weights = weights.astype(np.float32)
    n_columns = _count(selection, across, across + n_across)
    shape = (int(rows.sum()), n_columns)
    kind = sparse.csc_matrix if layout == "csc" else sparse.csr_matrix
    joined = np.concatenate(columns) if columns else np.empty(0, index)
    return kind((weights, joined, starts), shape=shape[::-1] if layout == "csc" else shape)
