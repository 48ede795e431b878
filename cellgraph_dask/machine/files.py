"""Bytes to and from disk: whole writes, whole reads, fsync, and full disks named."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DiskSpaceError, OutputError
from .buffers import Array
from .memory import format_bytes

_MOST_AT_ONCE = 2**30  # Linux moves at most 2 GiB - 4 KiB in one call
_FULL = {errno.ENOSPC, errno.EDQUOT}

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _bytes_of(data: Array | bytes) -> memoryview:
    """Return a flat view of the bytes of an array, which must be contiguous, or of bytes."""
    if isinstance(data, bytes):
        return memoryview(data)
    return data.data.cast("B") if data.size else memoryview(b"")


class FullError(OSError):
    """A write that found no room.

    Attributes
    ----------
    needed, free : int
        Bytes that were still to be written, and those that were free.
    """

    needed = 0
    free = 0


def _full(error: OSError, fd: int, needed: int) -> FullError:
    """Return an error that also tells the file, and how much room there was and should be."""
    path = ""
    with suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    full = FullError(error.errno, error.strerror, path or None)
    status = os.fstatvfs(fd)
    full.needed, full.free = needed, status.f_bavail * status.f_frsize
    return full


def write_at(fd: int, data: Array | bytes, offset: int) -> int:
    """Write all of `data` to `fd` at `offset` and return the offset after it.

    Raises
    ------
    FullError
        If the disk or the quota is used up.
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


def begin_writeback(fd: int, start: int, stop: int) -> None:
    """Have the system write a stretch of a file to disk from now on, without waiting for it.

    It only saves time, for the fsync at the end and for a cgroup whose memory is full of pages to
    be written. Where it cannot be asked for (it is Linux's ``sync_file_range``), nothing is done.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def append(fd: int, data: bytes) -> None:
    """Write all of `data` to the end of a file that was opened for appending.

    Raises
    ------
    FullError
        If the disk or the quota is used up.
    """
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError as error:
            if error.errno in _FULL:
                raise _full(error, fd, len(data)) from error
            raise


def read_at(fd: int, out: Array, offset: int) -> None:
    """Fill `out` from `fd` at `offset`.

    Raises
    ------
    EOFError
        If the file ends before.
    """
    view = _bytes_of(out)
    while view:
        n = os.preadv(fd, [view[:_MOST_AT_ONCE]], offset)
        if n == 0:
            raise EOFError(f"the file ends at byte {offset}")
        view = view[n:]
        offset += n


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were not there, deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_text(path: Path, text: str, *, aside: Path) -> None:
    """Replace a small file as a whole: written to `aside`, fsynced, renamed over `path`."""
    write_aside(path, text, aside=aside)
    aside.replace(path)
    fsync_folder(path.parent)


def write_aside(path: Path, text: str, *, aside: Path) -> None:
    """Write what is to replace `path` to `aside`, durably and with the mode of `path`."""
    fd = os.open(aside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o666)
    try:
        write_at(fd, text.encode(), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
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
        return not path.is_symlink()


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the disk of `folder`.

    A folder that is not there yet counts as its nearest parent that is.
    """
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


@contextmanager
def named_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's refusals to write below `folder` into our own errors.

    Raises
    ------
    DiskSpaceError
        If the disk, the quota or the inodes are used up.
    OutputError
        If writing failed in another way.
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
    where = Path(os.fsdecode(error.filename)) if error.filename else folder
    remedy = "Free some space, or name another disk for temporary files with --scratch-dir."
    if isinstance(error, FullError):
        return (
            f"the disk of {folder} is full: {format_bytes(error.free)} are free, but "
            f"{format_bytes(error.needed)} or more are needed ({where}). {remedy}"
        )
    while not where.exists():
        where = where.parent
    status = os.statvfs(where)
    free = format_bytes(status.f_bavail * status.f_frsize)
    files = f", and room for {status.f_favail} more files (inodes)" if status.f_files else ""
    return (
        f"the disk of {folder} is full: {free} are free{files}, but another file is needed "
        f"({error.filename or folder}). {remedy}"
    )


def this_process() -> str:
    """Return number and machine of this process, for others that find its files."""
    return f"process {os.getpid()} on {os.uname().nodename}"
