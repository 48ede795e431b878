"""One-dimensional zarr arrays, chunk by chunk, decoded on the calling thread.

zarr-python reads slices through an event loop and thread pools of its own, which multiply with
Dask's and with the memory of a task. Its metadata is public, and so are the codecs: for the layouts
that anndata writes (zarr formats 2 and 3, sharded or not) this module reads a chunk's bytes, from
wherever `objects` finds them, and decodes them with numcodecs, straight into the caller's array.
Anything else goes through zarr's own slicing.

Unlike zarr it tells which chunks are not in the store at all: zarr reads those as zeros without a
word, whether the writer left them out on purpose or somebody lost them.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, GZip, Zstd
from numcodecs.abc import Codec
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from . import workspace
from .arrays import cut_spans
from .errors import DamagedGraphError
from .objects import ChunkError, Objects, StoredObject, objects_of

Array = NDArray[Any]

_V3_CODECS = {"blosc": Blosc, "gzip": GZip, "zstd": Zstd}
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # versions, flags, typesize, nbytes, blocksize, cbytes
_EMPTY = np.iinfo(np.uint64).max  # offset and length of an unwritten chunk in a shard's index

# What numcodecs' and zarr's codecs raise on damaged bytes.
_DECODE_ERRORS = (
    OSError, ValueError, RuntimeError, EOFError, MemoryError, zlib.error, lzma.LZMAError,
)  # fmt: skip


class ChunkedArray:
    """A 1-d zarr array that is read in slices.

    Parameters
    ----------
    array
        The open zarr array.
    objects
        Those of its store.

    Attributes
    ----------
    name : str
        Path inside the store, as errors name it.
    size : int
        Number of values.
    dtype : numpy.dtype
        Of the values as `read` gives them: native byte order.
    chunk_size : int
        Values in a chunk, the smallest part that can be decoded (inside a shard: its inner chunk).
    """

    def __init__(self, array: zarr.Array, objects: Objects | None = None) -> None:
        self._array = array
        self.name = array.path
        self.size = int(array.shape[0])
        self._stored_dtype = np.dtype(array.dtype)
        self.dtype = self._stored_dtype.newbyteorder("=")
        self.chunk_size = int(array.chunks[0])
        self._shard_size = int(array.shards[0]) if array.shards else self.chunk_size
        self._objects = objects_of(array.store) if objects is None else objects
        self._fill = array.fill_value
        self._codecs = _bytes_codecs(array)
        self._shard_indexes: dict[int, Array] = {}

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return int(self.chunk_size * self.dtype.itemsize)

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs to read from this array besides what it reads into."""
        if self._codecs is None:  # zarr's own slicing: encoded, decoded and joined, whole shards
            return int(4 * self._shard_size * self.dtype.itemsize)
        if not self._codecs and self._stored_dtype.isnative and self._objects.is_local:
            return 0
        return 3 * self.chunk_bytes  # encoded, a codec's own output, decoded

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut ``[start, stop)`` at chunk borders."""
        return cut_spans(start, stop, self.chunk_size)

    def read(self, start: int, stop: int, out: Array) -> list[tuple[int, int]]:
        """Read the values ``[start, stop)`` into `out`.

        Returns
        -------
        list of (int, int)
            Spans of values whose chunk is not in the store; they are read as zeros.

        Raises
        ------
        DamagedGraphError
            If a chunk cannot be read or does not decode; the message names it.
        """
        absent = []
        for a, b in self.spans(start, stop):
            target = out[a - start : b - start]
            try:
                present = self._read_span(a, b, target)
            except _DECODE_ERRORS as error:
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

    def key_of(self, at: int) -> str:
        """Return the store key of the chunk (or shard) that holds value `at`."""
        return str(self._array.metadata.encode_chunk_key((at // self._shard_size,)))

    def _read_span(self, a: int, b: int, target: Array) -> bool:
        """Read values of one chunk; False if the chunk is not there."""
        stored = self._objects.open(f"{self.name}/{self.key_of(a)}".lstrip("/"))
        if stored is None:
            return False
        try:
            if self._codecs is None:
                with zarr.config.set({"threading.max_workers": 1}):
                    target[:] = self._array[a:b]
            elif not self._is_sharded:
                self._decode(stored, None, a, b, target)
            else:
                place = self._place(stored, a)
                if place is None:  # the writer noted in the shard that this chunk is all zeros
                    target[:] = 0
                else:
                    self._decode(stored, place, a, b, target)
        except FileNotFoundError:
            return False
        finally:
            stored.close()
        return True

    def _place(self, stored: StoredObject, at: int) -> tuple[int, int] | None:
        """Return where in its shard the chunk of value `at` is, offset and length; None if not."""
        n = self._shard_size // self.chunk_size
        shard = at // self._shard_size
        index = self._shard_indexes.get(shard)
        if index is None:
            index = self._read_shard_index(stored, n)
            if len(self._shard_indexes) > 4:
                self._shard_indexes.clear()
            self._shard_indexes[shard] = index
        offset, length = (int(v) for v in index[at // self.chunk_size % n])
        if offset == _EMPTY and length == _EMPTY:
            return None
        size = stored.size
        if size is not None and offset + length > size:
            raise ChunkError(f"its shard has {size} bytes, but it should end at {offset + length}")
        return offset, length

    @property
    def _is_sharded(self) -> bool:
        return self._array.shards is not None

    def _read_shard_index(self, stored: StoredObject, n: int) -> Array:
        n_bytes = 16 * n + 4
        if stored.size is not None and stored.size < n_bytes:
            raise ChunkError(
                f"its shard has {stored.size} bytes, fewer than its index of {n_bytes}"
            )
        location = self._array.metadata.codecs[0].index_location
        at_start = getattr(location, "value", location) == "start"
        out = np.empty(n_bytes, np.uint8)
        stored.fill(out, 0 if at_start else -n_bytes)
        raw = out.tobytes()
        if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise ChunkError("the checksum of its shard's index does not match")
        return np.frombuffer(raw[:-4], "<u8").reshape(n, 2)

    def _decode(
        self,
        stored: StoredObject,
        place: tuple[int, int] | None,
        a: int,
        b: int,
        target: Array,
    ) -> None:
        """Decode a chunk that is a whole object, or is at a place in its shard."""
        first = a % self.chunk_size
        whole = first == 0 and b - a == self.chunk_size
        length = stored.size if place is None else place[1]
        assert self._codecs is not None
        if not self._codecs:
            if length is not None and length != self.chunk_bytes:
                raise ChunkError(f"it has {length} bytes, not {self.chunk_bytes}")
            begin = (place[0] if place is not None else 0) + first * self.dtype.itemsize
            stored.fill(target.view(np.uint8), begin)
            if not self._stored_dtype.isnative:
                target.byteswap(inplace=True)
            return
        most = 2 * self.chunk_bytes + 65536
        if length is not None and length > most:
            raise ChunkError(f"it has {length} bytes for {self.chunk_bytes} bytes of values")
        if place is None:
            encoded = stored.whole()
            if encoded.size > most:
                raise ChunkError(
                    f"it has {encoded.size} bytes for {self.chunk_bytes} bytes of values"
                )
        else:
            encoded = workspace.take("encoded chunk", place[1], np.uint8)
            stored.fill(encoded, place[0])
        direct = whole and self._stored_dtype.isnative
        if len(self._codecs) == 1 and isinstance(self._codecs[0], Blosc):
            _check_blosc(encoded, self.chunk_bytes)
            into = (
                target
                if direct
                else workspace.take("decoded chunk", self.chunk_size, self._stored_dtype)
            )
            self._codecs[0].decode(encoded, out=into.view(np.uint8))
            if direct:
                return
            decoded = into
        else:
            data: Any = encoded
            for codec in self._codecs:
                data = codec.decode(data)
            decoded_bytes = np.frombuffer(data, np.uint8)
            if decoded_bytes.size != self.chunk_bytes:
                raise ChunkError(f"it holds {decoded_bytes.size} bytes, not {self.chunk_bytes}")
            decoded = decoded_bytes.view(self._stored_dtype)
        target[:] = decoded[first : first + b - a]


def _check_blosc(encoded: Array, expected: int) -> None:
    """Compare a Blosc header with the chunk, before C code trusts it."""
    if encoded.size < _BLOSC_HEADER.size:
        raise ChunkError(f"it has {encoded.size} bytes, too few for Blosc")
    *_, n_bytes, _blocksize, c_bytes = _BLOSC_HEADER.unpack_from(encoded.data)
    if n_bytes != expected:
        raise ChunkError(f"it holds {n_bytes} bytes, not {expected}")
    if c_bytes != encoded.size:
        raise ChunkError(f"it has {encoded.size} bytes, but says {c_bytes}")


def _bytes_codecs(array: zarr.Array) -> list[Codec] | None:
    """Return the codecs that turn a chunk's file into its values' bytes, in decoding order.

    None if the chunk needs more than that (filters, codecs we do not know): zarr must read it.
    """
    if array.metadata.zarr_format == 2:
        if array.filters:
            return None
        return list(array.compressors)[::-1]
    codecs = array.metadata.codecs
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        index = codecs[0].index_codecs
        if len(index) != 2 or not _is_little(index[0]) or not isinstance(index[1], Crc32cCodec):
            return None
        codecs = codecs[0].codecs
    chain = [codec.to_dict()["name"] for codec in codecs[1:]]
    if not _is_little(codecs[0]) or any(name not in _V3_CODECS for name in chain):
        return None
    return [_V3_CODECS[name]() for name in chain][::-1]


def _is_little(codec: object) -> bool:
    """Tell whether a codec of zarr format 3 writes plain little-endian (or single) bytes."""
    if not isinstance(codec, BytesCodec):
        return False
    return getattr(codec.endian, "value", codec.endian) in ("little", None)
