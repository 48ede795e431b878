"""A matrix as an export sees it, whatever it comes from.

It is read in *blocks*: runs of stored entries, cut without regard to rows, so that a row of any
length is nothing special. Every value of a block has been checked; compiled loops rely on that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import DamagedGraphError
from ..machine import buffers
from ..machine.buffers import Array
from . import checks, stamps
from .arrays import Span, StoredArray, cut_spans
from .in_memory import index_dtype

_INDPTR_SLICE = 1 << 20  # values of indptr that are looked at in one go: 8 MB
_MOST_AHEAD = 1 << 20  # entries that are read ahead; more would be gone before their time
# zarr leaves chunks unwritten that hold nothing but zeros, so a chunk may rightly be absent. In
# arrays chunked this finely it is taken at its word; in others it must be believable.
_TINY_CHUNK = 4
# No graph has more cells without neighbors before its first one: it is indptr that was lost.
_MOST_ABSENT_ROWS = 2**28


class Block(NamedTuple):
    """The stored entries ``[start, stop)``, and the rows ``[first_row, last_row)`` they are in.

    Of the first and the last row, only a part may be in the block.
    """

    number: int
    start: int
    stop: int
    first_row: int
    last_row: int


class BlockEntries(NamedTuple):
    """What a block holds, checked."""

    indices: Array  # columns; int32, or int64 from 2³¹ cells on; of stored zeros their own row
    indptr: Array  # int64: where each row starts in `indices`
    weights: Array | None  # float64, or int64 for integer weights, if they were asked for


class Origin(NamedTuple):
    """Where a matrix comes from."""

    path: str  # what the user called it: a path, a URL, or what it is in memory; for messages
    file: str | None = None  # absolute path of the file or folder that workers must see, if any
    is_shared: bool = False  # whether other processes can open it
    is_lasting: bool = False  # whether another run finds it by the same name
    known_as: str | None = None  # the name of what it was computed from, if it was

    @property
    def name(self) -> str:
        """The same from every working directory and through any link, if it is lasting."""
        if self.known_as is not None:
            return self.known_as
        if not self.is_lasting:
            return self.path
        return os.path.realpath(self.file) if self.file is not None else self.path.rstrip("/")


def digest_of(origin: Origin, *texts: str) -> str:
    """Return the fingerprint of a matrix from an origin, of which the texts tell the rest."""
    file = origin.file if origin.is_lasting else None
    if file is not None and os.path.isfile(file):  # noqa: PTH113
        texts = (*texts, stamps.of_file(file))
    return hashlib.sha256(os.fsencode(" ".join(texts))).hexdigest()


@dataclass(frozen=True, eq=False)
class Source:
    """A sparse cell × cell matrix; small, and picklable unless it is in memory.

    Its arrays open themselves in the process that reads them.
    """

    indptr: StoredArray
    indices: StoredArray
    data: StoredArray
    origin: Origin
    key: str  # where the matrix is inside its origin
    layout: str  # "csr" or "csc"; the edges are the same for both
    n_cells: int  # rows, and columns
    n_entries: int  # stored entries
    notes: tuple[str, ...] = ()  # what the user should know about it
    spool_bytes: int = 0  # temporary bytes on disk that it takes up
    spooled_bytes: int = 0  # of these, those that are on disk already

    @property
    def path(self) -> str:
        """What the user called its origin."""
        return self.origin.path

    @property
    def _arrays(self) -> tuple[StoredArray, ...]:
        return self.indptr, self.indices, self.data

    def fingerprint(self) -> str:
        """Return a digest that changes when the matrix is written again.

        It is of the names, sizes and times of the files that it is read from; in remote storage, of
        what that says of some chunks, or of their content. In memory it is always the same.
        """
        told = f"{self.layout} {self.n_cells} {self.n_entries} {self.data.dtype.str}"
        return digest_of(self.origin, told, *(array.stamp() for array in self._arrays))

    @property
    def chunk_size(self) -> int:
        """Entries in a chunk of `indices` or `data`, the larger."""
        return max(self.indices.chunk_size, self.data.chunk_size)

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Dtype of a block's indices."""
        return index_dtype(self.n_cells)

    @property
    def probe_bytes(self) -> int:
        """Upper bound on the working memory of `entries`, of few, and `has_entry`."""
        work = max(array.work_bytes for array in self._arrays)
        rows = min(self.indptr.chunk_size, self.n_cells) + 1
        return int(work + 16 * rows + 8 * _INDPTR_SLICE)

    def warm_up(self) -> None:
        """Load the compiled loops that reading this matrix takes."""
        weights = _comparable(np.zeros(1, self.data.dtype))
        checks.warm_up(np.zeros(1, self.indices.dtype), np.ones(1, self.row_dtype), weights)

    def block_bytes(self, n_entries: int, n_rows: int, *, signed: bool) -> int:
        """Upper bound on the working memory of `read_block`, on one thread and for that size."""
        total = n_entries * self.row_dtype.itemsize + (n_rows + 2) * 16
        if self.indices.dtype != self.row_dtype:
            total += min(self.indices.step, n_entries) * self.indices.dtype.itemsize
        if signed:
            total += n_entries * 8
        total += min(self.data.step, n_entries) * (self.data.dtype.itemsize + 4)
        return int(total + max(array.work_bytes for array in self._arrays))

    def scan_indptr(self) -> Iterator[tuple[int, Array]]:
        """Yield `indptr` in slices (int64) that overlap by one value, each with its first row.

        Raises a DamagedGraphError if `indptr` does not start at 0, decreases, does not end at the
        number of entries, or lacks a chunk that was not all zeros.
        """
        indptr = self.indptr
        absent_until = last = 0
        # Slices end where chunks do, so that each is decoded once.
        for a, b in cut_spans(0, self.n_cells + 1, min(indptr.step, _INDPTR_SLICE)):
            first = max(a - 1, 0)  # its value is that which the slice before has ended with
            values = buffers.take("indptr", b - first, np.int64)
            values[0] = last
            absent = self._read_as_int64(a, b, values[a - first :])
            last = values[-1]
            if a == 0 and values[0] != 0:
                raise DamagedGraphError(
                    f"{indptr.name} starts at {values[0]}, not at 0. The matrix is damaged; "
                    "write it again."
                )
            for c, d in absent:
                if c > absent_until:
                    raise DamagedGraphError(self._missing(indptr, c, "rows would lose entries"))
                absent_until = d
            if absent_until > _MOST_ABSENT_ROWS:
                raise DamagedGraphError(self._missing(indptr, 0, "entries lose their rows"))
            if absent_until and absent_until - first < values.size:
                self._check_absent_rows(first, values, absent_until)
                absent_until = 0
            row = checks.first_decrease(values)
            if row >= 0:
                raise DamagedGraphError(
                    f"{indptr.name} decreases at row {first + row}: from {values[row]} to "
                    f"{values[row + 1]}. The matrix is damaged; write it again."
                )
            yield first, values
        if values[-1] != self.n_entries:
            raise DamagedGraphError(
                f"{indptr.name} ends at {values[-1]}, but {self.n_entries} entries are stored. The "
                "matrix is damaged; write it again."
            )

    def _check_absent_rows(self, first: int, values: Array, absent_until: int) -> None:
        """Judge absent chunks at the head of `indptr`: those rows had better be empty.

        As zeros they leave everything before the next chunk to one row. That is believed if the
        row is no longer than the longest after it.
        """
        at = absent_until - first
        longest = np.diff(values[max(at, 0) :]).max(initial=0)
        if self.indptr.chunk_size > _TINY_CHUNK and values[at] > longest:
            loss = f"{values[at]} entries lose their rows"
            raise DamagedGraphError(self._missing(self.indptr, 0, loss))

    def _read_indptr(self, first: int, last: int) -> Array:
        """Return ``indptr[first : last + 1]`` as int64; this thread's, until it reads more."""
        values = buffers.take("indptr", last - first + 1, np.int64)
        self._read_as_int64(first, last + 1, values)
        return values

    def _read_as_int64(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read ``indptr[start : stop]`` into `out`; see `StoredArray.read`."""
        indptr = self.indptr
        if indptr.dtype == np.int64:
            return indptr.read(start, stop, out)
        stored = buffers.take("stored indptr", stop - start, indptr.dtype)
        absent = indptr.read(start, stop, stored)
        out[:] = stored
        return absent

    def entries(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return rows and columns of the stored entries ``[start, stop)``, unchecked.

        They are fewer where the matrix ends, or a chunk of `indptr`.
        """
        chunk = self.indptr.chunk_size
        # Rows are often of about the same length, which tells the chunk; if not, it is halved down.
        low = start * self.n_cells // self.n_entries // chunk * chunk
        high = min(low + chunk, self.n_cells) - 1
        values = self._read_indptr(low, max(high, low))
        if not values[0] <= start < values[-1]:
            low, high = 0, self.n_cells
            while high - low > chunk:
                middle = (low + high) // 2
                if self.indptr.value_at(middle) <= start:
                    low = middle
                else:
                    high = middle
            values = self._read_indptr(low, high)
        stop = max(start, min(stop, int(values[-1]), self.n_entries))
        rows = low + np.searchsorted(values, np.arange(start, stop), side="right") - 1
        return rows, self.indices.values(start, stop)

    def has_entry(self, row: int, column: int) -> bool:
        """Whether an entry is stored at a row and column, among the first 2²⁰ of the row."""
        return self._entries_at(row, column)[1].size > 0

    def weights_at(self, row: int, column: int) -> list[Any]:
        """Return the weights stored at a row and column, as `has_entry` looks for them."""
        start, found = self._entries_at(row, column)
        places = [start + at for at in found.tolist()]
        return [self.data.values(at, at + 1)[0].item() for at in places]

    def _entries_at(self, row: int, column: int) -> tuple[int, Array]:
        """Return where a row starts, and where in it entries are of a column; unchecked."""
        none = 0, np.empty(0, np.int64)
        if not 0 <= row < self.n_cells:
            return none
        values = self._read_indptr(row, row + 1)
        start, stop = int(values[0]), int(values[1])
        if not 0 <= start <= stop <= self.n_entries:
            return none
        stop = min(stop, start + _INDPTR_SLICE)
        return start, np.flatnonzero(self.indices.values(start, stop) == column)

    def read_block(
        self, block: Block, *, weights: bool = False, narrow: bool = False
    ) -> BlockEntries:
        """Read and check a block. The arrays belong to this thread, until its next block.

        Weights are float64, or float32 if they fit that and are to be `narrow`; int64 of integers.

        Raises a DamagedGraphError if an index is outside the matrix, a weight is NaN or infinite,
        or a chunk is missing or broken; and a NegativeWeightError if a weight is negative but
        `weights` are not asked for: they would have to be added up.
        """
        indptr = self._indptr_of(block)
        indices = self._read_indices(block, indptr)
        kept = None
        if weights:
            is_float, size = self.data.dtype.kind == "f", self.data.dtype.itemsize
            dtype = (np.float32 if narrow and size <= 4 else np.float64) if is_float else np.int64
            kept = buffers.take("weights", block.stop - block.start, dtype)
        has_negative = self._read_weights(block, indptr, indices, kept)
        if has_negative and not weights:
            raise NegativeWeightError
        return BlockEntries(indices, indptr, kept)

    def begin_reading(self, block: Block) -> None:
        """Have the system read a block from now on, without waiting: its time is yet to come."""
        stop = min(block.stop, block.start + _MOST_AHEAD)
        self.indices.begin_reading(block.start, stop)
        self.data.begin_reading(block.start, stop)

    def read_stored(self, block: Block) -> BlockEntries:
        """Read a block whose weights (float64) are as they are stored: zero, negative or NaN too.

        The arrays belong to this thread, until its next block. Raises a DamagedGraphError as
        `read_block` does, but for weights.
        """
        indptr = self._indptr_of(block)
        indices = self._read_indices(block, indptr)
        weights = buffers.take("weights", block.stop - block.start, np.float64)
        for a, b in self.data.spans(block.start, block.stop):
            stored = buffers.take("stored weights", b - a, self.data.dtype)
            self._read_weights_of_span(a, b, stored)
            weights[a - block.start : b - block.start] = stored
        return BlockEntries(indices, indptr, weights)

    def _indptr_of(self, block: Block) -> Array:
        """Return where each row of a block starts in it; this thread's."""
        indptr = self._read_indptr(block.first_row, block.last_row)
        if checks.first_decrease(indptr) >= 0 or indptr[0] > block.start or indptr[-1] < block.stop:
            raise DamagedGraphError(
                f"{self.indptr.name} changed while it was being read; export again when "
                "nothing else writes to the store."
            )
        np.clip(indptr, block.start, block.stop, out=indptr)
        indptr -= block.start
        return indptr

    def read_rows(self, block: Block) -> tuple[Array, Array, Array]:
        """Read whole rows as they are stored: new `indptr` (int64), `indices` and `data`.

        Weights are not looked at, so that users can mend those that are not finite.
        """
        indptr = self._indptr_of(block).copy()
        indices = self._read_indices(block, indptr).copy()
        data = np.empty(block.stop - block.start, self.data.dtype)
        for a, b in self.data.spans(block.start, block.stop):
            self._read_weights_of_span(a, b, data[a - block.start : b - block.start])
        return indptr, indices, data

    def _spans(self, array: StoredArray, block: Block) -> Iterator[Span]:
        """Cut a block at chunk borders; of a large one, the next span is read ahead each time."""
        for a, b in array.spans(block.start, block.stop):
            if block.start + _MOST_AHEAD <= b < block.stop:
                array.begin_reading(b, min(2 * b - a, block.stop))
            yield a, b

    def _read_indices(self, block: Block, indptr: Array) -> Array:
        array = self.indices
        out = buffers.take("indices", block.stop - block.start, self.row_dtype)
        for a, b in self._spans(array, block):
            part = out[a - block.start : b - block.start]
            native = array.dtype == self.row_dtype
            stored = part if native else buffers.take("stored indices", b - a, array.dtype)
            for c, d in array.read(a, b, stored):
                if not self._believable_zero_columns(block, indptr, c, d):
                    loss = "as zeros it would link cells to cell 0 over and over"
                    raise DamagedGraphError(self._missing(array, c, loss))
            bad = checks.first_invalid_index(stored, self.n_cells)
            if bad >= 0:
                row = _row_of(block, indptr, a + bad)
                raise DamagedGraphError(
                    f"{array.name} holds {stored[bad]} in row {row} (entry {a + bad}); a matrix of "
                    f"{self.n_cells} cells has indices from 0 to {self.n_cells - 1}. The matrix is "
                    "damaged; write it again."
                )
            if not native:
                part[:] = stored
        return out

    def _believable_zero_columns(self, block: Block, indptr: Array, a: int, b: int) -> bool:
        """Whether entries ``[a, b)`` may all be in column 0: no row has two of them."""
        if self.indices.chunk_size <= _TINY_CHUNK:
            return True
        inside = np.clip(indptr, a - block.start, b - block.start)
        return bool(np.diff(inside).max(initial=0) <= 1)

    def _read_weights(
        self, block: Block, indptr: Array, indices: Array, kept: Array | None
    ) -> bool:
        """Read and check weights, into `kept` if they are wanted; whether some are negative."""
        array = self.data
        has_negative = False
        for a, b in self._spans(array, block):
            part = None if kept is None else kept[a - block.start : b - block.start]
            if part is not None and part.dtype == array.dtype:
                stored = part
            else:
                stored = buffers.take("stored weights", b - a, array.dtype)
            self._read_weights_of_span(a, b, stored)
            weights = _comparable(stored)
            not_finite, n_zeros, n_negative = checks.scan_weights(weights)
            if not_finite >= 0:
                row = _row_of(block, indptr, a + not_finite)
                cells = (row, int(indices[a + not_finite - block.start]))
                raise DamagedGraphError(
                    f"the weight of cells {cells if self.layout == 'csr' else cells[::-1]} in "
                    f"{self.key} is {stored[not_finite]}; weights must be finite. Compute the "
                    "neighbors again, or replace such weights."
                )
            has_negative |= n_negative > 0
            if n_zeros:
                checks.drop_stored_zeros(indices, weights, a - block.start, indptr, block.first_row)
            if part is not None and part is not stored:
                part[:] = stored
        return has_negative

    def _read_weights_of_span(self, a: int, b: int, out: Array) -> None:
        for c, d in self.data.read(a, b, out):
            if self.data.chunk_size > _TINY_CHUNK:
                loss = f"the edges of its {d - c} entries would be lost"
                raise DamagedGraphError(self._missing(self.data, c, loss))

    def _missing(self, array: StoredArray, at: int, loss: str) -> str:
        return (
            f"chunk {array.key_of(at)} of {array.name} is missing from the store: {loss}. Copy the "
            "store again from where it came. If those values really are zeros, write it again "
            "with zarr.config.set({'array.write_empty_chunks': True})."
        )


def _row_of(block: Block, indptr: Array, entry: int) -> int:
    return block.first_row + int(np.searchsorted(indptr, entry - block.start, side="right")) - 1


def _comparable(stored: Array) -> Array:
    """Return weights in a dtype that compiled loops compare: bool and float16 are converted."""
    if stored.dtype == np.bool_:
        return stored.view(np.uint8)
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored


class NegativeWeightError(Exception):
    """Never seen by users: a weight is negative, so entries may cancel and have to be added up."""
