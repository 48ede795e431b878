"""One-dimensional arrays of chunks, of zarr and of HDF5, decoded on the calling thread.

Slices are cut at chunk borders, `ChunkedArray.find` says where the bytes of a chunk are, or that
there are none, and codecs decode them straight into the caller's memory. The libraries' own slices
go through a lock (HDF5), or an event loop and thread pools (zarr) that multiply with Dask's threads
and with the memory of a task; and they read chunks that are not in the store as zeros without a
word, whether the writer left them out on purpose or they were lost.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import closing, suppress
from typing import Any

import google_crc32c
import numpy as np
from zlib_ng import zlib_ng

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import begin_reading, read_at
from .arrays import DECODE_ERRORS, Span, StoredArray, check_access, cut_spans
from .codecs import ChunkCodecs, ChunkError

_EMPTY = np.iinfo(np.uint64).max  # offset and length of an unwritten chunk in a shard's index
_MOST_INDEXES = 4  # of shards, that are remembered
_MOST_AHEAD = 1 << 24  # bytes of a chunk, or shard, that is read ahead
_INDEX_BYTES = 16  # of a chunk in a shard's index


class Encoded(ABC):
    """The bytes of a chunk, or shard, as they are stored."""

    size: int | None = None  # their number, if it is known without reading them
    mask = 0  # bits of codecs that were skipped when it was written: HDF5's filter mask

    def exists(self) -> bool:
        """Whether they are in the store; a request, if they are remote."""
        return True

    def stored_size(self) -> int:
        """Return their number; 0 if there are none. It is a request, if they are remote."""
        return self.size or 0

    @abstractmethod
    def whole(self) -> Array:
        """Return all as uint8, good until this thread's next chunk; or FileNotFoundError."""

    @abstractmethod
    def fill(self, out: Array, offset: int) -> None:
        """Fill `out`, uint8, with the bytes from `offset` on; from the end, if it is negative."""

    def begin_reading(self) -> None:  # noqa: B027 (others than files have no such way)
        """Have the system read them, without waiting, if they are few."""

    def close(self) -> None:  # noqa: B027 (remote ones have nothing to close)
        """Let go of what was opened for it."""


