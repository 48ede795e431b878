"""Small disks in memory, to be filled to the last byte or file."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
MS_RDONLY, MS_REMOUNT = 1, 32
_MNT_DETACH = 2


class Disks:
    """Mounts tmpfs in a folder, and takes all of them away at the end; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mounted: list[bytes] = []

    def __enter__(self) -> Disks:
        return self

    def __exit__(self, *_: object) -> None:
        while self._mounted:
            assert _LIBC.umount2(self._mounted.pop(), _MNT_DETACH) == 0

    def mount(self, name: str, options: str, flags: int = 0) -> Path:
        """Mount (or remount) a disk and return its folder; skip the test where that is refused."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        target = os.fsencode(folder)
        if _LIBC.mount(b"tmpfs", target, b"tmpfs", flags, options.encode()):
            pytest.skip(f"mounting is not allowed here: {os.strerror(ctypes.get_errno())}")
        if target not in self._mounted:
            self._mounted.append(target)
        return folder
