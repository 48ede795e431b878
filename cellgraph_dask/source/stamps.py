"""What tells that a matrix was written again: names, sizes and times of the files it is read from.

Only files that can hold chunks count, by their names. So none that a file manager, a backup or NFS
leaves beside them (``.DS_Store``, ``.nfs…``) does, and nothing else is walked through. Links are
followed; how deep is bounded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from typing import Protocol

from ..errors import DamagedGraphError, SourceError

log = logging.getLogger(__name__)

_CHUNK = re.compile(r"c|(c\.)?[0-9]+(\.[0-9]+)*")  # a file or folder of chunks
_MOST_DEPTH = 3  # of folders of chunks: of two dimensions, below "c"
_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_MOST_DOCUMENT_BYTES = 1 << 24


class Matrix(Protocol):
    """What may change while it is read."""

    @property
    def path(self) -> str:
        """What the user called its origin."""

    def fingerprint(self) -> str:
        """Return a digest that changes when it is written again."""


class Watch:
    """A matrix from before it is first read on; made anew, it is another one.

    Inside a ``with``, damage that is found in a matrix that has changed is told as that.
    """

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self.fingerprint = matrix.fingerprint()

    def check(self) -> None:
        """Raise a SourceError if the matrix has changed, or if that cannot be told."""
        self._compare(self._matrix.fingerprint())

    def _compare(self, now: str) -> None:
        if now != self.fingerprint:
            raise SourceError(
                f"{self._matrix.path} changed while it was being read, so the result would be a "
                "mixture. Start again when nothing else writes to it."
            )

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DamagedGraphError | SourceError):
            try:
                now = self._matrix.fingerprint()
            except SourceError:  # it can no longer be read at all, as the first error says
                return
            self._compare(now)


def of_file(path: str) -> str:
    """Return what changes when a file is written or replaced."""
    try:
        return _of_status(os.stat(path))  # noqa: PTH116
    except OSError as error:  # whoever reads it will say so
        return f"{error.strerror}"


def of_files(paths: Iterable[str]) -> str:
    """Return what changes when any of these files does."""
    return " ".join(map(of_file, paths))


def of_folder(folder: str) -> str:
    """Return what changes when a chunk or the metadata in the folder of a zarr array do."""
    # Of documents the content counts: tools write them again as they were.
    folders = (folder, os.path.dirname(folder))  # noqa: PTH120
    texts = [_of_document(f"{above}/{name}") for above in folders for name in _DOCUMENTS]
    return f"{' '.join(texts)} {_of_chunks(folder, '', _MOST_DEPTH, set()) % 2**128:x}"


def sampled(last: int) -> list[int]:
    """Return nine numbers from 0 to `last`, evenly."""
    return [last * k // 8 for k in range(9)]


def _of_status(status: os.stat_result) -> str:
    # The time of change is no program's to set, unlike the other one, which archives put back.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _of_document(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(_MOST_DOCUMENT_BYTES)).hexdigest()
    except OSError:
        return "-"


def _of_chunks(folder: str, prefix: str, depth: int, seen: set[tuple[int, int]]) -> int:
    """Return a sum of hashes of all chunks, in any order: there may be millions."""
    total = 0
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        if here in seen:  # links may lead in circles
            return 0
        seen.add(here)
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _CHUNK.fullmatch(entry.name):
                    continue
                name = f"{prefix}/{entry.name}"
                if entry.is_dir():
                    total += _of_chunks(entry.path, name, depth - 1, seen) if depth else 0
                    continue
                try:
                    text = _of_status(entry.stat())
                except OSError as error:
                    text = f"{error.strerror}"
                digest = hashlib.blake2b(os.fsencode(f"{name} {text}"), digest_size=16)
                total += int.from_bytes(digest.digest(), "little")
    except PermissionError:
        log.warning("%s cannot be listed; if it changes while it is read, that is not seen", folder)
    except OSError as error:
        total += error.errno or 0
    return total
