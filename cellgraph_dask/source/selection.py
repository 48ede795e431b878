"""Some of the cells, chosen by their names, by a column of `obs`, or by a mask.

A `Selection` takes 12 bytes for 64 cells of the store. Names that are looked for are held as
hashes, while those of the store pass by.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from ..errors import MemoryLimitError, OutputError, SourceError, shown
from ..machine.buffers import Array
from ..machine.memory import format_bytes, resident_bytes
from ..machine.remote import local_path, plain_name
from .names import Names, open_names
from .opening import is_container
from .texts import ADVICE, open_texts

_OBS = "obs:"
_MOST_LINE = 1 << 16  # bytes of a name in a file
_AT_ONCE = 1 << 16  # names that are hashed at once
_WANTED_BYTES = 64  # of a name that is looked for: hashes, as given and sorted; line, place
_MOST_SHOWN = 20
_MOST_SEEN = 1 << 12

Cells = str | os.PathLike[str] | Sequence[str] | Sequence[bool] | Array
Limit = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the cells of a store, with numbers of their own from 0 on, in the same order."""

    given: str  # as the user gave it
    n_cells: int  # of the store
    words: Array  # uint64: a bit for each of them

    @cached_property
    def _before(self) -> Array:
        """How many are selected before each word, and in all."""
        counts = np.bitwise_count(self.words)
        dtype = np.uint32 if self.n_cells < 2**32 else np.uint64
        before = np.zeros(counts.size + 1, dtype)
        np.cumsum(counts, out=before[1:])
        return before

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"given": self.given, "n_cells": self.n_cells, "words": self.words}

    def count(self, stop: Any) -> Any:
        """Return how many of the first `stop` cells are selected: of one number, or of many."""
        stop = np.asarray(stop, np.int64)
        at = stop >> 6
        bits = self.words[np.minimum(at, self.words.size - 1)] if self.words.size else stop
        inside = bits & ((np.uint64(1) << (stop & 63).astype(np.uint64)) - np.uint64(1))
        return self._before[at].astype(np.int64) + np.bitwise_count(inside)

    def rank(self, cells: Array) -> Array:
        """Return the own numbers of cells (int64); -1 for those that are not selected."""
        at = cells >> 6
        bits = self.words[at]
        bit = np.uint64(1) << (cells & 63).astype(np.uint64)
        ranks: Array = np.bitwise_count(bits & (bit - np.uint64(1))).astype(np.int64)
        ranks += self._before[at]
        ranks[(bits & bit) == 0] = -1
        return ranks

    def original(self, ranks: Array) -> Array:
        """Return the numbers in the store (int64) of cells by their own."""
        at = np.searchsorted(self._before, ranks, side="right") - 1
        bits = np.unpackbits(self.words[at, None].view(np.uint8), axis=1, bitorder="little")
        nth = (ranks - self._before[at].astype(np.int64) + 1).astype(np.uint8)
        is_nth = np.cumsum(bits, axis=1, dtype=np.uint8) == nth[:, None]
        cells: Array = at * 64 + np.argmax(is_nth, axis=1)
        return cells

    def names(self, names: Names) -> Iterator[tuple[Array, list[str | None]]]:
        """Yield the numbers in the store, and the names, of the selected cells, step by step."""
        for start, texts in names.steps():
            cells = np.arange(start, start + len(texts))
            cells = cells[self.rank(cells) >= 0]
            if cells.size:
                yield cells, [texts[k] for k in (cells - start).tolist()]

    @property
    def options(self) -> dict[str, Any]:
        """What tells this selection from others, for the record and the provenance."""
        digest = sha256(self.words.astype("<u8", copy=False).tobytes()).hexdigest()
        cells = {"given": self.given, "n_selected": len(self), "of": self.n_cells, "sha256": digest}
        return {"cells": cells}


