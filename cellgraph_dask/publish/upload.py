"""The target in remote storage: whole objects, by uploading, copying and small writes.

An object is visible when its upload is completed and never before. The edge files are made in a
folder on this machine and uploaded when they are whole; no upload is completed before all of them
have been sent. From then on the steps are those of `publish.publish`; copies are made by the
storage itself.

There is no lock as there is on disk: two exports to one URL at once must be kept apart by the user.
What is there at the end is read again, so that most such accidents are told of.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ..edge_pairs.format import FOLDER
from ..errors import CellgraphError, OutputError
from ..machine.remote import RemotePath, describe
from ..runtime.progress import Progress

_PART_BYTES = 8 * 2**20
_MOST_PARTS = 9_000  # S3 allows 10,000
_AT_ONCE = 2  # files that are uploaded at the same time
# Of each of them: a part as it is read, in the file's buffer, cut from it for the request, and
# what of it the connection has not sent yet.
_COPIES = 4


class StorageTarget:
    """A folder in remote storage; see `publish.Target` for the methods."""

    upload_bytes = _AT_ONCE * _COPIES * _PART_BYTES

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        self._folder = path / FOLDER

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Raise what the storage refuses as `OutputError`, with the reason that it gives."""
        try:
            yield
        except CellgraphError:
            raise
        except Exception as error:
            raise OutputError(
                f"cannot write to {self.path}: {describe(error)}. Check the URL, and that "
                "`output_storage_options` (or the environment) give the credentials to read, write "
                "and delete there."
            ) from error

    def try_to_write(self) -> None:
        """Write a small object and delete it."""
        trial = self.path / f".cellgraph-dask-{os.urandom(4).hex()}"
        trial.files.pipe_file(trial.path, b"trial")
        trial.files.rm_file(trial.path)

    def size(self, name: str) -> int | None:
        """Size of an edge file in bytes, or None if there is no such file."""
        return (self._folder / name).size()

    def list(self) -> list[str]:
        """Names of all files beside the edge files, and theirs."""
        try:
            found = self._folder.files.ls(self._folder.path, detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def bring(self, made: Sequence[Path], names: Sequence[str], progress: Progress) -> None:
        """Upload files, two at once, then complete all.

        The threads look whether another one has failed, or the user has had enough, at each part.
        """
        uploads: list[_Upload] = []
        stop = threading.Event()
        try:
            for path, name in zip(made, names, strict=True):
                uploads.append(_Upload(path, self._folder / name))
            progress.start("upload", sum(upload.n_bytes for upload in uploads), "bytes")
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cellgraph-upload") as pool:
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

    def copy(self, names: Sequence[str], others: Sequence[str]) -> None:
        """Have the storage copy objects."""
        for name, other in zip(names, others, strict=True):
            source, copy = self._folder / name, self._folder / other
            source.files.cp_file(source.path, copy.path)

    def put_texts(self, texts: Sequence[tuple[str, str]]) -> None:
        """Write small objects; where that fails, make sure that the one before is there."""
        for name, text in texts:
            path = self.path / name
            try:
                before = path.files.cat_file(path.path)
            except FileNotFoundError:
                before = None
            try:
                _put(path, text.encode())
            except BaseException:
                # It may have arrived all the same.
                with suppress(Exception):
                    if before is not None:
                        _put(path, before)
                    else:
                        path.files.rm_file(path.path)
                raise

    def remove(self, name: str) -> None:
        """Remove an edge file."""
        self._folder.files.rm_file(f"{self._folder.path}/{name}")


def _put(path: RemotePath, content: bytes) -> None:
    """Write a small object; Ctrl-C waits until that is done or has failed."""
    with ThreadPoolExecutor(1, thread_name_prefix="cellgraph-upload") as pool:
        pool.submit(path.files.pipe_file, path.path, content).result()


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
        """Let the object appear; an OutputError if it is not what was sent."""
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
