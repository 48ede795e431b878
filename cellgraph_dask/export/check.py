"""Whether a graph meets the rules of a reader: each broken rule, how often, and where first."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from ..delivery.products import Product
from ..edge_pairs.format import MOST_WEIGHTED_CELLS, VIEWER_BYTES, viewer_bytes
from ..errors import DiskSpaceError
from ..machine.amounts import counted
from ..machine.files import free_bytes, named_disk_errors
from ..machine.memory import (
    format_bytes,
    limit_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
    round_reserved,
)
from ..machine.remote import local_path
from ..machine.report import Report
from ..machine.temporary import clear_dead, temporary_folder
from ..plan.plan import run_bytes
from ..plan.tuning import Budget, tune
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Journal, ResumableExecutor, Stage
from ..runtime.threads import Threads, check_threads, compute_on_threads, default_threads
from ..source.blocks import cut_blocks
from ..source.matrix import Source
from ..source.opening import open_source
from ..source.spool import LazyMatrix, spool
from ..source.stamps import Watch
from ..stages import symmetry
from ..stages.job import Job, partition_shift
from ..stages.pipeline import run_stages, warm_up
from ..stages.runs import Scratch
from ..stages.symmetry import KINDS, Look, Place, Tally, is_balanced, look, may_repeat

Target = Literal["cellucid-0.0.9", "cellucid-0.9.4", "cellucid-0.9.5"]

TARGETS: tuple[Target, ...] = get_args(Target)
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

# What each reader takes besides finite weights.
_REFUSED: dict[Target, tuple[str, ...]] = {
    "cellucid-0.0.9": (),
    "cellucid-0.9.4": ("negative", "zero", "diagonal", "repeated", "one-sided", "unequal"),
    "cellucid-0.9.5": ("negative", "diagonal", "one-sided", "unequal", "too large"),
}
_MOST_CELLS = {
    "cellucid-0.0.9": 2**63, "cellucid-0.9.4": MOST_WEIGHTED_CELLS, "cellucid-0.9.5": 2**31 - 1,
}  # fmt: skip


@dataclass(frozen=True)
class BrokenRule(Report):
    """A rule of a reader that a graph does not meet.

    Attributes
    ----------
    rule : str
        Which one: "finite", "negative", "zero", "diagonal", "repeated", "one-sided", "unequal",
        "too large", "cells", or "size".
    count : int
        How many entries break it; pairs of cells, if both directions are compared.
    row, column : int or None
        Where the first one is; None if it is not of entries.
    text : str
        The same in words.
    """

    rule: str
    count: int
    row: int | None
    column: int | None
    text: str


@dataclass(frozen=True)
class CheckReport(Report):
    """What a check has found.

    Attributes
    ----------
    ok : bool
        Whether the reader takes the graph as it is.
    target : str
        The reader.
    source, key : str
        The store and the matrix in it.
    n_cells, n_entries : int
        Cells, and stored entries.
    broken : tuple of BrokenRule
        The rules that are not met.
    symmetric : bool or None
        Whether each pair of cells that is stored is stored in both directions; None if that was not
        found out, as a weight is not finite, or it does not matter to the reader.
    symmetric_weights : bool or None
        Whether both have the same weight, bit by bit.
    seconds : float
        Time it took.
    peak_memory_bytes : int
        Most resident bytes of this process.
    """

    _title = "Check"

    ok: bool
    target: Target
    source: str
    key: str
    n_cells: int
    n_entries: int
    broken: tuple[BrokenRule, ...]
    symmetric: bool | None
    symmetric_weights: bool | None
    seconds: float
    peak_memory_bytes: int


def check_connectivities(
    source: Any,
    *,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    target: Target = "cellucid-0.9.5",
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    progress: bool | None = False,
) -> CheckReport:
    """Check whether a neighbor graph meets the rules of a reader.

    One pass over the matrix; where its directions differ, a second one compares them pair by pair,
    with temporary files.

    Parameters
    ----------
    source, key, neighbors_key, storage_options
        As for `plan_export`.
    target : {"cellucid-0.0.9", "cellucid-0.9.4", "cellucid-0.9.5"}
        The reader: what reads the edge files of cellucid 0.0.9, or those with weights of 0.9.1 to
        0.9.4; or today's viewer, of 0.9.5 and later, which reads `obsp` itself.
    memory_limit, threads
        As for `plan_export`.
    scratch_dir
        Where temporary files would go; by default the system's folder for them.
    progress
        Whether to show progress bars on standard error; None for "if it is a terminal".

    Returns
    -------
    CheckReport

    Raises
    ------
    SourceError, DamagedGraphError
        If the matrix cannot be read.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    DiskSpaceError, OutputError
        If temporary files cannot be written.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    check_threads(threads)
    limit, n_threads = limit_bytes(memory_limit), threads or default_threads()
    began = time.perf_counter()
    reset_peak()
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    folder = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    with progress_bars(progress) as bars, Watch(opened) as watch:
        checking = _Check(target, limit, n_threads, folder, bars)
        report = checking.run(opened)
        watch.check()
    seconds = round(time.perf_counter() - began, 3)
    return replace(report, seconds=seconds, peak_memory_bytes=peak_bytes())


