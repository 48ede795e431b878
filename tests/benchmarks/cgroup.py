"""A memory limit that the kernel enforces: a cgroup that lives as long as a ``with`` block.

Page cache counts towards a cgroup's usage, but is dropped when the limit is near; memory of
processes is not, and a process that needs more is killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class CgroupUnavailableError(RuntimeError):
    """A memory cgroup cannot be made, on this machine or by this user."""


@dataclass(frozen=True)
class MemoryCgroup:
    """A cgroup with a memory limit.

    Attributes
    ----------
    path
        Its folder.
    version
        1 or 2.
    """

    path: Path
    version: int

    @property
    def procs(self) -> Path:
        """The file into which a process writes ``0`` to join."""
        return self.path / "cgroup.procs"

    def peak_bytes(self) -> int | None:
        """Return the highest usage so far, page cache included; None in an old kernel."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int((self.path / name).read_text())
        except FileNotFoundError:
            return None

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel has killed for memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.path / name).read_text().splitlines():
            key, value = line.split()
            if key == "oom_kill":
                return int(value)
        return 0


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int, *, root: Path = ROOT) -> Iterator[MemoryCgroup]:
    """Make a cgroup limited to `limit_bytes`, without swap, and remove it afterwards.

    Parameters
    ----------
    limit_bytes
        The kernel rounds it to whole pages.
    root
        Where the cgroup file systems are mounted.

    Raises
    ------
    CgroupUnavailableError
        If there is no memory controller, or it is not ours to use.

    Notes
    -----
    Every process in it must have ended before the block does.
    """
    version = 1 if (root / "memory/memory.limit_in_bytes").exists() else 2
    base = root / "memory" if version == 1 else root
    path = base / f"cellgraph-{os.getpid()}-{time.monotonic_ns()}"
    limit, swap = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if version == 1
        else ("memory.max", "memory.swap.max")
    )
    try:
        path.mkdir()
    except OSError as error:
        raise CgroupUnavailableError(f"cannot make a cgroup in {base}: {error.strerror}") from error
    try:
        if not (path / limit).exists():
            raise CgroupUnavailableError(f"{base} does not control memory")
        try:
            (path / limit).write_text(str(limit_bytes))
        except OSError as error:
            raise CgroupUnavailableError(f"cannot set {limit}: {error.strerror}") from error
        with contextlib.suppress(OSError):
            (path / swap).write_text(str(limit_bytes) if version == 1 else "0")
        yield MemoryCgroup(path, version)
    finally:
        _remove(path)


def _remove(path: Path, *, seconds: float = 5.0) -> None:
    """Remove an empty cgroup; the kernel may need a moment after the last process."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
