"""The file that a picture or a report goes to: refused before the work, replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..machine.files import absolute, fsync_folder, named_disk_errors, opened
from ..machine.remote import is_url, local_path, plain_name


def find_target(output: Any, what: str, formats: tuple[str, ...], *, force: bool) -> Path:
    """Return the path of a file to be written, absolute; an OutputError says that it cannot be.

    Its name has to end in one of some formats; `force` replaces a file that is there.
    """
    if is_url(plain_name(output)):
        raise OutputError(f"{output} is a URL; name a file on this machine for the {what}.")
    target = absolute(local_path(output))
    if target.suffix[1:].lower() not in formats:
        *others, last = [f".{name}" for name in formats]
        ends = f"{', '.join(others)} or {last}"
        raise OutputError(f"{output} is no {what} by its name, which has to end in {ends}.")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} does not exist; make the folder of the {what} first.")
    if os.path.lexists(target):
        if target.exists() and not target.is_file():
            raise OutputError(f"{output} is not a file; name another one for the {what}.")
        if not force:
            raise OutputError(f"{output} is there already. Replace it with `force=True`.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {target.parent}: Permission denied.")
    return target


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a new file to write, of a name that a dot hides; it takes the place of `target`.

    What a disk refuses becomes an OutputError or a DiskSpaceError, and nothing is left of it.
    """
    aside = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    with named_disk_errors(target.parent):
        try:
            yield aside
            with suppress(OSError):
                aside.chmod(target.stat().st_mode & 0o7777)
            with opened(aside, os.O_RDONLY) as fd:
                os.fsync(fd)
            aside.replace(target)
            fsync_folder(target.parent)
        finally:
            aside.unlink(missing_ok=True)
