"""The edges to be drawn, in parts that any thread reads: of an export, or as a matrix has them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs.format import MANIFEST, read_manifest
from ..edge_pairs.graph import ExportedGraph
from ..edge_pairs.parquet import GRAPH, GraphTable, is_parquet, read_graph_table
from ..edge_pairs.parquet_edges import edges_bytes, stream_edges
from ..edge_pairs.provenance import Provenance, read_provenance
from ..edge_pairs.reader import Slab, downloaded, open_plain, slabs_bytes, stream_slabs
from ..errors import CellgraphError, InvalidExportError, SourceError
from ..machine.buffers import Array
from ..machine.remote import AnyPath, find_path, is_url, plain_name
from ..source.blocks import cut_blocks
from ..source.matrix import Block, Source
from ..source.opening import key_in, open_source
from ..source.stamps import Watch

STRETCH_EDGES = 1 << 20  # of plain files, in a part
_BLOCK_ENTRIES = 1 << 18
_BLOCK_ROWS = 1 << 20
Part = Callable[[], tuple[Array, Array]]  # gives sources and destinations, this thread's


@dataclass(frozen=True)
class Edges:
    """What is drawn, and where it comes from."""

    name: str  # the path, as the user has it
    is_export: bool  # or else the stored entries of a matrix
    n_cells: int
    n_edges: int  # or stored entries
    parts: Callable[[], Iterable[Part]]
    dtype: np.dtype[Any]  # of cells
    part_bytes: int = 0  # of each thread
    stream_bytes: int = 0  # of all together
    folder: Path | None = None  # of an export
    table: GraphTable | None = None  # of an export in Parquet files
    source: Any = None  # the store that it was made from
    key: str = ""  # the matrix in there
    told: Provenance | None = None  # what an export says of it


@contextmanager
def open_edges(
    path: Any, key: str, neighbors_key: str | None, storage_options: Mapping[str, Any] | None
) -> Iterator[Edges]:
    """Open an export, a source, or an export that `open_export` has opened."""
    if isinstance(path, ExportedGraph):
        yield _of_graph(path)
        return
    origin = _export_at(path, storage_options)
    if origin is None:
        with _of_source(path, key, neighbors_key, storage_options) as edges:
            yield edges
    elif isinstance(origin, Path):
        with _of_export(origin) as edges:
            yield replace(edges, name=str(path))
    else:
        with downloaded(origin) as folder, _of_export(folder) as edges:
            yield replace(edges, name=str(origin))


def _export_at(path: Any, storage_options: Mapping[str, Any] | None) -> AnyPath | None:
    """Return the folder of an export; None if there is none."""
    if not isinstance(plain_name(path), str):
        return None
    origin = find_path(path, storage_options)
    try:
        found = (origin / MANIFEST).exists() or (origin / GRAPH).exists()
    except OSError:  # whoever opens it as a store says why
        return None
    return origin if found else None


def _of_graph(graph: ExportedGraph) -> Edges:
    """Return the edges of an opened export; pages that were read are let go again."""
    table = graph.manifest if isinstance(graph.manifest, GraphTable) else None

    def part(start: int) -> tuple[Array, Array]:
        columns = []
        for mapped in (graph.src, graph.dst):
            columns.append(np.array(mapped[start : start + STRETCH_EDGES]))
            if isinstance(mapped, np.memmap):
                pages: Any = getattr(mapped, "_mmap")  # noqa: B009 (numpy has no other name)
                pages.madvise(mmap.MADV_DONTNEED)
        return columns[0], columns[1]

    edges = Edges(
        graph.name, True, graph.n_cells, graph.n_edges,
        lambda: [partial(part, at) for at in range(0, graph.n_edges, STRETCH_EDGES)],
        graph.src.dtype,
        part_bytes=4 * STRETCH_EDGES * graph.src.dtype.itemsize,
        folder=Path(graph.name) if Path(graph.name).is_dir() else None,
    )  # fmt: skip
    if table is not None:
        return _made_from(replace(edges, table=table), table.made_from)
    return _with_provenance(edges)


def _with_provenance(edges: Edges) -> Edges:
    """Add what an export says that it was made from, if it says so."""
    if edges.folder is None:
        return edges
    try:
        told = read_provenance(edges.folder, read_manifest(edges.folder))
    except InvalidExportError:  # `verify` tells of it
        return edges
    return edges if told is None else _made_from(edges, told)


def _made_from(edges: Edges, told: Provenance) -> Edges:
    """Add the store that an export was made from; there is none of a matrix in memory."""
    lasting = told.fingerprint is not None
    return replace(edges, source=told.source, key=told.key, told=told) if lasting else edges


def changed(edges: Edges, storage_options: Mapping[str, Any] | None) -> str | None:
    """Say whether the store that an export was made from has been written again since."""
    if edges.told is None:
        return None
    with suppress(CellgraphError):  # whoever reads its cells tells what is wrong with it
        options = storage_options if is_url(edges.source) else None
        matrix = open_source(edges.source, edges.told.key, storage_options=options)
        return edges.told.differs(edges.source, edges.told.key, matrix.fingerprint())
    return None


@contextmanager
def _of_export(folder: Path) -> Iterator[Edges]:
    if is_parquet(folder):
        table = read_graph_table(folder)
        row = sum(dtype.itemsize for dtype in table.columns.values())
        edges = Edges(
            str(folder), True, table.n_cells, table.n_edges,
            lambda: _given(stream_edges(folder, table)), table.columns["src"],
            part_bytes=table.row_group * row, stream_bytes=edges_bytes(table), folder=folder,
            table=table,
        )  # fmt: skip
        yield _made_from(edges, table.made_from)
        return
    manifest = read_manifest(folder)
    edges = Edges(
        str(folder), True, manifest.n_cells, manifest.n_edges, list, manifest.dtype, folder=folder
    )
    edges = _with_provenance(edges)
    if manifest.compression is not None:
        yield replace(
            edges,
            parts=lambda: _given(stream_slabs(folder, manifest, ahead=True)),
            stream_bytes=slabs_bytes(),
        )
        return
    with closing(open_plain(folder, manifest)) as plain:

        def part(start: int) -> tuple[Array, Array]:
            stop = min(start + STRETCH_EDGES, manifest.n_edges)
            return plain.read(0, start, stop, "src"), plain.read(1, start, stop, "dst")

        yield replace(
            edges,
            parts=lambda: [
                partial(part, at) for at in range(0, manifest.n_edges, STRETCH_EDGES)
            ],
            part_bytes=2 * STRETCH_EDGES * manifest.dtype.itemsize,
        )  # fmt: skip


def _given(slabs: Iterable[Slab]) -> Iterator[Part]:
    """Yield parts that are there already."""
    for slab in slabs:
        yield partial(_ends, slab)


def _ends(slab: Slab) -> tuple[Array, Array]:
    return slab.src, slab.dst


def _is_folder(source: Any) -> bool:
    """Whether a source is a folder that is not even the beginning of a store."""
    name = plain_name(source)
    if not isinstance(name, str) or is_url(name) or not os.path.isdir(name):  # noqa: PTH112
        return False
    return not {"zarr.json", ".zgroup", ".zarray"} & set(os.listdir(name))  # noqa: PTH208


@contextmanager
def _of_source(
    source: Any, key: str, neighbors_key: str | None, storage_options: Mapping[str, Any] | None
) -> Iterator[Edges]:
    """Give the stored entries of a matrix off its diagonal, but for zeros."""
    try:
        opened = open_source(
            source, key, neighbors_key=neighbors_key, storage_options=storage_options
        )
    except SourceError as error:
        if not _is_folder(source):
            raise
        raise SourceError(f"{source} is neither an export nor a store: {error}") from error
    if not isinstance(opened, Source):
        raise SourceError(
            f"{opened.key} is a dense matrix or a Dask array; the entries of sparse matrices in "
            "stores or in memory are drawn. Export the graph, and draw the export."
        )
    matrix = opened
    matrix.warm_up()
    blocks = cut_blocks(matrix, max(_BLOCK_ENTRIES, min(matrix.chunk_size, 1 << 21)), _BLOCK_ROWS)

    def part(block: Block) -> tuple[Array, Array]:
        columns, indptr, weights = matrix.read_stored(block)
        rows = np.repeat(
            np.arange(block.first_row, block.last_row, dtype=columns.dtype), np.diff(indptr)
        )
        assert weights is not None
        kept = (rows != columns) & (weights != 0)
        return rows[kept], columns[kept]

    n = max((block.stop - block.start for block in blocks), default=0)
    n_rows = max((block.last_row - block.first_row for block in blocks), default=0)
    with Watch(matrix) as watch:
        yield Edges(
            matrix.path, False, matrix.n_cells, matrix.n_entries,
            lambda: [partial(part, block) for block in blocks], matrix.row_dtype,
            part_bytes=matrix.block_bytes(n, n_rows, signed=True) + 32 * n + 16 * n_rows,
            source=source, key=key_in(source, matrix),
        )  # fmt: skip
        watch.check()
