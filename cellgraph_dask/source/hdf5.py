"""HDF5 files: h5py finds chunks, which are read and decoded outside of HDF5.

The HDF5 library lets one thread in at a time. But a dataset says where in the file its chunks are
and which filters they went through. Where these are known (none, gzip, lzf, shuffle, checksums;
Blosc and Zstd of the registered plugins), HDF5 is asked for the places once in each process, and
chunks are read and decoded on the calling thread without it. Anything else is read by h5py, one
chunk and one thread at a time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5t

from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from .arrays import STEP, RawArray, Span, StoredArray
from .chunked import ChunkedArray, Encoded, Extent, first_byte
from .codecs import ChunkCodecs, ChunkError, chunk_codecs
from .hdf5_datasets import (
    ADVICE,
    Dataset,
    SlicedDataset,
    codecs_of,
    external_files,
    missing,
    open_file,
    path_of_virtual,
    read_only,
    stretch,
)

_BARE_PARTIAL_CHUNKS = 2  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
_MOST_CHUNKS = 1 << 22  # whose places are kept: 100 MB; beyond that h5py looks them up each time


def stored_array(dataset: h5py.Dataset) -> StoredArray:
    """Return a one-dimensional dataset of an open file; it can be read when that is closed.

    If it has a filter that this HDF5 library has not got, a SourceError is raised; and a
    DamagedGraphError if other files, which hold its values, are missing.
    """
    if dataset.is_virtual:
        return _Joined(dataset)
    if dataset.external is not None:
        return _ExternalDataset(dataset)
    size = int(dataset.shape[0])
    chunk = dataset.chunks[0] if dataset.chunks else max(size, 1)
    said = codecs_of(dataset)
    if said is not None and _is_plain(dataset) and -(-size // chunk) <= _MOST_CHUNKS:
        in_place = dataset.file.driver == "sec2" and dataset.file.userblock_size == 0
        if not said and in_place:  # else libraries disagree on what offsets count from
            return _RawDataset(dataset)
        codecs = chunk_codecs(said, dataset.dtype, chunk * dataset.dtype.itemsize)
        if said and codecs is not None:
            return _FilteredDataset(dataset, codecs, in_place=in_place)
    return SlicedDataset(dataset)


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of the dataset are stored as numpy has them."""
    return bool(
        dataset.id.get_create_plist().get_layout() in (h5d.CONTIGUOUS, h5d.CHUNKED)
        and dataset.id.get_type().equal(h5t.py_create(dataset.dtype, logical=True))
    )


def _last_is_bare(dataset: h5py.Dataset) -> bool:
    """Whether filters pass over the last chunk, of which a part is beyond the end.

    The writer may have asked for this, which h5py does not tell.
    """
    if not dataset.chunks or dataset.shape[0] % dataset.chunks[0] == 0:
        return False
    options = ctypes.c_uint()
    ask = getattr(ctypes.CDLL(h5py.h5p.__file__), "H5Pget_chunk_opts", None)
    if ask is None:
        return False
    ask.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_uint)]
    properties = dataset.id.get_create_plist()
    ask(properties.id, options)
    return bool(options.value & _BARE_PARTIAL_CHUNKS)


class _RawDataset(Dataset, RawArray):
    """A dataset without filters; its chunks, if it has any, often follow each other in the file."""

    advice = f"The file is damaged there; {ADVICE}"

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset)
        self.where = self.path
        self.work_bytes = 0 if dataset.dtype.isnative else self.step * self.dtype.itemsize
        self._stored_dtype = dataset.dtype
        self._fill = dataset.fillvalue
        self._offset: int | None = None
        if dataset.chunks is None:
            offset = dataset.id.get_offset()  # None if nothing was ever written
            self._offset = -1 if offset is None else offset

    @cached_property
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        if self._fill and (self._offset == -1 if self._offset is not None else self._has_gaps()):
            raise ValueError(f"a part was never written, and its fill value is {self._fill!r}")
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

    def _has_gaps(self) -> bool:
        return bool((self._places[0] < 0).any())


class _FilteredDataset(Dataset, ChunkedArray):
    """A dataset whose chunks went through filters that are known."""

    def __init__(self, dataset: h5py.Dataset, codecs: ChunkCodecs, *, in_place: bool) -> None:
        Dataset.__init__(self, dataset)
        ChunkedArray.__init__(
            self, self.name, self.size, dataset.dtype, self.chunk_size, codecs,
            fill_value=dataset.fillvalue,
        )  # fmt: skip
        self._in_place = in_place
        self._bare = self.size // self.chunk_size if _last_is_bare(dataset) else -1

    def find(self, number: int) -> Encoded | None:
        offset, n_bytes, mask = self._places[:, number].tolist()
        if offset < 0:
            return None
        mask = -1 if number == self._bare else mask  # all filters
        if not self._in_place:
            return _Direct(self, number * self.chunk_size, n_bytes, mask)
        return Extent(os.open(self.path, os.O_RDONLY), offset, n_bytes, mask=mask)


