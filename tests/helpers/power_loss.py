"""What a disk may hold after the power fails, told from the system calls that were made.

Bytes of a file are safe once it was fsynced; before, they may be lost. A name in a folder is safe
once the folder was fsynced; before, it may be as it was, or as any call since has made it, each
name for itself: renames need not become durable in their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from tests.helpers.fault_server import Call

FOLDER = "folder"
_DATA = {"write", "pwrite64", "pwritev", "ftruncate", "truncate", "fallocate", "sendfile",
         "copy_file_range"}  # fmt: skip
_IGNORED = {"chmod", "fchmod", "fchmodat", "open", "openat"}


class File:
    """A file, whatever its names.

    Attributes
    ----------
    content : bytes
        What is in it, once all of it is written.
    safe : bool
        Whether all its bytes are durable.
    """

    def __init__(self, content: bytes, *, safe: bool) -> None:
        self.content, self.safe = content, safe


Entry = File | str | None
State = dict[str, Entry]


class Disk:
    """A folder tree on a disk whose power may fail; starts with what is really there, durably."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._now: State = {self._root: FOLDER}
        for path in root.rglob("*"):
            entry = FOLDER if path.is_dir() else File(path.read_bytes(), safe=True)
            self._now[str(path)] = entry
        self._safe = dict(self._now)
        self._pending: dict[str, list[Entry]] = {}

    def apply(self, call: Call) -> None:
        """Take note of a call; those that had to fail change nothing."""
        path = call.path
        if call.creates and path not in self._live():
            self._set(path, File(b"", safe=False))
        if call.name in ("fsync", "fdatasync"):
            self._sync(path)
        elif call.name in _DATA:
            self._file(path).safe = False
        elif call.name.startswith("rename"):
            file = self._file(path)
            file.content = call.content
            self._set(path, None)
            self._set(call.other, file)
        elif call.name.startswith("link"):
            self._set(call.other, self._file(path))
        elif call.name.startswith("unlink") or call.name == "rmdir":
            # What is not there, or a folder that is not empty, stays as it is.
            live = self._live()
            if path in live and not any(name.startswith(f"{path}/") for name in live):
                self._set(path, None)
        elif call.name.startswith("mkdir"):
            if path not in self._live():
                self._set(path, FOLDER)
        else:
            assert call.name in _IGNORED, call

    def _live(self) -> State:
        return {path: entry for path, entry in self._now.items() if entry is not None}

    def _file(self, path: str) -> File:
        file = self._now[path]
        assert isinstance(file, File), path
        return file

    def _set(self, path: str, entry: Entry) -> None:
        self._now[path] = entry
        self._pending.setdefault(path, []).append(entry)

    def _sync(self, path: str) -> None:
        entry = self._now[path]
        if isinstance(entry, File):
            entry.safe = True
            return
        for name in [name for name in self._pending if os.path.dirname(name) == path]:  # noqa: PTH120
            self._safe[name] = self._now[name]
            del self._pending[name]

    def states(self, concern: Any) -> Iterator[State]:
        """Yield each tree that may be found after a power loss now.

        `concern` tells of a path whether its name matters.
        """
        names = [name for name in self._pending if concern(name)]
        choices = [[self._safe.get(name), *self._pending[name]] for name in names]
        for chosen in product(*choices):
            state = self._safe | dict(zip(names, chosen, strict=True))
            yield {path: entry for path, entry in state.items() if self._reachable(state, path)}

    def _reachable(self, state: State, path: str) -> bool:
        if state.get(path) is None:
            return False
        folder = os.path.dirname(path)  # noqa: PTH120
        return path == self._root or (
            state.get(folder) == FOLDER and self._reachable(state, folder)
        )
