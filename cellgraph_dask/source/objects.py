"""The objects of a zarr store, chunk files and metadata, as bytes: in a folder or a zip archive.

zarr's own stores go through an event loop. Here a thread reads what it needs itself: from a file,
or from the place in an archive where a member's bytes lie. `elsewhere` has stores of other kinds.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from ..machine import buffers
from .codecs import ChunkError

Bytes = NDArray[np.uint8]

_MOST_AT_ONCE = 2**30
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")  # of a member of a zip archive


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


class NotAFileError(ChunkError):
    """A pipe, a device or a folder is where a file should be."""


class LocalObjects(Objects, Protocol):
    """All objects of a store on this machine.

    Attributes
    ----------
    path : str
        Of the folder or archive.
    """

    path: str

    def names(self, prefix: str) -> list[str]:
        """Return the names of what is below a prefix, sorted."""


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
        out = buffers.take("encoded chunk", self._size, np.uint8)
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


class _Deflated:
    """A member of a zip archive that is compressed there: it is read as a whole."""

    def __init__(self, path: str, name: str, size: int) -> None:
        self.size: int | None = size
        self._path = path
        self._name = name

    @cached_property
    def _content(self) -> Bytes:
        try:
            with zipfile.ZipFile(self._path) as archive:
                return np.frombuffer(archive.read(self._name), np.uint8)
        except zipfile.BadZipFile as error:
            raise ChunkError(str(error)) from error

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

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, key: str) -> Extent | None:
        """Open the file of an object."""
        try:  # a pipe would wait for ever
            fd = os.open(f"{self.path}/{key}", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise NotAFileError("it is not a file")
        return Extent(fd, 0, status.st_size)

    def names(self, prefix: str) -> list[str]:
        """Return the names in a folder of it."""
        return sorted(entry.name for entry in Path(self.path, prefix).iterdir())


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

    def __init__(self, path: str) -> None:
        self.path = path
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
        if member.deflated:
            return _Deflated(self.path, key, member.n_bytes)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            header = os.pread(fd, _LOCAL_HEADER.size, member.header)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise ChunkError("the zip archive is damaged: no member begins where one should")
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            begin = member.header + _LOCAL_HEADER.size + name_length + extra_length
            return Extent(fd, begin, member.size, member.checksum)
        except BaseException:
            os.close(fd)
            raise

    def names(self, prefix: str) -> list[str]:
        """Return the names of what is below a prefix."""
        begin = f"{prefix}/" if prefix else ""
        return sorted(
            {n[len(begin) :].partition("/")[0] for n in self._members if n.startswith(begin)}
        )
