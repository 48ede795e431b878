"""What keeps a matrix from being symmetric, and other things that readers of a graph may not take.

One pass looks at every stored entry and sums up hashes, as `stream` does. Only if the sum says that
the two directions differ somewhere, or an entry may be repeated, a split and a merge follow, which
compare them pair by pair.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..machine import buffers
from ..machine.buffers import Array
from ..source.matrix import Block
from . import symmetry_loops
from .job import EdgeSink, Job

KINDS = ("not finite", "negative", "zero", "diagonal", "repeated", "too large")  # of entries
_MASK = 2**64 - 1


class Place(NamedTuple):
    """A row and a column of the matrix, as it is stored row by row."""

    row: int
    column: int


class Look(NamedTuple):
    """What looking at a block has shown."""

    counts: list[int]  # of each of the `KINDS`
    firsts: list[Place | None]
    imbalance: tuple[int, int]
    rises: tuple[bool, bool]  # whether the entries of its first row, and of its last, rise
    ends: tuple[Place, Place] | None  # its first and its last entry


def look(job: Job, seeds: NDArray[np.uint64], largest: float, block: Block) -> Look:
    """Look at all entries of a block."""
    indices, indptr, weights = job.source.read_stored(block)
    assert weights is not None
    counts = np.zeros(len(KINDS), np.int64)
    firsts = np.full((len(KINDS), 2), -1, np.int64)
    imbalance = np.zeros(3, np.uint64)
    rises = symmetry_loops.look_at_entries(
        indices, weights, weights.view(np.uint64), np.array([largest]), indptr, block.first_row,
        seeds, buffers.take("stream src", weights.size, job.cell_dtype),
        buffers.take("row keys", weights.size, np.int64), counts, firsts, imbalance,
    )  # fmt: skip
    ends = None
    if indices.size:
        # A row of which no entry is in the block may be its first or its last one.
        rows = block.first_row + np.searchsorted(indptr, [0, indices.size - 1], side="right") - 1
        ends = (Place(int(rows[0]), int(indices[0])), Place(int(rows[1]), int(indices[-1])))
    return Look(
        counts.tolist(),
        [Place(*first) if first[0] >= 0 else None for first in firsts.tolist()],
        (int(imbalance[0]), int(imbalance[1])),
        rises,
        ends,
    )


def warm_up(job: Job) -> None:
    """Load (or compile) the loop of `look`."""
    job.source.warm_up()
    indices, weights = np.zeros(0, job.source.row_dtype), np.zeros(0)
    none, sums = np.zeros(0, np.int64), np.zeros(3, np.uint64)
    symmetry_loops.look_at_entries(
        indices, weights, weights.view(np.uint64), np.ones(1), np.zeros(1, np.int64), 0, sums,
        np.zeros(0, job.cell_dtype), none, none, none.reshape(0, 2), sums,
    )  # fmt: skip


def is_balanced(looks: Sequence[Look]) -> bool:
    """Whether every entry off the diagonal has a mirror image of the same weight."""
    return not any(sum(found.imbalance[half] for found in looks) & _MASK for half in (0, 1))


def may_repeat(looks: Sequence[Look]) -> bool:
    """Whether entries are repeated, or a row that continues in another block hides it."""
    before: Look | None = None
    for found in looks:
        if found.counts[KINDS.index("repeated")]:
            return True
        if found.ends is None:
            continue
        if before is not None and before.ends is not None:
            last, first = before.ends[1], found.ends[0]
            if last.row == first.row and not (
                before.rises[1] and found.rises[0] and last.column < first.column
            ):
                return True
        before = found
    return False


class Tally:
    """Counts pairs whose directions differ; a `Delivery` and its `EdgeSink` that keep no edge."""

    kind = "tally"
    n_checked: int | None = None
    scratch_bytes = 0

    def __init__(self) -> None:
        self.sink: EdgeSink = self
        self.one_sided = self.unequal = self.repeated = 0
        self.first_one_sided: Place | None = None
        self.first_unequal: Place | None = None
        self.first_repeated: Place | None = None
        self._lock = threading.Lock()

    def place(self, number: int, src: Array) -> int:
        """Return the number of the piece."""
        return number

    def write(self, position: int, *columns: Array) -> None:
        """Count the pairs of a piece."""
        src, dst, codes = columns[0], columns[1], columns[2].astype(np.int64)
        found = []
        for those in ((codes & 3) == 1, (codes & 3) == 2, codes >= 4):
            at = int(those.argmax()) if those.any() else -1
            found.append(Place(int(src[at]), int(dst[at])) if at >= 0 else None)
        with self._lock:
            self.one_sided += int(((codes & 3) == 1).sum())
            self.unequal += int(((codes & 3) == 2).sum())
            self.repeated += int((codes >> 2).sum())
            self.first_one_sided = _first(self.first_one_sided, found[0])
            self.first_unequal = _first(self.first_unequal, found[1])
            self.first_repeated = _first(self.first_repeated, found[2])

    def read(self, position: int, *columns: Array) -> None:
        """Raise an EOFError: nothing is kept."""
        raise EOFError

    def keep(self, sizes: dict[int, int]) -> None:
        """Do nothing: no such run is resumed."""

    def finish(self, counts: Sequence[int]) -> int:
        """Return that there are no files."""
        return 0

    def stop(self) -> None:
        """Do nothing: no task waits."""


def _first(a: Place | None, b: Place | None) -> Place | None:
    places = [place for place in (a, b) if place is not None]
    return min(places) if places else None
