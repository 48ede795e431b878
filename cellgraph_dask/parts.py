"""Delivery across processes: parts in the scratch folder first, then the edge files from them.

Where a piece of edges goes is known only when all pieces before it are counted, and on a cluster no
task can wait for another. So each task leaves its edges as a *part* in the scratch folder, and when
all are counted a stage of its own writes the files: each task a stretch of the output, from
whatever parts it takes. Plain files are written in place; of gzip files each task leaves deflate
parts, which are joined to the one member at the end.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import edge_files, workspace
from .edge_files import DeflatePart, deflate_edges, join_parts
from .edge_pairs import SIDES, file_name
from .execute import Executor
from .files import write_at
from .merge import EdgeSink
from .scratch import RunReader, Scratch, write_run

Array = NDArray[Any]

_STRETCH_PARTS = 4  # deflate parts (so 2²⁰ edges each) that one task writes


@dataclass(frozen=True)
class PartSink:
    """Takes the edges of pieces from tasks anywhere; picklable.

    Attributes
    ----------
    scratch : Scratch
        Where the parts go.
    """

    scratch: Scratch

    def place(self, number: int, n_edges: int) -> int:
        """Return the number of the piece: its place is not known yet."""
        return number

    def write(self, position: int, src: Array, dst: Array) -> None:
        """Write the edges of piece `position` as a part."""
        write_run(self.scratch.run("part", position), [({"src": src, "dst": dst}, np.zeros(0))])


class Stretch(NamedTuple):
    """What one task writes.

    Attributes
    ----------
    number : int
        Number of the stretch.
    first, last : int
        Its deflate parts, ``[first, last)``; in plain files, ranges of as many edges.
    n_edges : int
        Edges in it.
    """

    number: int
    first: int
    last: int
    n_edges: int


@dataclass(frozen=True)
class _Target:
    """What a task must know to write stretches."""

    scratch: Scratch
    folder: str
    dtype: str
    cell_dtype: str
    compression: int | None
    positions: tuple[int, ...]  # of each part's first edge, and the end


class PartDelivery:
    """Makes edge files of parts.

    Parameters
    ----------
    folder
        Where the edge files go; every worker sees it.
    scratch
        Where the parts are; every worker sees it too.
    dtype, cell_dtype
        Dtypes of indices in the files and in the parts.
    compression
        Level of gzip, or None.
    executor
        Runs the writing.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Scratch,
        dtype: np.dtype[Any],
        cell_dtype: np.dtype[Any],
        compression: int | None,
        executor: Executor,
    ) -> None:
        self.sink: EdgeSink = PartSink(scratch)
        self._scratch = scratch
        self._folder = folder
        self._dtype = dtype
        self._cell_dtype = cell_dtype
        self._compression = compression
        self._executor = executor

    def stop(self) -> None:
        """Do nothing: no task waits."""

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def finish(self, counts: Sequence[int]) -> int:
        """Write the edge files from the parts; return their bytes."""
        positions = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        target = _Target(
            self._scratch,
            str(self._folder),
            self._dtype.str,
            self._cell_dtype.str,
            self._compression,
            tuple(positions),
        )
        paths = [self._folder / file_name(side, self._compression) for side in SIDES]
        for path in paths:
            with path.open("xb") as file:
                if self._compression is None:
                    file.truncate(positions[-1] * self._dtype.itemsize)
        stretches = cut_stretches(positions[-1], self._compression)
        written = self._executor.run(
            "write",
            partial(write_stretch, target),
            stretches,
            sizes=[stretch.n_edges for stretch in stretches],
            unit="edges",
        )
        for side, path in enumerate(paths):
            fd = os.open(path, os.O_WRONLY)
            try:
                if self._compression is not None:
                    join_parts(
                        fd, self._deflated(side, written), positions[-1] * self._dtype.itemsize
                    )
                os.fsync(fd)
            finally:
                os.close(fd)
        return sum(path.stat().st_size for path in paths)

    def _deflated(
        self, side: int, written: Sequence[tuple[list[DeflatePart], ...]]
    ) -> Iterator[tuple[int, DeflatePart]]:
        """Yield the deflate parts of a file in order, each with the open file that holds it."""
        for number, parts in enumerate(written):
            fd = os.open(self._scratch.run(f"deflated-{SIDES[side]}", number), os.O_RDONLY)
            try:
                for part in parts[side]:
                    yield fd, part
            finally:
                os.close(fd)


def cut_stretches(n_edges: int, compression: int | None) -> list[Stretch]:
    """Cut all edges into stretches. Of gzip files the last part is there even without edges."""
    size = edge_files.PART_EDGES
    n_parts = -(-n_edges // size) if compression is None else n_edges // size + 1
    stretches: list[Stretch] = []
    for first in range(0, n_parts, _STRETCH_PARTS):
        last = min(first + _STRETCH_PARTS, n_parts)
        n = min(last * size, n_edges) - first * size
        stretches.append(Stretch(len(stretches), first, last, n))
    return stretches


def write_stretch(target: _Target, stretch: Stretch) -> tuple[list[DeflatePart], ...]:
    """Write a stretch of both edge files; return the deflate parts of each, if any.

    Doing it twice, or twice at once, gives the same bytes in the same places.
    """
    dtype = np.dtype(target.dtype)
    n_edges = target.positions[-1]
    results = []
    for side in SIDES:
        parts: list[DeflatePart] = []
        encoded: list[bytes] = []
        path = Path(target.folder, file_name(side, target.compression))
        fd = os.open(path, os.O_WRONLY) if target.compression is None else -1
        try:
            for part in range(stretch.first, stretch.last):
                start = part * edge_files.PART_EDGES
                stop = min(start + edge_files.PART_EDGES, n_edges)
                values = _read_edges(target, side, start, stop).astype(dtype, copy=False)
                if target.compression is None:
                    write_at(fd, values, start * dtype.itemsize)
                    continue
                last = part == n_edges // edge_files.PART_EDGES
                data, crc = deflate_edges(values, target.compression, last=last)
                parts.append(DeflatePart(sum(map(len, encoded)), len(data), crc, values.nbytes))
                encoded.append(data)
        finally:
            if fd >= 0:
                os.close(fd)
        if target.compression is not None:
            joined = np.frombuffer(b"".join(encoded), np.uint8)
            name = target.scratch.run(f"deflated-{side}", stretch.number)
            write_run(name, [({"data": joined}, np.zeros(0))])
        results.append(parts)
    return tuple(results)


def _read_edges(target: _Target, side: str, start: int, stop: int) -> Array:
    """Read the edges ``[start, stop)`` of one side from the parts that hold them."""
    dtype = np.dtype(target.cell_dtype)
    out = workspace.take("stretch", stop - start, dtype)
    number = bisect_right(target.positions, start) - 1
    at = start
    while at < stop:
        begin, end = target.positions[number], target.positions[number + 1]
        if end > at:
            n = min(end, stop) - at
            path = target.scratch.run("part", number)
            columns = {"src": dtype, "dst": dtype}
            with RunReader.of_columns(path, columns, end - begin) as part:
                part.read(0, side, at - begin, out[at - start : at - start + n])
            at += n
        number += 1
    return out