def select_cells(
    source: Any, key: str, n_cells: int, cells: Any, *,
    storage_options: Mapping[str, Any] | None = None, limit: int | None = None,
) -> Selection:  # fmt: skip
    """Return the cells of a store that a user has chosen, as `plan_export` explains it.

    `key` is where the matrix is in the `source`. A SourceError says that a name or column is not
    there, or that nothing is selected; a MemoryLimitError that reading the names takes more than
    the `limit`.
    """
    if not is_container(source):
        raise SourceError(
            "the matrix was given without the names of its cells. Take its rows and columns "
            "yourself, matrix[cells][:, cells], or give the AnnData or the store that it is in."
        )
    check = _check_of(limit)
    text = plain_name(cells)
    if isinstance(text, str) and text.startswith(_OBS):
        words, given = _of_column(source, key, n_cells, text, storage_options, check), text
    elif isinstance(text, str):
        file, given = _local(text), shown(text)
        wanted = _Wanted(_lines(file), file)
        words = _of_names(source, key, n_cells, wanted, storage_options, check)
    else:
        words, given = _of_sequence(source, key, n_cells, cells, storage_options, check)
    selection = Selection(given, n_cells, words)
    if not len(selection):
        raise SourceError(f"{given} selects none of the {n_cells:,} cells. Name one or more.")
    return selection


def _local(path: str) -> str:
    try:
        return str(local_path(path))
    except OutputError as error:
        raise SourceError(*error.args) from error


