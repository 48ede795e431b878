"""The product of `symmetrize`: a symmetric graph as an element of an AnnData store.

The store is a new one, with the rest of the AnnData copied, or the one that the graph is in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..edge_pairs.provenance import Provenance
from ..errors import OutputError, SourceError
from ..machine.files import absolute, named_disk_errors
from ..machine.remote import is_url, local_path
from ..publish.consolidated import consolidate, is_group
from ..publish.element import ElementOutput
from ..publish.whole import WholeOutput, work_beside
from ..publish.work_folder import Place
from ..runtime.progress import Progress
from ..runtime.stage import ResumableExecutor
from ..stages.job import EdgeSink, Job
from ..stages.pipeline import Outcome
from ..stages.rules import Rule
from ..stages.wishes import ALL, Thinning
from .csr import CsrDelivery, csr_bytes
from .csr_files import CsrFiles, row_ends_bytes
from .parts import pieces_bytes
from .store_copy import StoreCopy
from .zarr_files import (
    ZarrFormat,
    encoding,
    group_documents,
    make_durable,
    warm_up,
    write_documents,
)

_MOST_CELLS = 2**31 - 1  # that int32 indices tell apart
_OBSP = "obsp"


@dataclass(frozen=True)
class Element:
    """A symmetric CSR in `obsp` of a zarr store."""

    wanted: Rule | None = None  # None: the matrix must be symmetric in its weights
    to_key: str = "connectivities"
    drop_diagonal: bool = False
    dtype: str = "float32"
    zarr_format: ZarrFormat = 2
    group: str = ""  # path of the AnnData in the store
    copy: StoreCopy | None = field(default=None, repr=False)  # None: the store is there
    thinning: Thinning = ALL
    notes: tuple[str, ...] = ()  # on the store that is there

    weights = both = True
    preload = (warm_up,)
    reader = "cellucid-0.9.5"
    refuses_zeros = False

    @property
    def rule(self) -> Rule:
        """See `Product`: of equal weights the larger one is either."""
        return self.wanted or "max"

    @property
    def weight_dtype(self) -> str:
        """See `Product`."""
        return self.dtype

    @property
    def is_strict(self) -> bool:
        """See `Product`."""
        return self.wanted is None

    @property
    def refuses_diagonal(self) -> bool:
        """See `Product`."""
        return not self.drop_diagonal

    @property
    def is_inside(self) -> bool:
        """See `Product`: whether the result is put into the source."""
        return self.copy is None

    @property
    def options(self) -> dict[str, Any]:
        """See `Product`."""
        selection = self.copy.selection if self.copy is not None else None
        return {
            "rule": self.wanted, "to_key": self.to_key, "drop_diagonal": self.drop_diagonal,
            "dtype": self.dtype, "zarr_format": self.zarr_format,
            **(selection.options if selection is not None else {}),
        } | self.thinning.options  # fmt: skip

    def check(self, n_cells: int) -> None:
        """See `Product`."""
        if n_cells > _MOST_CELLS:
            raise SourceError(
                f"the matrix has {n_cells:,} cells; an element with int32 indices holds graphs of "
                f"up to {_MOST_CELLS:,}."
            )

    def warnings(self, n_cells: int, n_edges: int) -> list[str]:
        """See `Product`."""
        return list(self.copy.notes if self.copy else self.notes)

    def index_dtype(self, n_cells: int) -> np.dtype[Any]:
        """See `Product`."""
        return np.dtype(np.int32)

    def output_bytes(self, n_cells: int, n_edges: int) -> int:
        """See `Product`."""
        return 8 * (n_cells + 1) + n_edges * (4 + np.dtype(self.dtype).itemsize)

    def scratch_bytes(self, job: Job, n_edges: int, *, on_cluster: bool) -> int:
        """See `Product`."""
        return pieces_bytes(job, n_edges) if on_cluster else row_ends_bytes(job)

    def writer_bytes(self, job: Job, threads: int, n: int) -> int:
        """See `Product`."""
        return threads * csr_bytes(job, np.dtype(self.dtype))

    def finishing_bytes(self, job: Job, threads: int) -> int:
        """See `Product`: of what is copied besides, and of the last chunks, which threads share."""
        copied = self.copy.thread_bytes if self.copy is not None else 0
        return threads * (copied + csr_bytes(job, np.dtype(self.dtype)))

    def open(
        self, out_dir: str | Path, *, force: bool, resume: bool, scratch_dir: str | Path | None,
        storage_options: Mapping[str, Any] | None, on_cluster: bool,
    ) -> Place:  # fmt: skip
        """See `Product`."""
        folder = _local(out_dir)
        folder = absolute(folder) if on_cluster else folder
        if self.copy is None:
            return ElementOutput(folder, self.group, self.to_key, force=force, resume=resume)
        return WholeOutput(folder, force=force, resume=resume, is_ours=_is_store)

    def work(self, out_dir: str | Path, scratch_dir: str | Path | None) -> Path:
        """See `Product`."""
        folder = _local(out_dir)
        return work_beside(Path(os.path.realpath(folder)) if self.copy is None else folder)

    def check_place(self, output: Place, n_cells: int) -> None:
        """See `Product`."""

    def delivery(
        self, job: Job, folder: Path, executor: ResumableExecutor, *, on_cluster: bool
    ) -> ElementDelivery:
        """See `Product`."""
        place, dtype = folder / _OBSP / self.to_key, np.dtype(self.dtype)
        make = CsrDelivery if on_cluster else CsrFiles
        rows = make(place, job, executor, dtype=dtype, zarr_format=self.zarr_format)
        return ElementDelivery(self, folder, executor, rows)

    def publish(
        self, output: Any, made: Path, n_cells: int, outcome: Outcome, provenance: Provenance,
        progress: Progress,
    ) -> None:  # fmt: skip
        """See `Product`."""
        output.publish(made)


def _local(out_dir: str | Path) -> Path:
    if is_url(out_dir):
        raise OutputError(
            f"{out_dir} is in remote storage; an AnnData store is written to a folder of this "
            "machine. Write it there, and copy it."
        )
    return local_path(out_dir)


def _is_store(folder: Path) -> bool:
    """Whether a folder is an AnnData store, as we make them."""
    return is_group(folder) and is_group(folder / "obs") and is_group(folder / _OBSP)


class ElementDelivery:
    """Makes an element of rows, and the store around it; a `Delivery`."""

    def __init__(
        self, element: Element, folder: Path, executor: ResumableExecutor, rows: CsrDelivery |
        CsrFiles,
    ) -> None:  # fmt: skip
        self._element, self._store, self._executor, self._rows = element, folder, executor, rows
        self.sink: EdgeSink = rows.sink
        self.kind = rows.kind
        self.keep, self.stop, self.close = rows.keep, rows.stop, rows.close
        self.scratch_bytes = 0

    def finish(self, counts: Sequence[int]) -> int:
        """Write the element and the store; return the bytes of their arrays."""
        with named_disk_errors(self._store):
            documents = group_documents(self._element.zarr_format, encoding("dict", "0.1.0"))
            write_documents(self._store / _OBSP, documents)
            n_bytes = self._rows.finish(counts)
            self.scratch_bytes = self._rows.scratch_bytes
            if self._element.copy is not None:
                n_bytes += self._element.copy.run(self._store, self._executor)
                consolidate(self._store)
            make_durable(self._store)
        return n_bytes
