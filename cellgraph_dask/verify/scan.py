"""One look at all edges of an export: whether they are well-formed, and what graph they make.

Every edge is held against its predecessor before anything else is done with it, so that what
follows may use its cells as places in arrays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..edge_pairs.components import Components, Forests, forest_bytes
from ..edge_pairs.format import Manifest
from ..edge_pairs.reader import (
    SLAB_EDGES,
    Slab,
    first_bad_edge,
    open_plain,
    slabs_bytes,
    stream_slabs,
)
from ..machine.buffers import Array
from ..runtime.progress import Progress
from ..runtime.stage import Stage
from ..runtime.threads import Threads
from . import loops
from .observer import Observer
from .statistics import DegreeCounts, Degrees, ListedEnds, are_few, degree_bytes

_STRETCH_EDGES = 1 << 22  # edges of a plain file that one task looks at
_LEAST_CELLS = 1 << 20  # cells whose degrees are counted in one pass, where memory is short


@dataclass(frozen=True)
class SurveyPlan:
    """What is looked at besides the order of the edges, and how memory is shared out for it."""

    threads: int
    ahead: bool  # whether each gzip file is unpacked by a thread of its own
    range_cells: int  # cells whose degrees are counted in one pass over the files
    n_forests: int  # threads that join components at once; 0 to leave components out
    n_samples: int = 0  # edges to pick at random
    seeds: Array | None = None  # four random uint64: sum up hashes of the edges with them
    shift: int | None = None  # note where the edges of every 2**shift sources begin
    observer: Observer | None = None  # is shown all edges


@dataclass(frozen=True)
class Survey:
    """What was found."""

    problem: str | None  # the first; all else then tells of a part of the edges only
    degrees: Degrees
    component_sizes: dict[int, int] | None  # for each number of cells, the components of so many
    samples: Array  # (2, n) int64: sources and destinations of edges picked at random
    hash_sum: tuple[int, int]  # its two halves
    starts: Array | None  # number of the first edge of every 2**shift sources; int64

    @property
    def components(self) -> Components | None:
        """The connected components, if they were looked for."""
        sizes = self.component_sizes
        return Components.of(sizes) if sizes is not None else None


@dataclass
class _Notes:
    """What the tasks leave behind, under a lock."""

    starts: Array | None
    forests: Forests | None
    problems: dict[int, str] = field(default_factory=dict)
    samples: list[Array] = field(default_factory=list)
    hash_sum: Array = field(default_factory=lambda: np.zeros(2, np.uint64))
    lock: threading.Lock = field(default_factory=threading.Lock)


def survey_bytes(plan: SurveyPlan, manifest: Manifest) -> int:
    """Return the most bytes that `survey` needs."""
    n_cells, n_edges = manifest.n_cells, manifest.n_edges
    per_edge = 8 + sum(dtype.itemsize for dtype in manifest.columns.values()) + manifest.weighted
    slabs = SLAB_EDGES * per_edge * plan.threads
    if manifest.compression is not None:
        slabs += slabs_bytes()
    per_cell, notes = degree_bytes(n_cells, n_edges, plan.threads)
    total = slabs + notes + per_cell * min(plan.range_cells, n_cells) + 32 * _LEAST_CELLS
    return total + (forest_bytes(n_cells, plan.n_forests) if plan.n_forests else 0)


def plan_survey(
    manifest: Manifest, available: int, threads: int, *, components: bool
) -> SurveyPlan | None:
    """Share out memory: degrees in as few passes as fit, then as many forests as fit.

    The plan is None if not even the smallest fits.
    """
    smallest = SurveyPlan(1, threads > 1, _LEAST_CELLS, 0)
    if manifest.compression is not None:
        threads = 1  # what is unpacked comes in one stream
    if survey_bytes(smallest, manifest) > available:
        return None
    plan = replace(smallest, threads=threads)
    while survey_bytes(plan, manifest) > available:
        plan = replace(plan, threads=plan.threads - 1)
    per_cell, _ = degree_bytes(manifest.n_cells, manifest.n_edges, plan.threads)
    if per_cell:
        left = available - survey_bytes(replace(plan, range_cells=0), manifest)
        n_passes = -(-manifest.n_cells // max(_LEAST_CELLS, left // per_cell)) or 1
        plan = replace(plan, range_cells=max(_LEAST_CELLS, -(-manifest.n_cells // n_passes)))
    for n_forests in range(plan.threads if components else 0, 0, -1):
        with_forests = replace(plan, n_forests=n_forests)
        if survey_bytes(with_forests, manifest) <= available:
            return with_forests
    return plan


def survey(out_dir: Path, manifest: Manifest, plan: SurveyPlan, progress: Progress) -> Survey:
    """Look at all edges of an export.

    Files that are missing, of another length, or not sound gzip raise `InvalidExportError`.
    """
    n_cells, n_edges = manifest.n_cells, manifest.n_edges
    notes = _Notes(
        starts=None if plan.shift is None else np.full((n_cells >> plan.shift) + 1, n_edges),
        forests=Forests(n_cells, plan.n_forests) if plan.n_forests else None,
    )
    histogram: Counter[int] = Counter()
    few = are_few(n_cells, n_edges)
    for first in range(0, max(n_cells, 1), n_cells if few else plan.range_cells):
        last = min(first + plan.range_cells, n_cells)
        counts = ListedEnds(n_cells) if few else DegreeCounts(first, last, n_cells, plan.threads)
        consumers: list[Callable[[Slab], None]] = [counts.add]
        if first == 0:
            consumers += _first_pass(manifest, plan, notes)
        seeds = plan.seeds if first == 0 else None
        _run_pass(
            out_dir, manifest, plan, progress, partial(_look, n_cells, consumers, seeds, notes)
        )
        if notes.problems:
            break
        counts.add_up(histogram)
    forests, starts = notes.forests, notes.starts
    none = np.empty((2, 0), np.int64)
    return Survey(
        problem=notes.problems[min(notes.problems)] if notes.problems else None,
        degrees=Degrees(dict(histogram)),
        component_sizes=forests.sizes() if forests is not None and not notes.problems else None,
        samples=np.concatenate([none, *notes.samples], axis=1),
        hash_sum=(int(notes.hash_sum[0]), int(notes.hash_sum[1])),
        # Where no source has edges, the next one's begin.
        starts=None if starts is None else np.minimum.accumulate(starts[::-1])[::-1],
    )


def _first_pass(
    manifest: Manifest, plan: SurveyPlan, notes: _Notes
) -> Iterator[Callable[[Slab], None]]:
    """Yield what is done with edges besides counting degrees, which may take several passes."""
    if notes.starts is not None and plan.shift is not None:
        yield partial(_note_starts, notes.starts, plan.shift, notes.lock)
    if plan.n_samples:
        yield partial(_pick, _picks(manifest.n_edges, plan.n_samples), notes)
    if notes.forests is not None:
        forests = notes.forests
        yield lambda slab: forests.add(slab.src, slab.dst)
    if plan.observer is not None:
        yield plan.observer.look


def _run_pass(
    out_dir: Path, manifest: Manifest, plan: SurveyPlan, progress: Progress, look:
    Callable[[tuple[int, int], Iterable[Slab]], int],
) -> None:  # fmt: skip
    """Let `look` see all edges: in stretches by several threads, or as one stream."""
    if manifest.compression is not None:
        progress.start("edges", manifest.n_edges, "edges")
        slabs = stream_slabs(out_dir, manifest, ahead=plan.ahead)
        look((-1, -1), _told(slabs, progress))
        return
    with closing(open_plain(out_dir, manifest)) as edges:
        starts = range(0, manifest.n_edges, _STRETCH_EDGES)
        stretches = [range(k, min(k + _STRETCH_EDGES, manifest.n_edges)) for k in starts]

        def task(stretch: range) -> int:
            before = edges.edge(stretch.start - 1) if stretch.start else (-1, -1)
            return look(before, edges.slabs(stretch.start, stretch.stop))

        sizes = [len(stretch) for stretch in stretches]
        Threads(plan.threads, progress).run(Stage("edges", task, stretches, sizes, "edges"))


def _told(slabs: Iterator[Slab], progress: Progress) -> Iterator[Slab]:
    for slab in slabs:
        yield slab
        progress.advance(slab[1].size)


def _look(
    n_cells: int, consumers: list[Callable[[Slab], None]], seeds: Array | None, notes: _Notes,
    before: tuple[int, int], slabs: Iterable[Slab],
) -> int:  # fmt: skip
    """Check the order of consecutive slabs and hand them on; return how many edges there were."""
    total = np.zeros(2, np.uint64)
    n = 0
    for slab in slabs:
        position, src, dst, weights = slab
        if weights is not None:
            _check_weights(position, weights, notes)
        bad = first_bad_edge(src, dst, *before, n_cells)
        if bad >= 0:
            previous = (int(src[bad - 1]), int(dst[bad - 1])) if bad else before
            with notes.lock:
                notes.problems[position + bad] = (
                    f"edge {position + bad} (byte {(position + bad) * src.itemsize}) is "
                    f"({src[bad]}, {dst[bad]}) after {previous}; edges must rise, with source < "
                    f"destination < {n_cells}."
                )
            return n
        if seeds is not None:
            loops.hash_edges(src, dst, seeds, total)
        for consume in consumers:
            consume(slab)
        if src.size:
            before = (int(src[-1]), int(dst[-1]))
        n += src.size
    with notes.lock:
        notes.hash_sum += total
    return n


def _check_weights(position: int, weights: Array, notes: _Notes) -> None:
    """Note the first weight that is none: not finite, or not above zero."""
    sound = weights > 0
    sound &= weights < np.inf
    if not sound.all():
        bad = int(sound.argmin())
        with notes.lock:
            notes.problems[position + bad] = (
                f"the weight of edge {position + bad} (byte {8 * (position + bad)}) is "
                f"{weights[bad]}; weights must be finite and above zero."
            )


def _note_starts(starts: Array, shift: int, lock: threading.Lock, slab: Slab) -> None:
    """Note where ranges of sources begin; of what several slabs say the least number is right."""
    position, src, *_ = slab
    if not src.size:
        return
    first, last = int(src[0]) >> shift, int(src[-1]) >> shift
    bounds = np.arange(first, last + 1) << shift
    at = position + np.searchsorted(src, bounds.astype(src.dtype))
    with lock:
        np.minimum(starts[first : last + 1], at, out=starts[first : last + 1])


def _picks(n_edges: int, n_samples: int) -> Array:
    """Return the numbers of edges picked at random, in order."""
    rng = np.random.default_rng(0)
    if n_edges <= n_samples:
        return np.arange(n_edges)
    return np.unique(rng.integers(0, n_edges, n_samples))


def _pick(picked: Array, notes: _Notes, slab: Slab) -> None:
    position, src, dst, _ = slab
    a, b = np.searchsorted(picked, [position, position + src.size])
    at = picked[a:b] - position
    if at.size:
        with notes.lock:
            notes.samples.append(np.stack([src[at], dst[at]]).astype(np.int64))
