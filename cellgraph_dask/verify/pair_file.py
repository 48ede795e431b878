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

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import read_at, write_at


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

    Attributes
    ----------
    columns : dict
        Names and dtypes of the columns.
    counts : ndarray
        Pairs in each partition; int64.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, np.dtype[Any]], n_partitions: int, room: int = 0
    ) -> None:
        # One array, taken from the system as it fills: the memory of many small ones would be mixed
        # with that of the tasks, and not be given back when those end.
        self._memory = np.empty(room // 16 * 16, np.uint8)
        self._held = 0
        self.columns = dict(columns)
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._lock = threading.Lock()
        self._end = 0
        self._lots: dict[int, tuple[int, int, Array]] = {}
        self.counts = np.zeros(n_partitions, np.int64)

    def append(
        self, number: int, starts: Array, columns: Mapping[str, Array], *, base: int = 0
    ) -> None:
        """Write a lot.

        Parameters
        ----------
        number
            Lots are read in the order of their numbers.
        starts
            Where each partition starts in the columns: ``n_partitions + 1`` int64; kept.
        columns
            Its columns.
        base
            A number to keep with it.
        """
        n = int(starts[-1])
        n_bytes = n * sum(dtype.itemsize for dtype in self.columns.values())
        with self._lock:
            fits = self._held + n_bytes <= self._memory.size
            if fits:  # offsets below zero are places in memory
                offset = self._held - self._memory.size
                self._held += n_bytes
            else:
                offset = self._end
                self._end += n_bytes
            self._lots[number] = offset, base, starts
            self.counts += np.diff(starts)
        if fits:
            for name in self.columns:
                raw = columns[name][:n].view(np.uint8)
                at = offset + self._memory.size
                self._memory[at : at + raw.size] = raw
                offset += raw.size
            return
        for name in self.columns:
            offset = write_at(self._fd, columns[name][:n], offset)

    def lots(self, first: int, last: int) -> list[tuple[int, int, Array]]:
        """Return number, base and starts of lots with pairs in partitions ``[first, last)``."""
        found = []
        for number in sorted(self._lots):
            _, base, starts = self._lots[number]
            if starts[last] > starts[first]:
                found.append((number, base, starts[first : last + 1]))
        return found

    def read(self, number: int, name: str, start: int, out: Array) -> None:
        """Fill `out` with a lot's column from place `start` on."""
        offset, _, starts = self._lots[number]
        for column, dtype in self.columns.items():
            if column == name:
                break
            offset += int(starts[-1]) * dtype.itemsize
        offset += start * self.columns[name].itemsize
        if self._lots[number][0] >= 0:
            read_at(self._fd, out, offset)
        else:
            at = offset + self._memory.size
            out.view(np.uint8)[:] = self._memory[at : at + out.nbytes]

    def in_memory(self, number: int) -> bool:
        """Tell whether a lot is in memory."""
        return self._lots[number][0] < 0

    def held(self, first: int, last: int) -> tuple[Array, Array, Array, Array]:
        """Return the pairs of partitions ``[first, last)`` that are in memory, where they are.

        All columns must have the same dtype.

        Returns
        -------
        values : ndarray
            The memory.
        bases : ndarray
            The base of each lot; int64.
        apart : ndarray
            How far behind its first column the second column of a lot is; int64.
        slices : ndarray
            ``(n_lots, last - first + 1)`` int64: where each partition starts in its first column.
        """
        (dtype,) = set(self.columns.values())
        lots = [lot for lot in self.lots(first, last) if self.in_memory(lot[0])]
        slices = np.empty((len(lots), last - first + 1), np.int64)
        for k, (number, _, starts) in enumerate(lots):
            slices[k] = starts + (self._lots[number][0] + self._memory.size) // dtype.itemsize
        return (
            self._memory.view(dtype),
            np.array([base for _, base, _ in lots], np.int64),
            np.array([self._lots[number][2][-1] for number, _, _ in lots], np.int64),
            slices,
        )

    def gather(self, first: int, last: int) -> tuple[dict[str, Array], Array, Array]:
        """Return the pairs of partitions ``[first, last)`` that are on disk, lot after lot.

        Returns
        -------
        columns : dict of ndarray
            This thread's work space.
        bases : ndarray
            The base of each lot; int64.
        slices : ndarray
            ``(n_lots, last - first + 1)`` int64: where each partition starts in the columns.
        """
        lots = [lot for lot in self.lots(first, last) if not self.in_memory(lot[0])]
        sizes = [int(starts[-1] - starts[0]) for _, _, starts in lots]
        begins = np.cumsum([0, *sizes])
        columns = {}
        for name, dtype in self.columns.items():
            values = columns[name] = buffers.take(f"pair {name}", int(begins[-1]), dtype)
            for (number, _, starts), begin, size in zip(lots, begins.tolist(), sizes, strict=False):
                self.read(number, name, int(starts[0]), values[begin : begin + size])
        slices = np.empty((len(lots), last - first + 1), np.int64)
        for k, (_, _, starts) in enumerate(lots):
            slices[k] = starts - starts[0] + begins[k]
        return columns, np.array([base for _, base, _ in lots], np.int64), slices

    def close(self) -> None:
        """Close the file, and let go of what is in memory."""
        self._memory = np.empty(0, np.uint8)
        os.close(self._fd)


class Marks:
    """A mark for each edge: bits in memory, or bytes in a file.

    Parameters
    ----------
    path
        The file, which must not exist; only used if the marks are not held.
    n_edges
        Number of edges. None is marked at first.
    held
        Whether they are held in memory.
    """

    def __init__(self, path: Path, n_edges: int, *, held: bool) -> None:
        self._lock = threading.Lock()
        self._bits: Array | None = None
        self._fd = -1
        if held:
            self._bits = np.zeros(n_edges // 8 + 1, np.uint8)
        else:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.truncate(self._fd, n_edges)

    def add(self, start: int, seen: Array) -> None:
        """Mark edges from number `start` on where `seen` (uint8) is 1; each edge at most once."""
        if self._bits is None:
            write_at(self._fd, seen, start)
            return
        begin = -start % 8  # up to there they share a byte with what another thread may mark
        with self._lock:
            for k in range(min(begin, seen.size)):
                self._bits[(start + k) // 8] |= seen[k] << (start + k) % 8
        whole = np.packbits(seen[begin:], bitorder="little")
        at = (start + begin) // 8
        rest = max(seen.size - begin, 0) % 8
        if rest:
            with self._lock:
                self._bits[at + whole.size - 1] |= whole[-1]
            whole = whole[:-1]
        self._bits[at : at + whole.size] = whole

    def get(self, start: int, seen: Array) -> None:
        """Fill `seen` with the marks from number `start` on."""
        if self._bits is None:
            read_at(self._fd, seen, start)
            return
        first, last = start // 8, (start + seen.size + 7) // 8
        bits = np.unpackbits(self._bits[first:last], bitorder="little")
        seen[:] = bits[start % 8 : start % 8 + seen.size]

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
