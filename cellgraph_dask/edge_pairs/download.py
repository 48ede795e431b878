"""A remote export as a folder of this machine, for as long as it is needed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InvalidExportError
from ..machine.files import named_disk_errors
from ..machine.remote import RemotePath
from .format import IDENTITY, MANIFEST, SIDES, index_dtype, read_manifest

_SPARE_BYTES = 1 << 20


@contextmanager
def downloaded(origin: RemotePath, scratch_dir: str | Path | None = None) -> Iterator[Path]:
    """Give a folder with the files of a remote export as they are, and remove it afterwards.

    Files that are not there are left out, and ones that are much longer than their export is cut.

    Parameters
    ----------
    origin
        The export.
    scratch_dir
        Where to make the folder; by default the system's folder for temporary files.

    Raises
    ------
    InvalidExportError
        If something that is there cannot be read.
    OutputError, DiskSpaceError
        If the folder cannot be written.
    """
    parent = Path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    with named_disk_errors(parent):
        folder = Path(tempfile.mkdtemp(prefix="cellgraph-dask-", dir=parent))
    try:
        with named_disk_errors(parent):
            for name, most in _files(origin):
                _copy(origin / name, folder / name, most)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(origin: RemotePath) -> list[tuple[str, int]]:
    """Return the files of an export, and the most bytes of each that are worth a look."""
    texts = [(name, _SPARE_BYTES) for name in (MANIFEST, IDENTITY)]
    try:
        manifest = read_manifest(origin)
    except InvalidExportError:  # whoever looks into the folder will find out
        return texts
    n_bytes = manifest.n_edges * index_dtype(manifest.n_cells).itemsize
    # What does not compress becomes longer by 5 bytes for each 16 kB or more.
    most = n_bytes + n_bytes // 1000 + _SPARE_BYTES
    return [*texts, *((manifest.path(side), most) for side in SIDES)]


def _copy(source: RemotePath, target: Path, most: int) -> None:
    """Copy a file, if it is there."""
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as copy:
        try:
            with source.open() as file:
                while most > 0 and (part := file.read(min(most, 1 << 22))):
                    copy.write(part)
                    most -= len(part)
        except FileNotFoundError:
            target.unlink()
        except OSError as error:
            if error.filename != str(source):  # of the disk, then
                raise
            raise InvalidExportError(f"{source} cannot be read: {error.strerror}.") from error
