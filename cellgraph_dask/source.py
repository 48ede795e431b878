"""Where a matrix comes from: a sparse `obsp` entry of a zarr-backed AnnData.

The one module that knows zarr's and anndata's layout. It opens a store, checks what metadata can
tell, and reads *blocks*: runs of stored entries, cut without regard to rows, so that a row of any
length is nothing special. Every value that leaves it has been checked; the compiled loops rely on
that.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from . import kernels, workspace
from .chunks import ChunkedArray
from .errors import CellgraphError, DamagedGraphError, SourceError

Array = NDArray[Any]

_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc"}
_INDPTR_SLICE = 1 << 20  # values of indptr that are looked at in one go: 8 MB
# zarr leaves chunks unwritten that hold nothing but zeros, so a chunk may rightly be absent. In
# arrays chunked this finely it is taken at its word; in others it must be believable.
_TINY_CHUNK = 4
# No graph has more cells without neighbours before its first one: it is indptr that was lost.
_MOST_ABSENT_ROWS = 2**28
_MOST_VALUES = 2**48  # in an array or a chunk; beyond it is nonsense, and soon beyond int64
# Metadata are read whole, and take ten times their size as Python's objects.
_MOST_METADATA_BYTES = 2**24
_METADATA_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")


class Block(NamedTuple):
    """A run of stored entries and the rows they are in.

    Attributes
    ----------
    number : int
        Number of the block.
    start, stop : int
        Its entries, ``[start, stop)`` of `indices` and `data`.
    first_row, last_row : int
        Its rows, ``[first_row, last_row)``; the first and the last may be there in part.
    """

    number: int
    start: int
    stop: int
    first_row: int
    last_row: int


class BlockEntries(NamedTuple):
    """What a block holds, checked.

    Attributes
    ----------
    indices : ndarray
        Columns; int32, or int64 from 2³¹ cells on. Stored zeros have their own row as column.
    indptr : ndarray
        Where each row starts in `indices`; int64.
    weights : ndarray or None
        float64, or int64 for integer weights, if they were asked for.
    has_negative : bool
        Whether a weight is below zero.
    """

    indices: Array
    indptr: Array
    weights: Array | None
    has_negative: bool


@dataclass(frozen=True)
class Source:
    """A sparse cell × cell matrix in a zarr store; small, and picklable.

    Attributes
    ----------
    path : str
        The store.
    key : str
        Where the matrix is inside it.
    layout : {"csr", "csc"}
        How it is stored. The edges are the same for both.
    n_cells : int
        Number of rows and of columns.
    n_entries : int
        Number of stored entries.
    """

    path: str
    key: str
    layout: str
    n_cells: int
    n_entries: int

    @cached_property
    def _arrays(self) -> dict[str, ChunkedArray]:
        with _metadata_of(self.key):
            group = zarr.open_group(self.path, mode="r")
            return {
                name: ChunkedArray(group[f"{self.key}/{name}"])
                for name in ("indptr", "indices", "data")
            }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open arrays behind."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def fingerprint(self) -> str:
        """Return a digest that changes when the matrix is written again: of names, sizes, times."""
        digest = hashlib.sha256(f"{self.layout} {self.n_cells} {self.n_entries}".encode())
        for folder, folders, names in os.walk(Path(self.path, self.key)):
            folders.sort()
            for name in sorted(names):
                try:
                    status = Path(folder, name).stat()
                except OSError:  # whoever reads it will say so
                    status = Path(folder, name).lstat()
                digest.update(f"{folder} {name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    @property
    def chunk_size(self) -> int:
        """Entries in a chunk; of `indices` or `data`, the larger."""
        return max(self._arrays["indices"].chunk_size, self._arrays["data"].chunk_size)

    @property
    def stored_index_dtype(self) -> np.dtype[Any]:
        """Dtype of `indices` in the store."""
        dtype: np.dtype[Any] = self._arrays["indices"].dtype
        return dtype

    @property
    def stored_weight_dtype(self) -> np.dtype[Any]:
        """Dtype of `data` in the store."""
        dtype: np.dtype[Any] = self._arrays["data"].dtype
        return dtype

    @property
    def scanned_weight_dtype(self) -> np.dtype[Any]:
        """Dtype in which the compiled loops see the weights."""
        return _comparable(np.empty(0, self.stored_weight_dtype)).dtype

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Dtype of a block's indices."""
        return np.dtype(np.int32 if self.n_cells <= np.iinfo(np.int32).max else np.int64)

    @property
    def weights_may_be_negative(self) -> bool:
        """Whether the dtype of the weights has negative values at all."""
        return self.stored_weight_dtype.kind in "if"

    @property
    def probe_bytes(self) -> int:
        """Most bytes that `entry` and `has_entry` need."""
        work = max(array.work_bytes for array in self._arrays.values())
        rows = min(self._arrays["indptr"].chunk_size, self.n_cells) + 1
        return int(work + 16 * rows + 8 * _INDPTR_SLICE)

    def warm_up(self, way: str) -> None:
        """Load the compiled loops for this matrix; see `kernels.warm_up`."""
        kernels.warm_up(
            self.stored_index_dtype,
            self.scanned_weight_dtype,
            way,
            wide=self.n_cells > np.iinfo(np.int32).max,
        )

    def block_bytes(self, n_entries: int, n_rows: int, *, signed: bool) -> int:
        """Return the most bytes `read_block` needs for a block of that size on one thread."""
        indices, data = self._arrays["indices"], self._arrays["data"]
        total = n_entries * self.row_dtype.itemsize + (n_rows + 2) * 16
        if indices.dtype != self.row_dtype:
            total += min(indices.chunk_size, n_entries) * indices.dtype.itemsize
        if signed:
            total += n_entries * 8
        total += min(data.chunk_size, n_entries) * (data.dtype.itemsize + 4)
        return int(total + max(array.work_bytes for array in self._arrays.values()))

    def scan_indptr(self) -> Iterator[tuple[int, Array]]:
        """Read `indptr` from end to end in overlapping slices, checking it on the way.

        Yields
        ------
        first_row : int
            The row that the slice starts with.
        slice : ndarray
            ``indptr[first_row : first_row + k + 1]``; int64. The next slice starts with its last
            value.

        Raises
        ------
        DamagedGraphError
            If it does not start at 0, decreases, does not end at the number of entries, or lacks a
            chunk that was not all zeros.
        """
        indptr = self._arrays["indptr"]
        absent_until = 0
        for first in range(0, max(self.n_cells, 1), _INDPTR_SLICE):
            values, absent = self._read_indptr(first, min(first + _INDPTR_SLICE, self.n_cells))
            if first == 0 and values[0] != 0:
                raise DamagedGraphError(
                    f"{indptr.name} starts at {values[0]}, not at 0. The matrix is damaged; "
                    "write it again."
                )
            for a, b in absent:
                if a > absent_until:
                    raise DamagedGraphError(self._missing(indptr, a, "rows would lose entries"))
                absent_until = b
            if absent_until > _MOST_ABSENT_ROWS:
                raise DamagedGraphError(self._missing(indptr, 0, "entries lose their rows"))
            if absent_until and absent_until - first < values.size:
                self._check_absent_rows(first, values, absent_until)
                absent_until = 0
            row = kernels.first_decrease(values)
            if row >= 0:
                raise DamagedGraphError(
                    f"{indptr.name} decreases at row {first + row}: from {values[row]} to "
                    f"{values[row + 1]}. The matrix is damaged; write it again."
                )
            yield first, values
        if values[-1] != self.n_entries:
            raise DamagedGraphError(
                f"{indptr.name} ends at {values[-1]}, but {self.n_entries} entries are stored. The "
                "matrix is damaged; write it again."
            )

    def _check_absent_rows(self, first: int, values: Array, absent_until: int) -> None:
        """Judge absent chunks at the head of `indptr`: those rows had better be empty.

        As zeros they leave everything before the next chunk to one row. That is believed if the
        row is no longer than the longest after it.
        """
        indptr = self._arrays["indptr"]
        at = absent_until - first
        if indptr.chunk_size <= _TINY_CHUNK:
            return
        lengths = np.diff(values[max(at, 0) :])
        if values[at] > (lengths.max() if lengths.size else 0):
            raise DamagedGraphError(
                self._missing(indptr, 0, f"{values[at]} entries lose their rows")
            )

    def _read_indptr(self, first: int, last: int) -> tuple[Array, list[tuple[int, int]]]:
        """Return ``indptr[first : last + 1]`` as int64, and the absent spans in it."""
        indptr = self._arrays["indptr"]
        stored = workspace.take("stored indptr", last - first + 1, indptr.dtype)
        absent = indptr.read(first, last + 1, stored)
        if indptr.dtype == np.int64:
            return stored, absent
        values = workspace.take("indptr", last - first + 1, np.int64)
        values[:] = stored
        return values, absent

    def entry(self, at: int) -> tuple[int, int]:
        """Return row and column of the stored entry number `at`, unchecked."""
        low, high = 0, self.n_cells
        while high - low > self._arrays["indptr"].chunk_size:  # by halves, then inside a chunk
            middle = (low + high) // 2
            low, high = (middle, high) if self._value("indptr", middle) <= at else (low, middle)
        values, _ = self._read_indptr(low, high)
        return low + int(np.searchsorted(values, at, side="right")) - 1, self._value("indices", at)

    def has_entry(self, row: int, column: int) -> bool:
        """Tell whether an entry is stored at a row and column, looking at no more than 2²⁰."""
        if not 0 <= row < self.n_cells:
            return False
        start, stop = self._value("indptr", row), self._value("indptr", row + 1)
        if not 0 <= start <= stop <= self.n_entries:
            return False
        stop = min(stop, start + _INDPTR_SLICE)
        columns = np.empty(stop - start, self._arrays["indices"].dtype)
        self._arrays["indices"].read(start, stop, columns)
        return bool((columns == column).any())

    def _value(self, name: str, at: int) -> int:
        value = np.empty(1, self._arrays[name].dtype)
        self._arrays[name].read(at, at + 1, value)
        return int(value[0])

    def read_block(self, block: Block, *, signed: bool) -> BlockEntries:
        """Read and check a block. The arrays belong to this thread, until its next block.

        Parameters
        ----------
        block
            Which entries.
        signed
            Whether to give the weights too.

        Raises
        ------
        DamagedGraphError
            If an index is outside the matrix, a weight is NaN or infinite, or a chunk is missing
            or broken. Without `signed`, negative weights are reported, not refused.
        """
        indptr, _ = self._read_indptr(block.first_row, block.last_row)
        if (
            kernels.first_decrease(indptr) >= 0
            or indptr[0] > block.start
            or indptr[-1] < block.stop
        ):
            raise DamagedGraphError(
                f"{self._arrays['indptr'].name} changed while it was being read; export again when "
                "nothing else writes to the store."
            )
        np.clip(indptr, block.start, block.stop, out=indptr)
        indptr -= block.start
        indices = self._read_indices(block, indptr)
        weights, has_negative = self._read_weights(block, indptr, indices, signed)
        return BlockEntries(indices, indptr, weights, has_negative)

    def _read_indices(self, block: Block, indptr: Array) -> Array:
        array = self._arrays["indices"]
        out = workspace.take("indices", block.stop - block.start, self.row_dtype)
        for a, b in array.spans(block.start, block.stop):
            part = out[a - block.start : b - block.start]
            native = array.dtype == self.row_dtype
            stored = part if native else workspace.take("stored indices", b - a, array.dtype)
            absent = array.read(a, b, stored)
            if absent and not self._believable_zero_columns(block, indptr, a, b):
                raise DamagedGraphError(
                    self._missing(array, a, "as zeros it would link cells to cell 0 over and over")
                )
            bad = kernels.first_invalid_index(stored, self.n_cells)
            if bad >= 0:
                row = _row_of(block, indptr, a + bad)
                raise DamagedGraphError(
                    f"{array.name} holds {stored[bad]} in row {row} (entry {a + bad}); a matrix of "
                    f"{self.n_cells} cells has indices from 0 to {self.n_cells - 1}. The matrix is "
                    "damaged; write it again."
                )
            if not native:
                part[:] = stored
        return out

    def _believable_zero_columns(self, block: Block, indptr: Array, a: int, b: int) -> bool:
        """Tell whether entries ``[a, b)`` may all be in column 0: no row has two of them."""
        if self._arrays["indices"].chunk_size <= _TINY_CHUNK:
            return True
        inside = np.clip(indptr, a - block.start, b - block.start)
        return bool(np.diff(inside).max(initial=0) <= 1)

    def _read_weights(
        self, block: Block, indptr: Array, indices: Array, signed: bool
    ) -> tuple[Array | None, bool]:
        array = self._arrays["data"]
        kept = None
        if signed:
            kind = np.float64 if array.dtype.kind == "f" else np.int64
            kept = workspace.take("weights", block.stop - block.start, kind)
        has_negative = False
        for a, b in array.spans(block.start, block.stop):
            stored = workspace.take("stored weights", b - a, array.dtype)
            if array.read(a, b, stored) and array.chunk_size > _TINY_CHUNK:
                raise DamagedGraphError(
                    self._missing(array, a, f"the edges of its {b - a} entries would be lost")
                )
            weights = _comparable(stored)
            not_finite, n_zeros, n_negative = kernels.scan_weights(weights)
            if not_finite >= 0:
                row = _row_of(block, indptr, a + not_finite)
                cells = (row, int(indices[a + not_finite - block.start]))
                raise DamagedGraphError(
                    f"the weight of cells {cells if self.layout == 'csr' else cells[::-1]} in "
                    f"{self.key} is {stored[not_finite]}; weights must be finite. Compute the "
                    "neighbours again, or replace such weights."
                )
            has_negative |= n_negative > 0
            if n_zeros:
                kernels.drop_stored_zeros(
                    indices, weights, a - block.start, indptr, block.first_row
                )
            if kept is not None:
                kept[a - block.start : b - block.start] = stored
        return kept, has_negative

    def _missing(self, array: ChunkedArray, at: int, loss: str) -> str:
        return (
            f"chunk {array.key_of(at)} of {array.name} is missing from the store: {loss}. Copy the "
            "store again from where it came. If those values really are zeros, write it again "
            "with zarr.config.set({'array.write_empty_chunks': True})."
        )