def broken_rules(
    source: Source, target: Target, *, limit: int, threads: int, scratch: Path, progress: Progress
) -> tuple[BrokenRule, ...]:
    """Return the rules of a reader that an open source breaks."""
    return _Check(target, limit, threads, scratch, progress).run(source).broken


class _NoFiles:
    """What is made where edges are only counted; as far as memory is shared out for it."""

    def writer_bytes(self, _job: Job, threads: int, n: int) -> int:
        return 12 * threads * n  # codes, and masks

    def finishing_bytes(self, _job: Job, _threads: int) -> int:
        return 0


class _Check(NamedTuple):
    """One check."""

    target: Target
    limit: int
    threads: int
    scratch: Path
    progress: Progress

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        clear_dead(self.scratch)
        with temporary_folder(self.scratch) as folder, named_disk_errors(self.scratch):
            yield folder

    def run(self, source: Source | LazyMatrix) -> CheckReport:
        """Check a matrix; one that has to be computed goes into temporary files first."""
        if isinstance(source, Source):
            return self._run(source)
        with self._folder() as folder:
            compute = partial(
                compute_on_threads, n_threads=self.threads, limit=self.limit,
                task_bytes=source.task_bytes,
            )  # fmt: skip
            return self._run(spool(source, folder, compute, self.progress))

    def _run(self, source: Source) -> CheckReport:
        """Look at all entries, and compare both directions if need be."""
        looks = self._look(source)
        broken = [*self._of_size(source), *self._of_entries(source, looks)]
        symmetric: bool | None = True
        equal: bool | None = True
        if sum(found.counts[KINDS.index("not finite")] for found in looks):
            symmetric = equal = None
        elif self.target == "cellucid-0.0.9":  # to which it does not matter
            equal = is_balanced(looks)
            symmetric = equal or None
        elif may_repeat(looks) or not is_balanced(looks):
            tally = self._compare(source)
            broken += self._of_pairs(source, tally)
            symmetric = tally.one_sided == 0
            equal = symmetric and tally.unequal == 0
        refused = (*_REFUSED[self.target], "finite", "cells", "size")
        broken = [rule for rule in broken if rule.rule in refused]
        return CheckReport(
            not broken, self.target, source.path, source.key, source.n_cells, source.n_entries,
            tuple(broken), symmetric, equal, 0.0, 0,
        )  # fmt: skip

    def _budget(self, job: Job, load: Callable[[Job], None]) -> Budget:
        load(job)
        reserved = round_reserved(resident_bytes())
        return Budget(self.limit, reserved, self.threads, True, cast(Product, _NoFiles()))

    def _look(self, source: Source) -> list[Look]:
        shift = partition_shift(source.n_cells)
        job = Job(source, Scratch(""), shift, "symmetric", "differ")
        tuning = tune(job, self._budget(job, symmetry.warm_up))
        blocks = cut_blocks(source, tuning.block_entries, tuning.block_rows)
        seeds = np.frombuffer(os.urandom(24), np.uint64)
        largest = _LARGEST_FLOAT32 if self.target == "cellucid-0.9.5" else np.inf
        sizes = [block.stop - block.start for block in blocks]
        task = partial(look, job, seeds, largest)
        executor = Threads(tuning.threads, self.progress)
        return executor.run(
            Stage("check", task, blocks, sizes, "entries", ahead=source.begin_reading)
        )

    def _compare(self, source: Source) -> Tally:
        """Compare both directions of all pairs."""
        shift, tally = partition_shift(source.n_cells), Tally()
        with self._folder() as folder:
            scratch = Scratch(str(folder))
            job = Job(source, scratch, shift, "general", "differ", weights=True)
            tuning = tune(job, self._budget(job, warm_up))
            job = replace(job, shift=tuning.shift)
            blocks = cut_blocks(source, tuning.block_entries, tuning.block_rows)
            needed, free = run_bytes(job, tuning, len(blocks)), free_bytes(folder)
            if needed > free:
                raise DiskSpaceError(
                    f"comparing both directions takes up to {format_bytes(needed)} of temporary "
                    f"files, but {format_bytes(free)} are free in {self.scratch}. Name another "
                    "folder with `scratch_dir`."
                )
            executor = Threads(tuning.threads, self.progress)
            with closing(Journal(folder, "check")) as journal:
                resumable = ResumableExecutor(executor, journal)
                run_stages(job, blocks, tuning, (), resumable, tally)
        return tally

    def _of_size(self, source: Source) -> Iterator[BrokenRule]:
        most = _MOST_CELLS[self.target]
        if source.n_cells > most:
            yield BrokenRule(
                "cells", 1, None, None,
                f"the graph has {counted(source.n_cells, 'cell')}; the reader takes at most "
                f"{most:,}.",
            )  # fmt: skip
        n_edges = source.n_entries // 2
        n_bytes = viewer_bytes(source.n_cells, n_edges)
        if self.target == "cellucid-0.9.4" and n_bytes > VIEWER_BYTES:
            yield BrokenRule(
                "size", 1, None, None,
                f"about {n_edges:,} edges take the viewer {format_bytes(n_bytes)}; it allows "
                f"{format_bytes(VIEWER_BYTES)}.",
            )  # fmt: skip

    def _of_entries(self, source: Source, looks: list[Look]) -> Iterator[BrokenRule]:
        """Yield what is wrong with single entries; what is repeated is counted by pairs."""
        words = {
            "not finite": "a weight that is not finite", "negative": "a negative weight",
            "zero": "a stored zero", "diagonal": "a weight on the diagonal",
            "repeated": "an entry that is stored before", "too large": "a weight above float32",
        }  # fmt: skip
        for k, kind in enumerate(KINDS):
            count = sum(found.counts[k] for found in looks)
            place = next((found.firsts[k] for found in looks if found.firsts[k]), None)
            if place is None or kind == "repeated":
                continue
            name = "finite" if kind == "not finite" else kind
            yield self._broken(source, name, count, place, words[kind])

    def _of_pairs(self, source: Source, tally: Tally) -> Iterator[BrokenRule]:
        """Yield what is wrong with pairs of cells."""
        for rule, count, place, words in (
            ("repeated", tally.repeated, tally.first_repeated, "entries that are repeated"),
            ("one-sided", tally.one_sided, tally.first_one_sided, "a weight one way only"),
            ("unequal", tally.unequal, tally.first_unequal, "different weights both ways"),
        ):
            if place is not None:
                yield self._broken(source, rule, count, place, words)

    def _broken(
        self, source: Source, rule: str, count: int, place: Place, words: str
    ) -> BrokenRule:
        row, column = place if source.layout == "csr" else reversed(place)
        here, there = _weights(source, *place), _weights(source, *reversed(place))
        text = f"row {row}, column {column} has {words}: {here}"
        if rule in ("repeated", "one-sided", "unequal"):
            text += f", and row {column}, column {row} {there}"
        more = "" if count == 1 else f"; {count:,} in all, this is the first"
        return BrokenRule(rule, count, row, column, text + more + ".")


def _weights(source: Source, row: int, column: int) -> str:
    """Return what is stored at a place, in words."""
    found = [str(weight) for weight in source.weights_at(row, column)]
    return " and ".join(found[:3]) + (" …" if len(found) > 3 else "") if found else "nothing"
