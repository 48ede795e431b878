"""The objects of zarr stores: files in a folder, members of a zip archive, remote ones.

On this machine a thread reads what it needs itself, by the offset in a file, without locks or event
loops. zarr reads metadata through the same objects, so that what is not a file, or has gigabytes,
is refused before zarr parses it. Of remote stores, a thread asks for what it needs, one object or
part of one at a time, and tries again when that fails.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.remote import is_denied, is_page
from . import stamps
from .chunked import Encoded, Extent, check_crc, first_byte
from .codecs import ChunkError, inflate
from .remote_store import gives_parts

_LOCAL_HEADER = 30  # bytes of the header before a member of a zip archive, without name and extra

# Metadata are read whole, and take ten times their size as Python's objects.
_MOST_METADATA_BYTES = 2**24
_DOCUMENTS = frozenset({"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"})
_WAITS = (0.1, 0.5, 2.0)  # seconds before a request is tried again

# What storages call that which changes with an object. Times are not among it: of some storages
# they are whole seconds.
_VALIDATORS = frozenset({"etag", "generation", "md5hash", "content-md5", "content_md5", "digest"})

_here = threading.local()  # what this thread has unpacked last


class Objects(ABC):
    """All objects of a zarr store, by their keys; small and picklable."""

    @abstractmethod
    def open(self, key: str) -> Encoded | None:
        """Return an object, or None if it is certain that there is none."""

    def work_bytes(self, prefix: str) -> int:
        """Upper bound on a thread's memory for unpacking what is below a prefix."""
        return 0

    @abstractmethod
    def stamp(self, path: str, sample: Sequence[str]) -> str:
        """Return what changes when the array at a path is written again.

        Where not all of its chunks can be looked at, only those of the keys in `sample` are.
        """


class LocalObjects(Objects):
    """All objects of a zarr store on this machine, in a folder or archive at a path."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Return the names of what is directly below a prefix, sorted."""

    def has(self, path: str, name: str) -> bool:
        """Whether there is an object of a name below a path."""
        found = self.open(f"{path}/{name}".lstrip("/"))
        if found is not None:
            found.close()
        return found is not None


class _Packed(Encoded):
    """A member of a zip archive that is compressed there.

    It has no random access. Where parts are asked for, as of a shard, the thread keeps the whole of
    it until it unpacks another, so that it is not unpacked again for each chunk.
    """

    def __init__(self, stored: Extent, info: zipfile.ZipInfo, archive: str) -> None:
        self.size: int = info.file_size
        self._stored = stored
        self._checksum = info.CRC
        self._name = (archive, info.filename, info.header_offset, info.CRC)

    def whole(self) -> Array:
        return self._unpack(buffers.take("unpacked member", self.size, np.uint8))

    def _unpack(self, out: Array) -> Array:
        inflate(self._stored.whole(), out)
        check_crc(out, self._checksum)
        return out

    def fill(self, out: Array, offset: int) -> None:
        first = first_byte(out, offset, self.size)
        name, content = getattr(_here, "last", (None, None))
        if content is None or name != self._name:
            _here.last = (None, None)  # let go of it before asking for more
            content = self._unpack(np.empty(self.size, np.uint8))
            _here.last = (self._name, content)
        out[:] = content[first : first + out.size]

    def close(self) -> None:
        self._stored.close()