def _row_of(block: Block, indptr: Array, entry: int) -> int:
    return block.first_row + int(np.searchsorted(indptr, entry - block.start, side="right")) - 1


def _comparable(stored: Array) -> Array:
    """Return weights in a dtype that compiled loops compare: bool and float16 are converted."""
    if stored.dtype == np.bool_:
        return stored.view(np.uint8)
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored


def open_source(path: str | Path, key: str = "connectivities") -> Source:
    """Open the matrix `key` of a zarr AnnData store and check what its metadata tell.

    Parameters
    ----------
    path
        Folder of the store; zarr format 2 or 3.
    key
        A key of `obsp`, or with slashes a path inside the store.

    Raises
    ------
    SourceError
        If there is no such store or key, or it is not a sparse matrix over the cells.
    DamagedGraphError
        If its arrays do not fit together.
    """
    path = str(path)
    group = _open_group(path)
    matrix, full_key = _find_matrix(group, path, key)
    with _metadata_of(full_key):
        attributes = dict(matrix.attrs)
    encoding = attributes.get("encoding-type")
    if not isinstance(encoding, str) or encoding not in _FORMATS:
        raise SourceError(
            f"{full_key} has encoding-type {_short(encoding)}; csr_matrix and csc_matrix can be "
            "exported."
        )
    indptr, indices, data = (
        _open_array(matrix, path, full_key, name) for name in ("indptr", "indices", "data")
    )
    n_rows, n_columns = _shape(attributes, full_key)
    n_cells = _count_cells(group, path)
    if n_cells is not None and (n_rows, n_columns) != (n_cells, n_cells):
        raise SourceError(
            f"Connectivity matrix shape {(n_rows, n_columns)} does not match number of cells "
            f"{n_cells}. {full_key} must have one row and one column for each cell of obs."
        )
    if n_rows != n_columns:
        raise SourceError(
            f"{full_key} is not square: {n_rows} by {n_columns}; a neighbour graph has one row and "
            "one column for each cell."
        )
    _check_arrays(full_key, n_rows, indptr, indices, data)
    for array in (indptr, indices, data):
        with _metadata_of(array.path):
            ChunkedArray(array)  # it refuses codecs that are not read
    return Source(path, full_key, _FORMATS[encoding], n_rows, int(indices.shape[0]))


