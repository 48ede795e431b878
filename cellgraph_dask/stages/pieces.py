"""Pieces: ranges of edges that one task of the merge can hold.

A *piece* is some consecutive partitions, as many as fit; or, where one partition alone is too
large (a hub with millions of neighbors), a range of its edges, cut between sources or between
destinations of one source. Pieces in order are the sorted edge list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..machine.buffers import Array
from . import loops
from .split import SplitRuns


class Piece(NamedTuple):
    """A range of edges that one task merges.

    Attributes
    ----------
    number : int
        Number of the piece.
    first, last : int
        Its partitions, ``[first, last)``.
    low, high : tuple of int or None
        If it is a part of one partition: its first edge and the one after its last, as
        ``(source inside the partition, destination)``.
    n_contributions : int
        Upper and lower entries in it, at most.
    """

    number: int
    first: int
    last: int
    low: tuple[int, int] | None
    high: tuple[int, int] | None
    n_contributions: int


def cut_pieces(
    runs: SplitRuns, contributions: Array, capacity: int, max_partitions: int
) -> list[Piece]:
    """Cut all edges into pieces of at most `capacity` contributions.

    Parameters
    ----------
    runs
        Those of the split.
    contributions
        Upper and lower entries of each partition; int64.
    capacity, max_partitions
        Most contributions and partitions in a piece.
    """
    pieces: list[Piece] = []

    def add(first: int, last: int, n: int) -> None:
        if n:
            pieces.append(Piece(len(pieces), first, last, None, None, n))

    first, n = 0, 0
    for partition, size in enumerate(contributions.tolist()):
        if n + size > capacity or partition - first == max_partitions:
            add(first, partition, n)
            first, n = partition, 0
        if size > capacity:
            for low, high, part in _cut_partition(runs, partition, capacity):
                pieces.append(Piece(len(pieces), partition, partition + 1, low, high, part))
            first, n = partition + 1, 0
        else:
            n += size
    add(first, len(contributions), n)
    return pieces


Cut = tuple[tuple[int, int], tuple[int, int], int]


def _cut_partition(runs: SplitRuns, partition: int, capacity: int) -> list[Cut]:
    """Cut an oversized partition between sources, and a source that is too large by destination."""
    per_source = np.zeros(1 << runs.job.shift, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_values(slab["src"], 0, per_source)
    cuts: list[Cut] = []
    low, n = 0, 0
    for source, size in enumerate(per_source.tolist()):
        if n and n + size > capacity:
            cuts.append(((low, 0), (source, 0), n))
            low, n = source, 0
        if size > capacity:
            cuts += _cut_source(runs, partition, source, capacity)
            low, n = source + 1, 0
        else:
            n += size
    if n:
        cuts.append(((low, 0), (per_source.size, 0), n))
    return cuts


def _cut_source(runs: SplitRuns, partition: int, source: int, capacity: int) -> list[Cut]:
    """Cut the edges of one source by destination, in 2¹⁶ bins."""
    n_cells = runs.job.source.n_cells
    shift = max(0, int(n_cells - 1).bit_length() - 16)
    per_bin = np.zeros((n_cells >> shift) + 1, np.int64)
    for _, slab in runs.slabs(partition):
        loops.count_destinations_of(slab["src"], slab["dst"], source, shift, per_bin)
    cuts: list[Cut] = []
    low, n = 0, 0
    for k, size in enumerate(per_bin.tolist()):
        if n and n + size > capacity:
            cuts.append(((source, low << shift), (source, k << shift), n))
            low, n = k, 0
        n += size
    cuts.append(((source, low << shift), (source + 1, 0), n))
    return cuts
