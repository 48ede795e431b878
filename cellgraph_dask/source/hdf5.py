"""HDF5 files: h5py finds chunks, which are read and decoded outside of HDF5.

The HDF5 library lets one thread in at a time. But a dataset says where in the file its chunks are
and which filters they went through. Where these are known (none, gzip, lzf, shuffle, checksums;
Blosc and Zstd of the registered plugins), HDF5 is asked for the places once in each process, and
chunks are read and decoded on the calling thread without it. Anything else is read by h5py, one
chunk and one thread at a time.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DamagedGraphError, SourceError
from ..machine.buffers import Array
from .arrays import STEP, Span, StoredArray, cut_spans
from .chunked import ChunkedArray, Encoded, Finder
from .codecs import ChunkCodecs, chunk_codecs
from .finders import Extent
from .layout import told

Filter = tuple[str, dict[str, Any]]  # name of a codec, and its settings

_SHUFFLE = 2
_FILTERS = {1: "zlib", 3: "fletcher32", 32000: "lzf", 32001: "blosc", 32015: "zstd"}
_FIRST_PLUGIN = 256  # filters below are HDF5's own
_MOST_CHUNKS = 1 << 22  # whose places are kept: 120 MB; beyond that h5py looks them up each time


@contextmanager
def open_file(path: str) -> Iterator[h5py.File]:
    """Open a file.

    Raises
    ------
    SourceError
        If it is not a whole HDF5 file.
    """
    try:
        file = h5py.File(path, "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{path} is not an HDF5 file that can be opened ({error}). Copy it again from "
            "where it came, or write it again."
        ) from error
    with file:
        yield file


def stored_array(dataset: h5py.Dataset) -> StoredArray:
    """Return a one-dimensional dataset of an open file; it can be read when that is closed.

    Raises
    ------
    SourceError
        If it is compressed with a filter that this HDF5 library has not got.
    """
    path, name = os.path.abspath(dataset.file.filename), dataset.name  # noqa: PTH100
    dtype, size, short = dataset.dtype, int(dataset.shape[0]), dataset.name.lstrip("/")
    if _is_plain(dataset):
        if dataset.chunks is None:
            offset = dataset.id.get_offset()  # None if nothing was ever written
            raw = ChunkCodecs([], STEP * dtype.itemsize)
            return ChunkedArray(short, size, dtype, STEP, _Contiguous(path, offset, dtype), raw)
        (chunk,) = dataset.chunks
        said = _filters(dataset, dtype.itemsize)
        codecs = None if said is None else chunk_codecs(said, dtype, chunk * dtype.itemsize)
        if codecs is not None and dataset.id.get_num_chunks() <= _MOST_CHUNKS:
            return ChunkedArray(short, size, dtype, chunk, _Chunks(path, name, chunk), codecs)
    _require_filters(dataset)
    return SlicedDataset(path, name, dataset)


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of the dataset are in this very file, as numpy has them."""
    from h5py import h5d, h5t

    properties = dataset.id.get_create_plist()
    return bool(
        dataset.file.driver == "sec2"
        and dataset.file.userblock_size == 0  # libraries disagree on what offsets count from
        and not dataset.is_virtual
        and dataset.external is None
        and properties.get_layout() in (h5d.CONTIGUOUS, h5d.CHUNKED)
        and not dataset.fillvalue
        and dataset.id.get_type().equal(h5t.py_create(dataset.dtype, logical=True))
    )


def _filters(dataset: h5py.Dataset, item: int) -> list[Filter] | None:
    """Return name and settings of each filter, in the order of writing; None if one is unknown."""
    properties = dataset.id.get_create_plist()
    filters: list[Filter] = []
    for k in range(properties.get_nfilters()):
        code, _, values, _ = properties.get_filter(k)
        if code == _SHUFFLE:
            filters.append(("shuffle", {"elementsize": int(values[0]) if values else item}))
        elif code in _FILTERS:
            filters.append((_FILTERS[code], {}))
        else:
            return None
    return filters


def _require_filters(dataset: h5py.Dataset) -> None:
    """Register the filters of hdf5plugin, if it is installed and one of them is needed.

    Raises
    ------
    SourceError
        If a filter is still missing.
    """
    properties = dataset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(k)
        if code >= _FIRST_PLUGIN and importlib.util.find_spec("hdf5plugin"):
            importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            text = label.decode(errors="replace").strip("\0") if label else "no name"
            raise SourceError(
                f"{dataset.name.lstrip('/')} is compressed with filter {code} of HDF5 ({text[:80]})"
                ", which is not installed here. Install hdf5plugin (pip install hdf5plugin), or "
                "write the file again with gzip or lzf."
            )


def _codec(dataset: h5py.Dataset) -> str | None:
    """Return the names of its filters, or None."""
    properties = dataset.id.get_create_plist()
    names = []
    for k in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(k)
        text = label.decode(errors="replace").strip("\0") if label else f"filter {code}"
        names.append("shuffle" if code == _SHUFFLE else _FILTERS.get(code, text))
    return ", ".join(names) or None