def _open_group(path: str) -> zarr.Group:
    try:
        there = Path(path).exists()
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
    if not there:
        raise SourceError(f"{path} does not exist; give the folder of a zarr AnnData store.")
    _check_files(path, "")
    try:
        return zarr.open_group(path, mode="r")
    except Exception as e:
        raise SourceError(
            f"{path} is not a zarr store that can be opened ({_told(e)}); give the folder that "
            "AnnData.write_zarr made."
        ) from e


@contextmanager
def _metadata_of(what: str) -> Iterator[None]:
    """Name whatever is raised while metadata are read: of strange ones, zarr raises anything."""
    try:
        yield
    except CellgraphError:
        raise
    except Exception as error:
        raise SourceError(
            f"the metadata of {what} cannot be used ({_told(error)}). Copy the store again, or "
            "write the matrix again."
        ) from error


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_files(path: str, key: str) -> None:
    """Refuse metadata that are too large to be read whole, or no files but pipes or devices."""
    for name in _METADATA_FILES:
        file = Path(path, key, name)
        try:
            status = file.stat()
        except OSError:
            continue  # zarr finds out what it means
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{file} is not a file; write the store again.")
        if status.st_size > _MOST_METADATA_BYTES:
            raise SourceError(
                f"{file} has {status.st_size:,} bytes; metadata of up to {_MOST_METADATA_BYTES:,} "
                "are read. Write the store again without such large attributes."
            )


