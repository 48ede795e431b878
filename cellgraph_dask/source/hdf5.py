"""One-dimensional HDF5 datasets, read and decoded outside of HDF5.

The HDF5 library lets one thread in at a time. But a dataset says where in the file its chunks are
and which filters they went through. Where these are known (none, gzip, lzf, shuffle, checksums;
Blosc and Zstd of the registered plugins), HDF5 is asked for the places once, and chunks are read
and decoded on the calling thread without it. Anything else is sliced by h5py, one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled
from ..machine.files import read_at
from .arrays import RawArray, Span, StoredArray, cut_spans
from .codecs import DECODE_ERRORS, ChunkCodecs, ChunkError

if TYPE_CHECKING:
    import h5py

Filter = tuple[str, dict[str, Any]]  # name of a codec, and its settings

_SHUFFLE = 2
_FILTERS = {1: "zlib", 3: "fletcher32", 32000: "lzf", 32001: "blosc", 32015: "zstd"}
_MOST_CHUNKS = 1 << 22  # whose places are kept; beyond that h5py looks them up each time


def open_dataset(dataset: h5py.Dataset) -> StoredArray:
    """Return a one-dimensional dataset of an open file; it can be read when that is closed."""
    path, name = Path(dataset.file.filename), dataset.name.lstrip("/")
    dtype, size = dataset.dtype, int(dataset.shape[0])
    if not _lies_open(dataset):
        return SlicedDataset(path, name, dataset)
    if dataset.chunks is None:
        offset = dataset.id.get_offset()  # None if nothing was ever written
        starts, offsets = np.array([0, size]), np.array([-1 if offset is None else offset])
        return RawArray(name, [dtype], starts, offsets, [path], max(size, 1))
    (chunk,) = dataset.chunks
    filters = _filters(dataset, dtype.itemsize)
    if filters is None or -(-size // chunk) > _MOST_CHUNKS:
        return SlicedDataset(path, name, dataset)
    offsets, lengths, masks = _places(dataset, -(-size // chunk), chunk)
    if filters:
        return FilteredDataset(path, name, dtype, size, chunk, (offsets, lengths, masks), filters)
    starts = np.append(np.arange(offsets.size, dtype=np.int64) * chunk, size)
    return RawArray(name, [dtype], starts, offsets, [path], chunk)


def _lies_open(dataset: h5py.Dataset) -> bool:
    """Tell whether the bytes of the dataset are in this very file, as numpy has them."""
    from h5py import h5d, h5t

    properties = dataset.id.get_create_plist()
    return bool(
        dataset.file.driver == "sec2"
        and dataset.file.userblock_size == 0
        and not dataset.is_virtual
        and dataset.external is None
        and properties.get_layout() in (h5d.CONTIGUOUS, h5d.CHUNKED)
        and not dataset.fillvalue
        and dataset.id.get_type().equal(h5t.py_create(dataset.dtype, logical=True))
    )


def _filters(dataset: h5py.Dataset, item: int) -> list[Filter] | None:
    """Return name and codec of each filter of a dataset, in the order of writing."""
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
    # LZF is decoded here, and before anything that was applied before it.
    names = [name for name, _ in filters]
    return filters if "lzf" not in names or names[-1] == "lzf" else None


def _places(dataset: h5py.Dataset, n_chunks: int, chunk: int) -> tuple[Array, Array, Array]:
    """Return offset in the file, length and skipped filters of each chunk; offset -1 if absent."""
    offsets = np.full(n_chunks, -1, np.int64)
    lengths = np.zeros(n_chunks, np.int64)
    masks = np.zeros(n_chunks, np.uint32)

    def note(info: Any) -> None:
        k = info.chunk_offset[0] // chunk
        if k < n_chunks:
            offsets[k], lengths[k], masks[k] = info.byte_offset, info.size, info.filter_mask

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(note)
    else:
        for k in range(dataset.id.get_num_chunks()):
            note(dataset.id.get_chunk_info(k))
    return offsets, lengths, masks


class FilteredDataset:
    """A dataset of compressed chunks, decoded on the calling thread; see `StoredArray`.

    Parameters
    ----------
    path, name
        The file, and the dataset in it.
    dtype, size, chunk_size
        Of the dataset.
    places
        Offset, length and skipped filters of each chunk.
    filters
        Names and settings of the filters, in the order of writing.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        dtype: np.dtype[Any],
        size: int,
        chunk_size: int,
        places: tuple[Array, Array, Array],
        filters: list[Filter],
    ) -> None:
        self.name = name
        self.size = size
        self._stored_dtype = dtype
        self.dtype = dtype.newbyteorder("=")
        self.chunk_size = chunk_size
        self._path = path
        self._offsets, self._lengths, self._masks = places
        self._filters = filters
        self._chains: dict[int, ChunkCodecs] = {}
        self._chain(0)

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs besides what it reads into: encoded, between, decoded."""
        return int(self._lengths.max(initial=0)) + 3 * self.chunk_size * self.dtype.itemsize

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        try:
            fd = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise _damaged(self, start, error) from error
        try:
            for a, b in self.spans(start, stop):
                target = out[a - start : b - start]
                try:
                    if not self._read_chunk(fd, a, b, target):
                        target[:] = 0
                        absent.append((a, b))
                except DECODE_ERRORS as error:
                    raise _damaged(self, a, error) from error
        finally:
            os.close(fd)
        return absent

    def key_of(self, at: int) -> str:
        """Return the number of the chunk that value `at` is in."""
        return str(at // self.chunk_size)

    def _chain(self, mask: int) -> ChunkCodecs:
        """Return the codecs of chunks that some filters have skipped."""
        if mask not in self._chains:
            import numcodecs

            applied = [f for k, f in enumerate(self._filters) if not mask >> k & 1]
            codecs = [
                (name, numcodecs.get_codec({"id": name, **settings}))
                for name, settings in applied
                if name != "lzf"
            ]
            n_bytes = self.chunk_size * self.dtype.itemsize
            self._chains[mask] = ChunkCodecs(codecs, self._stored_dtype, n_bytes, self.name)
        return self._chains[mask]

    def _read_chunk(self, fd: int, a: int, b: int, target: Array) -> bool:
        k = a // self.chunk_size
        if self._offsets[k] < 0:
            return False
        mask = int(self._masks[k])
        chain = self._chain(mask)
        if self._lengths[k] > chain.most_encoded_bytes:
            raise ChunkError(f"it has {self._lengths[k]} bytes for {chain.n_bytes} of values")
        encoded: Array = buffers.take("encoded chunk", int(self._lengths[k]), np.uint8)
        read_at(fd, encoded, int(self._offsets[k]))
        if self._filters[-1][0] == "lzf" and not mask >> len(self._filters) - 1 & 1:
            between = buffers.take("lzf chunk", chain.n_bytes, np.uint8)
            if decode_lzf(encoded, between) != chain.n_bytes:
                raise ChunkError(f"it does not hold {chain.n_bytes} bytes of LZF")
            encoded = between
        first = a - k * self.chunk_size
        whole = b - a == self.chunk_size and self._stored_dtype.isnative
        decoded = buffers.take("decoded chunk", self.chunk_size, self._stored_dtype)
        chain.decode(encoded, (target if whole else decoded).view(np.uint8))
        if not whole:
            target[:] = decoded[first : first + b - a]
        return True


class SlicedDataset:
    """A dataset that only HDF5 itself can read; see `StoredArray`."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset) -> None:
        self.name = name
        self.size = int(dataset.shape[0])
        self.dtype = dataset.dtype.newbyteorder("=")
        self.chunk_size = int((dataset.chunks or (1 << 16,))[0])
        self._path = path

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs besides what it reads into: encoded and decoded chunks."""
        return int(4 * self.chunk_size * self.dtype.itemsize) + 2**20

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        import h5py

        try:
            with h5py.File(self._path, "r") as file:
                out[:] = file[self.name][start:stop]
        except Exception as error:
            raise _damaged(self, start, error) from error
        return []

    def key_of(self, at: int) -> str:
        """Return the number of the chunk that value `at` is in."""
        return str(at // self.chunk_size)


def _damaged(array: StoredArray, at: int, error: BaseException) -> DamagedGraphError:
    return DamagedGraphError(
        f"chunk {array.key_of(at)} of {array.name} does not decode: {error}. The file is damaged "
        "there; copy it again from where it came, or write it again."
    )


@compiled(int)
def decode_lzf(encoded: Array, out: Array) -> int:
    """Decode LZF, as HDF5's filter writes it.

    Parameters
    ----------
    encoded
        uint8.
    out
        uint8, written; as long as what should come out.

    Returns
    -------
    int
        Number of bytes written, or -1 if `encoded` is not sound or holds more.
    """
    at: Any = 0
    n: Any = 0
    while at < encoded.size:
        control: Any = np.int64(encoded[at])
        at += 1
        if control < 32:  # so many bytes and one more, as they are
            length: Any = control + 1
            if at + length > encoded.size or n + length > out.size:
                return -1
            for k in range(length):
                out[n + k] = encoded[at + k]
            at += length
        else:  # some bytes that were there before
            length = control >> 5
            if length == 7:
                if at >= encoded.size:
                    return -1
                length += np.int64(encoded[at])
                at += 1
            if at >= encoded.size:
                return -1
            back: Any = ((control & 31) << 8) + np.int64(encoded[at]) + 1
            at += 1
            length += 2
            if back > n or n + length > out.size:
                return -1
            for k in range(length):
                out[n + k] = out[n + k - back]
        n += length
    return int(n)
