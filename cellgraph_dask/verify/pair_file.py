"""Pairs of cells that wait, as keys by partition, until the edges they stand for are looked at.

What tasks leave stays in memory as long as there is room, and then goes to one file. Where the
pairs of each task and partition are is kept in memory, 8 bytes for each task and partition.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..machine.buffers import Array
from ..machine.files import read_at, write_at
from ..source.matrix import Source

PAIR_BITS = 62  # that a key may have, besides the one for the side of the diagonal
_PARTITIONS = 4096  # about as many partitions as there should be, of 2⁸ to 2¹⁶ cells


def cell_bits(n_cells: int) -> int:
    """Return the bits of a cell in a key."""
    return max(1, (n_cells - 1).bit_length())


def proof_shift(n_cells: int, *, short: bool = True) -> int:
    """Return the shift of partitions: each is ``2**shift`` cells, at most 2¹⁶.

    For `short` keys, of 32 bits, they are smaller if need be; that is possible up to 2²⁴ cells.
    """
    bits = cell_bits(n_cells)
    wanted = math.ceil(math.log2(max(2, n_cells / _PARTITIONS)))
    return min(16, max(8, wanted), (32 if short and bits <= 24 else PAIR_BITS) - bits)


def key_dtype(n_cells: int, shift: int, *, is_weighted: bool) -> np.dtype[Any]:
    """Return the dtype of the keys of partitions; with weights they have a bit for the side."""
    fits = shift + cell_bits(n_cells) <= 32 and not is_weighted
    return np.dtype(np.uint32 if fits else np.int64)


def weight_dtype(source: Source, *, combined: bool = False) -> np.dtype[Any]:
    """Return the dtype in which weights are kept; if they are to be `combined`, float64."""
    is_float = combined or source.data.dtype.kind == "f"
    return np.dtype(np.float64 if is_float else np.int64)


class Lot(NamedTuple):
    """What one task has left: keys and then weights, ordered by partition."""

    offset: int  # of its keys, in bytes
    is_held: bool  # in memory
    starts: Array  # where each partition starts, and where the last one ends; int64


class PairFile:
    """Lots in memory, as long as they fit `room` bytes, and in a file, which must not exist.

    `counts` are the pairs in each partition; int64.
    """

    def __init__(self, path: Path, n_partitions: int, room: int) -> None:
        # One array, taken from the system as it fills: the memory of many small ones would be mixed
        # with that of the tasks, and not be given back when those end.
        self._memory = np.empty(room, np.uint8)
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._lock = threading.Lock()
        self._ends = [0, 0]  # of what is on disk, and of what is in memory
        self._lots: dict[int, Lot] = {}
        self.counts = np.zeros(n_partitions, np.int64)

    def append(self, number: int, starts: Array, keys: Array, weights: Array) -> None:
        """Write a lot; lots are read in the order of their numbers.

        `starts`, which is kept, are those of a `Lot`. Without weights, `weights` is empty.
        """
        n_bytes = keys.nbytes + weights.nbytes
        with self._lock:
            is_held = self._ends[1] + n_bytes <= self._memory.size
            offset = self._ends[is_held]
            self._ends[is_held] += n_bytes
            self._lots[number] = Lot(offset, is_held, starts)
            self.counts += np.diff(starts)
        for column in (keys, weights):
            raw = column.view(np.uint8)
            if is_held:
                self._memory[offset : offset + raw.size] = raw
            else:
                write_at(self._fd, raw, offset)
            offset += raw.size

    def lots(self, first: int, last: int) -> list[Lot]:
        """Return the lots that have pairs in partitions ``[first, last)``, in order."""
        lots = (self._lots[number] for number in sorted(self._lots))
        return [lot for lot in lots if lot.starts[last] > lot.starts[first]]

    def read(self, lot: Lot, start: int, keys: Array, weights: Array) -> None:
        """Fill arrays with keys and weights of a lot, from number `start` on."""
        n_keys = int(lot.starts[-1])
        offset = lot.offset
        for out in (keys, weights):
            at = offset + start * out.itemsize
            offset += n_keys * out.itemsize
            if lot.is_held:
                out.view(np.uint8)[:] = self._memory[at : at + out.nbytes]
            else:
                read_at(self._fd, out, at)

    def close(self) -> None:
        """Remove the file, and let go of what is in memory."""
        self._memory = np.empty(0, np.uint8)
        os.close(self._fd)
        self._path.unlink()