def _member(group: zarr.Group, path: str, key: str) -> zarr.Group | zarr.Array | None:
    """Return what is at a key of the store's root or of another group; None if nothing is.

    Raises
    ------
    SourceError
        If its metadata are broken.
    """
    full_key = f"{group.path}/{key}".strip("/")
    with _metadata_of(full_key):
        above = ""
        for part in full_key.split("/"):
            above = f"{above}/{part}".strip("/")
            _check_files(path, above)
        try:
            return group[key]
        except KeyError as error:
            # A field that is missing in the metadata is a KeyError too.
            consolidated = group.metadata.consolidated_metadata is not None
            if consolidated or isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


def _find_matrix(group: zarr.Group, path: str, key: str) -> tuple[zarr.Group, str]:
    full_key = key.strip("/") if "/" in key else f"obsp/{key}"
    matrix = _member(group, path, full_key)
    if matrix is None:
        obsp = _member(group, path, "obsp")
        keys: list[str] = []
        if isinstance(obsp, zarr.Group):
            with _metadata_of("obsp"):
                keys = sorted(obsp.keys())
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SourceError(
            f"{path} has no {full_key}; obsp holds {', '.join(keys) or 'nothing'}.{hint} Name the "
            "matrix with --key, or compute it with scanpy.pp.neighbors."
        )
    if not isinstance(matrix, zarr.Group):
        raise SourceError(
            f"{full_key} is a dense array of shape {matrix.shape}; a sparse matrix (CSR or CSC) "
            "can be exported. Write it as scipy.sparse.csr_matrix."
        )
    return matrix, full_key


