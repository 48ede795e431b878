"""What can be made of a graph: columns of edges, files, and how readers get to see them.

A `Product` is what the user asks for. It tells the stages which edges are wanted, gives the
`Delivery` that makes files of them, and publishes these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..edge_pairs.format import (
    MOST_WEIGHTED_CELLS,
    VIEWER_BYTES,
    Manifest,
    edge_columns,
    most_viewer_edges,
    read_identity,
    viewer_bytes,
)
from ..edge_pairs.gzip_member import DeflatePart
from ..edge_pairs.provenance import PROVENANCE, Provenance
from ..errors import SourceError
from ..machine.amounts import counted
from ..machine.files import named_disk_errors
from ..publish.output import Output, local_folder, open_output
from ..publish.work_folder import WORK_FOLDER, Place
from ..runtime.progress import Progress
from ..runtime.stage import ResumableExecutor
from ..stages.job import Job
from ..stages.pipeline import Delivery, Outcome
from ..stages.rules import Rule
from ..stages.wishes import ALL, Thinning
from .edge_files import EdgeFiles, writer_bytes
from .parts import PieceDelivery, pieces_bytes

if TYPE_CHECKING:
    from .cells_table import CellsTable


class Closable(Delivery, Protocol):
    """A delivery that has files open."""

    def close(self) -> None:
        """Close them."""


class Product(Protocol):
    """What is made of a graph; a frozen value."""

    @property
    def thinning(self) -> Thinning:
        """Which edges are kept."""

    @property
    def rule(self) -> Rule | None:
        """How the weights of both directions become one; None if they do not matter."""

    @property
    def is_strict(self) -> bool:
        """Whether only a matrix is taken that is symmetric in its weights."""

    @property
    def reader(self) -> str:
        """Whose rules a matrix has to meet if only such a one is taken; a target of a check."""

    @property
    def refuses_zeros(self) -> bool:
        """Whether stored zeros and weights on the diagonal make a matrix one that is not taken."""

    @property
    def refuses_diagonal(self) -> bool:
        """Whether weights on the diagonal are an error; else they are left out."""

    @property
    def is_inside(self) -> bool:
        """Whether it is put into the very store that the matrix is in."""

    @property
    def weights(self) -> bool:
        """Whether edges are delivered with weights."""

    @property
    def weight_dtype(self) -> str:
        """Dtype of the weights in the files."""

    @property
    def both(self) -> bool:
        """Whether edges are delivered in both directions."""

    @property
    def preload(self) -> tuple[Callable[[], None], ...]:
        """What loads the libraries that making it takes."""

    @property
    def options(self) -> dict[str, Any]:
        """Options that decide the bytes of the files, for the record and the provenance."""

    def check(self, n_cells: int) -> None:
        """Refuse a graph of which this product cannot be made."""

    def warnings(self, n_cells: int, n_edges: int) -> list[str]:
        """Say what the readers of this product will not do with a graph of at most that size."""

    def index_dtype(self, n_cells: int) -> np.dtype[Any]:
        """Dtype of cells in the files."""

    def output_bytes(self, n_cells: int, n_edges: int) -> int:
        """Return the most bytes of the files, without compression."""

    def scratch_bytes(self, job: Job, n_edges: int, *, on_cluster: bool) -> int:
        """Return the most bytes of the temporary files that it is made of."""

    def writer_bytes(self, job: Job, threads: int, n: int) -> int:
        """Return the memory it takes when each thread delivers `n` edges at once."""

    def finishing_bytes(self, job: Job, threads: int) -> int:
        """Return the memory that it takes once all edges are delivered."""

    def open(
        self, out_dir: str | Path, *, force: bool, resume: bool, scratch_dir: str | Path | None,
        storage_options: Mapping[str, Any] | None, on_cluster: bool,
    ) -> Place:  # fmt: skip
        """Return where it goes, to be held for writing."""

    def work(self, out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
        """Return the hidden folder in which it is made, and an interrupted run is found."""

    def check_place(self, output: Place, n_cells: int) -> None:
        """Refuse a place that is of another graph."""

    def delivery(
        self, job: Job, folder: Path, executor: ResumableExecutor, *, on_cluster: bool
    ) -> Closable:
        """Return what makes its files, in a folder, of the edges that tasks give it."""

    def publish(
        self, output: Any, made: Path, n_cells: int, outcome: Outcome, provenance: Provenance,
        progress: Progress,
    ) -> None:  # fmt: skip
        """Show the files in the folder `made` to readers."""


@dataclass(frozen=True, eq=False)
class EdgePairs:
    """The edge files of cellucid 0.0.9, or with `weights` those of 0.9.1 to 0.9.4."""

    compression: int | None = None
    weights: bool = False
    wanted: Rule | None = None  # None if weights matter: the matrix must be symmetric in them
    both: bool = False
    thinning: Thinning = ALL
    cells: CellsTable | None = None  # what the names of selected cells are read from

    refuses_diagonal = is_inside = False
    weight_dtype = "float64"
    preload = ()

    @property
    def reader(self) -> str:
        """See `Product`."""
        return "cellucid-0.9.4" if self.weights else "cellucid-0.9.5"

    @property
    def refuses_zeros(self) -> bool:
        """See `Product`."""
        return self.is_strict and self.weights

    @property
    def rule(self) -> Rule | None:
        """See `Product`: of equal weights the larger one is either."""
        return "max" if self.is_strict else self.wanted

    @property
    def is_strict(self) -> bool:
        """See `Product`."""
        return (self.weights or bool(self.thinning)) and self.wanted is None

    @property
    def options(self) -> dict[str, Any]:
        """See `Product`; a plain export has nothing to tell of weights."""
        weights = {"weights": self.weights} if self.weights else {}
        rule = {"rule": self.wanted} if self.weights or self.wanted is not None else {}
        cells = self.cells.options if self.cells is not None else {}
        return {"compression": self.compression} | weights | rule | self.thinning.options | cells

    def check(self, n_cells: int) -> None:
        """See `Product`."""
        if self.weights and not 0 < n_cells <= MOST_WEIGHTED_CELLS:
            raise SourceError(
                f"the matrix has {counted(n_cells, 'cell')}; files with weights hold graphs of 1 "
                f"to {MOST_WEIGHTED_CELLS:,} cells. Leave the weights out."
            )

    def warnings(self, n_cells: int, n_edges: int) -> list[str]:
        """See `Product`."""
        if not self.weights or viewer_bytes(n_cells, n_edges) <= VIEWER_BYTES:
            return []
        return [
            f"The viewer of cellucid 0.9.1 to 0.9.4 draws at most "
            f"{counted(most_viewer_edges(n_cells), 'edge')} of {counted(n_cells, 'cell')}; this "
            f"graph may have up to {n_edges:,}."
        ]

    def _columns(self, n_cells: int) -> dict[str, np.dtype[Any]]:
        return edge_columns(n_cells, weighted=self.weights)

    def index_dtype(self, n_cells: int) -> np.dtype[Any]:
        """See `Product`."""
        return self._columns(n_cells)["src"]

    def output_bytes(self, n_cells: int, n_edges: int) -> int:
        """See `Product`."""
        return n_edges * sum(dtype.itemsize for dtype in self._columns(n_cells).values())

    def scratch_bytes(self, job: Job, n_edges: int, *, on_cluster: bool) -> int:
        """See `Product`: pieces, and the spool of compressed parts."""
        parts = (
            self.output_bytes(job.source.n_cells, n_edges) if self.compression is not None else 0
        )
        return parts + (pieces_bytes(job, n_edges) if on_cluster else 0)

    def writer_bytes(self, job: Job, threads: int, n: int) -> int:
        """See `Product`."""
        return writer_bytes(self._columns(job.source.n_cells), self.compression, threads, n)

    def finishing_bytes(self, job: Job, threads: int) -> int:
        """See `Product`: of the names of cells."""
        return self.cells.names_bytes if self.cells is not None else 0

    def open(
        self, out_dir: str | Path, *, force: bool, resume: bool, scratch_dir: str | Path | None,
        storage_options: Mapping[str, Any] | None, on_cluster: bool,
    ) -> Output:  # fmt: skip
        """See `Product`."""
        return open_output(
            out_dir, force=force, resume=resume, scratch_dir=scratch_dir,
            storage_options=storage_options, on_cluster=on_cluster, weighted=self.weights,
        )  # fmt: skip

    def work(self, out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
        """See `Product`."""
        return local_folder(out_dir, scratch_dir) / WORK_FOLDER

    def check_place(self, output: Place, n_cells: int) -> None:
        """See `Product`."""
        read_identity(output.out_dir, n_cells)

    def delivery(
        self, job: Job, folder: Path, executor: ResumableExecutor, *, on_cluster: bool
    ) -> Closable:
        """See `Product`: for threads of this process, or for many processes."""
        columns, level = self._columns(job.source.n_cells), self.compression
        if on_cluster:
            return PieceDelivery(folder, job, columns, level, executor)
        journal = executor.journal
        parts = {side: journal.found(f"deflate-{side}", DeflatePart) for side in columns}

        def note(side: str, number: int, part: DeflatePart) -> None:
            journal.add(f"deflate-{side}", number, part)

        return EdgeFiles(folder, columns, level, parts, note)

    def publish(
        self, output: Any, made: Path, n_cells: int, outcome: Outcome, provenance: Provenance,
        progress: Progress,
    ) -> None:  # fmt: skip
        """See `Product`."""
        manifest = Manifest(
            n_cells, outcome.n_edges, outcome.max_neighbors, self.compression,
            weighted=self.weights,
        )  # fmt: skip
        with named_disk_errors(made):
            if self.cells is not None:
                provenance = provenance.with_names(self.cells.write_names(made))
            (made / PROVENANCE).write_text(provenance.to_json(manifest))
        output.publish(manifest, made, progress)