def _check_of(limit: int | None) -> Limit:
    def check(n_bytes: int) -> None:
        if limit is not None and resident_bytes() + n_bytes > limit:
            needed = resident_bytes() + n_bytes
            raise MemoryLimitError(
                f"the memory limit of {format_bytes(limit)} is too small: finding the cells takes "
                f"{format_bytes(n_bytes)} beside what Python and its libraries hold. Allow "
                f"{-(-needed // 10**6)}MB (`memory_limit`).",
                needed_bytes=-(-needed // 10**6) * 10**6,
            )

    return check


class _Bits:
    """Words that are filled from the first cell on."""

    def __init__(self, n_cells: int) -> None:
        self._bytes = np.zeros(-(-n_cells // 64) * 8, np.uint8)

    @property
    def words(self) -> Array:
        """The bits, 64 in a word."""
        return self._bytes.view("<u8").astype(np.uint64, copy=False)

    def set(self, start: int, selected: Array) -> None:
        """Note for the cells from `start` on, a multiple of 64, whether they are selected."""
        packed = np.packbits(selected, bitorder="little")
        self._bytes[start // 8 : start // 8 + packed.size] = packed


# By a column of obs ------------------------------------------------------------------------------


def _of_column(
    source: Any, key: str, n_cells: int, text: str, options: Mapping[str, Any] | None, check: Limit
) -> Array:
    told = text.removeprefix(_OBS)
    if "=" not in told:
        raise SourceError(f"{text} does not name a value: give obs:COLUMN=VALUE.")
    bits, known, any_found = _Bits(n_cells), dict[str | None, bool](), False
    with open_texts(source, n_cells, told, options, key=key) as (column, value):
        check(column.n_bytes)
        for start, texts in column.steps():
            for found in set(texts) - known.keys():
                is_same = _is_same(found, value, column)
                if is_same or len(known) < _MOST_SEEN:
                    known[found] = is_same
            selected = np.fromiter((known.get(t, False) for t in texts), bool, len(texts))
            any_found |= bool(selected.any())
            bits.set(start, selected)
    if not any_found:
        raise SourceError(f"no cell has {told}; {_values_there(known)}")
    return bits.words


def _is_same(found: str | None, value: str, column: Names) -> bool:
    """Whether a text of a column is what the user calls it: numbers may be spelled otherwise."""
    if found is None or found == value or not column.is_number:
        return found == value
    if found in ("True", "False"):
        return value.lower() == found.lower()
    try:
        return float(found) == float(value)
    except ValueError:
        return False


def _values_there(known: Mapping[str | None, bool]) -> str:
    def place(text: str) -> tuple[bool, float, str]:
        try:
            return False, float(text), text
        except ValueError:
            return True, 0.0, text

    values = sorted((text for text in known if text is not None), key=place)
    more = " …" if len(values) > _MOST_SHOWN else ""
    return f"there are {', '.join(map(repr, values[:_MOST_SHOWN])) or 'no values at all'}{more}."


# By names ----------------------------------------------------------------------------------------


class _Wanted:
    """Names that are looked for: hashes of 128 bits, whose keys are those of this process."""

    def __init__(self, names: Iterable[tuple[int, str]], file: str | None) -> None:
        self.file = file
        hashes, lines, batch = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)], []
        for pair in names:
            batch.append(pair)
            if len(batch) == _AT_ONCE:
                lines.append(np.array([line for line, _ in batch]))
                hashes.append(_hashes([name for _, name in batch]))
                batch = []
        lines.append(np.array([line for line, _ in batch], np.int64))
        hashes.append(_hashes([name for _, name in batch]))
        found = np.concatenate(hashes)
        self.lines = np.concatenate(lines)
        self._order = np.lexsort((found[:, 1], found[:, 0]))
        self._sorted = found[self._order]
        self._taken = np.zeros(self.lines.size, bool)
        same = (self._sorted[1:] == self._sorted[:-1]).all(axis=1)
        if same.any():
            pairs = self._order[np.flatnonzero(same)[:, None] + [0, 1]]
            first, second = np.sort(pairs[np.argmin(pairs.max(axis=1))])
            raise SourceError(
                f"{self.told(int(second))} is the same as {self.place(int(first))}. Give each cell "
                "once."
            )

    def __len__(self) -> int:
        return int(self.lines.size)

    def place(self, k: int) -> str:
        """Return where a name was given."""
        if self.file is None:
            return f"number {self.lines[k]}"
        return f"line {self.lines[k]} of {shown(self.file)}"

    def told(self, k: int) -> str:
        """Return a name and where it was given; a pipe cannot be read again for the name."""
        name = self.name_of(int(self.lines[k]))
        return self.place(k) if name is None else f"{name!r}, {self.place(k)},"

    def name_of(self, line: int) -> str | None:
        """Return a name by its line."""
        if self.file is None or not stat.S_ISREG(os.stat(self.file).st_mode):  # noqa: PTH116
            return None
        return next((name for number, name in _lines(self.file) if number == line), None)

    def find(self, names: Sequence[str | None]) -> Array:
        """Return which of these names of cells are looked for.

        A SourceError says that one of them has been found before.
        """
        hashes = _hashes([name or "" for name in names])
        at = np.searchsorted(self._sorted[:, 0], hashes[:, 0])
        found = np.full(len(names), -1, np.int64)
        for step in (0, 1):  # two with the same first half are one in 10¹⁹
            place = np.minimum(at + step, len(self) - 1)
            is_same = (self._sorted[place] == hashes).all(axis=1)
            found[is_same] = place[is_same]
        for k, name in enumerate(names):
            if name is None:
                found[k] = -1
        wanted = found[found >= 0]
        places, counts = np.unique(wanted, return_counts=True)
        again = np.concatenate([places[counts > 1], places[self._taken[places]]])
        if again.size:
            k = int(np.flatnonzero(found == again[0])[-1])
            raise SourceError(
                f"several cells are called {names[k]!r}, so it is not clear which one is meant. "
                "Make their names unique (adata.obs_names_make_unique()), or select by a column "
                "of obs."
            )
        self._taken[places] = True
        selected: Array = found >= 0
        return selected

    def first_missing(self) -> int | None:
        """Return which name, in the order they were given, no cell has; None if there is none."""
        missing = self._order[~self._taken]
        return int(missing.min()) if missing.size else None


def _hashes(names: Sequence[str]) -> Array:
    """Return two hashes of each text; Python keys its hashes anew for each process."""
    found = np.empty((len(names), 2), np.int64)
    found[:, 0] = np.fromiter(map(hash, names), np.int64, len(names))
    found[:, 1] = np.fromiter((hash(name + "\0") for name in names), np.int64, len(names))
    return found


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the names in a file, each with the number of its line."""
    name = shown(path)
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE + 1):
                number += 1
                if len(line) > _MOST_LINE:
                    raise SourceError(
                        f"line {number} of {name} is longer than {_MOST_LINE} bytes. Give a text "
                        "file with the name of one cell on each line."
                    )
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError:
        raise SourceError(
            f"line {number} of {name} is not text in UTF-8. Give a text file with the name of one "
            "cell on each line."
        ) from None
    except OSError as error:
        raise SourceError(
            f"{name} cannot be read: {error.strerror}. Give a text file with the name of one cell "
            "on each line, or obs:COLUMN=VALUE."
        ) from error


def lines_of(names: Names, selection: Selection) -> Iterator[bytes]:
    """Yield the text that holds the names of the selected cells, a line for each.

    A SourceError says that a cell has no name that a line can hold.
    """
    for cells, texts in selection.names(names):
        lines = "\n".join([text or "" for text in texts]) + "\n"
        is_odd = not all(texts) or any(map(str.isspace, filter(None, texts)))
        if is_odd or "\r" in lines or lines.count("\n") != len(texts):
            for cell, text in zip(cells.tolist(), texts, strict=True):
                if not text or not text.strip() or "\n" in text or "\r" in text:
                    raise SourceError(
                        f"the cell number {cell} is called {text!r}, which cannot be written "
                        "beside the edges as a line of text. Give the cell another name in obs."
                    )
        yield lines.encode(errors="surrogatepass")


def _of_names(
    source: Any, key: str, n_cells: int, wanted: _Wanted, options: Mapping[str, Any] | None,
    check: Limit,
) -> Array:  # fmt: skip
    bits = _Bits(n_cells)
    if not len(wanted):
        return bits.words
    with open_names(source, n_cells, options, key=key, advice=ADVICE) as names:
        check(names.n_bytes + _WANTED_BYTES * len(wanted))
        for start, texts in names.steps():
            bits.set(start, wanted.find(texts))
        missing = wanted.first_missing()
        if missing is not None:
            example = next((text for text in names.read(0, min(n_cells, 1))), None)
            raise SourceError(
                f"there is no cell {wanted.told(missing)} among the {n_cells:,} of the store"
                f"{f'; the first of these is {example!r}' if example is not None else ''}."
            )
    return bits.words


def _of_sequence(
    source: Any, key: str, n_cells: int, cells: Any, options: Mapping[str, Any] | None, check: Limit
) -> tuple[Array, str]:
    if isinstance(cells, Iterator):
        return _of_names(source, key, n_cells, _Wanted(enumerate(cells), None), options, check), ""
    values = cells if hasattr(cells, "dtype") else list(cells)
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    if kind == "b" or (kind is None and values and isinstance(values[0], bool | np.bool_)):
        mask = np.asarray(values, bool)
        if mask.shape != (n_cells,):
            raise ValueError(
                f"a mask of cells needs a value for each of the {n_cells:,} cells, but has the "
                f"shape {mask.shape}"
            )
        bits = _Bits(n_cells)
        bits.set(0, mask)
        return bits.words, "a mask"
    names = list(values)
    for k, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(
                f"cells must be names, or a mask of true and false; number {k} is {name!r}"
            )
    wanted = _InMemory(names)
    words = _of_names(source, key, n_cells, wanted, options, check)
    return words, f"{len(names):,} names"


class _InMemory(_Wanted):
    """Names that are in a sequence."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        super().__init__(enumerate(names), None)

    def name_of(self, line: int) -> str:
        """Return a name by its number."""
        return str(self._names[line])
