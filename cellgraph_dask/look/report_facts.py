"""What a report tells in numbers: histograms of what a verification sees, and its stages.

All of it is gathered in the one look at the edges that verification takes, in some hundred
kilobytes, whatever the size of the graph.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..edge_pairs.reader import Slab
from ..machine.buffers import Array
from ..machine.memory import peak_bytes
from ..runtime.progress import Progress
from ..verify.observer import Observer
from ..verify.statistics import Degrees

MOST_BINS = 40
_TAIL = 0.01  # of the cells may have more neighbors than the bins of one width reach
_SLICE = 1 << 14  # weights that are looked at in one go
_SHIFT = 49  # bits of a weight that its bin leaves out: eight bins for each power of two
_PER_OCTAVE = 1 << (52 - _SHIFT)
_ALL_BINS = 1 << (64 - _SHIFT)


@dataclass(frozen=True)
class Histogram:
    """How many values are in each bin.

    Attributes
    ----------
    starts, stops : tuple of float
        The bins are from a start, included, to its stop; of whole numbers the stop is not
        included, else it is in the last bin.
    counts : tuple of int
        Values in each bin.
    """

    starts: tuple[float, ...]
    stops: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of sampled edges, and of as many random pairs of cells, in an embedding.

    Attributes
    ----------
    starts, stops : tuple of float
        Of the bins, in the units of the embedding.
    edges, random : tuple of int
        Edges and random pairs in each bin.
    """

    starts: tuple[float, ...]
    stops: tuple[float, ...]
    edges: tuple[int, ...]
    random: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The weights of the edges.

    Attributes
    ----------
    least, largest, mean : float
        Of all edges.
    histogram : Histogram
        Bins become wider with the weights, in steps of a power of two.
    """

    least: float
    largest: float
    mean: float
    histogram: Histogram


@dataclass(frozen=True)
class StageTime:
    """A stage of the verification.

    Attributes
    ----------
    name, unit : str
        What it is called, and what is counted.
    total : int
        How much there was of it.
    seconds : float
        Time until the next stage began.
    peak_memory_bytes : int
        Most resident bytes until then, from the start of the verification on.
    """

    name: str
    total: int
    unit: str
    seconds: float
    peak_memory_bytes: int


class Stages(Progress):
    """Notes when stages begin, and hands everything on to the bars."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._began = time.perf_counter()
        self._now: tuple[str, int, str] = ("start", 0, "")
        self._done: list[StageTime] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units."""
        self._end()
        self._now = (stage, total, unit)
        self._bars.start(stage, total, unit)

    def advance(self, n: int) -> None:
        """Count `n` more units of the stage as done."""
        self._bars.advance(n)

    def times(self) -> tuple[StageTime, ...]:
        """End the last stage and return all of them."""
        self._end()
        return tuple(self._done)

    def _end(self) -> None:
        now = time.perf_counter()
        self._done.append(StageTime(*self._now, round(now - self._began, 3), peak_bytes()))
        self._began = now


class Seen(Observer):
    """Keeps what is needed for histograms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights = np.zeros(_ALL_BINS, np.int64)
        self._least, self._largest, self._sum = np.inf, 0.0, 0.0
        self._lengths: tuple[Array, Array] | None = None
        self.degrees: Degrees | None = None
        self._sizes: dict[int, int] | None = None
        self.differences: list[str] | None = None  # from the source; None if not compared

    def look(self, slab: Slab) -> None:
        """Count weights by their leading bits, on any thread."""
        if slab.weights is None:
            return
        for at in range(0, slab.weights.size, _SLICE):
            part = np.ascontiguousarray(slab.weights[at : at + _SLICE])
            found = np.bincount((part.view(np.uint64) >> np.uint64(_SHIFT)).astype(np.int64))
            least, largest = float(part.min()), float(part.max())
            with np.errstate(over="ignore", invalid="ignore"):
                added = float(part.sum())
            with self._lock:
                self._weights[: found.size] += found
                self._least, self._largest = min(self._least, least), max(self._largest, largest)
                self._sum += added

    def found(self, degrees: Degrees, component_sizes: dict[int, int] | None) -> None:
        """Keep degrees and sizes of components."""
        self.degrees, self._sizes = degrees, component_sizes

    def compared(self, problems: list[str]) -> None:
        """Keep what comparing the edges with their source has shown."""
        self.differences = problems

    def measured(self, edges: Array, random: Array) -> None:
        """Keep the lengths of sampled edges and random pairs."""
        self._lengths = edges, random

    def degree_histogram(self) -> Histogram | None:
        """Return how many cells have how many neighbors."""
        return _of_degrees(self.degrees) if self.degrees is not None else None

    def component_histogram(self) -> Histogram | None:
        """Return how many components have how many cells."""
        return _of_sizes(self._sizes) if self._sizes is not None else None

    def lengths(self) -> Lengths | None:
        """Return how long edges and random pairs are."""
        return _of_lengths(*self._lengths) if self._lengths is not None else None

    def weights(self) -> Weights | None:
        """Return what the weights are like; None if there are none, or an edge is not sound."""
        n_edges = int(self._weights.sum())
        if self.degrees is None or not n_edges:
            return None
        histogram = _of_weights(self._weights, self._largest)
        # Threads add up in any order, which the last digits show.
        mean = min(max(float(f"{self._sum / n_edges:.6g}"), self._least), self._largest)
        return Weights(self._least, self._largest, mean, histogram)


