"""Where an export goes: a folder of this machine, or a URL of remote storage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..edge_pairs.format import MANIFEST, Manifest
from ..edge_pairs.generation import check_generation
from ..errors import CellgraphError, OutputError, shown
from ..machine.files import absolute
from ..machine.interrupts import holding
from ..machine.remote import (
    AnyPath,
    RemotePath,
    address,
    find_path,
    is_url,
    local_path,
    plain_name,
)
from ..runtime.progress import Progress
from .publish import DiskTarget, Target, publish
from .upload import StorageTarget
from .work_folder import WorkFolder


def local_folder(out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
    """Return the folder where an export is made: its own, or for a URL one for temporary files.

    It is the same for the same URL and user, so that a run that was interrupted is found there.
    """
    given = plain_name(out_dir)
    if not is_url(given):
        return local_path(given)
    text = f"{os.getuid()} {shown(address(given, None).url)}"
    name = sha256(os.fsencode(text)).hexdigest()[:12]
    parent = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    return absolute(parent) / f"cellgraph-dask-{name}"


def open_output(
    out_dir: str | Path, *, force: bool, resume: bool = False,
    scratch_dir: str | Path | None = None, storage_options: Mapping[str, Any] | None = None,
    on_cluster: bool = False, weighted: bool = False,
) -> Output:  # fmt: skip
    """Return where an export goes, a folder or a URL, to be held for writing.

    `force` lets an export that is there be replaced, `resume` keeps what a killed run has left. The
    files of a remote export are made below `scratch_dir`, which the workers of a cluster must see
    if they make them (`on_cluster`). A `weighted` export has weights. An OutputError says that
    there is an export already, or that the disk or the storage cannot be used.
    """
    path = find_path(out_dir, storage_options)
    folder = local_folder(out_dir, scratch_dir)
    if on_cluster and isinstance(path, Path):
        folder = path = absolute(folder)
    elif on_cluster and scratch_dir is None:
        raise OutputError(
            f"the files of {path} are made in a folder before they are uploaded; on a cluster "
            "all workers must see it: name one on storage that they share with `scratch_dir`."
        )
    return Output(path, folder, force=force, resume=resume, weighted=weighted)


class Output:
    """Where an export goes, held for writing; made by `open_output`.

    Use it as a context manager; it leaves nothing behind but a published export. `out_dir` is the
    export's folder as the user gave it, `name` its absolute path or URL. On this machine, `folder`
    (of a local export, its own) holds the folder `work`. Set `keep` to leave that as it is in the
    end, for a run that resumes. Uploading takes at most `upload_bytes` of memory.
    """

    def __init__(
        self, path: AnyPath, folder: Path, *, force: bool, resume: bool, weighted: bool
    ) -> None:
        self.out_dir = path
        temporary = isinstance(path, RemotePath)
        self._held = WorkFolder(folder, str(path), resume=resume, temporary=temporary)
        self._target: Target = (
            StorageTarget(path) if isinstance(path, RemotePath) else DiskTarget(self._held)
        )
        self.name = str(absolute(path) if isinstance(path, Path) else path)
        self.folder, self.work = folder, self._held.path
        self.keep = False
        self.upload_bytes = self._target.upload_bytes
        with self._target.named_errors():
            check_generation(self.out_dir, weighted=weighted)
            taken = (self.out_dir / MANIFEST).exists()
        if taken and not force:
            raise OutputError(
                f"{self.out_dir} already holds an export. Choose another folder, or replace it "
                "with `force=True`; the old export stays whole until the new one is complete."
            )

    def __enter__(self) -> Output:
        self._held.take()
        try:
            with self._target.named_errors():
                self._target.try_to_write()
        except BaseException:
            self._held.release(keep=self._held.resume)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release(keep=self.keep)

    def publish(
        self, manifest: Manifest, made: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Show edge files to readers, as `manifest` describes them.

        They were made in the folder `made`, by default the work folder. If that fails, the old
        export is whole or the new one is, and what was to be uploaded stays on this machine, for a
        run that resumes.
        """
        with holding() as hold:
            try:
                with self._target.named_errors():
                    publish(self._target, manifest, made or self.work, progress or Progress())
            except CellgraphError as error:
                if not hold.shown and not isinstance(self.out_dir, Path):
                    self.keep = True
                    error.args = (f"{error} What is finished is kept; `resume=True` uploads it.",)
                raise
