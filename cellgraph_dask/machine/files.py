"""Bytes to and from disk: whole writes, whole reads, fsync, and full disks named."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from zlib_ng import zlib_ng

from ..errors import DiskSpaceError, OutputError
from . import buffers
from .buffers import Array
from .memory import format_bytes, machine_memory

_MOST_AT_ONCE = 2**30  # Linux moves at most 2 GiB - 4 KiB in one call
_PAST_CACHE_BYTES = 1 << 21  # written at once past the cache, in
_BLOCK = 1 << 12  # … blocks, which disks take whole
MANY = 32  # files that are written, if nobody knows how many
_FULL = {errno.ENOSPC, errno.EDQUOT}

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _bytes_of(data: Array | bytes | memoryview) -> memoryview:
    """Return a flat view of the bytes of an array, which must be contiguous, or of bytes."""
    if isinstance(data, (bytes, memoryview)):
        return memoryview(data)
    return data.data.cast("B") if data.size else memoryview(b"")


class FullError(OSError):
    """A write that found no room: bytes that were still to be written, and those that were free."""

    needed = 0
    free = 0


def _full(error: OSError, fd: int, needed: int) -> FullError:
    """Return an error that also tells the file, and how much room there was and should be."""
    path = None
    with suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    full = FullError(error.errno, error.strerror, path)
    full.needed, full.free = needed, _available(os.fstatvfs(fd))
    return full


def write_at(fd: int, data: Array | bytes | memoryview, offset: int) -> int:
    """Write all of `data` to `fd` at `offset` and return the offset after it.

    Where the disk or the quota is used up, a FullError is raised.
    """
    view = _bytes_of(data)
    while view:
        try:
            n = os.pwrite(fd, view[:_MOST_AT_ONCE], offset)
        except OSError as error:
            if error.errno in _FULL:
                raise _full(error, fd, len(view)) from error
            raise
        view = view[n:]
        offset += n
    return offset


def write_new(fd: int, parts: Sequence[Array], n_files: int = MANY) -> tuple[int, int]:
    """Write contiguous arrays to a new file; return its size and the CRC-32 of its bytes.

    If `n_files` such files take half of the memory that this process may use, it goes past the
    system's cache: they would not stay there, but drive out what is read ahead. That takes a
    buffer, `NEW_FILE_BYTES`.
    """
    n_bytes = sum(part.nbytes for part in parts)
    if n_bytes >= _PAST_CACHE_BYTES and n_bytes * n_files > machine_memory() // 2:
        return _write_past_cache(fd, parts)
    offset = crc = 0
    for part in parts:
        crc = zlib_ng.crc32(_bytes_of(part), crc)
        offset = write_at(fd, part, offset)
    return offset, crc


NEW_FILE_BYTES = _PAST_CACHE_BYTES + _BLOCK


def _write_past_cache(fd: int, parts: Sequence[Array]) -> tuple[int, int]:
    """Do what `write_new` does, past the cache: whole blocks, and then the rest through it.

    File systems that have no such way take all of it through the cache.
    """
    room = buffers.take("past cache", NEW_FILE_BYTES, np.uint8)
    room = room[-room.ctypes.data % _BLOCK :][:_PAST_CACHE_BYTES]
    _pass_cache(fd, True)
    offset = filled = crc = 0
    for part in parts:
        flat = part.view(np.uint8)
        while flat.size:
            n = min(flat.size, room.size - filled)
            room[filled : filled + n] = flat[:n]
            flat, filled = flat[n:], filled + n
            if filled == room.size:
                crc = zlib_ng.crc32(room.data, crc)
                offset, filled = _write_blocks(fd, room, offset), 0
    _pass_cache(fd, False)
    rest = room[:filled].data
    return write_at(fd, rest, offset), zlib_ng.crc32(rest, crc)


def _write_blocks(fd: int, room: Array, offset: int) -> int:
    try:
        return write_at(fd, room, offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    _pass_cache(fd, False)  # its blocks are larger, say
    return write_at(fd, room, offset)


def _pass_cache(fd: int, past: bool) -> None:
    """Have an open file written past the cache from now on, or not, if its file system can."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT * past)


