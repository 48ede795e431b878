"""Folders of this user alone, in places where others may write too.

A folder for temporary files may lie in a shared scratch folder, in ``/tmp``, or in the output
folder of a group. Others may have put a folder of theirs under its name, or a link that leads into
one of ours. So a folder is looked at before anything in it is deleted or believed, and what is
deleted is reached through the folder that was looked at, never through a link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .files import opened

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def check_no_link(folder: Path) -> None:
    """Refuse to write into a folder that is a symbolic link, which may lead anywhere."""
    if folder.is_symlink():
        raise OutputError(
            f"{folder} is a symbolic link; nothing outside the export's folder is replaced. Remove "
            "the link, or export to the folder that should hold the files."
        )


def make_own(folder: Path) -> None:
    """Make a folder of this user alone, if there is none; see `own`."""
    if not folder.is_symlink():
        folder.mkdir(mode=0o700, exist_ok=True)
    with own(folder):
        pass


@contextmanager
def own(folder: Path) -> Iterator[int]:
    """Open a folder of this user, closed to all others, for the length of a ``with``.

    An OutputError says that it is a link or another user's.
    """
    _judge(folder, folder.lstat())
    with opened(folder, _FOLDER) as fd:
        found = os.fstat(fd)
        _judge(folder, found)
        if found.st_mode & 0o077:
            with suppress(OSError):  # a disk without modes
                os.fchmod(fd, 0o700)
        yield fd


def _judge(folder: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        check_no_link(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if found.st_uid != os.geteuid() and found.st_uid != _owner_of_new(folder.parent):
        raise OutputError(
            f"{folder} belongs to another user, who may have an export running. Remove it if not, "
            "or choose another folder: `scratch_dir` names one for temporary files."
        )


def _owner_of_new(folder: Path) -> int | None:
    """Return who owns a new file in a folder: where a disk knows no owners, that is not this user.

    Examples are exFAT, CIFS, and NFS for root. None if no file can be made.
    """
    trial = folder / f".cellgraph-dask-{os.urandom(8).hex()}"
    with suppress(OSError), opened(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600) as fd:
        trial.unlink()
        return os.fstat(fd).st_uid
    return None


def clear(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete all that is in a folder of this user but the names to `keep`."""
    with own(folder) as fd:
        for name in os.listdir(fd):  # noqa: PTH208
            if name not in keep:
                _remove(name, fd)


def remove(folder: Path) -> None:
    """Delete a folder, if it is there and in a folder of this user; errors are ignored."""
    with suppress(OSError, OutputError), own(folder.parent) as fd:
        _remove(folder.name, fd)


def _remove(name: str, inside: int) -> None:
    """Delete a file, link or folder in an open folder, as far as the system lets it."""
    try:
        os.unlink(name, dir_fd=inside)
    except OSError:
        shutil.rmtree(name, ignore_errors=True, dir_fd=inside)


def read_own(path: Path) -> bytes:
    """Return what a file in a folder of this user holds; an OSError if it is a link or pipe."""
    with own(path.parent) as inside:
        return read_plain(path.name, inside)


def read_plain(name: str | Path, inside: int | None = None, most: int = -1) -> bytes:
    """Return the bytes of a file, at most so many; an OSError if it is a link, pipe or device."""
    fd = os.open(name, _FILE, dir_fd=inside)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(name))
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)
