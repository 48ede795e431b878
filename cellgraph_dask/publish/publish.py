"""From a private folder to the export that readers see, all or nothing.

Everything is made in a work folder inside the export's own, on the same disk. A manifest replaced
by one rename is what turns the old export into the new one, so it must never name files that belong
to the other. Where both have the same file names, the new files come in under tagged names first::

    edges.src.1f3c….bin, edges.dst.1f3c….bin     new files beside the old ones
    connectivity_manifest.json                   names the tagged files: the new export is there
    edges.src.bin, edges.dst.bin                 replaced by the same files
    connectivity_manifest.json                   names them; the tagged names go

The dataset's identity, which holds the number of edges too, says nothing of it while the manifest
is replaced. Killed at any point, a reader finds the old export or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..edge_pairs.format import (
    FOLDER,
    IDENTITY,
    MANIFEST,
    SIDES,
    Manifest,
    _tells,
    file_name,
    identity_text,
    read_identity,
    read_manifest,
)
from ..errors import InvalidExportError, OutputError
from ..machine.files import (
    fsync_folder,
    make_folders,
    named_disk_errors,
    replace_text,
    this_process,
    write_aside,
)
from ..runtime.progress import Progress

WORK_FOLDER = ".cellgraph-dask"
_LOCK_ATTEMPTS = 100
NAMES = frozenset(file_name(side, level) for side in SIDES for level in (None, 1))
TAGGED = re.compile(r"edges\.(src|dst)\.[0-9a-f]{8}\.bin(\.gz)?")


class Output:
    """The folder of an export, held for writing.

    Use it as a context manager; it leaves nothing behind but a published export.

    Parameters
    ----------
    out_dir
        The folder; it is made if it does not exist.
    force
        Whether an export that is there may be replaced.
    resume
        Whether what a killed run has left in the work folder stays there.

    Attributes
    ----------
    keep : bool
        Set it to leave the work folder as it is in the end, for a run that resumes.

    Raises
    ------
    OutputError
        If the folder cannot be written, holds an export already, or another run holds it.
    """

    upload_bytes = 0  # memory that uploading takes; see `RemoteOutput`

    def __init__(self, out_dir: Path, *, force: bool, resume: bool = False) -> None:
        self.out_dir = self.folder = out_dir
        self.name = str(out_dir.absolute())
        self.keep = False
        self._resume = resume
        self.work = out_dir / WORK_FOLDER
        self._lock = -1
        self._created: list[Path] = []
        with named_disk_errors(out_dir):
            taken = (out_dir / MANIFEST).exists()
        if taken and not force:
            raise OutputError(
                f"{out_dir} already holds an export. Choose another folder, or replace it with "
                "--force; the old export stays whole until the new one is complete."
            )

    def __enter__(self) -> Output:
        with named_disk_errors(self.out_dir):
            try:
                self._lock = self._take_lock()
            except BaseException:
                self._remove_empty_folders()
                raise
            try:
                if not self._resume:
                    self._clear_work()  # what a killed run may have left
                os.truncate(self._lock, 0)
                os.pwrite(self._lock, this_process().encode(), 0)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock < 0:
            return
        with suppress(OSError):  # a disk that fails now has no say in what was done
            if not self.keep:
                self._clear_work()
        with suppress(OSError):
            (self.work / "lock").unlink(missing_ok=True)
        self._remove_empty_folders()
        os.close(self._lock)
        self._lock = -1

    def _take_lock(self) -> int:
        """Make the folders and return the lock file, open and locked.

        A run that just ends may remove any of them under our hands; then it all begins again.
        """
        path = self.work / "lock"
        for _ in range(_LOCK_ATTEMPTS):
            try:
                self._created += make_folders(self.out_dir)
                self.work.mkdir(mode=0o700, exist_ok=True)
                check_own_folder(self.work)
                lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            except (FileNotFoundError, FileExistsError):
                if self.out_dir.is_file() or _is_file(self.work):
                    raise
                if self.work.is_symlink():
                    check_own_folder(self.work)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
                os.close(lock)
                if not isinstance(error, BlockingIOError):  # a file system without locks
                    raise
                raise OutputError(
                    f"another export into {self.out_dir} is running ({holder or 'just started'}). "
                    "Wait for it, or choose another folder."
                ) from None
            if _is_same(lock, path):
                return lock
            os.close(lock)
        raise OutputError(f"other exports into {self.out_dir} come and go; try again.")

    def _remove_empty_folders(self) -> None:
        for folder in (self.work, self.out_dir / FOLDER, *self._created):
            with suppress(OSError):
                folder.rmdir()  # only if it is empty

    def _clear_work(self) -> None:
        for path in self.work.iterdir():
            if path.name == "lock":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def publish(
        self, manifest: Manifest, made: Path | None = None, _progress: Progress | None = None
    ) -> None:
        """Show edge files to readers, as `manifest` describes them.

        Parameters
        ----------
        manifest
            The manifest.
        made
            Folder inside the work folder where they were made; the work folder if not given.

        Raises
        ------
        OutputError, DiskSpaceError
            If that failed; the old export is then whole, or the new one is.
        """
        folder = self.out_dir / FOLDER
        with named_disk_errors(self.out_dir):
            if not folder.is_symlink():
                folder.mkdir(exist_ok=True)
            _check_folder(folder)
            for new in (folder, *self._created):  # before a manifest that needs them
                fsync_folder(new.parent)
            try:
                self._bring_in(manifest, made or self.work)
            finally:
                self._remove_unnamed(folder)
            fsync_folder(self.out_dir)

    def _bring_in(self, manifest: Manifest, folder: Path) -> None:
        """Move the new files in and show them; under tagged names first if theirs are taken."""
        taken = any((self.out_dir / manifest.path(side)).exists() for side in SIDES)
        hop = taken and (self.out_dir / MANIFEST).exists()
        shown = replace(manifest, tag=os.urandom(4).hex()) if hop else manifest
        for side in SIDES:
            made = folder / file_name(side, manifest.compression)
            made.replace(self.out_dir / shown.path(side))
        fsync_folder(self.out_dir / FOLDER)
        self._show(shown)
        if not hop:
            return
        for side in SIDES:
            again = self.work / file_name(side, manifest.compression)
            try:
                os.link(self.out_dir / shown.path(side), again)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.out_dir / shown.path(side), again)
                with again.open("rb") as file:
                    os.fsync(file.fileno())
            again.replace(self.out_dir / manifest.path(side))
        fsync_folder(self.out_dir / FOLDER)
        replace_text(self.out_dir / MANIFEST, manifest.to_json(), aside=self.work / MANIFEST)

    def _show(self, manifest: Manifest) -> None:
        """Replace the manifest, and the figures in the dataset's identity, as if in one step.

        Two files cannot be replaced at once. So the identity first says nothing of the number of
        edges, if what it says is not the new number; then the manifest comes; then the number. All
        three are written before the first of them is shown.
        """
        path = self.out_dir / IDENTITY
        identity = read_identity(self.out_dir, manifest.n_cells)
        steps = [(MANIFEST, self.work / MANIFEST, manifest.to_json())]
        before = None
        if identity is not None and not _tells(identity, manifest.n_edges):
            before = path.read_text(encoding="utf-8")
            steps.append(
                (IDENTITY, self.work / IDENTITY, identity_text(identity, manifest.n_edges))
            )
            if identity["stats"].get("n_edges") is not None:
                silent = {"stats": identity["stats"] | {"n_edges": None}}
                text = json.dumps(identity | silent, indent=2)
                steps.insert(0, (IDENTITY, self.work / f"{IDENTITY}.silent", text))
        for name, aside, text in steps:
            write_aside(self.out_dir / name, text, aside=aside)
        try:
            for name, aside, _ in steps:
                aside.replace(self.out_dir / name)
                fsync_folder(self.out_dir)
        except BaseException:
            if before is not None and (self.work / MANIFEST).exists():  # the old export stays
                with suppress(OSError):
                    replace_text(path, before, aside=self.work / f"{IDENTITY}.before")
            raise

    def _remove_unnamed(self, folder: Path) -> None:
        """Remove edge files that the manifest does not name: tagged, twins, or of a failure."""
        try:
            shown = read_manifest(self.out_dir)
            named = {Path(shown.path(side)).name for side in SIDES}
        except InvalidExportError:
            # Without a manifest nothing is named. One that is not ours may name what it likes.
            named = set(NAMES) if (self.out_dir / MANIFEST).exists() else set()
        for path in folder.iterdir():
            if path.name not in named and (path.name in NAMES or TAGGED.fullmatch(path.name)):
                path.unlink()


def _check_folder(folder: Path) -> None:
    """Refuse to write into what is not a folder itself: a link may lead anywhere."""
    if folder.is_symlink():
        raise OutputError(
            f"{folder} is a symbolic link; nothing outside the export's folder is replaced. Remove "
            "the link, or export to the folder that should hold the files."
        )


def check_own_folder(folder: Path) -> None:
    """Refuse a work folder that is a link or open to another user, and close it to others."""
    _check_folder(folder)
    if folder.stat().st_mode & 0o077:
        try:
            folder.chmod(0o700)
        except PermissionError:
            raise OutputError(
                f"{folder} belongs to another user, who may have an export running. Remove it if "
                "not, or choose another folder."
            ) from None


def _is_file(path: Path) -> bool:
    """Tell in one look, as others may come and go, whether something is no folder and no link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode)


def _is_same(fd: int, path: Path) -> bool:
    """Tell whether an open file is still the one under its name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
