"""A folder of Parquet files as a `Product`; see `products`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs import parquet_io
from ..edge_pairs.parquet import (
    GRAPH,
    MOST_ROWS,
    GraphTable,
    TableFile,
    is_parquet,
    read_graph_table,
    table_columns,
)
from ..edge_pairs.provenance import Provenance
from ..errors import InvalidExportError, OutputError
from ..machine.files import named_disk_errors, write_aside
from ..machine.remote import is_url
from ..publish.whole import WholeOutput, work_beside
from ..publish.work_folder import Place
from ..runtime.progress import Progress
from ..runtime.stage import ResumableExecutor
from ..stages.job import Job
from ..stages.pipeline import Outcome
from ..stages.rules import Rule
from ..stages.wishes import ALL, Thinning
from .cells_table import CellsTable
from .parquet import ParquetDelivery, parquet_bytes, read_files
from .parquet_files import ParquetFiles, files_bytes, files_scratch
from .parts import pieces_bytes


@dataclass(frozen=True, eq=False)
class ParquetFolder:
    """A folder of Parquet files, with `weights` or without, in one direction or in `both`.

    `cells`, if it is given, is what the table of cells is made from.
    """

    weights: bool = False
    wanted: Rule | None = None  # None if weights matter: the matrix must be symmetric in them
    both: bool = False
    cells: CellsTable | None = None
    thinning: Thinning = ALL

    reader = "cellucid-0.9.4"
    refuses_zeros = refuses_diagonal = is_inside = False
    weight_dtype = "float64"
    preload = (parquet_io.warm_up,)

    @property
    def rule(self) -> Rule | None:
        """See `Product`: of equal weights the larger one is either."""
        if self.is_strict:
            return "max"
        return "ones" if self.wanted is None and self.both else self.wanted

    @property
    def is_strict(self) -> bool:
        """See `Product`."""
        return (self.weights or bool(self.thinning)) and self.wanted is None

    @property
    def options(self) -> dict[str, Any]:
        """See `Product`."""
        return {
            "format": "parquet",
            "weights": self.weights,
            "rule": self.wanted,
            "directions": "both" if self.both else "one",
            "cells_table": self.cells is not None,
            **(self.cells.options if self.cells is not None else {}),
        } | self.thinning.options

    def check(self, n_cells: int) -> None:
        """See `Product`."""
        parquet_io.pyarrow()

    def warnings(self, n_cells: int, n_edges: int) -> list[str]:
        """See `Product`."""
        return []

    def index_dtype(self, n_cells: int) -> np.dtype[Any]:
        """See `Product`."""
        return table_columns(n_cells, weighted=False)["src"]

    def output_bytes(self, n_cells: int, n_edges: int) -> int:
        """See `Product`."""
        columns = table_columns(n_cells, weighted=self.weights)
        return n_edges * sum(dtype.itemsize for dtype in columns.values())

    def scratch_bytes(self, job: Job, n_edges: int, *, on_cluster: bool) -> int:
        """See `Product`."""
        return pieces_bytes(job, n_edges) if on_cluster else files_scratch(job, n_edges)

    def writer_bytes(self, job: Job, threads: int, n: int) -> int:
        """See `Product`."""
        return max(threads * parquet_bytes(job), files_bytes(job, threads))

    def finishing_bytes(self, job: Job, threads: int) -> int:
        """See `Product`: of the table of cells."""
        return self.cells.n_bytes if self.cells is not None else 0

    def open(
        self, out_dir: str | Path, *, force: bool, resume: bool, scratch_dir: str | Path | None,
        storage_options: Mapping[str, Any] | None, on_cluster: bool,
    ) -> WholeOutput:  # fmt: skip
        """See `Product`."""
        return WholeOutput(_local(out_dir), force=force, resume=resume, is_ours=_is_ours)

    def work(self, out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
        """See `Product`."""
        return work_beside(_local(out_dir))

    def check_place(self, output: Place, n_cells: int) -> None:
        """See `Product`."""

    def delivery(
        self, job: Job, folder: Path, executor: ResumableExecutor, *, on_cluster: bool
    ) -> ParquetDelivery | ParquetFiles:
        """See `Product`."""
        make = ParquetDelivery if on_cluster else ParquetFiles
        return make(job, folder, executor)

    def publish(
        self, output: Any, made: Path, n_cells: int, outcome: Outcome, provenance: Provenance,
        progress: Progress,
    ) -> None:  # fmt: skip
        """See `Product`."""
        with named_disk_errors(made):
            cells = self.cells.write(made) if self.cells is not None else None
            write_manifest(
                made, n_cells, outcome, self.rule or "ones", provenance, both=self.both,
                weighted=self.weights, cells=cells,
            )  # fmt: skip
        output.publish(made)


def _local(out_dir: str | Path) -> Path:
    if is_url(out_dir):
        raise OutputError(
            "Parquet files are written to folders of this machine, not to URLs. Export into a "
            "folder, and copy it."
        )
    return Path(out_dir)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a graph in Parquet, and nothing else."""
    if not is_parquet(folder):
        return False
    try:
        table = read_graph_table(folder)
    except InvalidExportError:
        return False
    names = {GRAPH, *(file.name for file in table.all_files)}
    return {path.name for path in folder.iterdir()} <= names


def write_manifest(
    folder: Path, n_cells: int, outcome: Outcome, rule: str, made_from: Provenance, *, both: bool,
    weighted: bool, cells: TableFile | None = None, row_group: int = MOST_ROWS,
) -> GraphTable:  # fmt: skip
    """Write the manifest of a folder whose files are finished, and return what it says."""
    table = GraphTable(
        n_cells=n_cells,
        n_edges=outcome.n_edges,
        max_neighbors=outcome.max_neighbors,
        rule=rule,
        directions="both" if both else "one",
        weighted=weighted,
        row_group=row_group,
        made_from=made_from,
        files=read_files(folder),
        cells=cells,
    )
    aside = folder / f"{GRAPH}.part"
    write_aside(folder / GRAPH, table.to_json(), aside=aside)
    aside.replace(folder / GRAPH)
    return table
