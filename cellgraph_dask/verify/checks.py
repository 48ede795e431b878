"""Checking an export on disk: its files, the graph they hold, and with a source every edge.

::

    manifest, identity ──► survey of all edges ──► proof against the matrix ──► embedding
    texts                  order, degrees, gzip    sums or comparison           sampled edges

Memory is shared out as for an export: what is reserved, some slack, and the rest for the step at
hand. All compiled loops are loaded at the start, so that what they take, and the compiler if it has
to come, is counted as reserved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs.components import cell_dtype
from ..edge_pairs.format import MANIFEST, Manifest, index_dtype, read_manifest
from ..edge_pairs.provenance import Provenance, read_provenance
from ..edge_pairs.reader import PlainEdges, open_plain, slabs_bytes, unpack
from ..errors import InvalidExportError
from ..machine import buffers
from ..machine.amounts import counted
from ..machine.files import named_disk_errors
from ..machine.memory import (
    peak_bytes,
    reset_peak,
)
from ..machine.report import Report
from ..machine.temporary import clear_dead, temporary_folder
from ..runtime.progress import Progress
from ..runtime.threads import Threads
from ..source.blocks import cut_blocks, looks_symmetric
from ..source.matrix import Block, NegativeWeightError, Source
from . import loops
from .alignment import LEAST_SAMPLES, N_SAMPLES, Alignment, Stored, align, find_embeddings
from .comparison import prove_by_comparison
from .difference import EdgeCheck
from .files import check_figures, check_texts, differing_files
from .kept import Kept, kept_of
from .limited import Limited
from .observer import Observer
from .pair_file import proof_shift, weight_dtype
from .proof import Kind, ProofPlan, check_cover, plan_proof, prove_by_sums, smallest_proof_bytes
from .scan import Survey, plan_survey, survey, survey_bytes
from .thinned import prove_thinned, thinned_bytes

# From the number of cells, and the most bytes to be read at once.
StoredEmbeddings = Callable[[int, int], Stored]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_UNKNOWN = (
    "What the export was made from is not known, so it was compared with the whole matrix. If it "
    "was made by a rule, or thinned, it cannot be proved; export again."
)
# Components take as long as all else together; of larger graphs they are looked for if asked to.
EDGES_WITH_COMPONENTS = 1 << 24


@dataclass(frozen=True)
class VerifyReport(Report):
    """What a verification found.

    Attributes
    ----------
    ok : bool
        Whether nothing is wrong.
    problems : tuple of str
        What is wrong, and where.
    warnings : tuple of str
        What is worth a look, but not wrong.
    n_cells, n_edges, max_neighbors : int or None
        What the manifest says; None if it could not be read.
    source, key : str or None
        The store and the matrix that the edges were compared with.
    proof : {"sums", "comparison", "signed", "weights"} or None
        How they were compared; None if they were not.
    thinning : dict or None
        By which options the graph was thinned, `min_weight`, `top_k`, `max_edges` and `strongest`;
        None if all edges are kept.
    n_isolated : int or None
        Cells without neighbors; None, as all that follows, where it was not found out.
    mean_degree : float or None
        Neighbours of a cell on average.
    degree_quantiles : tuple of int or None
        Smallest degree, those that 5, 25, 50, 75 and 95% of the cells do not pass, and the largest.
    degree_histogram : tuple of (int, int) or None
        Ranges of degrees, each as its smallest degree and the cells in it; all of one width, but
        the last one takes the largest hundredth too.
    n_components, largest_component : int or None
        Connected components, an isolated cell being one; cells in the largest.
    provenance : Provenance or None
        What the export was made from, as it says itself; None if it does not.
    alignment : Alignment or None
        How the graph lies in an embedding of the cells, if there is one.
    unchecked : tuple of str
        What could not be checked, and why: the alignment where no embedding can be read.
    threads : int
        Threads that worked at most.
    seconds : float
        From start to end.
    memory_limit_bytes, peak_memory_bytes : int
        Resident memory: allowed, and measured.
    """

    _title = "Verification"

    ok: bool
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    n_cells: int | None = None
    n_edges: int | None = None
    max_neighbors: int | None = None
    source: str | None = None
    key: str | None = None
    proof: str | None = None
    thinning: dict[str, Any] | None = None
    n_isolated: int | None = None
    mean_degree: float | None = None
    degree_quantiles: tuple[int, ...] | None = None
    degree_histogram: tuple[tuple[int, int], ...] | None = None
    n_components: int | None = None
    largest_component: int | None = None
    provenance: Provenance | None = None
    alignment: Alignment | None = None
    unchecked: tuple[str, ...] = ()
    threads: int = 1
    seconds: float = 0.0
    memory_limit_bytes: int = 0
    peak_memory_bytes: int = 0


def verify(
    out_dir: Path, progress: Progress, *, source: Source | None = None, limit: int, threads: int,
    scratch_dir: Path | None = None, components: bool | None = None, proof_plan: ProofPlan | None =
    None, stored: StoredEmbeddings | None = None, observer: Observer | None = None,
) -> VerifyReport:  # fmt: skip
    """Check an export, and with a source prove its edges.

    As `verify_export`, but for a folder, with the limit in bytes, and for tests with the sizes of
    the proof; `stored` finds the source's embeddings. An observer is told more. It raises the
    errors of reading the matrix, and `MemoryLimitError`.
    """
    check = Check(
        out_dir, progress, source, limit, threads, scratch_dir, components, proof_plan, stored,
        observer,
    )  # fmt: skip
    return measured(check, check.run)


def measured(check: Check, run: Callable[[], VerifyReport]) -> VerifyReport:
    """Return the report of a verification, with what it took."""
    began = time.perf_counter()
    reset_peak()
    report = run()
    return replace(
        report,
        threads=check.threads,
        seconds=round(time.perf_counter() - began, 3),
        memory_limit_bytes=check.limit,
        peak_memory_bytes=peak_bytes(),
    )


def _warm_up(manifest: Manifest, source: Source | None) -> Any:
    """Load all that will be needed; return seeds if the proof by sums is to be tried."""
    loops.warm_up(index_dtype(manifest.n_cells), cell_dtype(manifest.n_cells))
    if source is None:
        return None
    source.warm_up()
    loops.warm_up_proof(source.row_dtype, weight_dtype(source))
    return np.frombuffer(os.urandom(32), np.uint64) if looks_symmetric(source) else None


@dataclass(frozen=True)
class Check(Limited):
    """One verification."""

    out_dir: Path
    progress: Progress
    source: Source | None
    limit: int
    threads: int
    scratch_dir: Path | None
    components: bool | None
    proof_plan: ProofPlan | None
    stored: StoredEmbeddings | None
    observer: Observer | None = None

    def run(self) -> VerifyReport:
        """Check the texts, then the edges."""
        clear_dead(self._temporary)
        try:
            manifest = read_manifest(self.out_dir)
        except InvalidExportError as error:
            return VerifyReport(False, (str(error),))
        problems = check_texts(self.out_dir, manifest)
        try:
            check_figures(self.out_dir, manifest)
        except InvalidExportError as error:
            return VerifyReport(False, (*problems, str(error)))
        provenance = None
        try:
            provenance = read_provenance(self.out_dir, manifest)
        except InvalidExportError as error:
            problems.append(str(error))
        return self.edges(manifest, provenance, problems)

    def edges(
        self, manifest: Manifest, provenance: Provenance | None, problems: list[str]
    ) -> VerifyReport:
        """Check the edges of an export whose texts have these problems."""
        report = VerifyReport(
            ok=False,
            problems=(),
            provenance=provenance,
            n_cells=manifest.n_cells,
            n_edges=manifest.n_edges,
            max_neighbors=manifest.max_neighbors,
        )
        try:
            kept = kept_of(provenance)
        except InvalidExportError as error:
            return replace(report, problems=(*problems, str(error)))
        report = replace(report, thinning=kept.thinning)
        source = self.source
        if source is not None and source.n_cells != manifest.n_cells:
            problem = (
                f"{self.out_dir / MANIFEST}: n_cells is {manifest.n_cells}, but {source.key} of "
                f"{source.path} has {counted(source.n_cells, 'row')}."
            )
            return replace(report, problems=(*problems, *self._other_source(provenance), problem))
        seeds = _warm_up(manifest, source)
        by_weight = manifest.weighted or kept != Kept()
        if by_weight:
            seeds = None  # a sum of hashes knows no weights
        try:
            found = self._survey(manifest, source, seeds, kept, by_weight=by_weight)
        except InvalidExportError as error:
            return replace(report, problems=(*problems, str(error)))
        if found.problem is not None:
            return replace(report, problems=(*problems, found.problem))
        report = replace(report, problems=(*problems,))
        return self._judge(manifest, source, found, seeds, kept, report)

    def _judge(
        self, manifest: Manifest, source: Source | None, found: Survey, seeds: Any, kept: Kept,
        report: VerifyReport,
    ) -> VerifyReport:  # fmt: skip
        """Complete the report of an export whose edges are well-formed."""
        problems = list(report.problems)
        if self.observer is not None:
            self.observer.found(found.degrees, found.component_sizes)
        warnings = list(source.notes) if source is not None else []
        if found.degrees.largest != manifest.max_neighbors:
            problems.append(
                f"max_neighbors is {manifest.max_neighbors} in the manifest, but the largest "
                f"degree of the edges is {found.degrees.largest}."
            )
        if source is not None:
            kind, differences = self._prove(source, manifest, found, seeds, kept)
            if self.observer is not None:
                self.observer.compared(differences)
            if differences:
                problems += [*self._other_source(report.provenance), *differences]
                warnings += [_UNKNOWN] if report.provenance is None else []
            report = replace(report, source=source.path, key=source.key, proof=kind)
        warnings += [
            f"{path} holds the right bytes, but from byte {byte} on they are not compressed as "
            f"this version does at level {manifest.compression}: another version wrote it, or "
            "it has been changed since."
            for path, byte in differing_files(self.out_dir, manifest)
        ]
        alignment, unchecked = self._align(manifest, found, warnings)
        components = found.components
        return replace(
            report,
            ok=not problems,
            problems=tuple(problems),
            warnings=tuple(warnings),
            alignment=alignment,
            unchecked=unchecked,
            n_isolated=found.degrees.isolated,
            mean_degree=round(2 * manifest.n_edges / max(manifest.n_cells, 1), 3),
            degree_quantiles=found.degrees.quantiles(*QUANTILES),
            degree_histogram=found.degrees.histogram(),
            n_components=components.n_components if components is not None else None,
            largest_component=components.largest if components is not None else None,
        )

    def _other_source(self, provenance: Provenance | None) -> list[str]:
        """Say that the export was made from another matrix, if that is known."""
        source = self.source
        if source is None or provenance is None:
            return []
        lasting = source.origin.is_lasting
        fingerprint = source.fingerprint() if lasting else provenance.fingerprint
        differs = provenance.differs(source.origin.name, source.key, fingerprint)
        return [differs] if differs else []

    def _survey(
        self, manifest: Manifest, source: Source | None, seeds: Any, kept: Kept, *, by_weight: bool
    ) -> Survey:
        components = self.components
        if components is None:
            components = manifest.n_edges <= EDGES_WITH_COMPONENTS
        plan = plan_survey(manifest, self.available(), self.threads, components=components)
        if plan is None:
            smallest = plan_survey(manifest, 2**62, 1, components=False)
            assert smallest is not None
            needed = survey_bytes(smallest, manifest)
            if source is not None:
                kind: Kind = "comparison" if seeds is None else "sums"
                kind = "weights" if by_weight else kind
                unpacking = slabs_bytes() if manifest.compression is not None else 0
                needed = max(needed, smallest_proof_bytes(source, kind), unpacking)
                if kept.thinning:
                    needed = max(needed, thinned_bytes(source.n_cells, kept))
            raise self.too_small(needed)
        shift = proof_shift(manifest.n_cells) if source is not None else None
        plan = replace(plan, n_samples=N_SAMPLES, seeds=seeds, shift=shift, observer=self.observer)
        return survey(self.out_dir, manifest, plan, self.progress)

    def _prove(
        self,
        source: Source,
        manifest: Manifest,
        found: Survey,
        seeds: Any,
        kept: Kept,
    ) -> tuple[str, list[str]]:
        """Compare edges and matrix; return the kind of proof and what is wrong."""
        kinds: list[Kind] = ["comparison", "signed"]
        if manifest.weighted or kept != Kept():
            kinds = ["weights"]
        if seeds is not None:
            plan, blocks = self._cut(source, "sums")
            executor = Threads(plan.threads, self.progress)
            try:
                if prove_by_sums(source, blocks, seeds, found.hash_sum, executor):
                    return "sums", []
            except NegativeWeightError:
                kinds.remove("comparison")
        with (
            self.scratch() as folder,
            named_disk_errors(folder),
            closing(self._plain(manifest, folder)) as edges,
        ):
            assert found.starts is not None
            edges.know(found.starts, proof_shift(manifest.n_cells))
            return self._compare(source, edges, folder, kinds, kept)

    def _compare(
        self, source: Source, edges: PlainEdges, folder: Path, kinds: list[Kind], kept: Kept
    ) -> tuple[str, list[str]]:
        """Compare entries and edges; with weights where that turns out to be needed."""
        for kind in kinds:
            plan, blocks = self._cut(source, kind)
            check = EdgeCheck.of(source, edges, plan)
            if kept.thinning:
                return kind, prove_thinned(self, check, blocks, folder, plan, self.progress, kept)
            executor = Threads(plan.threads, self.progress)
            try:
                return kind, prove_by_comparison(
                    check, blocks, folder, plan, executor, kind, kept.rule
                )
            except NegativeWeightError:
                continue
        raise AssertionError("weights are refused although they are added up")

    def _cut(self, source: Source, kind: Kind) -> tuple[ProofPlan, list[Block]]:
        """Choose sizes and cut the matrix into blocks."""
        buffers.release()  # what this very thread needed before
        plan = self.proof_plan or plan_proof(source, self.available(), self.threads, kind)
        if plan is None:
            raise self.too_small(smallest_proof_bytes(source, kind))
        blocks = cut_blocks(source, plan.block_entries, plan.block_rows)
        check_cover(source, blocks)
        return plan, blocks

    def _plain(self, manifest: Manifest, folder: Path) -> PlainEdges:
        """Return the edges as plain files."""
        if manifest.compression is None:
            return open_plain(self.out_dir, manifest)
        if slabs_bytes() > self.available():
            raise self.too_small(slabs_bytes())
        return unpack(self.out_dir, manifest, folder, ahead=self.threads > 1)

    def scratch(self) -> AbstractContextManager[Path]:
        """Give a private folder for temporary files, and remove it afterwards."""
        return temporary_folder(self._temporary, hidden=self.scratch_dir is None)

    @property
    def _temporary(self) -> Path:
        return self.scratch_dir if self.scratch_dir is not None else self.out_dir

    def _align(
        self, manifest: Manifest, found: Survey, warnings: list[str]
    ) -> tuple[Alignment | None, tuple[str, ...]]:
        """Hold the sampled edges against the best embedding that can be read; or say why not."""
        reasons = []
        if found.samples.shape[1] < LEAST_SAMPLES:
            return None, (f"alignment: too few edges to tell ({found.samples.shape[1]})",)
        stored = None
        if self.stored is not None:
            stored = partial(self.stored, manifest.n_cells, max(self.available(), 0) // 4)
        for embeddings, why in find_embeddings(self.out_dir, manifest.n_cells, stored):
            reasons += [why] if why and not embeddings else []
            for embedding in embeddings:
                try:
                    alignment = align(found.samples, embedding, self.observer)
                except Exception as error:  # of any library that reads damaged bytes
                    warnings.append(f"{embedding.name} cannot be used: {error}")
                    reasons.append(f"{embedding.name} cannot be used")
                    continue
                if alignment is None:
                    reasons.append(f"too few cells have finite coordinates in {embedding.name}")
                    continue
                if alignment.shuffled:
                    warnings.append(_shuffled(alignment))
                return alignment, ()
        return None, (f"alignment: {'; '.join(reasons)}",)


def _shuffled(alignment: Alignment) -> str:
    return (
        f"The graph looks shuffled against {alignment.embedding}, at least in part: only "
        f"{alignment.value:.0%} of {alignment.n_sampled:,} sampled edges are shorter than a random "
        "pair of cells, and 50% are by chance. Are the rows of the matrix in the order of the "
        "cells?"
    )
