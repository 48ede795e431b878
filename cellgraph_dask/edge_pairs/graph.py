"""Reading an export back: memory maps, Dask arrays, a scipy matrix, the neighbors of a cell.

Plain files are mapped where they are. Of gzip and Parquet files, and of files in remote storage, a
private copy is made and mapped; it has no name, so the system removes it with the last map of it,
whatever happens to this process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DiskSpaceError, InvalidExportError
from ..machine import html
from ..machine.buffers import Array
from ..machine.files import free_bytes, named_disk_errors
from ..machine.memory import format_bytes
from ..machine.remote import AnyPath, RemotePath, find_path, local_path
from .csr_loops import count_cells, place_values
from .format import Manifest, check_length, named_read_errors, read_manifest
from .parquet import GraphTable, is_parquet, read_graph_table
from .parquet_edges import stream_edges
from .reader import downloaded, first_bad_edge, read_edges

if TYPE_CHECKING:
    import dask.array
    import scipy.sparse


_SCAN_EDGES = 1 << 20  # edges that are looked at in one go: some megabytes
_ATTEMPTS = 3


class ExportedGraph:
    """The edges of an export, opened by `open_export`; read-only, and a context manager.

    Nothing is read before it is used. The edges are not checked; `verify_export` checks them.

    Attributes
    ----------
    name : str
        Path or URL of the export.
    manifest : Manifest or GraphTable
        What the export's manifest says.
    n_cells, n_edges, max_neighbors : int
        Cells, undirected edges, the largest degree.
    src, dst : numpy.memmap
        The edges ``src[k] < dst[k]``, sorted by source and destination.
    weights : numpy.memmap or None
        Their weights, float64; None if the export has none.
    """

    def __init__(self, name: str, manifest: Manifest | GraphTable, columns: list[_Column]) -> None:
        self._name = name
        self._manifest = manifest
        self._columns = columns

    def __repr__(self) -> str:
        return (
            f"ExportedGraph({self._name!r}, n_cells={self.n_cells}, n_edges={self.n_edges}, "
            f"max_neighbors={self.max_neighbors})"
        )

    def _repr_html_(self) -> str:
        """Return the graph for a notebook."""
        sizes = {"cells": self.n_cells, "edges": self.n_edges, "largest degree": self.max_neighbors}
        columns = ", ".join(f"{name} {dtype}" for name, dtype in self._manifest.columns.items())
        facts = [*((name, f"{n:,}") for name, n in sizes.items()), ("columns", columns)]
        return html.block(f"Graph in {self._name}", html.facts(facts))

    def __enter__(self) -> ExportedGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; arrays that were taken from here keep them until they go too."""
        self._columns = []

    @property
    def name(self) -> str:
        """Path or URL of the export."""
        return self._name

    @property
    def manifest(self) -> Manifest | GraphTable:
        """What the export's manifest says."""
        return self._manifest

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._manifest.n_cells

    @property
    def n_edges(self) -> int:
        """Number of undirected edges."""
        return self._manifest.n_edges

    @property
    def max_neighbors(self) -> int:
        """The largest degree."""
        return self._manifest.max_neighbors

    @property
    def src(self) -> Array:
        """Sources of the edges, rising; a memory map."""
        return self._column(0).values

    @property
    def dst(self) -> Array:
        """Destinations of the edges; a memory map."""
        return self._column(1).values

    @property
    def weights(self) -> Array | None:
        """Weights of the edges (float64), if the export has some; a memory map."""
        return self._column(2).values if self._manifest.weighted else None

    def _column(self, side: int) -> _Column:
        if not self._columns:
            raise ValueError(f"{self!r} is closed; open it again with open_export.")
        return self._columns[side]

    def neighbors(self, cell: int) -> NDArray[np.int64]:
        """Return the neighbors of a cell, rising.

        Those above it are consecutive and found by bisection. For those below it the destinations
        of all edges with a smaller source are scanned, some megabytes at a time: two thirds of one
        edge file on average. For many cells `to_scipy` is faster.

        Parameters
        ----------
        cell
            Its number, from 0.

        Raises
        ------
        IndexError
            If there is no such cell.
        """
        src, dst = self.src, self.dst
        if not 0 <= cell < self.n_cells:
            raise IndexError(f"there is no cell {cell}; cells are 0 to {self.n_cells - 1}.")
        wanted = src.dtype.type(cell)  # of another type, numpy would convert the whole array
        first, last = (int(src.searchsorted(wanted, side)) for side in ("left", "right"))
        found = []
        for start in range(0, first, _SCAN_EDGES):
            hits = np.flatnonzero(dst[start : min(start + _SCAN_EDGES, first)] == wanted)
            found.append(src[start + hits])
        return np.concatenate([*found, dst[first:last]]).astype(np.int64)

    def to_dask(self, chunk_edges: int = 1 << 22) -> tuple[dask.array.Array, ...]:
        """Return sources, destinations and weights, if any, as Dask arrays with the same chunks.

        Tasks read their part of a plain export from its files, so they may run on the workers of a
        cluster that see them. The private copy of another export is of this process: compute such
        arrays on its threads.

        Parameters
        ----------
        chunk_edges
            Edges in a chunk.
        """
        import dask.array as da

        return tuple(
            da.from_array(
                self._column(side),
                chunks=(chunk_edges,),
                meta=np.empty(0, dtype),
                asarray=False,
            )
            for side, dtype in enumerate(self._manifest.columns.values())
        )

    def to_scipy(self, dtype: Any = None) -> scipy.sparse.csr_matrix:
        """Return the symmetric matrix of the graph: weights, or ones, in both directions.

        It takes 8 bytes a cell, and for each edge twice the bytes of an index (4; 8 above 2³¹
        entries or cells) and of `dtype`; a tenth of a gigabyte for 5 million edges. Making
        it takes another 8 bytes a cell.

        Parameters
        ----------
        dtype
            Of the values; by default float32 for ones, float64 for weights.

        Raises
        ------
        InvalidExportError
            If the edges are not sorted, or name cells that do not exist.
        """
        from scipy.sparse import csr_matrix

        n_entries = 2 * self.n_edges
        indptr = np.zeros(self.n_cells + 1, np.int64)
        self._count_degrees(indptr[1:])
        np.cumsum(indptr, out=indptr)
        narrow = max(n_entries, self.n_cells) < 2**31
        indices = np.empty(n_entries, np.int32 if narrow else np.int64)
        self._place(self.src, self.dst, indptr, indices)
        weights = self.weights
        if weights is None:
            values = np.ones(n_entries, np.float32 if dtype is None else dtype)
        else:
            values = np.empty(n_entries, np.float64 if dtype is None else dtype)
            self._place(weights, weights, indptr, values)
        matrix = csr_matrix((self.n_cells, self.n_cells), dtype=values.dtype)
        matrix.data = values
        matrix.indices = indices
        matrix.indptr = indptr.astype(indices.dtype)
        matrix.has_canonical_format = True
        return matrix

    def _place(self, of_destinations: Array, of_sources: Array, indptr: Array, out: Array) -> None:
        """Write what each edge brings the row of its destination, and that of its source."""
        next_slot = indptr[:-1].copy()
        # A row's smaller neighbors come, rising, before its larger ones.
        for rows, values in ((self.dst, of_destinations), (self.src, of_sources)):
            for start in range(0, self.n_edges, _SCAN_EDGES):
                part = slice(start, start + _SCAN_EDGES)
                place_values(np.asarray(rows[part]), np.asarray(values[part]), next_slot, out)

    def _count_degrees(self, degrees: Array) -> None:
        """Count the degree of each cell, and see that the edges are sorted and in range."""
        last = (-1, -1)
        for start in range(0, self.n_edges, _SCAN_EDGES):
            src, dst = (
                np.asarray(side[start : start + _SCAN_EDGES]) for side in (self.src, self.dst)
            )
            bad = first_bad_edge(src, dst, *last, self.n_cells)
            if bad >= 0:
                raise InvalidExportError(
                    f"{self._name}: edge {start + bad} is out of order or of no cell; "
                    "verify_export says more."
                )
            count_cells(src, degrees)
            count_cells(dst, degrees)
            last = (int(src[-1]), int(dst[-1]))


