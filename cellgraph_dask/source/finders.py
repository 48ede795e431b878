"""Where the bytes of chunks are: in files of their own, in the members of a zip archive.

A thread reads what it needs itself, by the offset in a file, without locks or event loops.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from zlib_ng import zlib_ng

from ..machine import buffers
from ..machine.buffers import Array
from .chunked import Encoded, Finder
from .codecs import ChunkError, inflate

_MOST_AT_ONCE = 2**30
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_LOCAL_HEADER = 30  # bytes of the header before a member of a zip archive, without name and extra

_here = threading.local()  # what this thread has unpacked last


class NotAFileError(ChunkError):
    """A pipe, a device or a folder is where a file should be."""


class Objects(Protocol):
    """All objects of a zarr store, by their keys; small and picklable.

    Attributes
    ----------
    is_local : bool
        Whether they are in files of this machine.
    """

    is_local: bool

    def open(self, key: str) -> Encoded | None:
        """Return an object, or None if it is certain that there is none."""

    def work_bytes(self, prefix: str) -> int:
        """Upper bound on the memory that a thread needs to unpack what is below a prefix."""

    def files(self, prefix: str) -> Iterator[Path]:
        """Yield the files that hold what is below a prefix."""


class LocalObjects(Objects, Protocol):
    """All objects of a zarr store on this machine.

    Attributes
    ----------
    path : str
        Of the folder or archive.
    """

    path: str

    def names(self, prefix: str) -> list[str]:
        """Return the names of what is directly below a prefix, sorted."""


class ObjectFinder(Finder):
    """Finds the chunks of a zarr array; see `chunked.Finder`.

    Parameters
    ----------
    objects
        Those of the store.
    path
        Of the array in the store.
    key_prefix
        What the number of a chunk follows in its key.
    """

    def __init__(self, objects: Objects, path: str, key_prefix: str) -> None:
        self._objects = objects
        self._path = path
        self._key_prefix = key_prefix
        self.is_local = objects.is_local
        self.work_bytes = objects.work_bytes(f"{path}/")

    def find(self, number: int) -> Encoded | None:
        """See `chunked.Finder`."""
        return self._objects.open(f"{self._path}/{self.key_of(number)}".lstrip("/"))

    def key_of(self, number: int) -> str:
        """See `chunked.Finder`."""
        return f"{self._key_prefix}{number}"

    def files(self) -> Iterator[Path]:
        """See `chunked.Finder`."""
        return self._objects.files(self._path)


class Extent(Encoded):
    """A stretch of a file; see `chunked.Encoded`.

    Parameters
    ----------
    fd
        The file; it is closed with the stretch.
    begin, size
        Where it begins, and its bytes.
    checksum
        The CRC-32 of all of it, if known.
    mask
        See `chunked.Encoded`.
    """

    def __init__(
        self, fd: int, begin: int, size: int, checksum: int | None = None, mask: int = 0
    ) -> None:
        self.size = size
        self.mask = mask
        self._fd = fd
        self._begin = begin
        self._size = size
        self._checksum = checksum

    def whole(self) -> Array:
        """See `chunked.Encoded`."""
        out = buffers.take("encoded chunk", self._size, np.uint8)
        self.fill(out, 0)
        return out

    def fill(self, out: Array, offset: int) -> None:
        """See `chunked.Encoded`."""
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
        if is_whole and self._checksum is not None and zlib_ng.crc32(out) != self._checksum:
            raise ChunkError("its checksum in the zip archive does not match")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Packed(Encoded):
    """A member of a zip archive that is compressed there; see `chunked.Encoded`.

    It has no random access. Where parts are asked for, as of a shard, the thread keeps the whole of
    it until it unpacks another, so that it is not unpacked again for each chunk.

    Parameters
    ----------
    stored
        Its bytes as they are in the archive.
    info
        What the archive's directory says of it.
    archive
        Path of the archive.
    """

    def __init__(self, stored: Extent, info: zipfile.ZipInfo, archive: str) -> None:
        self.size = info.file_size
        self._stored = stored
        self._info = info
        self._name = (archive, info.filename, info.header_offset, info.CRC)

    def whole(self) -> Array:
        """See `chunked.Encoded`."""
        return self._unpack(buffers.take("unpacked member", self._info.file_size, np.uint8))

    def _unpack(self, out: Array) -> Array:
        inflate(self._stored.whole(), out)
        if zlib_ng.crc32(out) != self._info.CRC:
            raise ChunkError("its checksum in the zip archive does not match")
        return out

    def fill(self, out: Array, offset: int) -> None:
        """See `chunked.Encoded`."""
        size = self._info.file_size
        begin = offset + size if offset < 0 else offset
        if begin < 0 or begin + out.size > size:
            raise ChunkError(f"it has {size} bytes, but should end at {begin + out.size}")
        name, content = getattr(_here, "last", (None, None))
        if content is None or name != self._name:
            _here.last = (None, None)  # let go of it before asking for more
            content = self._unpack(np.empty(size, np.uint8))
            _here.last = (self._name, content)
        out[:] = content[begin : begin + out.size]

    def close(self) -> None:
        """Close the file."""
        self._stored.close()


class Folder:
    """The objects of a store that is a folder: its files."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, key: str) -> Extent | None:
        """Open the file of an object.

        Raises
        ------
        NotAFileError
            If something else is there.
        """
        try:  # without O_NONBLOCK, a pipe would wait forever
            fd = os.open(f"{self.path}/{key}", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise NotAFileError("it is not a file")
        return Extent(fd, 0, status.st_size)

    def names(self, prefix: str) -> list[str]:
        """See `LocalObjects`."""
        return sorted(entry.name for entry in Path(self.path, prefix).iterdir())

    def work_bytes(self, prefix: str) -> int:
        """See `Objects`."""
        return 0

    def files(self, prefix: str) -> Iterator[Path]:
        """See `Objects`."""
        for folder, folders, names in os.walk(Path(self.path, prefix)):
            folders.sort()
            for name in sorted(names):
                yield Path(folder, name)


class Archive:
    """The objects of a store that is a zip archive: its members.

    Its directory is read once, in each process; members are read without any lock.
    """

    is_local = True

    def __init__(self, path: str) -> None:
        self.path = path

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
        if info.flag_bits & 1 or info.compress_type not in (_STORED, _DEFLATED):
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
        if info.compress_type == _STORED:
            return Extent(fd, begin, info.compress_size, info.CRC)
        return Packed(Extent(fd, begin, info.compress_size), info, self.path)

    def work_bytes(self, prefix: str) -> int:
        """See `Objects`."""
        packed = (
            info.file_size + info.compress_size
            for name, info in self.members.items()
            if info.compress_type != _STORED and name.startswith(prefix)
        )
        return max(packed, default=0)

    def names(self, prefix: str) -> list[str]:
        """See `LocalObjects`."""
        begin = f"{prefix}/" if prefix else ""
        return sorted(
            {n[len(begin) :].partition("/")[0] for n in self.members if n.startswith(begin)}
        )

    def files(self, prefix: str) -> Iterator[Path]:
        """See `Objects`."""
        yield Path(self.path)
