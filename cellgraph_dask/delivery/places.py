"""What deliveries have in common that the threads of one process write together.

The *pieces* of edges are found in parallel, but the place of one is known only when all before it
have been counted. Files are made of *parts* of a fixed number of edges, which are cut by edge
number, so their bytes do not depend on who writes them, or when.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from ..machine.buffers import Array


class StoppedError(Exception):
    """Another task has failed, so the one that waited has to end."""


class Places:
    """The places of pieces in the output."""

    n_checked: int | None = None  # see `EdgeSink`

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_index = 0
        self._next_position = 0
        self._kept: dict[int, int] = {}
        self._stopped = False

    def keep(self, sizes: dict[int, int]) -> None:
        """Set the number of edges of each piece that will not come, as it is written already."""
        with self._changed:
            self._kept = dict(sizes)
            self._pass_kept()

    def _pass_kept(self) -> None:
        while self._next_index in self._kept:
            self._placed(self._next_position, None)
            self._next_position += self._kept.pop(self._next_index)
            self._next_index += 1

    def _placed(self, position: int, src: Array | None) -> None:
        """Take the sources of a piece, None if it will not come; called for all in order."""

    def place(self, index: int, src: Array) -> int:
        """Return the position of piece `index`, waiting until all pieces before it were placed."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next_index >= index)
            if self._stopped:
                raise StoppedError
            position = self._next_position
            self._next_index += 1
            self._next_position += src.size
            self._placed(position, src)
            self._pass_kept()
            self._changed.notify_all()
            return position

    def stop(self) -> None:
        """End the waiting of all tasks; they raise `StoppedError`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def cut_at_parts(position: int, n_edges: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut edges at the borders of parts of that size.

    Yields number of the part, where in it the edges begin, where in the edges, and how many.
    """
    at = 0
    while at < n_edges:
        part, first = divmod(position + at, size)
        n = min(size - first, n_edges - at)
        yield part, first, at, n
        at += n


class Filling:
    """Parts of a column that several pieces share, until they are full."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._size = size
        self._dtype = dtype
        self._lock = threading.Lock()
        self._parts: dict[int, tuple[Array, int]] = {}

    def add(
        self, position: int, values: Array, known: Container[int]
    ) -> Iterator[tuple[int, Array]]:
        """Take values at a position; yield each part that is full now, with all its values.

        Parts that are `known` are passed over: an interrupted run has got that far.
        """
        for part, first, at, n in cut_at_parts(position, values.size, self._size):
            inside = values[at : at + n]
            if part in known:
                continue
            if n == self._size:
                yield part, inside
                continue
            with self._lock:
                buffer, filled = self._parts.get(part) or (np.empty(self._size, self._dtype), 0)
                buffer[first : first + n] = inside
                filled += n
                self._parts[part] = buffer, filled
                if filled == self._size:
                    del self._parts[part]
            if filled == self._size:
                yield part, buffer

    def rest(self, part: int, n: int) -> Array:
        """Return the `n` values of the last part, which is not full."""
        return self._parts.pop(part)[0][:n] if n else np.empty(0, self._dtype)
