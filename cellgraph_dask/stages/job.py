"""What every task of an export needs to know; small, frozen and picklable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from zlib_ng import zlib_ng

from ..machine import buffers
from ..machine.buffers import Array
from ..source.matrix import Source
from .rules import Combination, narrowed
from .runs import Scratch
from .wishes import ALL, Thinning

Method = Literal["symmetric", "general", "summed", "signed"]


@dataclass(frozen=True, eq=False)
class Job:
    """One export, as its tasks see it.

    A partition is ``2**shift`` sources, at most 2¹⁶. The method says how the edges are found.
    "symmetric": one pass, hoping that the upper entries are all there is. "general": split and
    merge. "summed": the same, when what repeated entries add up to is more than float32 can hold.
    "signed": the same with the weights carried along, because some are negative and entries may
    cancel each other. With a `rule`, weights decide what is an edge, and are delivered with the
    edges if there are to be `weights`; if `both`, each edge is found in both directions, so that
    rows are complete. A `strict` job takes no matrix that has stored zeros or a diagonal; weights
    on the diagonal, which are no edges, are an error with `refuse_diagonal`. Of the edges, those
    are kept that `thinning` says; then there is a rule.
    """

    source: Source
    scratch: Scratch
    shift: int
    method: Method
    rule: Combination | None = None
    weights: bool = False
    both: bool = False
    strict: bool = False
    refuse_diagonal: bool = False
    thinning: Thinning = ALL
    delivered: str = "float64"  # dtype of the weights

    @property
    def edge_dtypes(self) -> list[np.dtype[Any]]:
        """Dtypes of the columns in which edges are delivered."""
        return [self.cell_dtype] * 2 + [np.dtype(self.delivered)] * self.weights

    @property
    def n_directions(self) -> int:
        """How often each edge is found."""
        return 2 if self.both else 1

    @property
    def weighs(self) -> bool:
        """Whether weights matter beyond being zero or not."""
        return self.method == "signed" or self.rule is not None

    @property
    def n_partitions(self) -> int:
        """Number of partitions; at least one."""
        return max(1, -(-self.source.n_cells // (1 << self.shift)))

    @property
    def cell_dtype(self) -> np.dtype[Any]:
        """Dtype of cells in runs and buffers."""
        return np.dtype(np.uint32 if self.source.n_cells <= 2**32 else np.uint64)

    @property
    def weight_dtype(self) -> np.dtype[Any]:
        """Dtype of weights in runs, where they are needed."""
        stored = self.source.data.dtype
        if self.rule is not None:
            is_narrow = stored.kind == "f" and stored.itemsize <= 4
            return np.dtype(np.float32 if is_narrow else np.float64)
        return np.dtype(np.float64 if stored.kind == "f" else np.int64)

    @property
    def streamed_dtype(self) -> np.dtype[Any]:
        """Dtype of weights in rows of a symmetric matrix: float32 where the rule computes nothing.

        Both directions of a pair have the same weight there.
        """
        is_exact = self.rule in ("ones", "max", "min") and self.method != "summed"
        is_narrow = is_exact and self.weight_dtype == np.float32
        return np.dtype(np.float32 if is_narrow else np.float64)

    @property
    def merged_dtype(self) -> np.dtype[Any]:
        """Dtype of weights that are merged: those of rows, if edges are to be left out of them."""
        return self.streamed_dtype if self.thinning else np.dtype(np.float64)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry in memory: its source in the partition, destination and weight."""
        weight = self.weight_dtype.itemsize if self.weighs else 0
        return 2 + self.cell_dtype.itemsize + weight


