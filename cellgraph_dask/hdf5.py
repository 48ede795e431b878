"""One-dimensional HDF5 datasets, read and decoded outside of HDF5.

The HDF5 library lets one thread in at a time. But a dataset says where in the file its chunks are
and which filters they went through. Where these are known (none, gzip, lzf, shuffle; Blosc and Zstd
of the registered plugins), HDF5 is asked for the places once, and chunks are read and decoded on
the calling thread without it. Anything else is sliced by h5py, one thread at a time.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from . import kernels, workspace
from .arrays import RawArray, Span, StoredArray, cut_spans
from .errors import DamagedGraphError
from .files import read_at

if TYPE_CHECKING:
    import h5py

Array = NDArray[Any]
Decoder = Callable[[Any, int], Any]  # bytes, and how many should come out

_DEFLATE, _SHUFFLE, _LZF, _BLOSC, _ZSTD = 1, 2, 32000, 32001, 32015
_MOST_CHUNKS = 1 << 22  # whose places are kept; beyond that h5py looks them up each time
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zlib.error, isal_zlib.error)


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
    decoders = _decoders(dataset, dtype.itemsize)
    if decoders is None or -(-size // chunk) > _MOST_CHUNKS:
        return SlicedDataset(path, name, dataset)
    offsets, lengths, masks = _places(dataset, -(-size // chunk), chunk)
    if decoders or masks.any():
        return FilteredDataset(path, name, dtype, size, chunk, (offsets, lengths, masks), decoders)
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


def _decoders(dataset: h5py.Dataset, item: int) -> list[Decoder] | None:
    """Return what undoes each filter of a dataset, in the order of writing; None if unknown."""
    properties = dataset.id.get_create_plist()
    decoders: list[Decoder] = []
    for k in range(properties.get_nfilters()):
        code, _, values, _ = properties.get_filter(k)
        if code == _DEFLATE:
            decoders.append(_inflate)
        elif code == _SHUFFLE and (values[0] if values else item) == item:
            decoders.append(_Unshuffle(item))
        elif code == _LZF:
            decoders.append(_decode_lzf)
        elif code == _BLOSC:
            decoders.append(_decode_blosc)
        elif code == _ZSTD:
            decoders.append(_decode_zstd)
        else:
            return None
    return decoders


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
    decoders
        What undoes each filter, in the order of writing.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        dtype: np.dtype[Any],
        size: int,
        chunk_size: int,
        places: tuple[Array, Array, Array],
        decoders: list[Decoder],
    ) -> None:
        self.name = name
        self.size = size
        self._stored_dtype = dtype
        self.dtype = dtype.newbyteorder("=")
        self.chunk_size = chunk_size
        self._path = path
        self._offsets, self._lengths, self._masks = places
        self._decoders = decoders

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs besides what it reads into: encoded, between, decoded."""
        return int(self._lengths.max(initial=0)) + 2 * self.chunk_size * self.dtype.itemsize

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
                except _ERRORS as error:
                    raise _damaged(self, a, error) from error
        finally:
            os.close(fd)
        return absent

    def key_of(self, at: int) -> str:
        """Return the number of the chunk that value `at` is in."""
        return str(at // self.chunk_size)

    def _read_chunk(self, fd: int, a: int, b: int, target: Array) -> bool:
        k = a // self.chunk_size
        if self._offsets[k] < 0:
            return False
        n_bytes = self.chunk_size * self.dtype.itemsize
        data: Any = workspace.take("encoded chunk", int(self._lengths[k]), np.uint8)
        read_at(fd, data, int(self._offsets[k]))
        for number in reversed(range(len(self._decoders))):
            if not int(self._masks[k]) >> number & 1:
                data = self._decoders[number](data, n_bytes)
        decoded = np.frombuffer(data, np.uint8)
        if decoded.size != n_bytes:
            raise ValueError(f"it holds {decoded.size} bytes, not {n_bytes}")
        first = a - k * self.chunk_size
        target[:] = decoded.view(self._stored_dtype)[first : first + b - a]
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
        return 4 * self.chunk_size * self.dtype.itemsize + 2**20

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        import h5py

        try:
            with h5py.File(self._path, "r") as file:
                out[:] = file[self.name][start:stop]
        except (KeyError, *_ERRORS) as error:
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


def _inflate(data: Any, n_bytes: int) -> bytes:
    decoder = isal_zlib.decompressobj()
    decoded: bytes = decoder.decompress(data, n_bytes + 1)  # no more, whatever the file says
    if not decoder.eof:
        raise ValueError(f"its gzip stream does not end after {n_bytes} bytes")
    return decoded


class _Unshuffle:
    """Puts the bytes of each value together again."""

    def __init__(self, item: int) -> None:
        self._item = item

    def __call__(self, data: Any, n_bytes: int) -> Array:
        raw = np.frombuffer(data, np.uint8)
        if raw.size != n_bytes:
            raise ValueError(f"it holds {raw.size} bytes, not {n_bytes}")
        out = workspace.take("unshuffled chunk", n_bytes, np.uint8)
        columns = out.reshape(-1, self._item)
        for k, row in enumerate(raw.reshape(self._item, -1)):
            columns[:, k] = row
        return out


def _decode_lzf(data: Any, n_bytes: int) -> Array:
    out = workspace.take("decoded chunk", n_bytes, np.uint8)
    n = kernels.decode_lzf(np.frombuffer(data, np.uint8), out)
    if n < 0:
        raise ValueError("it is not sound LZF")
    return out[:n]


def _decode_blosc(data: Any, _: int) -> Any:
    from numcodecs import Blosc

    return Blosc().decode(data)


def _decode_zstd(data: Any, _: int) -> Any:
    from numcodecs import Zstd

    return Zstd().decode(data)