def _open_array(matrix: zarr.Group, path: str, full_key: str, name: str) -> zarr.Array:
    array = _member(matrix, path, name)
    if array is None:
        raise SourceError(
            f"{full_key} has no array {name!r}: it is not a whole sparse matrix. Copy the store "
            "again, or write the matrix again."
        )
    if not isinstance(array, zarr.Array) or array.ndim != 1:
        raise SourceError(
            f"{full_key}/{name} is not a one-dimensional array by its metadata. Copy the store "
            "again, or write the matrix again."
        )
    for what, n in (("values", array.shape[0]), ("values in a chunk", array.chunks[0])):
        if not isinstance(n, int) or not 0 <= n <= _MOST_VALUES:
            raise SourceError(f"{full_key}/{name} has {_short(n)} {what}; write the matrix again.")
    return array


def _shape(attributes: dict[str, Any], full_key: str) -> tuple[int, int]:
    shape = attributes.get("shape")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(type(n) is int and 0 <= n <= _MOST_VALUES for n in shape)
    ):
        raise SourceError(
            f"{full_key} has the shape {_short(shape)} in its attributes; two whole numbers are "
            "needed."
        )
    return shape[0], shape[1]


def _count_cells(group: zarr.Group, path: str) -> int | None:
    """Return the number of cells in `obs`, or None if the store does not tell."""
    obs = _member(group, path, "obs")
    if obs is None:
        return None
    with _metadata_of("obs"):
        if isinstance(obs, zarr.Array):  # a structured array: AnnData before 0.7
            return int(obs.shape[0])
        name = obs.attrs.get("_index")
        if not isinstance(name, str):
            return None
        index = _member(obs, path, name)
        return int(index.shape[0]) if isinstance(index, zarr.Array) else None


def _check_arrays(
    full_key: str, n_cells: int, indptr: zarr.Array, indices: zarr.Array, data: zarr.Array
) -> None:
    if indices.shape != data.shape:
        raise DamagedGraphError(
            f"{full_key}/indices has {indices.shape[0]} entries, but {full_key}/data has "
            f"{data.shape[0]}. The matrix is damaged; write it again."
        )
    if indptr.shape[0] != n_cells + 1:
        raise DamagedGraphError(
            f"{full_key}/indptr has {indptr.shape[0]} values; a matrix of {n_cells} cells needs "
            f"{n_cells + 1}. The matrix is damaged; write it again."
        )
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype.kind not in "iu":
            raise DamagedGraphError(
                f"{full_key}/{name} has dtype {array.dtype}; whole numbers are needed. Write the "
                "matrix again with integer indices."
            )
    if data.dtype.kind not in "biuf" or data.dtype.itemsize > 8:
        raise DamagedGraphError(
            f"{full_key}/data has dtype {data.dtype}; weights must be bool, integers, or floats of "
            "up to 64 bits. Convert them, for example to float32."
        )
