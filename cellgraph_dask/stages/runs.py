"""Temporary files: the runs that the blocks leave for the merge.

One file a task, not one a task and partition, because shared file systems suffer from many small
files. A *run* holds sections of equally long columns, ordered by partition, and at its end tables
of where each partition starts, and how long the columns of each section are::

    columns of section 0 | columns of section 1 | ... | table 0 | table 1 | ... | lengths

A run appears under its name by rename, so one that is there is whole.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from zlib_ng import zlib_ng

from ..machine.buffers import Array
from ..machine.files import MANY, begin_reading, opened, read_at, write_new

Columns = Mapping[str, Array]

_CHECKED_BYTES = 1 << 20


class Scratch(NamedTuple):
    """The folder of an export's temporary files; it is private to the user and to one export."""

    folder: str
    stays: bool = False  # its files are not removed when they are not needed any more

    def run(self, stage: str, index: int) -> Path:
        """Return the path of the run of a stage's task."""
        return Path(self.folder, f"{stage}-{index:06d}.run")


class Written(NamedTuple):
    """What a file of a run holds: its size, and the CRC-32 of its bytes."""

    n_bytes: int
    crc: int


def write_run(path: Path, sections: Sequence[tuple[Columns, Array]], n_runs: int = MANY) -> Written:
    """Write a run, one of so many, and return its size and checksum.

    A section is some columns, equally long, and a table of where each partition starts in them
    (int64), the last value being their length.
    """
    in_file_order = [column for columns, _ in sections for column in columns.values()]
    tables = [np.ascontiguousarray(starts, np.int64) for _, starts in sections]
    in_file_order += [*tables, np.array([starts[-1] for starts in tables])]
    # Two attempts at one task may run at once: each writes a file of its own.
    aside = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    with opened(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600) as fd:
        try:
            written = Written(*write_new(fd, in_file_order, n_runs))
            aside.rename(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return written


def holds(path: Path, written: Written) -> bool:
    """Whether a run is there with the bytes that were written."""
    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != written.n_bytes:
                return False
            while part := file.read(_CHECKED_BYTES):
                crc = zlib_ng.crc32(part, crc)
    except OSError:
        return False
    return crc == written.crc


class RunReader:
    """Reads parts of a run.

    The layout has for each section the dtypes of its columns, in the order in which they were
    written, and the length of its table of starts. A file that is not of that layout is an OSError,
    an EOFError or a ValueError.
    """

    def __init__(self, path: Path, layout: list[tuple[dict[str, np.dtype[Any]], int]]) -> None:
        self._layout = [columns for columns, _ in layout]
        self._fd = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._fd)  # at the latest when it goes
        lengths = np.empty(len(layout), np.int64)
        self.n_bytes = os.fstat(self._fd).st_size
        tables = self.n_bytes - lengths.nbytes
        read_at(self._fd, lengths, tables)
        tables -= 8 * sum(table_length for _, table_length in layout)
        end = tables
        self._tables: list[int] = []
        self._columns: list[dict[str, int]] = []
        offset = 0
        for (columns, table_length), length in zip(layout, lengths.tolist(), strict=True):
            self._tables.append(tables)
            tables += 8 * table_length
            places = {}
            for name, dtype in columns.items():
                places[name] = offset
                offset += length * dtype.itemsize
            self._columns.append(places)
        if offset != end or lengths.min() < 0:
            raise ValueError("its columns are not as long as it says")

    def starts(self, section: int, first: int, last: int) -> Array:
        """Return the entries ``first … last`` (inclusive) of a section's table of starts."""
        out = np.empty(last - first + 1, np.int64)
        read_at(self._fd, out, self._tables[section] + 8 * first)
        return out

    def begin_reading(self, section: int, start: int, stop: int) -> None:
        """Have the system read all columns of a section from `start` to `stop`, without waiting."""
        for name, dtype in self._layout[section].items():
            at = self._columns[section][name]
            begin_reading(self._fd, at + start * dtype.itemsize, at + stop * dtype.itemsize)

    def read(self, section: int, column: str, start: int, out: Array) -> None:
        """Fill `out` with a column's values from position `start` on."""
        item = self._layout[section][column].itemsize
        read_at(self._fd, out, self._columns[section][column] + start * item)

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
