"""The hidden folder in which an export is made, and the lock that keeps other exports out of it.

It lies inside the export's own folder, on the same disk, so that what is finished is shown by
renaming. The lock is a file in it; the system releases it when the process that holds it ends, in
whatever way. So a folder that is there without a lock was left by a run that was killed. On a disk
without locks the export goes on without one.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..edge_pairs.format import FOLDER
from ..errors import OutputError
from ..machine.files import make_folders, named_disk_errors, take_lock, this_process
from ..machine.folders import clear, make_own
from ..machine.remote import AnyPath

WORK_FOLDER = ".cellgraph-dask"
_LOCK_ATTEMPTS = 100

log = logging.getLogger(__name__)


class Place(Protocol):
    """Where a result goes, held for writing; a context manager, with a way to publish it."""

    keep: bool  # whether to leave the work folder as it is in the end, for a run that resumes

    @property
    def out_dir(self) -> AnyPath:
        """The folder or URL as the user gave it."""

    @property
    def name(self) -> str:
        """Its absolute path or URL."""

    @property
    def folder(self) -> Path:
        """A folder on the disk of the result."""

    @property
    def work(self) -> Path:
        """The hidden folder in which it is made."""

    @property
    def upload_bytes(self) -> int:
        """Memory that uploading takes."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


class WorkFolder:
    """The work folder of an export; held by one process at a time, from `take` to `release`.

    It is in the export's folder, or in that of files to be uploaded, which messages call `name`;
    of what is shown as a whole, it lies beside, under a name of its own (`work`). If
    that one is `temporary`, so there for this alone, it must be the user's own, and is removed in
    the end if it is empty. With `resume` what a killed run has left in the work folder stays there.
    """

    def __init__(
        self, folder: Path, name: str, *, resume: bool = False, temporary: bool = False,
        work: str = WORK_FOLDER,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.path = folder / work
        self.created: list[Path] = []  # folders that were made, deepest first
        self._name = name
        self.resume = resume
        self._temporary = temporary
        self._own: list[Path] = []  # folders that are ours alone, deepest first
        self._lock = -1

    def take(self) -> None:
        """Make the folder and lock it.

        An OutputError says that another run holds it, it cannot be written, or is another user's.
        """
        with named_disk_errors(self.folder):
            try:
                self._lock = self._take_lock()
                if not self.resume:
                    self._clear()  # what a killed run may have left
                os.truncate(self._lock, 0)
                os.pwrite(self._lock, this_process().encode(), 0)
            except BaseException:
                self.release(keep=self.resume)
                raise

    def release(self, *, keep: bool) -> None:
        """Let others in, if it is held; remove folders that are empty now.

        With `keep` what is in the work folder stays, for a run that resumes.
        """
        held = self._lock >= 0
        with suppress(OSError, OutputError):  # a disk that fails now has no say in what was done
            if held and not keep:
                self._clear()
        with suppress(OSError):
            if held:
                (self.path / "lock").unlink(missing_ok=True)
        of_export = [self.folder / FOLDER] if self.path.name == WORK_FOLDER else []
        for folder in (*of_export, *self._own, *self.created):
            with suppress(OSError):
                folder.rmdir()  # only if it is empty
        if held:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> int:
        """Make the folders and return the lock file, open and locked.

        A run that just ends may remove any of them under our hands; then it all begins again.
        """
        path = self.path / "lock"
        for _ in range(_LOCK_ATTEMPTS):
            try:
                self._own = []
                if self._temporary:
                    self.created += make_folders(self.folder.parent)
                    make_own(self.folder)
                    self._own = [self.folder]
                self.created += make_folders(self.folder)
                make_own(self.path)
                self._own.insert(0, self.path)
                lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            except (FileNotFoundError, FileExistsError):
                if self.folder.is_file() or _is_file(self.path):
                    raise
                continue
            try:
                without_locks = take_lock(lock)
            except BlockingIOError:
                holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
                os.close(lock)
                raise OutputError(
                    f"another export into {self._name} is running ({holder or 'just started'}). "
                    "Wait for it, or choose another folder."
                ) from None
            if without_locks is not None:
                log.warning(
                    "the disk of %s has no locks (%s): nothing keeps another export into it away "
                    "meanwhile",
                    self._name,
                    without_locks.strerror,
                )
            if _is_same(lock, path):
                return lock
            os.close(lock)
        raise OutputError(f"other exports into {self._name} come and go; try again.")

    def _clear(self) -> None:
        clear(self.path, keep=["lock"])


def _is_file(path: Path) -> bool:
    """Whether something is neither a folder nor a link; in one look, as others may come and go."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode)


def _is_same(fd: int, path: Path) -> bool:
    """Whether an open file is still the one under its name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
