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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..edge_pairs.format import Manifest
from ..edge_pairs.reader import PlainEdges, open_plain
from ..errors import DamagedGraphError, SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.files import named_disk_errors, opened, write_at
from ..machine.memory import peak_bytes, reset_peak
from ..machine.remote import local_path
from ..machine.temporary import clear_dead, temporary_folder
from ..runtime.progress import Progress, progress_bars
from ..runtime.stage import Stage
from ..runtime.threads import Threads
from ..source.blocks import cut_blocks
from ..source.matrix import Block, Source
from ..source.names import open_names
from ..source.opening import is_container, open_source
from ..source.selection import Selection, select_cells
from ..source.stamps import Watch
from . import loops
from .api import allowed
from .cells import restricted
from .checks import VerifyReport
from .comparison import prove_by_comparison
from .limited import Limited
from .pair_file import weight_dtype
from .proof import Kind, ProofPlan, check_cover, plan_proof, smallest_proof_bytes

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
    rule
        The rule that it was made with; None if there was none.
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
    limit, n_threads = allowed(memory_limit, threads)
    began = time.perf_counter()
    reset_peak()
    element = _opened(store, to_key, None, storage_options if source is None else None)
    matrix = _opened(source, key, neighbors_key, storage_options) if source is not None else None
    folder = local_path(scratch_dir if scratch_dir is not None else tempfile.gettempdir())
    with progress_bars(progress) as bars, ExitStack() as stack:
        if matrix is not None and element.n_cells < matrix.n_cells:
            with suppress(SourceError):  # then the numbers of cells differ, as is told
                selection = _chosen(store, element, source, matrix, storage_options, limit)
                clear_dead(folder)
                place = stack.enter_context(temporary_folder(folder))
                matrix = restricted(matrix, selection, place, limit, n_threads, bars)
        check = _Check(element, matrix, rule, limit, n_threads, folder, bars)
        problems, n_edges, largest = check.run()
    return VerifyReport(
        ok=not problems,
        problems=tuple(problems),
        n_cells=element.n_cells,
        n_edges=n_edges,
        max_neighbors=largest,
        source=None if matrix is None else matrix.path,
        key=None if matrix is None else matrix.key,
        proof=None if matrix is None or problems else _WEIGHTS,
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
        key = matrix.key if is_container(source) else ""
        return select_cells(source, key, matrix.n_cells, told, storage_options=options, limit=limit)


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
        self, element: Source, source: Source | None, rule: str | None, limit: int, threads: int,
        folder: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self._element, self._source, self._rule = element, source, rule
        self.limit, self._threads = limit, threads
        self._folder, self._progress = folder, progress

    def run(self) -> tuple[list[str], int | None, int | None]:
        """Return what is wrong, the number of edges, and the largest degree."""
        element, source = self._element, self._source
        if element.layout != "csr" or element.data.dtype.kind != "f":
            return [f"{element.key} is not a CSR matrix with float weights."], None, None
        if source is not None and source.n_cells != element.n_cells:
            return [
                f"{element.key} has {element.n_cells} cells, but {source.key} of {source.path} has "
                f"{source.n_cells}."
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
        if source is None:
            return [], n_edges, largest
        manifest = Manifest(element.n_cells, n_edges, largest, None, weighted=True)
        return self._prove(source, blocks, looks, manifest), n_edges, largest

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
            raise self.too_small(max(smallest_proof_bytes(one, _WEIGHTS) for one in both))
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

    def _prove(
        self, source: Source, blocks: list[Block], looks: list[_Look], manifest: Manifest
    ) -> list[str]:
        """Compare the entries above the diagonal with the source; return what is wrong."""
        buffers.release()
        its_blocks, plan = self._cut(source)
        clear_dead(self._folder)
        with (
            temporary_folder(self._folder) as folder,
            named_disk_errors(folder),
            Watch(source) as watch,
            closing(self._upper(blocks, looks, manifest, folder)) as edges,
        ):
            problems = prove_by_comparison(
                source, its_blocks, edges, folder, plan, Threads(plan.threads, self._progress),
                _WEIGHTS, self._rule, self._element.data.dtype.newbyteorder("="),
            )  # fmt: skip
            watch.check()
        return problems

    def _upper(
        self, blocks: list[Block], looks: list[_Look], manifest: Manifest, folder: Path
    ) -> PlainEdges:
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
        return open_plain(folder, manifest)


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