_PARTITIONS = 1024  # about as many partitions as there should be, and
_MOST_SHIFT = 16  # … the most sources in one, so that a source fits 16 bits
LEAST_SHIFT = 8
_MOST_PIECE_SOURCES = 1 << 20
_LEAST_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Tuning:
    """Sizes that follow from the memory limit, or are set by hand in tests."""

    block_entries: int  # most stored entries and
    block_rows: int  # … rows in a block
    piece_entries: int  # most contributions merged by one task
    shift: int  # a partition is ``2**shift`` sources
    threads: int  # that work at once
    count_degrees: bool = False  # whether they share a counter for each cell in memory
    count_components: bool = False  # whether thinning counts components, in memory
    thinned_entries: int = 1 << 20  # most in a block of rows that scratch holds

    @property
    def piece_partitions(self) -> int:
        """Most partitions in a piece."""
        return max(1, _MOST_PIECE_SOURCES >> self.shift)

    @property
    def thinned(self) -> tuple[int, int]:
        """Most entries, and rows, in a block of rows that scratch holds."""
        n = min(self.block_entries, self.thinned_entries)
        return n, min(self.block_rows, rows_for(n))


def rows_for(n_entries: int) -> int:
    """Return the most rows for blocks of that size: plenty, unless most cells are isolated."""
    return max(n_entries // 8, _LEAST_BLOCK_ROWS)


def partition_shift(n_cells: int) -> int:
    """Return the shift that gives about a thousand partitions of at most 2¹⁶ sources."""
    wanted = math.ceil(math.log2(max(1, n_cells) / _PARTITIONS)) if n_cells > _PARTITIONS else 0
    return min(_MOST_SHIFT, max(LEAST_SHIFT, wanted))


class OtherMethodError(Exception):
    """The method that was tried does not suit the matrix; never shown to users."""

    method: Method  # that does


class NotSymmetricError(OtherMethodError):
    """The upper entries are not all edges."""

    method = "general"


class SummedError(OtherMethodError):
    """Repeated entries add up to a weight that float32 does not hold."""

    method = "summed"


class EdgeSink(Protocol):
    """Where edges go, in pieces that may arrive from many threads."""

    @property
    def n_checked(self) -> int | None:
        """The first columns, of which `deliver` returns a checksum: as of all, if it is None."""

    def place(self, index: int, src: Array) -> int:
        """Return where a piece with these sources begins, as soon as it is known."""

    def write(self, position: int, *columns: Array) -> None:
        """Write edges at a position: sources, destinations, and weights if they have some."""

    def read(self, position: int, *columns: Array) -> None:
        """Read back edges that were written at a position; OSError or ValueError if not whole."""


def deliver(job: Job, sink: EdgeSink, number: int, edges: Sequence[Array]) -> tuple[int, int, int]:
    """Give the edges of a piece to a sink; return their position, number, and a CRC-32."""
    columns = list(edges[: len(job.edge_dtypes)])
    if job.weights and columns[2].dtype != job.delivered:
        src, dst, weights = columns
        is_wider = np.can_cast(weights.dtype, job.delivered)
        columns[2] = weights.astype(job.delivered) if is_wider else narrowed(src, dst, weights)
    position = sink.place(number, columns[0])
    sink.write(position, *columns)
    return position, columns[0].size, edges_crc(*columns[: sink.n_checked])


def edges_crc(*columns: Array) -> int:
    """Return the CRC-32 of edges: of the bytes of one column after the other."""
    crc = 0
    for column in columns:
        if column.size:
            crc = zlib_ng.crc32(column.view(np.uint8).data, crc)
    return crc


def read_kept(
    job: Job, sink: EdgeSink, position: int, n_edges: int, crc: int
) -> list[Array] | None:
    """Return edges that an interrupted run has written at a position; None if damaged."""
    columns = [
        buffers.take(f"merged {name}", n_edges, dtype)
        for name, dtype in zip(("src", "dst", "weights"), job.edge_dtypes, strict=False)
    ]
    try:
        sink.read(position, *columns)
    except (OSError, EOFError, ValueError):
        return None
    return columns if edges_crc(*columns[: sink.n_checked]) == crc else None
