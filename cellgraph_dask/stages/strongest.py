"""The N strongest edges of all: which one is the last of them.

Their keys are found digit by digit, where they are: in runs that a pass over all rows has left, or
as weights in the pieces of rows that come from one end only, which takes no pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..machine import buffers
from ..machine.buffers import Array
from ..runtime.stage import Executor, Stage
from . import thinning_loops as loops
from .keep import Keep
from .rows import RowSink
from .runs import RunReader

_SLAB = 1 << 18  # keys looked at in one go
_GROUPS = 32  # tasks that look at all keys together

Edge = tuple[int, int]


class Keys(Protocol):
    """The keys of all edges, in parts whose edges are in order; picklable."""

    def read(self, number: int) -> Iterator[Array]:
        """Yield the keys of a part, some at a time."""

    def find(self, key: int, nth: int, number: int) -> Edge:
        """Return the `nth` edge of a part that has this key, counted from 1."""


class PieceKeys(NamedTuple):
    """The weights in pieces of rows, which have each edge once."""

    keep: Keep
    sink: RowSink
    sizes: Sequence[int]

    def read(self, number: int) -> Iterator[Array]:
        """See `Keys`."""
        with self.sink.open(number, self.keep.cells) as piece:
            yield from read_keys(self.keep, piece, "weight", self.sizes[number])

    def find(self, key: int, nth: int, number: int) -> Edge:
        """See `Keys`."""
        at = 0
        for keys in self.read(number):
            equal = np.flatnonzero(keys == self.keep.keys.type(key))
            if nth <= equal.size:
                return self.sink.edge(number, at + int(equal[nth - 1]), self.keep.cells)
            nth -= equal.size
            at += keys.size
        raise AssertionError("there are fewer such keys")


def read_keys(keep: Keep, run: RunReader, column: str, n: int) -> Iterator[Array]:
    """Yield the first `n` keys of a column, some at a time; it may hold weights instead."""
    for start in range(0, n, _SLAB):
        values = buffers.take("keys", min(_SLAB, n - start), keep.keys)
        run.read(0, column, start, values)
        yield keep.keys_of(values) if column == "weight" else values


def last_of_strongest(
    keep: Keep, keys: Keys, sizes: Sequence[int], executor: Executor
) -> tuple[int, int, int] | None:
    """Return key and cells of the last edge to keep; None if all are.

    `sizes` are the edges of each part.
    """
    left = keep.thinning.max_edges
    assert left is not None
    if sum(sizes) <= left:
        return None
    step = -(-len(sizes) // _GROUPS)
    groups = [range(a, min(a + step, len(sizes))) for a in range(0, len(sizes), step)]
    weights = [sum(sizes[k] for k in group) for group in groups]
    key = 0
    for shift in range(8 * keep.keys.itemsize - loops.DIGIT_BITS, -1, -loops.DIGIT_BITS):
        task = partial(_count_digits, keys, key, shift)
        counts = np.sum(executor.run(Stage("select", task, groups, weights, "edges")), axis=0)
        from_here = np.cumsum(counts[::-1])[::-1]  # edges with this digit, or a higher one
        digit = int(np.flatnonzero(from_here >= left)[-1])
        left -= int(from_here[digit] - counts[digit])
        key = key << loops.DIGIT_BITS | digit
    equal_to = partial(_equal, keys, keep.keys.type(key))
    equal = executor.run(Stage("select", equal_to, groups, weights, "edges"))
    upto = list(accumulate(n for group in equal for n in group))
    number = next(k for k, n in enumerate(upto) if n >= left)
    find = partial(keys.find, key, left - (upto[number - 1] if number else 0))
    (edge,) = executor.run(Stage("select", find, [number], [1], "blocks"))
    return key, *edge


def _count_digits(keys: Keys, prefix: int, shift: int, numbers: range) -> Array:
    counts = np.zeros(1 << loops.DIGIT_BITS, np.int64)
    for number in numbers:
        for some in keys.read(number):
            loops.count_digits(some, prefix, shift, counts)
    return counts


def _equal(keys: Keys, key: Any, numbers: range) -> list[int]:
    return [
        sum(int(np.count_nonzero(some == key)) for some in keys.read(number)) for number in numbers
    ]
