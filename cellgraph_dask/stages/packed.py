"""Runs of the split: what a run holds for a partition lies together, so a merge reads it at once.

::

    table | partition 0 | partition 1 | ...

The table (int64) has a row for each partition, and one for the end: where it starts in the file,
and the first of its upper entries, of its rows, and of its lower entries in each band. A partition
holds its part of each column, in the order of the layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled
from ..machine.files import begin_reading, read_at, read_parts
from .runs import Columns, Written, write_parts

UPPER, LOWER, ROWS = 0, 1, 2  # the sections of a run
_FIRST = {UPPER: 1, LOWER: 3, ROWS: 2}  # columns of the table; in column 0 is the place in the file
PACKED_BYTES = 1 << 22  # partitions that are written at once


@dataclass(frozen=True)
class Layout:
    """What all runs of a split have in common."""

    columns: Sequence[dict[str, np.dtype[Any]]]  # of each section, by name
    n_partitions: int
    n_bands: int  # of each partition

    @property
    def flat(self) -> list[tuple[int, str, int]]:
        """Section, name and bytes of an entry of all columns, in their order."""
        return [
            (section, name, dtype.itemsize)
            for section, columns in enumerate(self.columns)
            for name, dtype in columns.items()
        ]

    def places(self, table: Array) -> Array:
        """Return where each column of each partition starts in the file, given rows of the table.

        There is one more for the end; int64, in the order of the file.
        """
        sizes = [np.diff(table[:, _FIRST[s]]) * itemsize for s, _, itemsize in self.flat]
        ends = np.cumsum(np.stack(sizes, axis=1).ravel()) + table[0, 0]
        return np.concatenate((table[:1, 0], ends))


def table_bytes(n_partitions: int, n_bands: int) -> int:
    """Return the bytes of the table of so many partitions."""
    return 8 * (n_partitions + 1) * (3 + n_bands)


def write_packed(
    path: Path, layout: Layout, sections: Sequence[Columns], starts: Sequence[Array]
) -> Written:
    """Write a run, and return its size and checksum.

    The sections are as in the layout. Of each, the last tell where partitions start, and where they
    end; those of lower entries, where each band of each partition does.
    """
    n, n_bands = layout.n_partitions, layout.n_bands
    table = np.empty((n + 1, 3 + n_bands), np.int64)
    table[:, 0] = table.nbytes
    table[:, _FIRST[UPPER]], table[:, _FIRST[ROWS]] = starts[UPPER], starts[ROWS]
    bands = table[:, _FIRST[LOWER] :]
    bands[:-1] = starts[LOWER][:-1].reshape(n, n_bands)
    bands[-1] = starts[LOWER][-1]
    places = layout.places(table)
    table[:, 0] = places[:: len(layout.flat)]
    return write_parts(path, _parts(layout, sections, table, places))


def _parts(
    layout: Layout, sections: Sequence[Columns], table: Array, places: Array
) -> Iterator[Array]:
    """Yield the bytes of a run in their order."""
    yield table.ravel()
    columns, starts = [], []
    for section, name, itemsize in layout.flat:
        columns.append(sections[section][name].view(np.uint8))
        starts.append(table[:, _FIRST[section]] * itemsize)
    at, first = table[:, 0], 0
    while first < layout.n_partitions:
        last = int(np.searchsorted(at, at[first] + PACKED_BYTES, side="right")) - 1
        if last <= first:  # a large one, column by column
            last = first + 1
            for column, of in zip(columns, starts, strict=True):
                yield column[of[first] : of[last]]
        else:
            packed = buffers.take("packed", int(at[last] - at[first]), np.uint8)
            for k, (column, of) in enumerate(zip(columns, starts, strict=True)):
                to = places[k + first * len(columns) : last * len(columns) : len(columns)]
                copy_parts(column, of[first : last + 1], packed, to - at[first])
            yield packed
        first = last


@compiled()
def copy_parts(column: Array, starts: Array, out: Array, to: Array) -> None:
    """Copy bytes ``[starts[k], starts[k + 1])`` to `out` from ``to[k]`` on."""
    for k in range(to.size):
        for n in range(starts[k + 1] - starts[k]):
            out[to[k] + n] = column[starts[k] + n]


class PackedReader:
    """A run of the split, open."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._fd = os.open(path, os.O_RDONLY)

    def table(self, first: int, last: int) -> Array:
        """Return the rows ``first … last`` (inclusive) of the table."""
        width = 3 + self._layout.n_bands
        out = np.empty((last - first + 1, width), np.int64)
        read_at(self._fd, out, 8 * width * first)
        return out

    def begin_reading(self, table: Array) -> None:
        """Have the system read the partitions of these rows of the table, without waiting."""
        begin_reading(self._fd, int(table[0, 0]), int(table[-1, 0]))

    def read(self, table: Array, sections: Sequence[Columns], at: Sequence[int]) -> None:
        """Fill columns with the partitions of these rows, from positions `at` of each section."""
        parts = []
        begins = [at[s] - int(table[0, _FIRST[s]]) for s in (UPPER, LOWER, ROWS)]
        views = []
        for section, name, itemsize in self._layout.flat:
            starts = (table[:, _FIRST[section]] + begins[section]) * itemsize
            views.append((sections[section][name].view(np.uint8).data, starts.tolist()))
        for p in range(table.shape[0] - 1):
            parts += [view[starts[p] : starts[p + 1]] for view, starts in views]
        read_parts(self._fd, parts, int(table[0, 0]))

    def read_column(self, table: Array, section: int, name: str, start: int, out: Array) -> None:
        """Fill `out` with a column of one partition, from its entry `start` on."""
        flat = self._layout.flat
        k = next(k for k, (s, n, _) in enumerate(flat) if (s, n) == (section, name))
        read_at(self._fd, out, int(self._layout.places(table)[k]) + start * flat[k][2])

    def __enter__(self) -> PackedReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def starts_of(tables: Array, section: int) -> Array:
    """Return where partitions start in a section, of lower entries where each band does.

    `tables` has rows of the tables of runs, one after the other; a row of starts for each run.
    """
    if section != LOWER:
        return np.ascontiguousarray(tables[:, :, _FIRST[section]])
    bands = tables[:, :, _FIRST[LOWER] :]
    return np.concatenate((bands[:, :-1].reshape(len(tables), -1), bands[:, -1, :1]), axis=1)
