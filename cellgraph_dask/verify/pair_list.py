"""All pairs of cells that a matrix gives, in order, with their weights, in temporary files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..machine.buffers import Array
from ..machine.files import read_at, write_at

STRETCH_PAIRS = 1 << 16  # at most


class Stretch(NamedTuple):
    """Consecutive pairs, as numbers (see `EdgeCheck`), and the edges ``[start, stop)``."""

    first: int  # partition
    lowest: int  # number that no pair of it is below
    start: int
    stop: int
    at: int  # in the files
    n: int


class PairList:
    """Numbers and weights of pairs, and marks of those that are kept.

    `stretches` are in the order in which they came; sorted, they are in that of the pairs.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / name for name in ("pairs", "pair-weights", "marks")]
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        self._fds = [os.open(path, flags, 0o600) for path in self._paths]
        self._lock = threading.Lock()
        self.n_pairs = 0
        self.stretches: list[Stretch] = []

    def add(
        self, first: int, lowest: int, pairs: Array, weights: Array, start: int, stop: int
    ) -> None:
        """Write a stretch."""
        with self._lock:
            at = self.n_pairs
            self.n_pairs += pairs.size
            self.stretches.append(Stretch(first, lowest, start, stop, at, pairs.size))
        for fd, column in zip(self._fds, (pairs, weights), strict=False):
            write_at(fd, column, at * column.itemsize)

    def read(self, stretch: Stretch) -> tuple[Array, Array]:
        """Return numbers (int64) and weights (float64) of a stretch."""
        pairs, weights = np.empty(stretch.n, np.int64), np.empty(stretch.n)
        for fd, column in zip(self._fds, (pairs, weights), strict=False):
            read_at(fd, column, stretch.at * column.itemsize)
        return pairs, weights

    def mark_none(self) -> None:
        """Let no pair be marked."""
        os.ftruncate(self._fds[2], self.n_pairs)

    def marks(self, stretch: Stretch) -> Array:
        """Return which pairs of a stretch are marked (bool)."""
        found = np.empty(stretch.n, np.bool_)
        read_at(self._fds[2], found, stretch.at)
        return found

    def mark(self, stretch: Stretch, marks: Array) -> None:
        """Write which pairs of a stretch are marked."""
        write_at(self._fds[2], marks, stretch.at)

    def close(self) -> None:
        """Remove the files."""
        for fd, path in zip(self._fds, self._paths, strict=True):
            os.close(fd)
            path.unlink()
