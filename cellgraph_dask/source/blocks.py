"""A neighbor graph as a Dask array of sparse blocks, for work on graphs that do not fit.

Blocks hold about as many entries each, not as many rows: a thousand rows may be a kilobyte or a
gigabyte. They are whole rows of a CSR matrix, and whole columns of a CSC one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import SourceError
from ..machine.buffers import Array
from .matrix import Block, Source
from .opening import open_source
from .spool import LazyMatrix

if TYPE_CHECKING:
    import dask.array

Layout = Literal["gcxs", "csr"]

_BLOCK_ENTRIES = 250_000


def read_connectivities(
    source: Any, *, key: str = "connectivities", neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None, block_entries: int = _BLOCK_ENTRIES,
    layout: Layout = "gcxs",
) -> dask.array.Array:  # fmt: skip
    """Return a neighbor graph as a Dask array of sparse blocks.

    Parameters
    ----------
    source, key, neighbors_key, storage_options
        As for `export_connectivities`; dense matrices and Dask arrays have no blocks of entries.
    block_entries
        Most stored entries in a block; a single row with more is a block of its own. With float32
        weights a block of a million takes 8 MB, three times that while it is read, and PyData needs
        200 MB for a comparison and a product of two.
    layout
        ``"gcxs"`` for blocks of `sparse.GCXS`, ``"csr"`` for those of scipy.

    Returns
    -------
    dask.array.Array
        Square; chunked by rows, or by columns if the matrix is stored as CSC. Repeated entries are
        added together, indices sorted. Weights keep their dtype, and may be NaN.

    Raises
    ------
    SourceError, DamagedGraphError
        If the matrix cannot be read; damage inside its chunks is seen when a block is computed.

    Examples
    --------
    >>> graph = read_connectivities("atlas.zarr")  # doctest: +SKIP
    >>> strong = graph.map_blocks(drop_weak)  # doctest: +SKIP
    >>> export_connectivities(strong, "export")  # doctest: +SKIP
    """
    if layout not in ("gcxs", "csr"):
        raise ValueError(f"layout must be 'gcxs' or 'csr', not {layout!r}")
    if block_entries < 1:
        raise ValueError(f"block_entries must be at least 1, not {block_entries}")
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    if isinstance(opened, LazyMatrix):
        raise SourceError(
            f"{opened.key} is a dense matrix or a Dask array, which has no sparse blocks to read. "
            "Make a Dask array of it with dask.array.from_array, or use the one there is."
        )
    return _in_blocks(opened, block_entries, layout)


def _in_blocks(source: Source, block_entries: int, layout: Layout) -> dask.array.Array:
    import dask.array as da

    blocks = cut_rows(source, block_entries)
    by_columns = source.layout == "csc"
    sizes = tuple(block.last_row - block.first_row for block in blocks)
    name = f"connectivities-{da.core.tokenize(source.path, source.key, block_entries, layout)}"
    name += f"-{np.random.default_rng().integers(2**32):08x}"  # the file may be written again
    graph: dict[Any, Any] = {f"source-{name}": source}
    for k, block in enumerate(blocks):
        at = (name, 0, k) if by_columns else (name, k, 0)
        graph[at] = (read_rows, f"source-{name}", tuple(block), layout)
    chunks = ((source.n_cells,), sizes) if by_columns else (sizes, (source.n_cells,))
    empty = (np.zeros(1, np.int64), np.zeros(0, source.row_dtype), np.zeros(0, source.data.dtype))
    meta = _as_block(*empty, (0, 0), layout, by_columns)
    return da.Array(graph, name, chunks, meta=meta)


def cut_rows(source: Source, block_entries: int) -> list[Block]:
    """Cut all rows into blocks of whole rows with at most so many entries, if a row has no more."""
    blocks: list[Block] = []
    start = first = 0
    for row, indptr in source.scan_indptr():
        last = row + indptr.size - 1
        while int(indptr[-1]) - start > block_entries:
            # The last row that ends within the block, or one row if that is too long already.
            cut = row + int(indptr.searchsorted(start + block_entries, side="right")) - 1
            cut = min(max(cut, first + 1), last)
            stop = int(indptr[cut - row])
            blocks.append(Block(len(blocks), start, stop, first, cut))
            start, first = stop, cut
            if cut == last:
                break
    if first < source.n_cells or not blocks:
        blocks.append(Block(len(blocks), start, source.n_entries, first, source.n_cells))
    return blocks


def read_rows(source: Source, block: tuple[int, int, int, int, int], layout: Layout) -> Any:
    """Read a block of whole rows (or columns) as a sparse matrix."""
    rows = Block(*block)
    indptr, indices, data = source.read_rows(rows)
    shape = (rows.last_row - rows.first_row, source.n_cells)
    return _as_block(indptr, indices, data, shape, layout, source.layout == "csc")


def _as_block(
    indptr: Array, indices: Array, data: Array, shape: tuple[int, int], layout: Layout,
    by_columns: bool,
) -> Any:  # fmt: skip
    from scipy import sparse

    if data.dtype == np.float16:  # scipy knows no half precision
        data = data.astype(np.float32)
    kind = sparse.csc_matrix if by_columns else sparse.csr_matrix
    matrix = kind((data, indices, indptr), shape=shape[::-1] if by_columns else shape)
    if not matrix.has_canonical_format:
        if data.dtype.kind in "iu":  # sums that would overflow
            matrix = matrix.astype(np.int64 if data.dtype.kind == "i" else np.uint64)
        matrix.sum_duplicates()  # sorts, too
    if layout == "csr":
        return matrix
    from sparse import GCXS

    arrays = (matrix.data, matrix.indices, matrix.indptr)
    return GCXS(arrays, shape=matrix.shape, compressed_axes=(1 if by_columns else 0,))


def cut_blocks(source: Source, block_entries: int, block_rows: int) -> list[Block]:
    """Cut the stored entries into blocks, reading `indptr` once in slices.

    Blocks end at multiples of `block_entries`, so on chunk borders where that is a multiple of the
    chunk; and sooner where they would span more than `block_rows` rows.
    """
    blocks: list[Block] = []
    start, first_row = 0, 0

    def add(stop: int, last_row: int) -> None:
        if stop > start:
            blocks.append(Block(len(blocks), start, stop, first_row, last_row))

    for row, indptr in source.scan_indptr():
        last_row = row + indptr.size - 1
        while True:
            next_entry = (start // block_entries + 1) * block_entries
            # The row that the next cut falls into, if it is in this slice.
            entry_row = row + int(indptr.searchsorted(next_entry, side="right")) - 1
            if min(entry_row, last_row) - first_row > block_rows:
                cut_row = first_row + block_rows
                stop = int(indptr[cut_row - row])
                add(stop, cut_row)
                start, first_row = stop, cut_row
            elif next_entry < int(indptr[-1]):
                add(next_entry, entry_row + 1)
                start, first_row = next_entry, entry_row
            else:
                break
    add(source.n_entries, source.n_cells)
    return blocks


_N_PLACES = 3  # where entries are looked at,
_N_PROBES = 3  # … so many of them
_PLACE_ENTRIES = 256  # … among so many, which are of several rows
_MOST_PROBE_BYTES = 240 * 2**20  # what the smallest limit leaves: nothing is planned yet


def looks_symmetric(source: Source) -> bool:
    """Whether a few entries, all over the matrix, have mirror images.

    It only decides which method is tried first, so that directed graphs seldom pay for two passes.
    """
    if source.n_cells > 2**32 or source.n_entries == 0 or source.probe_bytes > _MOST_PROBE_BYTES:
        return False
    for k in range(_N_PLACES):
        start = (2 * k + 1) * source.n_entries // (2 * _N_PLACES)
        rows, columns = source.entries(start, start + _PLACE_ENTRIES)
        step = max(1, -(-rows.size // _N_PROBES))
        probes = zip(rows[::step].tolist(), columns[::step].tolist(), strict=True)
        if not all(source.has_entry(column, row) for row, column in probes):
            return False
    return True
