"""Zarr stores: zarr opens groups and arrays and reads their metadata; chunks are decoded here.

On this machine the metadata themselves, and not the copy that consolidated metadata are, say what
is there.

Arrays whose codecs are not on the list of `codecs` are read by zarr itself, a chunk at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore

from ..errors import CellgraphError, SourceError
from ..machine.buffers import Array
from . import stamps
from .arrays import StoredArray
from .chunked import ChunkedArray, Encoded
from .codecs import ChunkCodecs, ChunkError, chunk_codecs, count_decoded
from .layout import Node, metadata_of, told
from .remote_store import RemoteMetadata
from .zarr_objects import LocalMetadata, LocalObjects, Objects, RemoteObjects

# They stand for values that are no numbers; pickle runs what it reads.
_OBJECT_CODECS = frozenset(
    {"pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize"}
)
_TEXT_CODEC = "vlen-utf8"
_V3_PREFIX = "numcodecs."
_SLICED_CHUNKS = 6  # decoded chunks that zarr holds at once, with what goes between codecs


def open_local(objects: LocalObjects, path: str = "") -> ZarrGroup:
    """Return the group at a path of a store on this machine.

    FileNotFoundError or TypeError if there is no group; of strange metadata, zarr raises anything.
    """
    names = [name for name in ("zarr.json", ".zgroup", ".zarray") if objects.has(path, name)]
    if not names:
        raise FileNotFoundError("it has neither zarr.json nor .zgroup")
    if names == [".zarray"]:
        raise TypeError("it is an array, not a group")
    zarr_format: Any = 3 if "zarr.json" in names else 2
    with _quiet():
        try:
            group = zarr.open_group(
                LocalMetadata(objects), mode="r", path=path, zarr_format=zarr_format,
                use_consolidated=False,
            )  # fmt: skip
        except zarr.errors.ContainsArrayError:
            raise TypeError("it is an array, not a group") from None
    return ZarrGroup(group, objects)


def open_remote(
    store: Store | str, options: dict[str, Any] | None = None, path: str = ""
) -> ZarrGroup:
    """Return the group at a path of a store object, or of the store at a URL.

    Consolidated metadata save requests there. If it cannot be opened, zarr raises anything.
    """
    with _quiet():
        if isinstance(store, str):
            store = FsspecStore.from_url(store, storage_options=options, read_only=True)
        metadata = RemoteMetadata(store)
        try:
            group = zarr.open_group(metadata, mode="r", path=path)
        except Exception as error:
            if not metadata.odd:
                raise
            raise FileNotFoundError("; ".join(metadata.odd)) from error
    return ZarrGroup(group, RemoteObjects(store))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore zarr's warnings about metadata: of codecs and dtypes that others may not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class ZarrGroup:
    """A group that zarr opened, as `layout` looks for a matrix in it."""

    def __init__(self, group: zarr.Group, objects: Objects) -> None:
        self._group = group
        self._objects = objects
        self.zarr_format = int(group.metadata.zarr_format)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes."""
        with metadata_of(self._group.path or "the store"):
            return dict(self._group.attrs)

    def __getitem__(self, path: str) -> Node:
        """Return the group or array at a path.

        A KeyError if nothing is there, a SourceError if its metadata are broken.
        """
        full = f"{self._group.path}/{path}".strip("/")
        with metadata_of(full), _quiet():
            try:
                node = self._group[path]
            except KeyError as error:
                # A field that is missing in the metadata is a KeyError too.
                consolidated = self._group.metadata.consolidated_metadata is not None
                if not consolidated and not isinstance(error.__cause__, FileNotFoundError):
                    raise
                node = None
            if isinstance(node, zarr.Array):
                return ZarrArray(node, self._objects)
        if node is None:
            raise KeyError(path)
        return ZarrGroup(node, self._objects)

    def keys(self) -> list[str]:
        """Return the names of its groups and arrays."""
        path = self._group.path
        objects = self._objects
        if not isinstance(objects, LocalObjects):
            return sorted(self._group.keys())
        nodes = ("zarr.json",) if self.zarr_format == 3 else (".zgroup", ".zarray")
        with metadata_of(path or "the store"):
            return [
                name
                for name in objects.names(path)
                if any(objects.has(f"{path}/{name}", node) for node in nodes)
            ]

    def __contains__(self, name: str) -> bool:
        return name in self.keys()


