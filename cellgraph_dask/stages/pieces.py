"""Pieces: ranges of edges that one task of the merge can hold.

A *piece* is some consecutive partitions, as many as fit; or, where one partition alone is too
large (a hub with millions of neighbors), a range of its edges, cut between sources or between
destinations of one source. Pieces in order are the sorted edge list. Only a piece of a single edge,
stored over and over, may have more contributions than fit; it is read in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..machine.buffers import Array
from . import loops
from .split import SplitRuns


class Piece(NamedTuple):
    """A range of edges that one task merges: the partitions ``[first, last)``, or a part of one.

    A part is that from the edge `low` up to but not including `high`, each of them a source inside
    the partition and a destination. `n_contributions` are the upper and lower entries in it.
    """

    number: int
    first: int
    last: int
    low: tuple[int, int] | None
    high: tuple[int, int] | None
    n_contributions: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> Piece:
        """Return a piece from its values in a journal."""
        number, first, last, low, high, n_contributions = values
        low, high = (end and (int(end[0]), int(end[1])) for end in (low, high))
        return cls(number, first, last, low, high, n_contributions)

    @property
    def is_pair(self) -> bool:
        """Whether all its contributions are to one edge, however many they are."""
        return self.low is not None and self.high == (self.low[0], self.low[1] + 1)


def cut_pieces(
    runs: SplitRuns, contributions: Array, capacity: int, max_partitions: int
) -> list[Piece]:
    """Cut all edges into pieces of at most so many contributions and partitions.

    `contributions` are the upper and lower entries of each partition (int64).
    """
    pieces: list[Piece] = []
    for first, last, n in _groups(contributions, capacity, max_partitions):
        if n <= capacity:
            pieces.append(Piece(len(pieces), first, last, None, None, n))
            continue
        for low, high, part in _cut_partition(runs, first, capacity):
            pieces.append(Piece(len(pieces), first, last, low, high, part))
    return pieces


def _groups(sizes: Array, capacity: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield ranges ``[first, last)`` of sizes that add up to at most `capacity`, and their sum.

    Each has at most `most` sizes. A size above the capacity is alone, and ranges of zeros are left
    out.
    """
    first, n = 0, 0
    for k, size in enumerate(sizes.tolist()):
        if n + size > capacity or k - first == most:
            if n:
                yield first, k, n
            first, n = k, 0
        n += size
    if n:
        yield first, len(sizes), n


Cut = tuple[tuple[int, int], tuple[int, int], int]


def _cut_partition(runs: SplitRuns, partition: int, capacity: int) -> list[Cut]:
    """Cut an oversized partition between sources, and a source that is too large by destination."""
    per_source = np.zeros(1 << runs.job.shift, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_values(slab["src"], 0, per_source)
    cuts: list[Cut] = []
    for first, last, n in _groups(per_source, capacity, per_source.size):
        if n > capacity:
            cuts += _cut_source(runs, partition, first, capacity)
        else:
            cuts.append(((first, 0), (last, 0), n))
    return cuts


def _cut_source(runs: SplitRuns, partition: int, source: int, capacity: int) -> list[Cut]:
    """Cut the edges of one source by destination: in 2¹⁶ bins, and those too large once more.

    A destination whose repeats alone are too many is a cut of its own.
    """
    n_cells = runs.job.source.n_cells
    shift = max(0, int(n_cells - 1).bit_length() - 16)
    per_bin = np.zeros((n_cells >> shift) + 1, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_destinations_of(slab["src"], slab["dst"], source, shift, per_bin)
    cuts: list[Cut] = []
    for first, last, n in _groups(per_bin, capacity, per_bin.size):
        if n > capacity and shift:
            cuts += _cut_bin(runs, partition, source, first << shift, 1 << shift, capacity)
        else:
            cuts.append(((source, first << shift), (source, last << shift), n))
    return cuts


def _cut_bin(
    runs: SplitRuns, partition: int, source: int, first: int, width: int, capacity: int
) -> list[Cut]:
    """Cut the edges of one source to `width` destinations from `first` on."""
    counts = np.zeros(width, np.int64)
    for _, slab in runs.slabs(partition):
        src, dst = slab["src"], slab["dst"].astype(np.int64)
        inside = (src == source) & (dst >= first) & (dst < first + width)
        counts += np.bincount(dst[inside] - first, minlength=width)
    return [
        ((source, first + a), (source, first + b), n)
        for a, b, n in _groups(counts, capacity, width)
    ]
