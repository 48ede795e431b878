"""Folders that are shown to readers as a whole: made in a hidden folder beside, then renamed.

Where an older one is replaced, both change places in one step of the file system, so that a reader
finds the old one or the new one, whatever happens. A file system that cannot do this gets the old
one moved away first.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError
from ..machine.files import absolute, fsync_folder, named_disk_errors
from ..machine.folders import check_no_link, remove
from ..machine.interrupts import holding
from .work_folder import WORK_FOLDER, WorkFolder

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)

log = logging.getLogger(__name__)


def work_beside(path: Path) -> Path:
    """Return the hidden folder beside a path in which what is shown there is made."""
    path = absolute(path)
    return path.parent / f".{path.name}{WORK_FOLDER}"


class WholeOutput:
    """A folder of this machine that is shown as a whole, held for writing; a context manager.

    It has what an `Output` has. `out_dir` must not be there, or be empty; with `force` it may be
    one that `is_ours` knows, and is replaced. An OutputError says that it is something else.
    """

    upload_bytes = 0

    def __init__(
        self, out_dir: Path, *, force: bool, resume: bool, is_ours: Callable[[Path], bool]
    ) -> None:
        self.out_dir = out_dir
        self.path = absolute(out_dir)
        self.name = str(self.path)
        self.folder = self.path.parent
        self._held = WorkFolder(
            self.folder, str(out_dir), resume=resume, work=work_beside(out_dir).name
        )
        self.work = self._held.path
        self.keep = False
        self._force, self._is_ours = force, is_ours
        self._check()

    def _check(self) -> bool:
        """Return whether something is to be replaced; refuse what must not be."""
        with named_disk_errors(self.folder):
            check_no_link(self.path)
            if not self.path.exists():
                return False
            if self.path.is_dir() and not any(self.path.iterdir()):
                return False
            ours = self.path.is_dir() and self._is_ours(self.path)
        if not ours:
            raise OutputError(
                f"{self.out_dir} is there already, and nothing that may be replaced. Choose "
                "another name, or remove it."
            )
        if not self._force:
            raise OutputError(
                f"{self.out_dir} is there already. Choose another name, or replace it with "
                "`force=True`; the old one stays whole until the new one is complete."
            )
        return True

    def __enter__(self) -> WholeOutput:
        self._held.take()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release(keep=self.keep)

    def publish(self, made: Path) -> None:
        """Show the folder `made`, whose files are durable, to readers."""
        with holding() as hold, named_disk_errors(self.folder):
            fsync_folder(made)
            made.chmod(0o777 & ~_umask())
            replaces = self._check()
            hold.begin()
            if replaces:
                exchange(made, self.path)
            else:
                made.rename(self.path)  # over an empty folder, if there is one
            hold.shown = True
            with suppress(OSError):
                fsync_folder(self.folder)
            if replaces:
                remove(made)


def _umask() -> int:
    """Return the mask of new files' modes, which the system tells only as it is set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def exchange(made: Path, shown: Path) -> None:
    """Let two folders change places."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(made), os.fsencode(shown))
    try:
        failed = libc.renameat2(-100, names[0], -100, names[1], _EXCHANGE)
        number = ctypes.get_errno() if failed else 0
    except AttributeError:  # an old C library
        number = errno.ENOSYS
    if number in _NOT_HERE:
        aside = made.with_name(f"{made.name}.old")
        shown.rename(aside)
        made.rename(shown)
        aside.rename(made)
    elif number:
        raise OSError(number, os.strerror(number), str(shown))