class _Contiguous(Finder):
    """Finds steps of a dataset that lies in one stretch; see `chunked.Finder`."""

    def __init__(self, path: str, offset: int | None, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._offset = offset
        self._n_bytes = STEP * dtype.itemsize

    def find(self, number: int) -> Encoded | None:
        if self._offset is None:
            return None
        fd = os.open(self._path, os.O_RDONLY)
        return Extent(fd, self._offset + number * self._n_bytes, self._n_bytes)

    def files(self) -> Iterator[Path]:
        yield Path(self._path)


class _Chunks(Finder):
    """Finds the chunks of a dataset; see `chunked.Finder`."""

    def __init__(self, path: str, name: str, chunk: int) -> None:
        self._path = path
        self._name = name
        self._chunk = chunk

    def __reduce__(self) -> Any:
        return _Chunks, (self._path, self._name, self._chunk)  # without the table

    @cached_property
    def _table(self) -> Array:
        """Number, offset in the file, length and skipped filters of each chunk, by number."""
        with h5py.File(self._path, "r") as file:
            dataset = file[self._name].id
            table = np.zeros((4, dataset.get_num_chunks()), np.int64)
            at = 0

            def note(info: Any) -> None:
                nonlocal at
                number = info.chunk_offset[0] // self._chunk
                table[:, at] = number, info.byte_offset, info.size, info.filter_mask
                at += 1

            if hasattr(dataset, "chunk_iter"):
                dataset.chunk_iter(note)
            else:
                for k in range(table.shape[1]):
                    note(dataset.get_chunk_info(k))
        return table[:, np.argsort(table[0], kind="stable")]

    def find(self, number: int) -> Encoded | None:
        numbers = self._table[0]
        at = int(numbers.searchsorted(number))
        if at == numbers.size or numbers[at] != number:
            return None
        _, offset, length, mask = self._table[:, at].tolist()
        return Extent(os.open(self._path, os.O_RDONLY), offset, length, mask=mask)

    def files(self) -> Iterator[Path]:
        yield Path(self._path)


class SlicedDataset(StoredArray):
    """A dataset that only HDF5 itself can read, a chunk at a time."""

    def __init__(self, path: str, name: str, dataset: h5py.Dataset) -> None:
        self.name = name.lstrip("/")
        self.size = int(dataset.shape[0])
        self.dtype = dataset.dtype.newbyteorder("=")
        self.chunk_size = int((dataset.chunks or (STEP,))[0])
        self._path = path
        self._in_file = name

    @property
    def work_bytes(self) -> int:
        """See `StoredArray`: encoded, between filters, decoded; and HDF5's cache of chunks."""
        return int(4 * self.chunk_size * self.dtype.itemsize) + 2**20

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        a = start
        try:
            with h5py.File(self._path, "r") as file:
                dataset = file[self._in_file]
                _require_filters(dataset)
                for a, b in cut_spans(start, stop, self.chunk_size):
                    if _is_absent(dataset, a):
                        if dataset.fillvalue:
                            raise ValueError(
                                f"it was never written; fill value {dataset.fillvalue!r}, not 0"
                            )
                        absent.append((a, b))
                    dataset.read_direct(out, np.s_[a:b], np.s_[a - start : b - start])
        except SourceError:
            raise
        except Exception as error:
            raise DamagedGraphError(
                f"chunk {self.key_of(a)} of {self.name} does not decode: {told(error)}. The file "
                "is damaged there; copy it again from where it came, or write it again."
            ) from error
        return absent

    def files(self) -> Iterator[Path]:
        """Yield the file."""
        yield Path(self._path)


def _is_absent(dataset: h5py.Dataset, at: int) -> bool:
    """Whether the chunk that holds value `at` was never written, so that it reads as fill value."""
    if dataset.is_virtual or dataset.external is not None:
        return False
    if dataset.chunks is None:
        from h5py import h5d

        layout = dataset.id.get_create_plist().get_layout()
        return bool(layout == h5d.CONTIGUOUS and dataset.id.get_offset() is None)
    (chunk,) = dataset.chunks
    return dataset.id.get_chunk_info_by_coord((at // chunk * chunk,)).byte_offset is None


class DenseDataset:
    """A dataset of any dimensions, in pieces; small, picklable, and opened for each of them."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._path = os.path.abspath(dataset.file.filename)  # noqa: PTH100
        self._name = dataset.name
        self.shape = tuple(int(n) for n in dataset.shape)
        self.ndim = len(self.shape)
        self.dtype = dataset.dtype
        self.chunks = dataset.chunks
        self.shards = None
        self.codec = _codec(dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return the values at an index."""
        with open_file(self._path) as file:
            _require_filters(file[self._name])
            return file[self._name][index]