class _Direct(Encoded):
    """The stored bytes of a chunk, handed over by HDF5: where they are is its own business."""

    def __init__(self, array: Dataset, at: int, size: int, mask: int) -> None:
        self.size: int = size
        self.mask = mask
        self._array = array
        self._at = at

    def whole(self) -> Array:
        out = buffers.take("encoded chunk", self.size, np.uint8)
        with read_only(self._array.path) as file:
            _, found = file[self._array.name].id.read_direct_chunk((self._at,), out=out)
        if len(found) != self.size:
            raise ChunkError(f"it has {len(found)} bytes, not {self.size}")
        return out

    def fill(self, out: Array, offset: int) -> None:
        first = first_byte(out, offset, self.size)
        out[:] = self.whole()[first : first + out.size]


class _ExternalDataset(Dataset, RawArray):
    """A dataset whose values are in other files, one stretch of each after the other."""

    advice = ADVICE.capitalize()

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset)
        item = dataset.dtype.itemsize
        self.work_bytes = 0 if dataset.dtype.isnative else self.step * self.dtype.itemsize
        self._stored_dtype = dataset.dtype
        self._files: list[str] = []
        self._starts, self._offsets = [0], []
        for path, offset, n_bytes in external_files(dataset):
            if n_bytes % item:
                raise SourceError(
                    f"{self.name} has values that are in two files, a part in each; write it again."
                )
            self._files.append(path)
            self._offsets.append(offset)
            self._starts.append(self._starts[-1] + n_bytes // item)
        self.where = os.path.dirname(self.path)  # noqa: PTH120

    @cached_property
    def pieces(self) -> tuple[Array, Array, Sequence[np.dtype[Any]]]:
        dtypes = [self._stored_dtype] * len(self._files)
        return np.array(self._starts), np.array(self._offsets, np.int64), dtypes

    def path_of(self, k: int) -> str:
        return self._files[k]

    def files(self) -> Iterator[Path]:
        yield from (Path(path) for path in (self.path, *self._files))


class _Run(NamedTuple):
    """Values of a virtual dataset that are those of another dataset, from a place in it on."""

    start: int
    stop: int
    at: int
    array: StoredArray


class _Joined(Dataset):
    """A virtual dataset: stretches of others, in this file or others, one after the other.

    HDF5 itself would read what is missing as fill values.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset)
        self._runs = sorted(_runs(dataset), key=lambda run: run.start)
        ends = [0, *(run.stop for run in self._runs)]
        if [*(run.start for run in self._runs), self.size] != ends:
            raise missing(dataset, "not every value is mapped to one of another dataset")
        arrays = [run.array for run in self._runs]
        if any(array.dtype != self.dtype for array in arrays):
            raise SourceError(f"{self.name} joins values of several dtypes; write it as one array.")
        self.chunk_size = max((array.chunk_size for array in arrays), default=STEP)
        self.work_bytes = max((array.work_bytes for array in arrays), default=0)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        for run in self._runs:
            a, b = max(start, run.start), min(stop, run.stop)
            if a < b:
                shift = run.start - run.at
                found = run.array.read(a - shift, b - shift, out[a - start : b - start])
                absent += [(c + shift, d + shift) for c, d in found]
        return absent

    def files(self) -> Iterator[Path]:
        yield from super().files()
        for run in self._runs:
            if isinstance(run.array, Dataset):
                yield from run.array.files()


def _runs(dataset: h5py.Dataset) -> Iterator[_Run]:
    """Yield the stretches of a virtual dataset, of whose sources each is opened and checked."""
    for space, file_name, name, source_space in dataset.virtual_sources():
        first, n = stretch(dataset, space, None)
        path = path_of_virtual(dataset, file_name)
        with open_file(path) as file:
            if name not in file or not hasattr(file[name], "shape") or file[name].ndim != 1:
                raise missing(dataset, f"{path} has no array {name}")
            if file[name].is_virtual:
                raise SourceError(
                    f"{dataset.name.lstrip('/')} is a virtual dataset of virtual ones; write it as "
                    "one array."
                )
            at, _ = stretch(dataset, source_space, n)
            if at + n > file[name].shape[0]:
                raise missing(dataset, f"{name} in {path} should have {at + n} values")
            yield _Run(first, first + n, at, stored_array(file[name]))
