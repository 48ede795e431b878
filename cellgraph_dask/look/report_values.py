"""All that a report tells, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..machine.report import Report
from ..verify.checks import VerifyReport
from .report_facts import Histogram, Lengths, StageTime, Weights
from .report_verdicts import Ceiling, Verdict
from .scene import PlotReport


@dataclass(frozen=True)
class FileSize(Report):
    """A file of an export, and its bytes; None for one in remote storage, or one that is gone."""

    name: str
    n_bytes: int | None


@dataclass(frozen=True)
class GraphFacts(Report):
    """What a report tells.

    Attributes
    ----------
    path : str
        The export.
    created : str
        When the report was made: ISO 8601, UTC.
    ok : bool
        Whether nothing is wrong.
    format : {"edge files", "Parquet", "store"} or None
        How the edges are stored, "store" being a matrix in one; None, as all that follows, where it
        could not be found out.
    weighted : bool or None
        Whether the edges have weights.
    compression : int or None
        Level of gzip; None for files that are not compressed, and for Parquet.
    files : tuple of FileSize
        The files, and their bytes.
    verdicts : tuple of Verdict
        Whether the export is sound, equal to its source, aligned with an embedding, connected, and
        small enough for its viewer.
    ceilings : tuple of Ceiling
        What the viewers take at most.
    degrees : Histogram or None
        Cells by their number of neighbors; None, as all that follows, where it is not known.
    component_sizes : Histogram or None
        Connected components by their number of cells.
    lengths : Lengths or None
        How long sampled edges and random pairs are in the embedding of the alignment.
    weights : Weights or None
        The weights of the edges.
    picture : PlotReport or None
        What the picture shows.
    no_picture : str or None
        Why there is none.
    stages : tuple of StageTime
        Time and memory of the verification, by stage.
    versions : dict
        Of this package, Python and libraries, with which the report was made.
    verification : VerifyReport
        All else that the verification found.
    images : tuple of bytes
        The picture as PNG, on white and on black; empty without one.
    """

    _title = "Graph"

    path: str
    created: str
    ok: bool
    format: str | None
    weighted: bool | None
    compression: int | None
    files: tuple[FileSize, ...]
    verdicts: tuple[Verdict, ...]
    ceilings: tuple[Ceiling, ...]
    degrees: Histogram | None
    component_sizes: Histogram | None
    lengths: Lengths | None
    weights: Weights | None
    picture: PlotReport | None
    no_picture: str | None
    stages: tuple[StageTime, ...]
    versions: dict[str, str]
    verification: VerifyReport
    images: tuple[bytes, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, without the bytes of the picture."""
        found = super().to_dict()
        del found["images"]
        return found