class ZarrArray:
    """An array of any dimensions in a zarr store; picklable where its store is."""

    def __init__(self, array: zarr.Array, objects: Objects) -> None:
        self.array = array
        self.objects = objects
        self.zarr_format = int(array.metadata.zarr_format)
        self.shape = tuple(array.shape)
        self.ndim = len(self.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.chunks = _chunks_as_stored(array)  # inside shards if it has any
        self.shards = array.shards and tuple(array.shards)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes, which may be anything where nobody asks for them."""
        return dict(self.array.attrs)

    def stamp(self) -> str:
        """Return what changes when it is written again."""
        sizes = zip(self.shape, self.shards or self.chunks, strict=True)
        grid = zip(*(stamps.sampled(max(0, n - 1) // size) for n, size in sizes), strict=True)
        keys = [self.array.metadata.encode_chunk_key(place) for place in grid]
        return self.objects.stamp(self.array.path, keys)

    @property
    def codec(self) -> str | None:
        """What compresses a chunk, such as "blosc (lz4)"; None if nothing does."""
        names = []
        for codec in self.array.compressors:
            name, settings = _said(codec)
            inner = settings.get("cname")
            names.append(f"{name} ({getattr(inner, 'value', inner)})" if inner else name)
        return ", ".join(names) or None

    def __getitem__(self, index: Any) -> Any:
        """Return the values at an index; every reading by zarr comes through here."""
        self.check_codecs()
        return self.array[index]

    def read_small(self, most_bytes: int) -> Any:
        """Return an array of one chunk; a SourceError if so much is stored that it may be a bomb.

        How many bytes a text decodes to is not known beforehand, but no codec makes gigabytes of
        some hundred bytes.
        """
        key = self.array.metadata.encode_chunk_key((0,) * self.ndim)
        found = self.objects.open(f"{self.array.path}/{key}".lstrip("/"))
        if found is not None:
            try:
                size = found.stored_size()
                if size > most_bytes // 4:
                    raise SourceError(f"{self.array.path} has {size} bytes, too many for a name.")
                self.check_decoded(found, most_bytes)
            except ChunkError as error:
                raise SourceError(f"{self.array.path} is not a name: {error}.") from error
            finally:
                found.close()
        return self[()]

    def check_decoded(self, chunk: Encoded, most_bytes: int) -> None:
        """Raise a ChunkError if the outermost codec gives more than that; not for shards."""
        *_, (name, _) = [("", {}), *map(_said, _all_codecs(self.array))]
        if not self.shards and chunk.exists():
            count_decoded(name.removeprefix(_V3_PREFIX), chunk.whole(), most_bytes)

    def check_codecs(self) -> None:
        """Raise a SourceError if a codec runs what it reads, or stands for objects.

        Text may have the one codec of text. zarr looks at the first such codec alone, so all are
        looked at here.
        """
        allowed = {_TEXT_CODEC} if self.dtype.kind in "OTU" else set()
        for name in _codec_names(_all_codecs(self.array)):
            if name in _OBJECT_CODECS - allowed:
                raise SourceError(
                    f"{self.array.path} is encoded with {name!r}, which is not for numbers and may "
                    "run what it reads; it is not decoded. Write the array again as numbers."
                )


def _chunks_as_stored(array: zarr.Array) -> tuple[int, ...]:
    """Return the shape of a chunk; 0 where the metadata say so of an array that has values.

    From 3.4 on, zarr reads 0 as 1, which makes fill values of all that is stored.
    """
    is_changed = getattr(array.metadata, "_stored_document", None) is not None
    sizes = zip(array.chunks, array.shape, strict=True)
    return tuple(int(not n) if is_changed or chunk == 0 else chunk for chunk, n in sizes)


def _said(codec: Any) -> tuple[str, dict[str, Any]]:
    """Return name and settings of a codec of numcodecs (format 2) or zarr (format 3)."""
    if hasattr(codec, "get_config"):
        settings = dict(codec.get_config())
        return str(settings.pop("id")), settings
    said = codec.to_dict()
    return str(said["name"]), dict(said.get("configuration") or {})


def _all_codecs(array: zarr.Array) -> Iterable[Any]:
    if array.metadata.zarr_format == 2:
        return (*array.filters, *array.compressors)
    return tuple(array.metadata.codecs)


def _codec_names(codecs: Iterable[Any]) -> Iterator[str]:
    """Yield the names of codecs, and of those inside shards."""
    for codec in codecs:
        yield _said(codec)[0].removeprefix(_V3_PREFIX)
        yield from _codec_names(getattr(codec, "codecs", ()))
        yield from _codec_names(getattr(codec, "index_codecs", ()))


def stored_array(node: ZarrArray) -> StoredArray:
    """Return a one-dimensional array as blocks are read from it.

    A SourceError, or a ValueError, if it has codecs or chunks that cannot be.
    """
    array, path = node.array, node.array.path
    node.check_codecs()
    if getattr(array.metadata, "storage_transformers", ()):  # zarr passes them over
        raise ValueError("it has storage transformers, which are not known")
    (chunk,) = node.chunks
    (shard,) = node.shards or (None,)
    if chunk < 1 or (shard or chunk) % chunk:
        raise SourceError(
            f"{path} has chunks of {chunk} values in shards of {shard}; write the matrix again."
        )
    dtype = stored_dtype(node)
    codecs = codecs_of_chunk(array, dtype, chunk)
    options = {"fill_value": array.fill_value, "shard_size": shard}
    if codecs is None:
        return SlicedArray(node, node.dtype, ChunkCodecs([], chunk * dtype.itemsize), **options)
    if shard is not None:
        location = array.metadata.codecs[0].index_location
        options["index_at_start"] = getattr(location, "value", location) == "start"
    return _ObjectArray(node, dtype, codecs, **options)


def stored_dtype(node: ZarrArray) -> np.dtype[Any]:
    """Return the dtype of an array's values as they are stored, with their byte order."""
    endian = getattr(node.array.serializer, "endian", None)  # format 2 has no serializer
    is_big = getattr(endian, "value", endian) == "big"
    return node.dtype.newbyteorder(">") if is_big else node.dtype


def codecs_of_chunk(array: zarr.Array, dtype: np.dtype[Any], chunk: int) -> ChunkCodecs | None:
    """Return the codecs of a chunk; None if zarr itself has to read them."""
    n_bytes = chunk * dtype.itemsize
    if array.metadata.zarr_format == 2:
        return chunk_codecs(map(_said, _all_codecs(array)), dtype, n_bytes)
    if array.shards is not None:
        index = [_said(codec) for codec in array.metadata.codecs[0].index_codecs]
        if index != [("bytes", {"endian": "little"}), ("crc32c", {})]:
            return None
    if _said(array.serializer)[0] != "bytes":
        return None
    said: list[tuple[str, Mapping[str, Any]]] = []
    for codec in (*array.filters, *array.compressors):
        name, settings = _said(codec)
        if name in ("blosc", "gzip", "zstd", "crc32c"):
            said.append((name, {}))
        elif name.startswith(_V3_PREFIX):
            said.append((name.removeprefix(_V3_PREFIX), settings))
        elif name != "transpose" or array.ndim > 1:  # in one dimension it changes nothing
            return None
    return chunk_codecs(said, dtype, n_bytes)


class _ObjectArray(ChunkedArray):
    """A stored array whose chunks (or shards) are objects of a zarr store."""

    def __init__(
        self, node: ZarrArray, dtype: np.dtype[Any], codecs: ChunkCodecs, **options: Any
    ) -> None:
        (size,), (chunk,), path = node.shape, node.chunks, node.array.path
        finding, shard = node.objects.work_bytes(f"{path}/"), options.get("shard_size")
        if isinstance(node.objects, RemoteObjects) and (shard or not codecs):
            document = "zarr.json" if node.array.metadata.zarr_format == 3 else ".zarray"
            if not node.objects.try_parts(f"{path}/{document}".lstrip("/")):
                finding += 2 * (shard or chunk) * dtype.itemsize  # all of it, as it comes
            elif not codecs:
                finding += 2 * chunk * dtype.itemsize  # what comes, before it is copied
        super().__init__(path, size, dtype, chunk, codecs, finding_bytes=finding, **options)
        self._objects = node.objects
        self._key_prefix = node.array.metadata.encode_chunk_key((0,)).removesuffix("0")

    def find(self, number: int) -> Encoded | None:
        return self._objects.open(f"{self.name}/{self._key_prefix}{number}".lstrip("/"))

    def key_of(self, at: int) -> str:
        return f"{self._key_prefix}{at // self._shard_size}"

    def stamp(self) -> str:
        numbers = stamps.sampled(max(0, self.size - 1) // self._shard_size)
        return self._objects.stamp(self.name, [f"{self._key_prefix}{k}" for k in numbers])


class SlicedArray(_ObjectArray):
    """A stored array whose chunks zarr decodes, one at a time."""

    def __init__(
        self, node: ZarrArray, dtype: np.dtype[Any], codecs: ChunkCodecs, **options: Any
    ) -> None:
        super().__init__(node, dtype, codecs, **options)
        # What goes into each codec, comes out of it, and zarr's own array; and what is counted.
        self._most_encoded = 4 * self.chunk_bytes + 2**16
        self.work_bytes += _SLICED_CHUNKS * self.chunk_bytes + self._most_encoded + 2**20
        self._node = node

    def read_found(self, found: Encoded, a: int, b: int, target: Array) -> bool:
        """See `ChunkedArray`."""
        if not found.exists():
            return False
        if not self._is_sharded and (found.size or 0) > self._most_encoded:
            raise ChunkError(f"it has {found.size} bytes for {self.chunk_bytes} bytes of values")
        self._node.check_decoded(found, self._most_encoded)
        first = a // self.chunk_size * self.chunk_size
        last = min(first + self.chunk_size, self.size)
        try:
            values = self._node[first:last]
        except CellgraphError:
            raise
        except Exception as error:  # of any library that a codec is made with
            raise ChunkError(told(error)) from error
        if values.dtype.newbyteorder("=") != self.dtype or values.shape != (last - first,):
            raise ChunkError(f"it holds {values.size} values of dtype {values.dtype}")
        target[:] = values[a - first : b - first]
        return True