def _of_degrees(degrees: Degrees) -> Histogram | None:
    """Bin degrees: bins of one width for all cells but a few, the last one for those too."""
    if not degrees.counts:
        return None
    least, (most,) = min(degrees.counts), degrees.quantiles(1 - _TAIL)
    width = _round_width(most - least + 1)
    first = least // width * width
    starts = list(range(first, most + 1, width))
    return _binned(degrees.counts, starts, degrees.largest + 1)


def _round_width(n: int) -> int:
    """Return the least of 1, 2, 5, 10, 20 and so on with which few enough bins hold `n` values."""
    power = 1
    while True:
        for width in (power, 2 * power, 5 * power):
            if n <= (MOST_BINS - 1) * width:
                return width
        power *= 10


def _of_sizes(sizes: Mapping[int, int]) -> Histogram | None:
    """Bin the sizes of components: 1, 2 to 3, 4 to 7, and so on."""
    if not sizes:
        return None
    starts = [1 << k for k in range(min(sizes).bit_length() - 1, max(sizes).bit_length())]
    return _binned(sizes, starts, starts[-1] * 2)


def _binned(values: Mapping[int, int], starts: list[int], end: int) -> Histogram:
    """Count whole numbers, given with how often they come, in bins that rise."""
    stops = [*starts[1:], max(end, starts[-1] + 1)]
    found = np.array(list(values), np.int64)
    bins = np.searchsorted(np.array(starts, np.int64), found, side="right") - 1
    counts = [0] * len(starts)
    for at, n in zip(bins.tolist(), values.values(), strict=True):
        counts[at] += n
    return Histogram(tuple(starts), tuple(stops), tuple(counts))


def _of_lengths(edges: Array, random: Array) -> Lengths | None:
    """Bin lengths in bins of one round width; the last one has the few that are longer too."""
    usable = np.isfinite(edges) & np.isfinite(random)  # squares may overflow
    edges, random = edges[usable], random[usable]
    both = np.concatenate([edges, random])
    if not both.size:
        return None
    top = float(np.quantile(both, 0.995)) or float(both.max()) or 1.0
    power = 10.0 ** math.floor(math.log10(top / MOST_BINS))
    width = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n * MOST_BINS >= top)
    bounds = [float(f"{width * k:.12g}") for k in range(math.ceil(top / width) + 1)]
    bounds[-1] = max(bounds[-1], float(both.max()))
    counts = [tuple(np.histogram(part, bounds)[0].tolist()) for part in (edges, random)]
    return Lengths(tuple(bounds[:-1]), tuple(bounds[1:]), *counts)


def _of_weights(counts: Array, largest: float) -> Histogram:
    """Join bins of leading bits until they are few enough."""
    used = np.flatnonzero(counts)
    together = 1
    while used[-1] // together - used[0] // together >= MOST_BINS:
        together *= 2
    first, last = int(used[0]) // together, int(used[-1]) // together
    sums = np.add.reduceat(counts, np.arange(first * together, counts.size, together))
    bounds = [_weight_of(k * together) for k in range(first, last + 2)]
    if not np.isfinite(bounds[-1]):
        bounds[-1] = largest
    return Histogram(
        tuple(bounds[:-1]), tuple(bounds[1:]), tuple(sums[: last - first + 1].tolist())
    )


def _weight_of(number: int) -> float:
    """Return where a bin begins; all beyond the last number is infinity."""
    number = min(number, 0x7FF * _PER_OCTAVE)
    return float(np.array([number << _SHIFT], np.uint64).view(np.float64)[0])
