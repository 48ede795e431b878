"""Publishing an export to remote storage, all or nothing.

The edge files are made in a folder on this machine and uploaded when they are whole. An object is
visible when its upload is completed and never before, and as on disk one small file, the manifest,
turns the old export into the new one::

    first export     upload both ─► complete both ─► manifest
    another one      upload both under tagged names ─► complete both ─► manifest names them
                     ─► copied to the usual names, by the storage itself ─► manifest names those
                     ─► the tagged names go

There is no lock as there is on disk: two exports to one URL at once must be kept apart by the user.
What is there at the end is read again, so that most such accidents are told of.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..edge_pairs.format import (
    FOLDER,
    IDENTITY,
    MANIFEST,
    SIDES,
    Manifest,
    file_name,
    identity_text,
    read_identity,
    read_manifest,
)
from ..errors import CellgraphError, InvalidExportError, OutputError
from ..machine.remote import RemotePath, describe, find_path, is_url, local_path
from ..runtime.progress import Progress, Quiet
from .publish import NAMES, TAGGED, Output

_PART_BYTES = 8 * 2**20
_MOST_PARTS = 9_000  # S3 allows 10,000
# Of each file that is uploaded: a part as it is read, in the file's buffer, cut from it for the
# request, and what of it the connection has not sent yet.
_COPIES = 4


def local_folder(out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
    """Return the folder where an export is made: its own, or for a URL one for temporary files.

    It is the same for the same URL and user, so that a run that was interrupted is found there.
    """
    if not is_url(out_dir):
        return local_path(out_dir)
    name = sha256(f"{os.getuid()} {str(out_dir).rstrip('/')}".encode()).hexdigest()[:12]
    parent = Path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    return parent.absolute() / f"cellgraph-dask-{name}"


def open_output(
    out_dir: str | Path,
    *,
    force: bool,
    resume: bool = False,
    scratch_dir: str | Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_cluster: bool = False,
) -> Output | RemoteOutput:
    """Return where an export goes, to be held for writing.

    Parameters
    ----------
    out_dir
        Folder or URL.
    force
        Whether an export that is there may be replaced.
    resume
        Whether what a killed run has left stays there.
    scratch_dir
        Where the files of a remote export are made.
    storage_options
        For the storage of a URL.
    on_cluster
        Whether workers of a cluster make the files.

    Raises
    ------
    OutputError
        If there is an export already, or the storage cannot be used.
    """
    target = find_path(out_dir, storage_options)
    folder = local_folder(out_dir, scratch_dir)
    if isinstance(target, Path):
        return Output(folder.absolute() if on_cluster else folder, force=force, resume=resume)
    if on_cluster and scratch_dir is None:
        raise OutputError(
            f"the files of {target} are made in a folder before they are uploaded; on a cluster "
            "all workers must see it: name one on storage that they share with --scratch-dir."
        )
    return RemoteOutput(target, folder, force=force, resume=resume)


class RemoteOutput:
    """A folder in remote storage, held for writing; the counterpart of `Output`.

    Use it as a context manager; it leaves nothing behind but a published export.

    Parameters
    ----------
    target
        Where the export goes.
    folder
        Folder of this machine where its files are made; it is held as that of a local export.
    force
        Whether an export that is there may be replaced.
    resume
        Whether what a killed run has left in the folder stays there.

    Raises
    ------
    OutputError
        If there is an export already, or the storage cannot be reached.
    """

    upload_bytes = len(SIDES) * _COPIES * _PART_BYTES  # most memory that uploading takes

    def __init__(self, target: RemotePath, folder: Path, *, force: bool, resume: bool) -> None:
        self.out_dir = target
        self.name = str(target)
        self.folder = folder
        self._local = Output(folder, force=True, resume=resume)
        self.work = self._local.work
        with named_storage_errors(target):
            taken = (target / MANIFEST).exists()
        if taken and not force:
            raise OutputError(
                f"{target} already holds an export. Choose another folder, or replace it with "
                "--force; the old export stays whole until the new one is complete."
            )

    @property
    def keep(self) -> bool:
        """Whether to leave the folder as it is in the end, for a run that resumes."""
        return self._local.keep

    @keep.setter
    def keep(self, keep: bool) -> None:
        self._local.keep = keep

    def __enter__(self) -> RemoteOutput:
        with suppress(FileNotFoundError):
            if self.folder.stat().st_uid != os.getuid():
                raise OutputError(
                    f"{self.folder} belongs to another user. Name another place for temporary "
                    "files with --scratch-dir."
                )
        try:
            self._local.__enter__()
        except OutputError as error:  # another export holds it
            error.args = (str(error).replace(str(self.folder), self.name),)
            raise
        try:
            self._try_to_write()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._local.__exit__()
        with suppress(OSError):
            self.folder.rmdir()  # only if it is empty

    def _try_to_write(self) -> None:
        """Find out before the work whether the storage will take the export."""
        trial = self.out_dir / f".cellgraph-dask-{os.urandom(4).hex()}"
        with named_storage_errors(self.out_dir):
            trial.files.pipe_file(trial.path, b"trial")
            trial.files.rm_file(trial.path)

    def publish(
        self, manifest: Manifest, made: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Upload edge files, and show them as `manifest` describes them.

        Parameters
        ----------
        manifest
            The manifest.
        made
            Folder where they were made; the work folder if not given.
        progress
            Told what is sent.

        Raises
        ------
        OutputError
            If that failed; the old export is then whole, or the new one is. What was made stays on
            this machine, for a run that resumes.
        """
        folder = made or self.work
        try:
            with named_storage_errors(self.out_dir):
                try:
                    self._bring_in(manifest, folder, progress or Quiet())
                finally:
                    with suppress(Exception):  # of a lost connection, say; the next export does it
                        self._remove_unnamed()
                self._check(manifest, folder)
        except CellgraphError as error:
            self.keep = True
            error.args = (f"{error} What is finished is kept; --resume uploads it.",)
            raise

    def _bring_in(self, manifest: Manifest, folder: Path, progress: Progress) -> None:
        """Upload the new files and show them; under tagged names first if theirs are taken."""
        hop = (self.out_dir / MANIFEST).exists() and any(
            (self.out_dir / manifest.path(side)).exists() for side in SIDES
        )
        if not hop:
            self._remove_unnamed()  # of an export that was killed
        shown = replace(manifest, tag=os.urandom(4).hex()) if hop else manifest
        self._upload(shown, folder, progress)
        self._show(shown)
        if hop:
            for side in SIDES:
                source, target = (self.out_dir / m.path(side) for m in (shown, manifest))
                source.files.cp_file(source.path, target.path)
            self._put_manifest(manifest)

    def _upload(self, manifest: Manifest, folder: Path, progress: Progress) -> None:
        """Upload both files at once, then complete both.

        The threads look whether another one has failed, or the user has had enough, at each part.
        """
        uploads: list[_Upload] = []
        stop = threading.Event()
        try:
            for side in SIDES:
                made = folder / file_name(side, manifest.compression)
                uploads.append(_Upload(made, self.out_dir / manifest.path(side)))
            progress.start("upload", sum(upload.n_bytes for upload in uploads), "bytes")
            with ThreadPoolExecutor(len(uploads), thread_name_prefix="cellgraph-upload") as pool:
                try:
                    for done in [pool.submit(u.send, progress, stop) for u in uploads]:
                        done.result()
                except BaseException:
                    stop.set()
                    raise
            for upload in uploads:
                upload.complete()
        except BaseException:
            for upload in uploads:
                with suppress(Exception):
                    upload.discard()
            raise

    def _show(self, manifest: Manifest) -> None:
        """Replace the dataset's identity and the manifest."""
        identity = read_identity(self.out_dir, manifest.n_cells)
        if identity is None:
            self._put_manifest(manifest)
            return
        before = (self.out_dir / IDENTITY).read_text()
        try:
            self._put(IDENTITY, identity_text(identity, manifest.n_edges))
            self._put_manifest(manifest)
        except BaseException:
            with suppress(Exception):
                self._put(IDENTITY, before)
            raise

    def _put_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest; where that fails, make sure that the one before it is there."""
        path = self.out_dir / MANIFEST
        before = path.read_text() if path.exists() else None
        try:
            self._put(MANIFEST, manifest.to_json())
        except BaseException:
            # It may have arrived all the same; the one before it is wanted until this one is whole.
            with suppress(Exception):
                if before is not None:
                    self._put(MANIFEST, before)
                else:
                    path.files.rm_file(path.path)
            raise

    def _put(self, name: str, text: str) -> None:
        """Write a small object; Ctrl-C waits until that is done or has failed."""
        target = self.out_dir / name
        with ThreadPoolExecutor(1, thread_name_prefix="cellgraph-upload") as pool:
            pool.submit(target.files.pipe_file, target.path, text.encode()).result()

    def _remove_unnamed(self) -> None:
        """Remove edge files that the manifest does not name: tagged, twins, or of a failure."""
        if (self.out_dir / MANIFEST).exists():
            try:
                shown = read_manifest(self.out_dir)
                named = {Path(shown.path(side)).name for side in SIDES}
            except InvalidExportError as error:
                if isinstance(error.__cause__, OSError):  # who knows what it names?
                    raise
                named = set(NAMES)  # one that is not ours may name what it likes
        else:
            named = set()
        folder = self.out_dir / FOLDER
        with suppress(FileNotFoundError):
            for path in folder.files.ls(folder.path, detail=False):
                name = path.rstrip("/").rpartition("/")[2]
                if name not in named and (name in NAMES or TAGGED.fullmatch(name)):
                    folder.files.rm_file(path)

    def _check(self, manifest: Manifest, folder: Path) -> None:
        """Read back what readers see now.

        Raises
        ------
        OutputError
            If that is not the export that has been published.
        """
        sizes = [(self.out_dir / manifest.path(side)).size() for side in SIDES]
        made = [(folder / file_name(s, manifest.compression)).stat().st_size for s in SIDES]
        if sizes != made or (self.out_dir / MANIFEST).read_text() != manifest.to_json():
            raise OutputError(
                f"{self.out_dir} does not hold what was written to it: another export into it may "
                "have run at the same time. Export again."
            )


class _Upload:
    """One file on its way."""

    def __init__(self, source: Path, target: RemotePath) -> None:
        self.n_bytes = source.stat().st_size
        self._source = source
        self._target = target
        self._block = max(_PART_BYTES, -(-self.n_bytes // _MOST_PARTS))
        self._file = target.files.open(target.path, "wb", block_size=self._block, autocommit=False)

    def send(self, progress: Progress, stop: threading.Event) -> None:
        """Send all parts; another failure, or an order to stop, ends it."""
        try:
            with self._source.open("rb") as file:
                while part := file.read(self._block):
                    if stop.is_set():
                        return
                    self._file.write(part)
                    progress.advance(len(part))
            self._file.close()
        except BaseException:
            stop.set()
            raise

    def complete(self) -> None:
        """Let the object appear.

        Raises
        ------
        OutputError
            If what appears is not what was sent.
        """
        try:
            self._file.commit()
        except Exception:
            # It may have been done, and only the answer lost: the name was free before.
            if self._target.size() != self.n_bytes:
                raise
        found = self._target.size()
        if found != self.n_bytes:
            raise OutputError(
                f"{self._target} has {found} bytes after the upload instead of {self.n_bytes}. "
                "Export again; if it happens again, look at the storage."
            )

    def discard(self) -> None:
        """Give the upload up; nothing of it appears."""
        try:
            self._file.discard()
        finally:
            with suppress(AttributeError):
                self._file.closed = True  # or else it is flushed when it is collected


@contextmanager
def named_storage_errors(target: RemotePath) -> Iterator[None]:
    """Turn what the storage refuses into our own error.

    Raises
    ------
    OutputError
        With the reason that the storage gives.
    """
    try:
        yield
    except CellgraphError:
        raise
    except Exception as error:
        raise OutputError(
            f"cannot write to {target}: {describe(error)}. Check the address, and that "
            "--output-storage-options (or the environment) give the credentials to read, write and "
            "delete there."
        ) from error
