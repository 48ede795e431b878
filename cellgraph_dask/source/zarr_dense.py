"""Arrays of zarr stores with two dimensions: dense matrices, and embeddings.

Their chunks are decoded as those of one-dimensional arrays are: one at a time, to their size and no
further.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ..errors import CellgraphError, DamagedGraphError, SourceError
from ..machine.buffers import Array
from .chunked import ChunkedArray, Encoded
from .codecs import ChunkCodecs, ChunkError
from .layout import told
from .zarr_store import ZarrArray, codecs_of_chunk, stored_dtype


class DenseArray:
    """An array in a zarr store that is sliced as numpy's are; small, picklable if its store is."""

    def __init__(self, node: ZarrArray) -> None:
        self._node = node
        self.shape, self.ndim, self.dtype = node.shape, node.ndim, node.dtype
        self.chunks, self.shards, self.codec = node.chunks, node.shards, node.codec

    def stamp(self) -> str:
        """See `StoredArray`."""
        return self._node.stamp()

    def __getitem__(self, index: Any) -> Array:
        """Return the values at an index of slices without steps; see `StoredArray.read`."""
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        spans = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        out = np.empty([max(b - a, 0) for a, b in spans], self.dtype.newbyteorder("="))
        flat = _flat_chunks(self._node)
        numbers = (
            range(a // size, -(-b // size)) if a < b else range(0)
            for (a, b), size in zip(spans, self.chunks, strict=True)
        )
        for coordinates in product(*numbers):
            corner = [k * size for k, size in zip(coordinates, self.chunks, strict=True)]
            values = flat.chunk(coordinates) if flat is not None else self._by_zarr(corner)
            inside, target = [], []
            for (a, b), first, size in zip(spans, corner, values.shape, strict=True):
                low, high = max(a, first), min(b, first + size)
                inside.append(slice(low - first, high - first))
                target.append(slice(low - a, high - a))
            out[tuple(target)] = values[tuple(inside)]
        return out

    def _by_zarr(self, corner: list[int]) -> Array:
        """Return a chunk that zarr itself decodes."""
        path = self._node.array.path
        extent = tuple(slice(a, a + size) for a, size in zip(corner, self.chunks, strict=True))
        unit = self.shards or self.chunks
        coordinates = tuple(a // size for a, size in zip(corner, unit, strict=True))
        found = self._node.objects.open(_key(self._node, coordinates))
        if found is not None:
            most = 4 * math.prod(unit) * self.dtype.itemsize + 2**16
            try:
                size = found.stored_size()
                if size > most:
                    raise ChunkError(f"it has {size} bytes, too many for its values")
                self._node.check_decoded(found, most)
            except ChunkError as error:
                raise DamagedGraphError(
                    f"the chunk at {corner} of {path} does not decode: {error}. The store is "
                    "damaged there; copy it again from where it came, or write it again."
                ) from error
            finally:
                found.close()
        try:
            return np.asarray(self._node[extent])
        except CellgraphError:
            raise
        except Exception as error:  # of any library that a codec is made with
            raise DamagedGraphError(
                f"the chunk at {corner} of {path} does not decode: {told(error)}. The store is "
                "damaged there; copy it again from where it came, or write it again."
            ) from error


def _key(node: ZarrArray, coordinates: tuple[int, ...]) -> str:
    return f"{node.array.path}/{node.array.metadata.encode_chunk_key(coordinates)}".lstrip("/")


def _flat_chunks(node: ZarrArray) -> _FlatChunks | None:
    """Return the chunks of an array one after the other; None if zarr itself has to read them."""
    node.check_codecs()
    sizes = [*node.chunks, *(node.shards or ())]
    if min(sizes, default=1) < 1 or any(
        s % c for s, c in zip(node.shards or (), node.chunks, strict=False)
    ):
        raise SourceError(
            f"{node.array.path} has chunks of {node.chunks} values in shards of {node.shards}; "
            "write the matrix again."
        )
    dtype = stored_dtype(node)
    codecs = codecs_of_chunk(node.array, dtype, math.prod(node.chunks))
    return _FlatChunks(node, dtype, codecs) if codecs is not None else None


class _FlatChunks(ChunkedArray):
    """All chunks of an array, whole, as if they followed each other; those of a shard together."""

    def __init__(self, node: ZarrArray, dtype: np.dtype[Any], codecs: ChunkCodecs) -> None:
        self._node = node
        unit = node.shards or node.chunks
        self._grid = [max(1, -(-n // size)) for n, size in zip(node.shape, unit, strict=True)]
        self._inside = [u // c for u, c in zip(unit, node.chunks, strict=True)]
        sharding = node.array.metadata.codecs[0] if node.shards else None
        location = getattr(sharding, "index_location", "")
        super().__init__(
            node.array.path, math.prod(self._grid) * math.prod(unit), dtype,
            math.prod(node.chunks), codecs, fill_value=node.array.fill_value,
            shard_size=math.prod(unit) if node.shards else None,
            index_at_start=getattr(location, "value", location) == "start",
        )  # fmt: skip

    def chunk(self, coordinates: tuple[int, ...]) -> Array:
        """Return the values of a chunk, whole."""
        pairs = [divmod(k, n) for k, n in zip(coordinates, self._inside, strict=True)]
        number = np.ravel_multi_index([a for a, _ in pairs], self._grid) * math.prod(self._inside)
        number += np.ravel_multi_index([b for _, b in pairs], self._inside)
        values = self.chunk_at(int(number) * self.chunk_size)
        is_fortran = self._node.zarr_format == 2 and self._node.array.order == "F"
        return values.reshape(self._node.chunks, order="F" if is_fortran else "C")

    def find(self, number: int) -> Encoded | None:
        """See `ChunkedArray`."""
        coordinates = tuple(int(k) for k in np.unravel_index(number, self._grid))
        return self._node.objects.open(_key(self._node, coordinates))

    def key_of(self, at: int) -> str:
        """See `StoredArray`."""
        coordinates = np.unravel_index(at // self._shard_size, self._grid)
        return str(self._node.array.metadata.encode_chunk_key(tuple(int(k) for k in coordinates)))
