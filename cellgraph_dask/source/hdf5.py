"""HDF5 files: h5py finds chunks, which are read and decoded outside of HDF5.

The HDF5 library lets one thread in at a time. But a dataset says where in the file its chunks are
and which filters they went through. Where these are known (none, gzip, lzf, shuffle, checksums;
Blosc and Zstd of the registered plugins), HDF5 is asked for the places once in each process, and
chunks are read and decoded on the calling thread without it. Anything else is read by h5py, one
chunk and one thread at a time.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5t

from ..errors import DamagedGraphError, SourceError
from ..machine.buffers import Array
from . import stamps
from .arrays import STEP, RawArray, Span, StoredArray, cut_spans
from .chunked import ChunkedArray, Extent
from .codecs import ChunkCodecs, chunk_codecs
from .layout import told

_SHUFFLE = 2
_FILTERS = {
    1: "zlib", _SHUFFLE: "shuffle", 3: "fletcher32", 32000: "lzf", 32001: "blosc", 32015: "zstd"
}  # fmt: skip
_FIRST_PLUGIN = 256  # filters below are HDF5's own
_MOST_CHUNKS = 1 << 22  # whose places are kept: 100 MB; beyond that h5py looks them up each time
_ADVICE = "copy it again from where it came, or write it again."


@contextmanager
def open_file(path: str) -> Iterator[h5py.File]:
    """Open a file; a SourceError if it is not a whole HDF5 file."""
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

    If it has a filter that this HDF5 library has not got, a SourceError is raised.
    """
    size = int(dataset.shape[0])
    chunk = dataset.chunks[0] if dataset.chunks else max(size, 1)
    said = _codecs(dataset)
    if said is not None and _is_plain(dataset) and -(-size // chunk) <= _MOST_CHUNKS:
        if not said:
            return _RawDataset(dataset)
        codecs = chunk_codecs(said, dataset.dtype, chunk * dataset.dtype.itemsize)
        if codecs is not None:
            return _FilteredDataset(dataset, codecs)
    _require_filters(dataset)
    return SlicedDataset(dataset)


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of the dataset are in this very file, as numpy has them."""
    return bool(
        dataset.file.driver == "sec2"
        and dataset.file.userblock_size == 0  # libraries disagree on what offsets count from
        and not dataset.is_virtual
        and dataset.external is None
        and dataset.id.get_create_plist().get_layout() in (h5d.CONTIGUOUS, h5d.CHUNKED)
        and not dataset.fillvalue
        and dataset.id.get_type().equal(h5t.py_create(dataset.dtype, logical=True))
    )


def _filters(dataset: h5py.Dataset) -> Iterator[tuple[int, tuple[int, ...], str]]:
    """Yield code, settings and label of each filter, in the order of writing."""
    properties = dataset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        code, _, values, label = properties.get_filter(k)
        yield code, values, label.decode(errors="replace").strip("\0") if label else ""


def _codecs(dataset: h5py.Dataset) -> list[tuple[str, dict[str, Any]]] | None:
    """Return its filters as `chunk_codecs` takes them; None if one is unknown."""
    said: list[tuple[str, dict[str, Any]]] = []
    for code, values, _ in _filters(dataset):
        if code not in _FILTERS:
            return None
        item = int(values[0]) if values else dataset.dtype.itemsize
        said.append((_FILTERS[code], {"elementsize": item} if code == _SHUFFLE else {}))
    return said


def _require_filters(dataset: h5py.Dataset) -> None:
    """Register the filters of hdf5plugin, if it is installed and one of them is needed.

    If a filter is still missing, a SourceError is raised.
    """
    for code, _, label in _filters(dataset):
        if code >= _FIRST_PLUGIN and importlib.util.find_spec("hdf5plugin"):
            importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            raise SourceError(
                f"{dataset.name.lstrip('/')} is compressed with filter {code} of HDF5 "
                f"({label[:80] or 'no name'}), which is not installed here. Install hdf5plugin "
                "(pip install hdf5plugin), or write the file again with gzip or lzf."
            )


def _outside(dataset: h5py.Dataset, depth: int = 4) -> tuple[str, ...]:
    """Return the other files that a dataset's values are in: external and virtual storage.

    HDF5 looks for relative names beside the file and in the working directory.
    """
    paths: dict[str, None] = {}
    folders = (os.path.dirname(dataset.file.filename), "")  # noqa: PTH120

    def add(name: str, path: str) -> None:
        for folder in folders:
            pattern = os.path.join(folder, name)  # noqa: PTH118
            found = glob.glob(pattern.replace("%b", "*")) if "%b" in pattern else [pattern]  # noqa: PTH207
            for file in found:
                paths[os.path.abspath(file)] = None  # noqa: PTH100
                if path and depth:
                    with suppress(Exception), h5py.File(file, "r") as other:
                        paths.update(dict.fromkeys(_outside(other[path], depth - 1)))

    for name, _, _ in dataset.external or ():
        add(name, "")
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        if source.file_name != ".":
            add(source.file_name, source.dset_name)
    return tuple(paths)


class _Dataset(StoredArray):
    """What all datasets of one dimension have; `name` leads to it in its file."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.name = dataset.name.lstrip("/")
        self.size = int(dataset.shape[0])
        self.dtype = dataset.dtype.newbyteorder("=")
        self.chunk_size = int((dataset.chunks or (STEP,))[0])
        self._path = os.path.abspath(dataset.file.filename)  # noqa: PTH100
        self._outside = _outside(dataset)

    @cached_property
    def _places(self) -> Array:
        """Offset in the file (-1 if never written), bytes and skipped filters of each chunk."""
        places = np.zeros((3, -(-self.size // self.chunk_size)), np.int64)
        places[0] = -1

        def note(info: Any) -> None:
            number = info.chunk_offset[0] // self.chunk_size
            if number < places.shape[1]:
                places[:, number] = info.byte_offset, info.size, info.filter_mask

        with h5py.File(self._path, "r") as file:
            dataset = file[self.name].id
            if hasattr(dataset, "chunk_iter"):  # since HDF5 1.12.3
                dataset.chunk_iter(note)
            else:
                for k in range(dataset.get_num_chunks()):
                    note(dataset.get_chunk_info(k))
        return places

    def stamp(self) -> str:
        return stamps.of_files((self._path, *self._outside))


class _RawDataset(_Dataset, RawArray):
    """A dataset without filters; its chunks, if it has any, often follow each other in the file."""

    advice = f"The file is damaged there; {_ADVICE}"

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset)
        self.where = self._path
        self.work_bytes = 0 if dataset.dtype.isnative else self.step * self.dtype.itemsize
        self._stored_dtype = dataset.dtype
        self._offset: int | None = None
        if dataset.chunks is None:
            offset = dataset.id.get_offset()  # None if nothing was ever written
            self._offset = -1 if offset is None else offset

    @cached_property
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        if self._offset is not None:
            return np.array([0, self.size]), np.array([self._offset]), [self._stored_dtype]
        n_bytes = self.chunk_size * self.dtype.itemsize
        offsets, sizes, _ = self._places
        if (sizes[offsets >= 0] != n_bytes).any():
            raise ValueError(f"there are chunks of other sizes than {n_bytes} bytes")
        here, after = offsets[:-1], offsets[1:]
        follows = np.where(here < 0, after < 0, after == here + n_bytes)
        first = np.flatnonzero(np.concatenate(([True], ~follows))[: offsets.size])
        starts = np.append(first * self.chunk_size, self.size)
        return starts, offsets[first], [self._stored_dtype] * first.size


class _FilteredDataset(_Dataset, ChunkedArray):
    """A dataset whose chunks went through filters that are known."""

    def __init__(self, dataset: h5py.Dataset, codecs: ChunkCodecs) -> None:
        _Dataset.__init__(self, dataset)
        ChunkedArray.__init__(self, self.name, self.size, dataset.dtype, self.chunk_size, codecs)

    def find(self, number: int) -> Extent | None:
        offset, n_bytes, mask = self._places[:, number].tolist()
        if offset < 0:
            return None
        return Extent(os.open(self._path, os.O_RDONLY), offset, n_bytes, mask=mask)


class SlicedDataset(_Dataset):
    """A dataset that only HDF5 itself can read, a chunk at a time."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset)
        # Encoded, between filters, decoded; and HDF5's cache of chunks.
        self.work_bytes = 4 * self.chunk_size * self.dtype.itemsize + 2**20

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        a = start
        try:
            with h5py.File(self._path, "r") as file:
                dataset = file[self.name]
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
                f"chunk {self.key_of(a)} of {self.name} does not decode: {told(error)}. "
                f"The file is damaged there; {_ADVICE}"
            ) from error
        return absent


def _is_absent(dataset: h5py.Dataset, at: int) -> bool:
    """Whether the chunk that holds value `at` was never written, so that it reads as fill value."""
    if dataset.is_virtual or dataset.external is not None:
        return False
    if dataset.chunks is None:
        layout = dataset.id.get_create_plist().get_layout()
        return bool(layout == h5d.CONTIGUOUS and dataset.id.get_offset() is None)
    (chunk,) = dataset.chunks
    return dataset.id.get_chunk_info_by_coord((at // chunk * chunk,)).byte_offset is None


class DenseDataset:
    """A dataset of any dimensions, in pieces; small, picklable, and opened for each of them."""

    shards = None

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._path = os.path.abspath(dataset.file.filename)  # noqa: PTH100
        self._name = dataset.name
        self.shape = tuple(int(n) for n in dataset.shape)
        self.ndim = len(self.shape)
        self.dtype = dataset.dtype
        self.chunks = dataset.chunks
        names = [_FILTERS.get(k, label or f"filter {k}") for k, _, label in _filters(dataset)]
        self.codec = ", ".join(names) or None
        self._outside = _outside(dataset)

    def stamp(self) -> str:
        """Return what changes when it is written again."""
        return stamps.of_files((self._path, *self._outside))

    def __getitem__(self, index: Any) -> Any:
        """Return the values at an index."""
        with open_file(self._path) as file:
            _require_filters(file[self._name])
            return file[self._name][index]