class Folder(LocalObjects):
    """The objects of a store that is a folder: its files."""

    def open(self, key: str) -> Extent | None:
        """Open the file of an object; a ChunkError if something else is there."""
        try:  # without O_NONBLOCK, a pipe would wait forever
            fd = os.open(f"{self.path}/{key}", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ChunkError("it is not a file")
        return Extent(fd, 0, status.st_size)

    def names(self, prefix: str) -> list[str]:
        """See `LocalObjects`."""
        return sorted(os.listdir(Path(self.path, prefix)))  # noqa: PTH208

    def stamp(self, path: str, sample: Sequence[str]) -> str:
        """See `Objects`."""
        return stamps.of_folder(f"{self.path}/{path}")


class Archive(LocalObjects):
    """The objects of a store that is a zip archive: its members.

    Its directory is read once, in each process; members are read without any lock.
    """

    def __reduce__(self) -> Any:
        return Archive, (self.path,)  # without the directory

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The members by their names."""
        with zipfile.ZipFile(self.path) as archive:
            return {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def open(self, key: str) -> Encoded | None:
        """Open a member."""
        info = self.members.get(key)
        if info is None:
            return None
        packed = info.compress_type == zipfile.ZIP_DEFLATED
        if info.flag_bits & 1 or not (packed or info.compress_type == zipfile.ZIP_STORED):
            raise ChunkError(
                "it is encrypted in the zip archive, or compressed in another way than deflate"
            )
        fd = os.open(self.path, os.O_RDONLY)
        try:
            head = os.pread(fd, _LOCAL_HEADER, info.header_offset)
            if len(head) < _LOCAL_HEADER or head[:4] != b"PK\3\4":
                raise ChunkError("the zip archive is damaged: no member begins where one should")
            begin = info.header_offset + _LOCAL_HEADER
            begin += int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            if begin + info.compress_size > os.fstat(fd).st_size:
                raise ChunkError("its file ends too early")
        except BaseException:
            os.close(fd)
            raise
        if packed:
            return _Packed(Extent(fd, begin, info.compress_size), info, self.path)
        return Extent(fd, begin, info.compress_size, info.CRC)

    def work_bytes(self, prefix: str) -> int:
        """See `Objects`: the largest member that has to be unpacked."""
        packed = (
            info.file_size + info.compress_size
            for name, info in self.members.items()
            if info.compress_type != zipfile.ZIP_STORED and name.startswith(prefix)
        )
        return max(packed, default=0)

    def names(self, prefix: str) -> list[str]:
        """See `LocalObjects`."""
        begin = f"{prefix}/" if prefix else ""
        return sorted(
            {n[len(begin) :].partition("/")[0] for n in self.members if n.startswith(begin)}
        )

    def stamp(self, path: str, sample: Sequence[str]) -> str:
        """See `Objects`."""
        return stamps.of_file(self.path)


class RemoteObjects(Objects):
    """The objects of a store that is on other machines, or in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.gives_parts = self.gives_ends = True
        self._is_tried = False
        self.kept = threading.local()  # what this thread has got last, as a whole

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.kept = threading.local()

    def open(self, key: str) -> _Requested:
        """Return an object; whether it exists is seen when it is read."""
        return _Requested(self, key)

    def try_parts(self, key: str) -> bool:
        """Return whether parts of objects can be had; `key` is that of a small object to try."""
        if not self._is_tried:
            self.gives_parts, self.gives_ends = sync(gives_parts(self.store, key))
            self._is_tried = True
        return self.gives_parts

    def stamp(self, path: str, sample: Sequence[str]) -> str:
        """See `Objects`: what the storage says of some objects, or their content."""
        keys = list(dict.fromkeys(f"{path}/{key}".lstrip("/") for key in sample))
        files: Any = getattr(self.store, "fs", None)
        with suppress(Exception):  # of any library that a store is made with
            files.invalidate_cache()
            places = [f"{self.store.path}/{key}" for key in keys]
            told = sync(_ask_all(files, places))
            if all(told):
                return " ".join(told)
        found = []
        for key in keys[:: max(1, len(keys) // 2)]:  # the first, a middle and the last one
            try:
                found.append(hashlib.sha256(self.open(key).whole().data).hexdigest())
            except FileNotFoundError:
                found.append("absent")
        return " ".join(found)


async def _ask_all(files: Any, places: Sequence[str]) -> list[str]:
    """Return what a storage says of objects that changes when they do; nothing if it does not."""

    async def ask(place: str) -> str:
        try:
            said = await files._info(place)
        except FileNotFoundError:
            return "absent"
        told = [f"{said[name]}" for name in said if name.lower() in _VALIDATORS]
        return " ".join([f"{said.get('size')}", *told]) if told else ""

    return await asyncio.gather(*map(ask, places))


class _Requested(Encoded):
    """An object that is read by requests to its store."""

    def __init__(self, objects: RemoteObjects, key: str) -> None:
        self._objects = objects
        self._store = objects.store
        self._key = key

    def exists(self) -> bool:
        return bool(self._ask(lambda: self._store.exists(self._key)))

    def stored_size(self) -> int:
        return int(self._ask(lambda: self._store.getsize(self._key))) if self.exists() else 0

    def whole(self) -> Array:
        return self._get(None)

    def fill(self, out: Array, offset: int) -> None:
        if not self._objects.gives_parts:
            content = self._kept()
            first = first_byte(out, offset, content.size)
            out[:] = content[first : first + out.size]
            return
        if offset < 0 and not self._objects.gives_ends:
            offset += int(self._ask(lambda: self._store.getsize(self._key)))
        if offset >= 0:
            request, n_bytes = RangeByteRequest(offset, offset + out.size), out.size
        else:
            request, n_bytes = SuffixByteRequest(-offset), -offset
        content = self._get(request)
        if content.size != n_bytes:
            raise ChunkError(
                f"the server sent {content.size} bytes for the {n_bytes} from byte {offset} on: "
                "the object is too short, or the server does not give parts of objects"
            )
        out[:] = content[: out.size]

    def _kept(self) -> Array:
        """Return the whole object, which the thread keeps until it gets another."""
        kept = self._objects.kept
        if getattr(kept, "key", None) != self._key:
            kept.key = kept.content = None  # let go of it before asking for more
            kept.content, kept.key = self._get(None), self._key
        content: Array = kept.content
        return content

    def _get(self, request: Any) -> Array:
        prototype = default_buffer_prototype()
        buffer = self._ask(lambda: self._store.get(self._key, prototype, request))
        if buffer is None:
            raise FileNotFoundError(self._key)
        content = np.asarray(buffer.as_numpy_array()).view(np.uint8)
        if is_page(content[:64].tobytes()):
            raise SourceError(
                f"{self._key} cannot be read from {self._store}: the server sent a web page in its "
                "place, as some do for files that they do not have. Copy the store to the server "
                "again, or have the server answer 404 for what is not there."
            )
        return content

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Await what a request returns; those that fail are tried again."""
        for wait in (*_WAITS, None):
            try:
                return sync(request())
            except Exception as error:  # of any library that a store is made with
                if is_denied(error):
                    raise SourceError(
                        f"{self._key} cannot be read from {self._store}: access was denied "
                        f"({error}). Storages say so, too, of objects that do not exist, to users "
                        "who may not list them: allow that (s3:ListBucket), or give credentials "
                        "that may read."
                    ) from error
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
        """Return an object or a part of it, or None; a SourceError if zarr should not read it."""
        where = f"{self._objects.path}/{key}"
        try:
            found = self._objects.open(key)
        except ChunkError as error:
            raise SourceError(f"{where}: {error}; write the store again.") from error
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

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return self._objects.has("", key)

    def _refuse(self, *_: Any) -> Any:
        """Refuse: zarr has to find these methods, but only reads here, and by `get`."""
        raise NotImplementedError

    set = delete = list = list_dir = list_prefix = get_partial_values = _refuse


def _bounds(request: Any, size: int) -> tuple[int, int]:
    """Return where the bytes that zarr asks for start and stop."""
    if isinstance(request, RangeByteRequest):
        return min(request.start, size), min(request.end, size)
    if isinstance(request, OffsetByteRequest):
        return min(request.offset, size), size
    if isinstance(request, SuffixByteRequest):
        return max(0, size - request.suffix), size
    return 0, size
