"""Pairs of cells that wait, as keys by partition, until the edges they stand for are looked at.

What tasks leave stays in memory as long as there is room, and then goes to one file. Where the
pairs of each task and partition are is kept in memory, 8 bytes for each task and partition.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import read_at, write_at
from ..source.matrix import Source

_PARTITIONS = 4096  # about as many partitions as there should be, of 2⁸ to 2¹⁶ cells
_KEY_BITS = 62  # that a key may have, besides the one for the side


def proof_shift(n_cells: int) -> int:
    """Return the shift of partitions: each is ``2**shift`` cells, at most 2¹⁶."""
    wanted = math.ceil(math.log2(max(2, n_cells / _PARTITIONS)))
    return min(16, max(8, wanted), _KEY_BITS - _cell_bits(n_cells))


def _cell_bits(n_cells: int) -> int:
    return max(1, (n_cells - 1).bit_length())


@dataclass(frozen=True)
class KeyForm:
    """How the pairs of a matrix become keys, and how these are kept.

    A key is the smaller cell's place in its partition, then the larger cell; where there are
    weights, the last bit tells lower entries from upper ones.

    Attributes
    ----------
    shift : int
        A partition is ``2**shift`` cells.
    bits : int
        Bits of the larger cell.
    weight_dtype : dtype
        float64, or int64 for integer weights.
    is_weighted : bool
        Whether weights are kept.
    """

    shift: int
    bits: int
    weight_dtype: np.dtype[Any]
    is_weighted: bool

    @classmethod
    def of(cls, source: Source, *, is_weighted: bool) -> KeyForm:
        """Return the form for a matrix."""
        is_float = source.stored_weight_dtype.kind == "f"
        return cls(
            proof_shift(source.n_cells),
            _cell_bits(source.n_cells),
            np.dtype(np.float64 if is_float else np.int64),
            is_weighted,
        )

    @property
    def key_bits(self) -> int:
        """Bits of a key as it is kept."""
        return self.shift + self.bits + self.is_weighted

    @property
    def key_dtype(self) -> np.dtype[Any]:
        """Dtype in which keys are sorted."""
        return np.dtype(np.uint32 if self.key_bits <= 32 else np.int64)

    @property
    def high_dtype(self) -> np.dtype[Any]:
        """Dtype of what is above the lowest 32 bits of keys."""
        high_bits = max(self.key_bits - 32, 8)
        return np.dtype(f"u{1 << math.ceil(math.log2(high_bits / 8))}")

    @property
    def columns(self) -> dict[str, np.dtype[Any]]:
        """Names and dtypes of the columns in which keys and weights are kept."""
        columns = {"low": np.dtype(np.uint32)}
        if self.key_bits > 32:
            columns["high"] = self.high_dtype
        if self.is_weighted:
            columns["weight"] = self.weight_dtype
        return columns

    @property
    def item_bytes(self) -> int:
        """Bytes in which an entry is kept."""
        return sum(dtype.itemsize for dtype in self.columns.values())

    @property
    def sort_bytes(self) -> int:
        """Bytes that an entry of a piece takes: as it is kept, as a key, and while it is sorted."""
        # With weights also their order, the work space of its sort, and both columns in order.
        return self.item_bytes + self.key_dtype.itemsize + 40 * self.is_weighted

    def take(self, name: str, n: int) -> dict[str, Array]:
        """Return this thread's work space for `n` entries; columns that are not kept are empty."""
        all_columns = {"high": self.high_dtype, "weight": self.weight_dtype}
        none = {column: np.empty(0, dtype) for column, dtype in all_columns.items()}
        return none | {
            column: buffers.take(f"{name} {column}", n, dtype)
            for column, dtype in self.columns.items()
        }

    def pair(self, partition: int, key: int) -> tuple[int, int]:
        """Return the pair of a key without side."""
        cell = key >> self.bits
        return (partition << self.shift) + cell, key - (cell << self.bits)


class Lot(NamedTuple):
    """What one task has left.

    Attributes
    ----------
    offset : int
        Where its first column begins, in bytes; its other columns follow.
    is_held : bool
        Whether it is in memory.
    starts : ndarray
        Where each partition starts in each column, and where the last one ends; int64.
    """

    offset: int
    is_held: bool
    starts: Array


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
        self._memory = np.empty(room, np.uint8)
        self._path = path
        self.columns = dict(columns)
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._lock = threading.Lock()
        self._ends = [0, 0]  # of what is on disk, and of what is in memory
        self._lots: dict[int, Lot] = {}
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
        n_bytes = n * sum(dtype.itemsize for dtype in self.columns.values())
        with self._lock:
            is_held = self._ends[1] + n_bytes <= self._memory.size
            offset = self._ends[is_held]
            self._ends[is_held] += n_bytes
            self._lots[number] = Lot(offset, is_held, starts)
            self.counts += np.diff(starts)
        for name in self.columns:
            raw = columns[name][:n].view(np.uint8)
            if is_held:
                self._memory[offset : offset + raw.size] = raw
            else:
                write_at(self._fd, raw, offset)
            offset += raw.size

    def lots(self, first: int, last: int) -> list[Lot]:
        """Return the lots that have pairs in partitions ``[first, last)``, in order."""
        lots = (self._lots[number] for number in sorted(self._lots))
        return [lot for lot in lots if lot.starts[last] > lot.starts[first]]

    def read(self, lot: Lot, start: int, stop: int, columns: Mapping[str, Array]) -> None:
        """Fill arrays with the pairs ``[start, stop)`` of a lot, column by column."""
        offset = lot.offset
        for name, dtype in self.columns.items():
            out = columns[name]
            at = offset + start * dtype.itemsize
            if lot.is_held:
                out.view(np.uint8)[:] = self._memory[at : at + out.nbytes]
            else:
                read_at(self._fd, out, at)
            offset += int(lot.starts[-1]) * dtype.itemsize

    def close(self) -> None:
        """Remove the file, and let go of what is in memory."""
        self._memory = np.empty(0, np.uint8)
        os.close(self._fd)
        self._path.unlink()