def begin_writeback(fd: int, start: int, stop: int) -> None:
    """Have the system write a stretch of a file to disk from now on, without waiting for it.

    It only saves time, for the fsync at the end and for a cgroup whose memory is full of pages to
    be written. Where it cannot be asked for (it is Linux's ``sync_file_range``), nothing is done.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def begin_reading(fd: int, start: int, stop: int) -> None:
    """Have the system read a stretch of a file from now on, without waiting for it.

    Many small stretches then come at once, instead of each when the one before it is there. It only
    saves time: where the system does not take the advice, nothing is done.
    """
    if stop > start:
        with suppress(OSError):
            os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_WILLNEED)


def append(fd: int, data: bytes) -> None:
    """Write all of `data` to the end of a file that nobody else writes."""
    write_at(fd, data, os.fstat(fd).st_size)


def read_at(fd: int, out: Array, offset: int) -> None:
    """Fill `out` from `fd` at `offset`; an EOFError if the file ends before."""
    view = _bytes_of(out)
    while view:
        n = os.preadv(fd, [view[:_MOST_AT_ONCE]], offset)
        if n == 0:
            raise EOFError(f"the file ends at byte {offset}")
        view = view[n:]
        offset += n


def absolute(path: Path) -> Path:
    """Return the absolute path; an OutputError if there is no working directory any more."""
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} is in the working directory, which has been deleted. Change to another folder "
            "(cd), or give absolute paths."
        ) from error


def take_lock(fd: int) -> OSError | None:
    """Lock an open file as long as it is open; return what a disk says that has no locks.

    A BlockingIOError says that another process holds the lock.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(errno.EWOULDBLOCK, error.strerror) from None
        return error
    return None


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were not there, deepest first."""
    missing = [path for path in (folder, *folder.parents) if not os.access(path, os.F_OK)]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
    return missing


@contextmanager
def opened(path: str | Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    """Open a file or folder for the length of a ``with``."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def write_aside(path: Path, text: str, *, aside: Path) -> None:
    """Write what is to replace `path` to `aside`, durably and with the mode of `path`."""
    aside.unlink(missing_ok=True)
    with opened(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW) as fd:
        write_at(fd, text.encode(), 0)
        os.fsync(fd)
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            aside.chmod(status.st_mode & 0o7777)


def is_readable(path: Path, folder: Path) -> bool:
    """Return whether a file may be read: no pipe or device, nor a link out of a folder.

    What is not there at all, or not to be looked at, is left to whoever opens it.
    """
    try:
        mode = path.stat().st_mode
        return stat.S_ISREG(mode) and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return not os.path.islink(path)  # noqa: PTH114 (which raises where it may not look)


def nearest(path: Path) -> Path:
    """Return a path, or the nearest of its parents that is there and may be looked at."""
    path = absolute(path)
    return next((p for p in (path, *path.parents) if os.access(p, os.F_OK)), path)


def _disk_of(path: Path) -> os.statvfs_result:
    """Return the figures of the disk of a path, or of its nearest parent that is there."""
    return os.statvfs(nearest(path))


def _available(disk: os.statvfs_result) -> int:
    return disk.f_bavail * disk.f_frsize


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the disk of `folder`."""
    return _available(_disk_of(folder))


@contextmanager
def named_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's refusals to write below `folder` into our own errors.

    What is raised is a DiskSpaceError if the disk, the quota or the inodes are used up, else an
    OutputError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskSpaceError(_no_room(folder, error)) from error
        name = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"cannot write to {folder}: {error.strerror}{name}.") from error


def _no_room(folder: Path, error: OSError) -> str:
    """Say what a disk lacks: path, needed and free."""
    remedy = "Free some space, or name another disk for temporary files with `scratch_dir`."
    if isinstance(error, FullError):
        where = os.fsdecode(error.filename or folder)
        return (
            f"the disk of {folder} is full: {format_bytes(error.free)} are free, but "
            f"{format_bytes(error.needed)} or more are needed ({where}). {remedy}"
        )
    disk = _disk_of(Path(os.fsdecode(error.filename or folder)))
    files = f", and room for {disk.f_favail} more files (inodes)" if disk.f_files else ""
    return (
        f"the disk of {folder} is full: {format_bytes(_available(disk))} are free{files}, but "
        f"another file is needed ({error.filename or folder}). {remedy}"
    )


def this_process() -> str:
    """Return number and machine of this process, for others that find its files."""
    return f"process {os.getpid()} on {os.uname().nodename}"
