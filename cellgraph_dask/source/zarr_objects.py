"""The objects of zarr stores: those of this machine as zarr reads them, and remote ones.

zarr reads metadata in folders and archives through the same objects as chunks are read (`finders`),
so that what is not a file, or has gigabytes, is refused before zarr parses it. Of remote stores, a
thread asks for what it needs, one object or part of one at a time, and tries again when that fails.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import SourceError
from ..machine.buffers import Array
from .chunked import Encoded
from .codecs import ChunkError
from .finders import LocalObjects, NotAFileError

# Metadata are read whole, and take ten times their size as Python's objects.
_MOST_METADATA_BYTES = 2**24
_DOCUMENTS = frozenset({"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"})
_WAITS = (0.1, 0.5, 2.0)  # seconds before a request is tried again


def has(objects: LocalObjects, path: str, name: str) -> bool:
    """Whether there is an object of a name below a path."""
    found = objects.open(f"{path}/{name}".lstrip("/"))
    if found is not None:
        found.close()
    return found is not None


class RemoteObjects:
    """The objects of a store that is on other machines, or in memory; see `finders.Objects`."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, key: str) -> _Requested:
        """Return an object; whether it exists is seen when it is read."""
        return _Requested(self._store, key)

    def work_bytes(self, prefix: str) -> int:
        """See `finders.Objects`."""
        return 0

    def files(self, prefix: str) -> Iterator[Path]:
        """See `finders.Objects`."""
        yield from ()


class _Requested(Encoded):
    """An object that is read by requests to its store; see `chunked.Encoded`."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key

    def exists(self) -> bool:
        return bool(self._ask(lambda: self._store.exists(self._key)))

    def whole(self) -> Array:
        return self._get(None)

    def fill(self, out: Array, offset: int) -> None:
        request = (
            RangeByteRequest(offset, offset + out.size)
            if offset >= 0
            else SuffixByteRequest(-offset)
        )
        content = self._get(request)
        if offset < 0:
            content = content[: out.size]
        if content.size != out.size:
            raise ChunkError(
                f"{content.size} bytes came for the {out.size} from byte {offset} on; the object "
                "is too short, or its server does not give parts of objects"
            )
        out[:] = content

    def _get(self, request: Any) -> Array:
        prototype = default_buffer_prototype()
        buffer = self._ask(lambda: self._store.get(self._key, prototype, request))
        if buffer is None:
            raise FileNotFoundError(self._key)
        return np.asarray(buffer.as_numpy_array()).view(np.uint8)

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Await what a request returns; those that fail are tried again."""
        for wait in (*_WAITS, None):
            try:
                return sync(request())
            except Exception as error:  # of any library that a store is made with
                if wait is None:
                    raise SourceError(
                        f"{self._key} cannot be read from {self._store}: {type(error).__name__}: "
                        f"{error}. Look at the connection and the storage options, and try again."
                    ) from error
                time.sleep(wait)
        raise AssertionError


class LocalMetadata(Store):  # type: ignore[misc]
    """Objects of this machine, as zarr reads them; metadata up to a size that is believable."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    supports_partial_writes = False

    def __init__(self, objects: LocalObjects) -> None:
        super().__init__(read_only=True)
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalMetadata) and other._objects.path == self._objects.path

    def __str__(self) -> str:
        return self._objects.path

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return an object or a part of it, or None if there is none.

        Raises
        ------
        SourceError
            If it is not a file, or metadata are too large.
        """
        where = f"{self._objects.path}/{key}"
        try:
            found = self._objects.open(key)
        except NotAFileError as error:
            raise SourceError(f"{where} is not a file; write the store again.") from error
        if found is None:
            return None
        try:
            size = found.size or 0
            if key.rpartition("/")[2] in _DOCUMENTS and size > _MOST_METADATA_BYTES:
                raise SourceError(
                    f"{where} has {size:,} bytes; metadata of up to {_MOST_METADATA_BYTES:,} are "
                    "read. Write the store again without such large attributes."
                )
            start, stop = _bounds(byte_range, size)
            content = np.empty(stop - start, np.uint8)
            found.fill(content, start)
        finally:
            found.close()
        return prototype.buffer.from_array_like(content)

    # What follows has to be there; zarr reads metadata with `get`, and chunks that it decodes.

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Return parts of objects; see `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return has(self._objects, "", key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of what is directly below a prefix."""
        for name in self._objects.names(prefix.rstrip("/")):
            yield name

    def list(self) -> Any:
        """Refuse: nothing asks for all keys."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> Any:
        """Refuse: nothing asks for all keys."""
        raise NotImplementedError

    async def set(self, key: str, value: Any) -> None:
        """Refuse: it is for reading."""
        raise PermissionError(key)

    async def delete(self, key: str) -> None:
        """Refuse: it is for reading."""
        raise PermissionError(key)


def _bounds(request: Any, size: int) -> tuple[int, int]:
    """Return where the bytes that zarr asks for start and stop."""
    if isinstance(request, RangeByteRequest):
        return min(request.start, size), min(request.end, size)
    if isinstance(request, OffsetByteRequest):
        return min(request.offset, size), size
    if isinstance(request, SuffixByteRequest):
        return max(0, size - request.suffix), size
    return 0, size