class Extent(Encoded):
    """A stretch of a file, which is closed with it, and maybe the CRC-32 of all of it."""

    def __init__(
        self, fd: int, begin: int, size: int, checksum: int | None = None, mask: int = 0
    ) -> None:
        self.size: int = size
        self.mask = mask
        self._fd = fd
        self._begin = begin
        self._checksum = checksum

    def whole(self) -> Array:
        """See `Encoded`."""
        out = buffers.take("encoded chunk", self.size, np.uint8)
        self.fill(out, 0)
        return out

    def fill(self, out: Array, offset: int) -> None:
        """See `Encoded`."""
        read_at(self._fd, out, self._begin + first_byte(out, offset, self.size))
        if out.size == self.size and self._checksum is not None:
            check_crc(out, self._checksum)

    def begin_reading(self) -> None:
        """See `Encoded`."""
        if self.size <= _MOST_AHEAD:
            begin_reading(self._fd, self._begin, self._begin + self.size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def first_byte(out: Array, offset: int, size: int) -> int:
    """Return an offset from the start, of the part of `size` bytes that fills `out`."""
    first = offset + size if offset < 0 else offset
    if first < 0 or first + out.size > size:
        raise ChunkError(f"it has {size} bytes, but should end at {first + out.size}")
    return first


def check_crc(content: Array, checksum: int) -> None:
    """Raise a ChunkError if content does not have its CRC-32."""
    if zlib_ng.crc32(content) != checksum:
        raise ChunkError("its checksum in the zip archive does not match")


class ChunkedArray(StoredArray):
    """A stored array of chunks, decoded on the calling thread; a subclass finds their bytes.

    `dtype` is that of the stored values, with their byte order; `fill_value` stands where a chunk
    is not in the store, and is None if that is not said. If chunks are in shards, with an index
    at their end or start, `shard_size` is the values in each. `finding_bytes` bounds the memory
    that finding and reading encoded bytes take on one thread.
    """

    def __init__(
        self, name: str, size: int, dtype: np.dtype[Any], chunk_size: int, codecs: ChunkCodecs, *,
        fill_value: Any = None, shard_size: int | None = None, index_at_start: bool = False,
        finding_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.name = name
        self.size = size
        self.dtype = dtype.newbyteorder("=")
        self.chunk_size = chunk_size
        self.chunk_bytes = chunk_size * dtype.itemsize  # decoded
        self._stored_dtype = dtype
        self._codecs = codecs
        self._fill = fill_value
        self._is_sharded = shard_size is not None
        self._shard_size = shard_size or chunk_size
        self._index_at_start = index_at_start
        self._shard_indexes: dict[int, Array] = {}
        self.work_bytes = finding_bytes
        if self._is_sharded:  # the indexes remembered, and one as it is read
            n_chunks = self._shard_size // chunk_size
            self.work_bytes += (_MOST_INDEXES + 2) * _INDEX_BYTES * n_chunks
        if codecs or not dtype.isnative:  # encoded, what codecs put out, decoded
            self.work_bytes += codecs.most_encoded_bytes + codecs.n_buffers * self.chunk_bytes

    @abstractmethod
    def find(self, number: int) -> Encoded | None:
        """Return a chunk (or shard) by its number, or None if it is certain that there is none."""

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent = []
        for a, b in cut_spans(start, stop, self.chunk_size):
            target = out[a - start : b - start]
            try:
                present = self._read_span(a, b, target)
            except DECODE_ERRORS as error:
                check_access(error, f"chunk {self.key_of(a)} of {self.name}")
                raise DamagedGraphError(
                    f"chunk {self.key_of(a)} of {self.name} does not decode: {error}. The store is "
                    "damaged there; copy it again from where it came, or write it again."
                ) from error
            if not present:
                if self._fill:
                    raise DamagedGraphError(
                        f"chunk {self.key_of(a)} of {self.name} is missing from the store, and its "
                        f"fill value is {self._fill!r}, not 0; write the store again."
                    )
                target[:] = 0
                absent.append((a, b))
        return absent

    def begin_reading(self, start: int, stop: int) -> None:
        """See `StoredArray.begin_reading`."""
        for number in range(start // self._shard_size, -(-stop // self._shard_size)):
            with suppress(*DECODE_ERRORS):
                found = self.find(number)
                if found is not None:
                    with closing(found):
                        found.begin_reading()

    def _read_span(self, a: int, b: int, target: Array) -> bool:
        """Read values of one chunk; False if the chunk is not there."""
        found = self.find(a // self._shard_size)
        if found is None:
            return False
        try:
            return self.read_found(found, a, b, target)
        except FileNotFoundError:
            return False
        finally:
            found.close()

    def read_found(self, found: Encoded, a: int, b: int, target: Array) -> bool:
        """Read values of one chunk in what was found; False if it turns out not to be there."""
        if not self._is_sharded:
            self._decode(found, None, a, b, target)
            return True
        place = self._place(found, a)
        if place is None:  # the writer noted in the shard that all of it is fill value
            target[:] = self._fill or 0
        else:
            self._decode(found, place, a, b, target)
        return True

    def _place(self, shard: Encoded, at: int) -> Span | None:
        """Return offset and length of the chunk of value `at` in its shard; None if unwritten."""
        n = self._shard_size // self.chunk_size
        number = at // self._shard_size
        index = self._shard_indexes.get(number)
        if index is None:
            index = self._read_shard_index(shard, n)
            if len(self._shard_indexes) >= _MOST_INDEXES:
                self._shard_indexes.clear()
            self._shard_indexes[number] = index
        offset, length = (int(v) for v in index[at // self.chunk_size % n])
        if offset == _EMPTY and length == _EMPTY:
            return None
        if shard.size is not None and offset + length > shard.size:
            raise ChunkError(
                f"its shard has {shard.size} bytes, but it should end at {offset + length}"
            )
        return offset, length

    def _read_shard_index(self, shard: Encoded, n: int) -> Array:
        n_bytes = _INDEX_BYTES * n + 4
        if shard.size is not None and shard.size < n_bytes:
            raise ChunkError(f"its shard has {shard.size} bytes, fewer than its index of {n_bytes}")
        out = np.empty(n_bytes, np.uint8)
        shard.fill(out, 0 if self._index_at_start else -n_bytes)
        raw = out.tobytes()
        if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise ChunkError("the checksum of its shard's index does not match")
        return np.frombuffer(raw[:-4], "<u8").reshape(n, 2)

    def _decode(self, found: Encoded, place: Span | None, a: int, b: int, target: Array) -> None:
        """Decode a chunk that is a whole object, or has a place (offset, length) in its shard."""
        first = a % self.chunk_size
        length = found.size if place is None else place[1]
        codecs = self._codecs.without(found.mask) if found.mask else self._codecs
        if not codecs:
            if length is not None and length != self.chunk_bytes:
                raise ChunkError(f"it has {length} bytes, not {self.chunk_bytes}")
            begin = (0 if place is None else place[0]) + first * self.dtype.itemsize
            found.fill(target.view(np.uint8), begin)
            if not self._stored_dtype.isnative:
                target.byteswap(inplace=True)
            return
        codecs.check_encoded(length)
        if place is None:
            encoded = found.whole()
            codecs.check_encoded(encoded.size)
        else:
            encoded = buffers.take("encoded chunk", place[1], np.uint8)
            found.fill(encoded, place[0])
        if b - a == self.chunk_size and self._stored_dtype.isnative:
            codecs.decode(encoded, target.view(np.uint8))
            return
        decoded = buffers.take("decoded chunk", self.chunk_size, self._stored_dtype)
        codecs.decode(encoded, decoded.view(np.uint8))
        target[:] = decoded[first : first + b - a]
