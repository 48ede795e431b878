"""The objects of a zarr store, chunk files and shards, as bytes: in a folder, a zip, or elsewhere.

zarr's own stores go through an event loop. Here a thread reads what it needs itself: from a file,
from the place in a zip archive where a member's bytes lie, or, for stores on other machines, with
one request that is tried again when it fails.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from . import workspace
from .chunk_codecs import ChunkError
from .errors import SourceError

Bytes = NDArray[np.uint8]

_MOST_AT_ONCE = 2**30
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")  # of a member of a zip archive
_WAITS = (0.1, 0.5, 2.0)  # seconds before a request is tried again


class StoredObject(Protocol):
    """One object of a store, open for reading.

    Attributes
    ----------
    size : int or None
        Its bytes, if they are known without reading it.
    """

    size: int | None

    def whole(self) -> Bytes:
        """Return all of its bytes; they belong to this thread until its next object.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        """

    def fill(self, out: Bytes, offset: int) -> None:
        """Fill `out` with the bytes from `offset` on; from the end, if that is negative."""

    def close(self) -> None:
        """Let go of it."""


class Objects(Protocol):
    """All objects of a store."""

    is_local: bool

    def open(self, key: str) -> StoredObject | None:
        """Return an object, or None if it is certain that there is none."""


def objects_of(store: Store) -> Objects:
    """Return the objects of a zarr store."""
    if isinstance(store, LocalStore):
        return Folder(Path(store.root))
    if isinstance(store, ZipStore):
        return Archive(Path(store.path))
    return Elsewhere(store)


class Extent:
    """An object that is a stretch of a file."""

    def __init__(self, fd: int, begin: int, size: int, checksum: int | None = None) -> None:
        self.size: int | None = size
        self._fd = fd
        self._begin = begin
        self._size = size
        self._checksum = checksum

    def whole(self) -> Bytes:
        """Return all of its bytes; see `StoredObject.whole`."""
        out = workspace.take("encoded chunk", self._size, np.uint8)
        self.fill(out, 0)
        return out

    def fill(self, out: Bytes, offset: int) -> None:
        """Fill `out` from `offset` on; see `StoredObject.fill`."""
        if offset < 0:
            offset += self._size
        if offset < 0 or offset + out.size > self._size:
            raise ChunkError(f"it has {self._size} bytes, but should end at {offset + out.size}")
        is_whole = offset == 0 and out.size == self._size
        view = out.data
        offset += self._begin
        while view:
            n = os.preadv(self._fd, [view[:_MOST_AT_ONCE]], offset)
            if n == 0:
                raise ChunkError("its file ends too early")
            view = view[n:]
            offset += n
        if is_whole and self._checksum is not None and isal_zlib.crc32(out) != self._checksum:
            raise ChunkError("its checksum in the zip archive does not match")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class _InMemory:
    """An object that has been read as a whole."""

    def __init__(self, content: Bytes) -> None:
        self.size: int | None = content.size
        self._content = content

    def whole(self) -> Bytes:
        return self._content

    def fill(self, out: Bytes, offset: int) -> None:
        if offset < 0:
            offset += self._content.size
        part = self._content[max(offset, 0) : offset + out.size]
        if part.size != out.size:
            raise ChunkError(
                f"it has {self._content.size} bytes, but should end at {offset + out.size}"
            )
        out[:] = part

    def close(self) -> None:
        pass


class Folder:
    """The objects of a store that is a folder: its files."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, key: str) -> Extent | None:
        """Open the file of an object."""
        try:  # a pipe would wait for ever
            fd = os.open(f"{self._root}/{key}", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ChunkError("it is not a file")
        return Extent(fd, 0, status.st_size)


class _Member(NamedTuple):
    header: int
    size: int
    n_bytes: int
    deflated: bool
    checksum: int


class Archive:
    """The objects of a store that is a zip archive.

    Parameters
    ----------
    path
        The archive. Its directory is read once; the members' bytes are read without any lock.
    """

    is_local = True

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._members = {
                member.filename: _Member(
                    member.header_offset,
                    member.compress_size,
                    member.file_size,
                    member.compress_type != zipfile.ZIP_STORED,
                    member.CRC,
                )
                for member in archive.infolist()
                if not member.is_dir()
            }

    def open(self, key: str) -> StoredObject | None:
        """Open a member."""
        member = self._members.get(key)
        if member is None:
            return None
        fd = os.open(self._path, os.O_RDONLY)
        try:
            if member.deflated:
                with os.fdopen(os.dup(fd), "rb") as file, zipfile.ZipFile(file) as archive:
                    content = np.frombuffer(archive.read(key), np.uint8)
                os.close(fd)
                return _InMemory(content)
            header = os.pread(fd, _LOCAL_HEADER.size, member.header)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise ChunkError("the zip archive is damaged: no member begins where one should")
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            begin = member.header + _LOCAL_HEADER.size + name_length + extra_length
            return Extent(fd, begin, member.size, member.checksum)
        except zipfile.BadZipFile as error:
            os.close(fd)
            raise ChunkError(str(error)) from error
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise


class Elsewhere:
    """The objects of any other zarr store: on other machines, or in memory."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, key: str) -> _Requested:
        """Return an object; whether it exists is seen when it is read."""
        return _Requested(self._store, key)


class _Requested:
    """An object that is read by requests to its store."""

    def __init__(self, store: Store, key: str) -> None:
        self.size: int | None = None
        self._store = store
        self._key = key

    def whole(self) -> Bytes:
        return self._get(None)

    def fill(self, out: Bytes, offset: int) -> None:
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

    def _get(self, request: Any) -> Bytes:
        prototype = default_buffer_prototype()
        for wait in (*_WAITS, None):
            try:
                buffer = sync(self._store.get(self._key, prototype, request))
            except Exception as error:  # of any library that a store is made with
                if wait is None:
                    raise SourceError(
                        f"{self._key} cannot be read from {self._store}: {type(error).__name__}: "
                        f"{error}. Look at the connection and the storage options, and try again."
                    ) from error
                time.sleep(wait)
                continue
            if buffer is None:
                raise FileNotFoundError(self._key)
            return np.asarray(buffer.as_numpy_array()).view(np.uint8)
        raise AssertionError

    def close(self) -> None:
        pass
