"""Checking a symmetric matrix in a store, as `symmetrize` writes it, and proving its weights.

One look at all entries shows that rows are strictly rising, weights positive, and the diagonal
empty; and a sum of hashes, to which the two directions of a pair contribute with opposite signs,
comes to zero only if all weights are the same in both (else with a chance of about 2⁻¹²⁸). With a
source, the entries above the diagonal are then compared with it pair by pair, as edges with weights
are.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..edge_pairs.format import Manifest, most_viewer_edges
from ..edge_pairs.reader import open_plain
from ..errors import DamagedGraphError, SourceError
from ..machine import buffers
from ..machine.amounts import counted
from ..machine.buffers import Array
from ..machine.files import named_disk_errors, opened, write_at
from ..machine.memory import peak_bytes, reset_peak
from ..machine.remote import local_path
from ..machine.temporary import clear_dead, temporary_folder
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Stage
from ..runtime.threads import Threads
from ..source.blocks import cut_blocks
from ..source.embeddings import stored_embeddings
from ..source.matrix import Block, Source
from ..source.names import open_names
from ..source.opening import key_in, open_source
from ..source.selection import Selection, select_cells
from ..source.stamps import Watch
from . import loops
from .alignment import Stored
from .api import allowed
from .cells import restricted
from .checks import Check, StoredEmbeddings, VerifyReport
from .comparison import prove_by_comparison
from .difference import EdgeCheck
from .kept import Kept
from .limited import Limited
from .observer import Observer
from .pair_file import weight_dtype
from .proof import Kind, ProofPlan, check_cover, plan_proof, smallest_proof_bytes
from .thinned import prove_thinned, thinned_bytes

_MASK = 2**64 - 1
_WHY = {
    1: "has its columns not in strictly rising order",
    2: "has an entry on the diagonal",
    3: "has a weight that is not a positive number",
}
_WEIGHTS: Kind = "weights"


def verify_element(
    store: Any,
    *,
    to_key: str = "connectivities",
    source: Any = None,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    rule: str | None = None,
    min_weight: float | None = None,
    top_k: int | None = None,
    max_edges: int | Literal["viewer"] | None = None,
    strongest: Literal["largest", "smallest"] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    progress: bool | None = False,
) -> VerifyReport:
    """Check a matrix that `symmetrize_connectivities` has written; prove that it is its source's.

    Parameters
    ----------
    store, to_key
        The store, and the name of the matrix in its `obsp`.
    source, key, neighbors_key, storage_options
        The store and matrix that it was made of, as for `plan_export`. Without a source, the matrix
        is checked for itself: order, weights, symmetry.
    rule, min_weight, top_k, max_edges, strongest
        The rule that it was made with, and by what it was thinned, as for
        `symmetrize_connectivities`; None for what there was not.
    memory_limit, threads, progress
        As for `plan_export`.
    scratch_dir
        Where temporary files go, if there is a source; by default the system's folder for them.

    Returns
    -------
    VerifyReport
        `ok` is False if anything is wrong; `problems` says what.

    Raises
    ------
    SourceError
        If there is no such matrix, or the source cannot be read.
    MemoryLimitError, OutputError, DiskSpaceError
        As for `verify_export`.
    """
    with progress_bars(progress) as bars:
        return observe_element(
            store, bars, None, to_key=to_key, source=source, key=key, neighbors_key=neighbors_key,
            rule=rule, min_weight=min_weight, top_k=top_k, max_edges=max_edges,
            strongest=strongest, storage_options=storage_options, memory_limit=memory_limit,
            threads=threads, scratch_dir=scratch_dir,
        )  # fmt: skip


def observe_element(
    store: Any, progress: Progress, observer: Observer | None, *, to_key: str, source: Any, key:
    str, neighbors_key: str | None, rule: str | None, storage_options: Mapping[str, Any] | None,
    memory_limit: int | str | None, threads: int | None, scratch_dir: str | Path | None, components:
    bool | None = None, min_weight: float | None = None, top_k: int | None = None, max_edges:
    int | Literal["viewer"] | None = None, strongest: str | None = None,
) -> VerifyReport:  # fmt: skip
    """Do what `verify_element` does, and tell an observer what its graph is like.

    With an observer, the report tells of degrees, components and alignment too.
    """
    limit, n_threads = allowed(memory_limit, threads)
    began = time.perf_counter()
    reset_peak()
    element = _opened(store, to_key, None, storage_options if source is None else None)
    matrix = _opened(source, key, neighbors_key, storage_options) if source is not None else None
    if max_edges == "viewer":
        max_edges = most_viewer_edges(element.n_cells)
    kept = Kept(rule, min_weight, top_k, max_edges, strongest)
    folder = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    whole = matrix
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(whole)) if whole is not None else None
        if matrix is not None and element.n_cells < matrix.n_cells:
            with suppress(SourceError):  # then the numbers of cells differ, as is told
                selection = _chosen(store, element, source, matrix, storage_options, limit)
                clear_dead(folder)
                place = stack.enter_context(temporary_folder(folder))
                matrix = restricted(matrix, selection, place, limit, n_threads, progress)
        check = _Check(
            element, matrix, kept, limit, n_threads, folder, progress, observer, components,
            partial(_embeddings, store, element.key, storage_options if source is None else None),
        )  # fmt: skip
        problems, n_edges, largest = check.run()
        if watch is not None:
            watch.check()
    if whole is not None and matrix is not whole and problems:
        told = f"{element.n_cells} of the {whole.n_cells} cells of {whole.path}, by their names"
        problems = [f"{element.key} was compared with {told}.", *problems]
    return replace(
        check.graph,
        ok=not problems,
        problems=tuple(problems),
        n_cells=element.n_cells,
        n_edges=n_edges,
        max_neighbors=largest,
        source=None if matrix is None else matrix.path,
        key=None if matrix is None else matrix.key,
        proof=None if matrix is None or problems else _WEIGHTS,
        thinning=None if matrix is None else kept.thinning,
        threads=n_threads,
        seconds=round(time.perf_counter() - began, 3),
        memory_limit_bytes=limit,
        peak_memory_bytes=peak_bytes(),
    )


def _chosen(
    store: Any, element: Source, source: Any, matrix: Source, options: Mapping[str, Any] | None,
    limit: int,
) -> Selection:  # fmt: skip
    """Return which cells of the source a store has, by their names."""
    with open_names(store, element.n_cells, key=element.key) as names:
        told = (name or "" for _, some in names.steps() for name in some)
        key = key_in(source, matrix)
        return select_cells(source, key, matrix.n_cells, told, storage_options=options, limit=limit)


def _embeddings(
    store: Any, key: str, options: Mapping[str, Any] | None, n_cells: int, most_bytes: int
) -> Stored:
    return stored_embeddings(store, n_cells, options, key=key, most_bytes=most_bytes)


def _opened(
    source: Any, key: str, neighbors_key: str | None, options: Mapping[str, Any] | None
) -> Source:
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=options)
    if not isinstance(opened, Source):
        raise SourceError(
            f"{opened.key} is a dense matrix or a Dask array; only sparse matrices are compared."
        )
    return opened


class _Look(NamedTuple):
    """What looking at a block of the element has shown."""

    n_upper: int
    sums: tuple[int, int]
    ends: tuple[int, int, int, int] | None  # row and column of its first and last entry
    problem: str | None


class _Check(Limited):
    """One verification of an element."""

    def __init__(
        self, element: Source, source: Source | None, kept: Kept, limit: int, threads: int,
        folder: Path, progress: Progress, observer: Observer | None, components: bool | None,
        stored: StoredEmbeddings,
    ) -> None:  # fmt: skip
        self._element, self._source, self._kept = element, source, kept
        self.limit, self._threads = limit, threads
        self._folder, self._progress = folder, progress
        self._observer, self._components, self._stored = observer, components, stored
        self.graph = VerifyReport(False, ())  # what an observer is shown

    def run(self) -> tuple[list[str], int | None, int | None]:
        """Return what is wrong, the number of edges, and the largest degree."""
        element, source = self._element, self._source
        if element.layout != "csr" or element.data.dtype.kind != "f":
            return [f"{element.key} is not a CSR matrix with float weights."], None, None
        if source is not None and source.n_cells != element.n_cells:
            return [
                f"{element.key} has {counted(element.n_cells, 'cell')}, but {source.key} of "
                f"{source.path} has {source.n_cells}."
            ], None, None  # fmt: skip
        self._warm_up()
        largest = 0
        try:
            for _, indptr in element.scan_indptr():
                largest = max(largest, int(np.diff(indptr).max(initial=0)))
            blocks = self._blocks()
            looks = self._look(blocks)
        except DamagedGraphError as error:
            return [str(error)], None, None
        problem = next((look.problem for look in looks if look.problem), None) or _of_borders(looks)
        if problem is not None:
            return [f"{element.key}: {problem}."], None, None
        n_edges = sum(look.n_upper for look in looks)
        if any(sum(look.sums[half] for look in looks) & _MASK for half in (0, 1)):
            return [f"{element.key} is not symmetric: a weight differs from its mirror image, or "
                    "has none."], n_edges, largest  # fmt: skip
        if source is None and self._observer is None:
            return [], n_edges, largest
        manifest = Manifest(element.n_cells, n_edges, largest, None, weighted=True)
        buffers.release()
        clear_dead(self._folder)
        problems: list[str] = []
        with temporary_folder(self._folder) as folder, named_disk_errors(folder):
            self._write_upper(blocks, looks, manifest, folder)
            if source is not None:
                problems = self._prove(source, manifest, folder)
            if self._observer is not None:
                problems += self._observe(self._observer, problems, manifest, folder)
        return problems, n_edges, largest

    def _warm_up(self) -> None:
        for source in filter(None, (self._element, self._source)):
            source.warm_up()
            loops.warm_up_proof(source.row_dtype, weight_dtype(source))

    def _blocks(self) -> list[Block]:
        """Cut the element into blocks that fit the limit."""
        blocks, plan = self._cut(self._element)
        self._block_threads = plan.threads
        return blocks

    def _cut(self, source: Source) -> tuple[list[Block], ProofPlan]:
        """Cut a matrix into blocks that fit the limit."""
        plan = plan_proof(source, self.available(), self._threads, _WEIGHTS)
        if plan is None:
            both = filter(None, (self._element, self._source))
            needed = max(smallest_proof_bytes(one, _WEIGHTS) for one in both)
            raise self.too_small(max(needed, thinned_bytes(source.n_cells, self._kept)))
        blocks = cut_blocks(source, plan.block_entries, plan.block_rows)
        check_cover(source, blocks)
        return blocks, plan

    def _look(self, blocks: list[Block]) -> list[_Look]:
        seeds = np.frombuffer(os.urandom(32), np.uint64)
        sizes = [block.stop - block.start for block in blocks]
        task = partial(_look_at, self._element, seeds)
        return Threads(self._block_threads, self._progress).run(
            Stage("element", task, blocks, sizes, "entries")
        )

    def _prove(self, source: Source, manifest: Manifest, folder: Path) -> list[str]:
        """Compare the entries above the diagonal with the source; return what is wrong."""
        blocks, plan = self._cut(source)
        with Watch(source) as watch, closing(open_plain(folder, manifest)) as edges:
            dtype = self._element.data.dtype.newbyteorder("=")
            check = EdgeCheck.of(source, edges, plan, dtype)
            bars, kept = self._progress, self._kept
            if kept.thinning:
                problems = prove_thinned(self, check, blocks, folder, plan, bars, kept)
            else:
                threads = Threads(plan.threads, bars)
                problems = prove_by_comparison(
                    check, blocks, folder, plan, threads, _WEIGHTS, kept.rule
                )
            watch.check()
        return problems

    def _observe(
        self, observer: Observer, differences: list[str], manifest: Manifest, folder: Path
    ) -> list[str]:
        """Look at the entries above the diagonal as at the edges of an export."""
        if self._source is not None:
            observer.compared(differences)
        check = Check(
            folder, self._progress, None, self.limit, self._threads, folder, self._components, None,
            self._stored, observer,
        )  # fmt: skip
        self.graph = check.edges(manifest, None, [])
        return list(self.graph.problems)

    def _write_upper(
        self, blocks: list[Block], looks: list[_Look], manifest: Manifest, folder: Path
    ) -> None:
        """Write the entries above the diagonal to plain files, in their order."""
        places = np.concatenate([[0], np.cumsum([look.n_upper for look in looks])]).tolist()
        for side in manifest.columns:
            (folder / manifest.path(side)).parent.mkdir(exist_ok=True)
            (folder / manifest.path(side)).touch()
        task = partial(_write_upper, self._element, manifest, folder, places)
        sizes = [block.stop - block.start for block in blocks]
        Threads(self._block_threads, self._progress).run(
            Stage("upper", task, blocks, sizes, "entries")
        )


def _look_at(element: Source, seeds: Array, block: Block) -> _Look:
    """Look at a block of the element."""
    indices, indptr, weights = element.read_stored(block)
    assert weights is not None
    sums = np.zeros(2, np.uint64)
    at, why, n_upper = loops.check_rows(
        indices, weights, weights.view(np.uint64), indptr, block.first_row, seeds, sums
    )
    if at >= 0:
        row = block.first_row + int(np.searchsorted(indptr, at, side="right")) - 1
        entry = f"entry {block.start + at} (column {indices[at]}, weight {weights[at]})"
        return _Look(0, (0, 0), None, f"row {row} {_WHY[why]}: {entry}")
    ends = None
    if indices.size:
        places = np.searchsorted(indptr, [0, indices.size - 1], side="right") - 1
        first, last = (block.first_row + int(place) for place in places)
        ends = (first, int(indices[0]), last, int(indices[-1]))
    return _Look(n_upper, (int(sums[0]), int(sums[1])), ends, None)


def _of_borders(looks: list[_Look]) -> str | None:
    """Say in which row columns do not rise from one block to the next, if there is one."""
    before: tuple[int, int] | None = None
    for look in looks:
        if look.ends is not None:
            row, column, last_row, last_column = look.ends
            if before is not None and before[0] == row and column <= before[1]:
                return f"row {row} {_WHY[1]}"
            before = last_row, last_column
    return None


def _write_upper(
    element: Source, manifest: Manifest, folder: Path, places: list[int], block: Block
) -> None:
    """Write the entries of a block that are above the diagonal to their place in plain files."""
    indices, indptr, weights = element.read_stored(block)
    assert weights is not None
    n = places[block.number + 1] - places[block.number]
    columns = [buffers.take(f"upper {side}", n, dtype) for side, dtype in manifest.columns.items()]
    loops.take_upper(indices, weights, indptr, block.first_row, *columns)
    for side, column in zip(manifest.columns, columns, strict=True):
        with opened(folder / manifest.path(side), os.O_WRONLY) as fd:
            write_at(fd, column, places[block.number] * column.itemsize)
