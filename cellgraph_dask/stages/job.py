"""What every task of an export needs to know; small, frozen and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..source.matrix import Source
from .runs import Scratch

Way = Literal["symmetric", "general", "signed"]


@dataclass(frozen=True)
class Job:
    """One export, as its tasks see it.

    Attributes
    ----------
    source : Source
        The matrix.
    scratch : Scratch
        Where runs go.
    shift : int
        A partition is ``2**shift`` sources, at most 2¹⁶.
    way : {"symmetric", "general", "signed"}
        How the edges are found. "symmetric": one pass, hoping that the upper entries are all there
        is. "general": split and merge. "signed": the same with the weights carried along, because
        some are negative and entries may cancel each other.
    """

    source: Source
    scratch: Scratch
    shift: int
    way: Way

    @property
    def signed(self) -> bool:
        """Whether weights matter beyond being zero or not."""
        return self.way == "signed"

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
        return np.dtype(np.float64 if self.source.stored_weight_dtype.kind == "f" else np.int64)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry in memory: its source in the partition, destination and weight."""
        weight = self.weight_dtype.itemsize if self.signed else 0
        return 2 + self.cell_dtype.itemsize + weight
