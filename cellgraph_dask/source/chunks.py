"""One-dimensional zarr arrays, chunk by chunk, decoded on the calling thread.

zarr-python reads slices through an event loop and thread pools of its own, which multiply with
Dask's and with the memory of a task. The format of the metadata is published, and so are the
codecs: for the layouts that anndata writes (zarr formats 2 and 3, sharded or not) this module reads
a chunk's bytes, from wherever `objects` finds them, and decodes them straight into the caller's
array.

Unlike zarr it tells which chunks are not in the store at all: zarr reads those as zeros without a
word, whether the writer left them out on purpose or somebody lost them.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import numpy as np

from ..errors import DamagedGraphError, SourceError
from ..machine import buffers
from ..machine.buffers import Array
from .arrays import cut_spans
from .codecs import DECODE_ERRORS, ChunkError, array_codecs
from .objects import Objects, StoredObject
from .zarr_store import ArrayMetadata

_EMPTY = np.iinfo(np.uint64).max  # offset and length of an unwritten chunk in a shard's index
_MOST_INDEXES = 4  # of shards, that are remembered
_INDEX_BYTES = 16  # of a chunk in a shard's index


class ChunkedArray:
    """A 1-d zarr array that is read in slices.

    Parameters
    ----------
    metadata
        What its metadata say.
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

    def __init__(self, metadata: ArrayMetadata, objects: Objects) -> None:
        self._metadata = metadata
        self.name = metadata.path
        (self.size,) = metadata.shape
        self._stored_dtype = metadata.dtype
        self.dtype = self._stored_dtype.newbyteorder("=")
        (self.chunk_size,) = metadata.chunks
        (self._shard_size,) = metadata.shards or metadata.chunks
        self._objects = objects
        self._fill = metadata.fill_value
        if self.chunk_size < 1 or self._shard_size % self.chunk_size:
            raise SourceError(
                f"{self.name} has chunks of {self.chunk_size} values in shards of "
                f"{self._shard_size}; write the matrix again."
            )
        self._codecs = array_codecs(metadata, self.chunk_bytes)
        self._shard_indexes: dict[int, Array] = {}

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return int(self.chunk_size * self.dtype.itemsize)

    @property
    def work_bytes(self) -> int:
        """Most bytes one thread needs to read from this array besides what it reads into."""
        indexes = 0
        if self._is_sharded:  # those remembered, and one as it is read
            indexes = (_MOST_INDEXES + 2) * _INDEX_BYTES * (self._shard_size // self.chunk_size)
        if not self._codecs and self._stored_dtype.isnative:
            return indexes + (0 if self._objects.is_local else 2 * self.chunk_bytes)
        # Encoded, a codec's own output, decoded.
        return indexes + self._codecs.most_encoded_bytes + 2 * self.chunk_bytes

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
            except DECODE_ERRORS as error:
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
        return f"{self._metadata.key_prefix}{at // self._shard_size}"

    def _read_span(self, a: int, b: int, target: Array) -> bool:
        """Read values of one chunk; False if the chunk is not there."""
        stored = self._objects.open(f"{self.name}/{self.key_of(a)}".lstrip("/"))
        if stored is None:
            return False
        try:
            if not self._is_sharded:
                self._decode(stored, None, a, b, target)
            else:
                place = self._place(stored, a)
                if place is None:  # the writer noted in the shard that all of it is fill value
                    target[:] = self._fill or 0
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
            if len(self._shard_indexes) >= _MOST_INDEXES:
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
        return self._metadata.shards is not None

    def _read_shard_index(self, stored: StoredObject, n: int) -> Array:
        n_bytes = _INDEX_BYTES * n + 4
        if stored.size is not None and stored.size < n_bytes:
            raise ChunkError(
                f"its shard has {stored.size} bytes, fewer than its index of {n_bytes}"
            )
        out = np.empty(n_bytes, np.uint8)
        stored.fill(out, 0 if self._metadata.index_at_start else -n_bytes)
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
        """Decode a chunk that is a whole object, or has a place in its shard."""
        first = a % self.chunk_size
        whole = first == 0 and b - a == self.chunk_size
        length = stored.size if place is None else place[1]
        if not self._codecs:
            if length is not None and length != self.chunk_bytes:
                raise ChunkError(f"it has {length} bytes, not {self.chunk_bytes}")
            begin = (0 if place is None else place[0]) + first * self.dtype.itemsize
            stored.fill(target.view(np.uint8), begin)
            if not self._stored_dtype.isnative:
                target.byteswap(inplace=True)
            return
        self._check_length(length)
        if place is None:
            encoded = stored.whole()
            self._check_length(encoded.size)
        else:
            encoded = buffers.take("encoded chunk", place[1], np.uint8)
            stored.fill(encoded, place[0])
        if whole and self._stored_dtype.isnative:
            self._codecs.decode(encoded, target.view(np.uint8))
            return
        decoded = buffers.take("decoded chunk", self.chunk_size, self._stored_dtype)
        self._codecs.decode(encoded, decoded.view(np.uint8))
        target[:] = decoded[first : first + b - a]

    def _check_length(self, length: int | None) -> None:
        if length is not None and length > self._codecs.most_encoded_bytes:
            raise ChunkError(f"it has {length} bytes for {self.chunk_bytes} bytes of values")
