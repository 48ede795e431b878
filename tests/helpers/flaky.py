"""A storage in memory for ``flaky://`` URLs, whose operations can fail, each one by number."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem


class Flaky(AbstractFileSystem):
    """Objects appear as a whole, as those of S3 do.

    Attributes
    ----------
    objects : dict
        Content by path.
    uploads : set
        Paths of uploads that are neither complete nor given up.
    steps : list of str
        What was asked of the storage since `restart`.
    broken : range
        Numbers of the steps that fail.
    late : bool
        Whether those are carried out all the same, so that only their answers are lost.
    """

    protocol = "flaky"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    uploads: ClassVar[set[str]] = set()
    steps: ClassVar[list[str]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()
    broken: ClassVar[range] = range(0)
    late: ClassVar[bool] = False

    @classmethod
    def restart(cls, start: int = 0, stop: int = 0, *, late: bool = False) -> None:
        """Count the steps anew; those of a range will fail."""
        cls.late = late
        cls.steps.clear()
        cls.uploads.clear()
        cls.broken = range(start, stop)

    @classmethod
    @contextmanager
    def step(cls, name: str, path: str) -> Iterator[None]:
        """Count a step, which is done inside; it fails if its number says so."""
        with cls.lock:
            k = len(cls.steps)
            cls.steps.append(f"{name} {path}")
        if k in cls.broken and not cls.late:
            raise ConnectionError(f"step {k} fails")
        yield
        if k in cls.broken:
            raise ConnectionError(f"step {k} fails")

    def _get(self, path: str) -> bytes:
        try:
            return self.objects[self._strip_protocol(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    def info(self, path: str, **_: Any) -> Any:
        with self.step("info", path):
            if any(name.startswith(f"{path}/") for name in self.objects):
                return {"name": path, "size": 0, "type": "directory"}
            return {"name": path, "size": len(self._get(path)), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        assert not detail
        with self.step("ls", path):
            return [name for name in self.objects if name.startswith(f"{path}/")]

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        with self.step("cat", path):
            return self._get(path)[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with self.step("put", path):
            self.objects[path] = value

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        with self.step("copy", path2):
            self.objects[path2] = self._get(path1)

    def rm_file(self, path: str) -> None:
        with self.step("remove", path):
            self._get(path)
            del self.objects[path]

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **_: Any) -> Any:
        with self.step(f"open-{mode}", path):
            if mode == "rb":
                return io.BytesIO(self._get(path))
        assert not autocommit
        self.uploads.add(path)
        return _Upload(path)


class _Upload(io.BytesIO):
    """An object on its way."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def write(self, data: Any) -> int:
        with Flaky.step("write", self.path):
            return super().write(data)

    def close(self) -> None:
        """Keep the content."""

    def commit(self) -> None:
        with Flaky.step("commit", self.path):
            Flaky.objects[self.path] = self.getvalue()
            Flaky.uploads.discard(self.path)

    def discard(self) -> None:
        Flaky.uploads.discard(self.path)


fsspec.register_implementation("flaky", Flaky, clobber=True)
