"""Pairs of cells that wait, by partition, until the edges they stand for are looked at.

What tasks leave stays in memory as long as there is room, and then goes to one file. Where the
pairs of each task and partition are is kept in memory, 8 bytes for each task and partition.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import workspace
from .files import read_at, write_at

Array = NDArray[Any]


class PairFile:
    """A file of equally long columns, in lots that are ordered by partition.

    Parameters
    ----------
    path
        The file, which must not exist.
    columns
        Names and dtypes of the columns.
    n_partitions
        Number of partitions.
    room
        Bytes of pairs that may stay in memory.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, np.dtype[Any]], n_partitions: int, room: int = 0
    ) -> None:
        # One array, taken from the system as it fills: the memory of many small ones would be mixed
        # with that of the tasks, and not be given back when those end.
        self._memory = np.empty(room, np.uint8)
        self._held = 0
        self._columns = dict(columns)
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._lock = threading.Lock()
        self._end = 0
        self._lots: dict[int, tuple[int, Array]] = {}
        self.counts = np.zeros(n_partitions, np.int64)

    def append(self, number: int, starts: Array, columns: Mapping[str, Array]) -> None:
        """Write a lot.

        Parameters
        ----------
        number
            Lots are read in the order of their numbers.
        starts
            Where each partition starts in the columns: ``n_partitions + 1`` int64; kept.
        columns
            Its columns.
        """
        n = int(starts[-1])
        n_bytes = n * sum(dtype.itemsize for dtype in self._columns.values())
        with self._lock:
            fits = self._held + n_bytes <= self._memory.size
            if fits:  # offsets below zero are places in memory
                offset = self._held - self._memory.size
                self._held += n_bytes
            else:
                offset = self._end
                self._end += n_bytes
            self._lots[number] = offset, starts
            self.counts += np.diff(starts)
        if fits:
            for name in self._columns:
                raw = columns[name][:n].view(np.uint8)
                at = offset + self._memory.size
                self._memory[at : at + raw.size] = raw
                offset += raw.size
            return
        for name in self._columns:
            offset = write_at(self._fd, columns[name][:n], offset)

    def lots(self, first: int, last: int) -> list[tuple[int, Array]]:
        """Return the lots that have pairs in partitions ``[first, last)``, with their starts."""
        found = []
        for number in sorted(self._lots):
            starts = self._lots[number][1][first : last + 1]
            if starts[-1] > starts[0]:
                found.append((number, starts))
        return found

    def read(self, number: int, name: str, start: int, out: Array) -> None:
        """Fill `out` with a lot's column from place `start` on."""
        offset, starts = self._lots[number]
        for column, dtype in self._columns.items():
            if column == name:
                break
            offset += int(starts[-1]) * dtype.itemsize
        offset += start * self._columns[name].itemsize
        if self._lots[number][0] >= 0:
            read_at(self._fd, out, offset)
        else:
            at = offset + self._memory.size
            out.view(np.uint8)[:] = self._memory[at : at + out.nbytes]

    def gather(self, first: int, last: int) -> tuple[dict[str, Array], Array]:
        """Return all pairs of partitions ``[first, last)``, lot after lot.

        Returns
        -------
        columns : dict of ndarray
            This thread's work space.
        slices : ndarray
            ``(n_lots, last - first + 1)`` int64: where each partition starts in the columns.
        """
        lots = self.lots(first, last)
        sizes = [int(starts[-1] - starts[0]) for _, starts in lots]
        begins = np.cumsum([0, *sizes])
        columns = {}
        for name, dtype in self._columns.items():
            values = columns[name] = workspace.take(f"pair {name}", int(begins[-1]), dtype)
            for (number, starts), begin, size in zip(lots, begins.tolist(), sizes, strict=False):
                self.read(number, name, int(starts[0]), values[begin : begin + size])
        slices = np.empty((len(lots), last - first + 1), np.int64)
        for k, (_, starts) in enumerate(lots):
            slices[k] = starts - starts[0] + begins[k]
        return columns, slices

    def close(self) -> None:
        """Close the file, and let go of what is in memory."""
        self._memory = np.empty(0, np.uint8)
        os.close(self._fd)
