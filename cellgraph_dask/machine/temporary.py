"""Private folders for temporary files, which go with their process or, if it was killed, later.

Each holds a file that its process keeps locked; the system ends the lock with the process, in
whatever way that ends. A folder without one was left by a process that is dead.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .files import make_folders, named_disk_errors, take_lock

_PREFIX = "cellgraph-dask-tmp-"
_OURS = re.compile(rf"\.?{_PREFIX}\w+")
_ATTEMPTS = 100


@contextmanager
def temporary_folder(parent: Path, *, hidden: bool = False) -> Iterator[Path]:
    """Give a new folder inside `parent`, which is made if need be; remove what was made afterwards.

    An OutputError or DiskSpaceError says that it cannot be made.
    """
    with named_disk_errors(parent):
        made = make_folders(parent)
        folder, lock = _take(parent, f"{'.' if hidden else ''}{_PREFIX}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        for above in made:
            with suppress(OSError):
                above.rmdir()  # only if it is empty


def clear_dead(parent: Path) -> None:
    """Remove the user's temporary folders in `parent` whose processes are dead."""
    with suppress(OSError):
        for folder in [path for path in parent.iterdir() if _OURS.fullmatch(path.name)]:
            with suppress(OSError):
                status = folder.lstat()
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
                try:
                    if take_lock(lock) is None:
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)


def _take(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder; return it and its lock, which is held.

    Another process may take a new folder for a dead one before it is locked; then it goes.
    """
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileExistsError, FileNotFoundError):
            lock = os.open(folder / "lock", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                has_no_locks = take_lock(lock) is not None  # nobody takes it for dead there
            except BlockingIOError:
                os.close(lock)
                continue
            if has_no_locks or os.fstat(lock).st_nlink:
                return folder, lock
            os.close(lock)
    raise OutputError(f"temporary folders in {parent} come and go; try again.")