def open_export(
    out_dir: str | Path,
    *,
    scratch_dir: str | Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ExportedGraph:
    """Open the edges of an export for reading, whichever format it has.

    Of Parquet files with both directions, each edge is taken once, as in the other formats.

    Parameters
    ----------
    out_dir
        Folder of the export, or its URL.
    scratch_dir
        Where the copy of a gzip, Parquet or remote export goes; by default the system's folder for
        temporary files. It has no name there, and needs the bytes of the plain edge files. Plain
        exports on disk are not copied.
    storage_options
        For fsspec, if `out_dir` is a URL: endpoint, credentials and the like.

    Returns
    -------
    ExportedGraph

    Raises
    ------
    InvalidExportError
        If there is no export, its manifest is not sound, or the files are not as long as it says.
    DiskSpaceError, OutputError
        If the copy cannot be made.

    Examples
    --------
    >>> with open_export("export") as graph:  # doctest: +SKIP
    ...     print(graph.n_edges, graph.neighbors(0))
    """
    return open_as(ExportedGraph, out_dir, scratch_dir, storage_options)


_Graph = TypeVar("_Graph", bound=ExportedGraph)


def open_as(
    kind: type[_Graph], out_dir: str | Path, scratch_dir: str | Path | None, storage_options:
    Mapping[str, Any] | None,
) -> _Graph:  # fmt: skip
    """Open an export as `open_export` does, as a graph of a class that can do more."""
    origin = find_path(out_dir, storage_options)
    folder = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    for _ in range(_ATTEMPTS):
        manifest = _read_any(origin)
        try:
            if isinstance(manifest, GraphTable):
                columns = _copy_table(origin, manifest, folder)
            else:
                columns = _open_columns(origin, manifest, folder)
        except InvalidExportError:
            if _read_any(origin) == manifest:
                raise
            continue
        # A manifest that still names these files has named them all the time.
        if _read_any(origin) == manifest:
            return kind(str(origin), manifest, columns)
    raise InvalidExportError(
        f"{origin} is being replaced again and again; open it when the exports into it are done."
    )


def _read_any(origin: AnyPath) -> Manifest | GraphTable:
    """Return the manifest of an export, whichever format it has."""
    try:
        return read_manifest(origin)
    except InvalidExportError:
        if not is_parquet(origin):
            raise
        return read_graph_table(origin)


def _open_columns(origin: AnyPath, manifest: Manifest, folder: Path) -> list[_Column]:
    """Map the edge files, or copies of them."""
    columns, n_edges = manifest.columns, manifest.n_edges
    if isinstance(origin, Path) and manifest.compression is None:
        return [_open_file(origin / manifest.path(s), d, n_edges) for s, d in columns.items()]

    def copy(side: str) -> _Column:
        dtype = columns[side]
        path, n_bytes = origin / manifest.path(side), n_edges * dtype.itemsize
        with tempfile.TemporaryFile(prefix="cellgraph-dask-", dir=folder) as file:
            for part in read_edges(path, manifest.compression, n_bytes):
                file.write(part)
            file.flush()
            return _Column(_map(file, dtype, n_edges), os.urandom(16).hex())

    with named_disk_errors(folder):
        _check_room(origin, manifest, folder)
        with ThreadPoolExecutor(len(columns)) as pool:
            return list(pool.map(copy, columns))


def _copy_table(origin: AnyPath, table: GraphTable, folder: Path) -> list[_Column]:
    """Map copies of the columns of Parquet files, each edge once."""
    with named_disk_errors(folder), ExitStack() as stack:
        _check_room(origin, table, folder)
        files = [
            stack.enter_context(tempfile.TemporaryFile(prefix="cellgraph-dask-", dir=folder))
            for _ in table.columns
        ]
        local = (
            origin if isinstance(origin, Path) else stack.enter_context(_fetched(origin, folder))
        )
        n = 0
        for edges in stream_edges(local, table):
            n += edges.src.size
            for file, column in zip(files, edges[1:], strict=False):
                file.write(np.ascontiguousarray(column).data)
        if n != table.n_edges:
            raise InvalidExportError(f"{origin} holds {n} edges instead of {table.n_edges}.")
        for file in files:
            file.flush()
        return [
            _Column(_map(file, dtype, n), os.urandom(16).hex())
            for file, dtype in zip(files, table.columns.values(), strict=True)
        ]


@contextmanager
def _fetched(origin: RemotePath, folder: Path) -> Iterator[Path]:
    """Yield a folder with the files of a remote export; errors name them by their URLs."""
    with downloaded(origin, folder) as local:
        try:
            yield local
        except InvalidExportError as error:
            raise InvalidExportError(str(error).replace(str(local), str(origin))) from error


def _check_room(origin: AnyPath, manifest: Manifest | GraphTable, folder: Path) -> None:
    """Refuse to copy edges for which there is no room."""
    per_edge = sum(dtype.itemsize for dtype in manifest.columns.values())
    free, needed = free_bytes(folder), manifest.n_edges * per_edge
    if free < needed:
        raise DiskSpaceError(
            f"the copy of {origin} takes {format_bytes(needed)}, but {format_bytes(free)} are "
            f"free in {folder}. Name another folder with `scratch_dir`."
        )


class _Column:
    """Sources, destinations or weights, as an array that Dask takes parts of.

    A plain file travels as its path, and is opened where it arrives; a private copy cannot travel.
    The stamp tells whether two columns are the same.
    """

    ndim = 1

    def __init__(self, values: Array, stamp: Any, path: Path | None = None) -> None:
        self.values, self.dtype, self.shape = values, values.dtype, values.shape
        self.stamp, self._path = stamp, path

    def __getitem__(self, key: Any) -> Array:
        """Return a part, read."""
        return np.array(self.values[key])

    def __reduce__(self) -> Any:
        if self._path is None:
            raise TypeError(
                "the edges of a gzip, Parquet or remote export are in a temporary file of this "
                "process: compute them on its threads, or make a plain export on storage that the "
                "workers see."
            )
        return _open_again, (self._path, self.dtype, self.values.size, self.stamp)

    def __dask_tokenize__(self) -> Any:
        return str(self._path), self.stamp, self.dtype.str


def _map(file: Any, dtype: np.dtype[Any], n: int) -> Array:
    """Map a file of `n` values; an empty one cannot be."""
    return np.memmap(file, dtype, "r", shape=(n,)) if n else np.empty(0, dtype)


def _open_file(path: Path, dtype: np.dtype[Any], n: int) -> _Column:
    """Map a plain file of `n` edges."""
    with named_read_errors(path), path.open("rb") as file:
        status = os.fstat(file.fileno())
        check_length(path, status.st_size, n * dtype.itemsize)
        stamp = status.st_mtime_ns, status.st_size
        return _Column(_map(file, dtype, n), stamp, path.absolute())


def _open_again(path: Path, dtype: np.dtype[Any], n: int, stamp: tuple[int, int]) -> _Column:
    """Map an edge file in another process, if it is still the same."""
    column = _open_file(path, dtype, n)
    if column.stamp != stamp:
        raise InvalidExportError(f"{path} has been replaced since it was opened.")
    return column
