"""A report of an export: what it is, whether it is right, and what its graph is like."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .._version import __version__
from ..edge_pairs.format import MANIFEST, read_manifest
from ..edge_pairs.parquet import GRAPH, is_parquet, read_graph_table
from ..errors import InvalidExportError
from ..machine import html
from ..machine.remote import AnyPath, find_path, is_url, plain_name
from ..runtime.progress import progress_bars
from ..source.listing import is_store
from ..verify.api import observe_export
from ..verify.checks import VerifyReport
from ..verify.element import observe_element
from .page import page
from .report_facts import Seen, Stages, StageTime
from .report_picture import Drawn, draw
from .report_values import FileSize, GraphFacts
from .report_verdicts import ceilings, verdicts
from .target import find_target, written_aside

_FORMATS = ("html", "htm")
_LIBRARIES = ("numpy", "numba", "zarr", "h5py", "pyarrow", "matplotlib")


@dataclass(frozen=True)
class GraphReport(GraphFacts):
    """A report of an export; its attributes are those of `GraphFacts`, and plain values."""

    def _repr_html_(self) -> str:
        """Return the verdicts and the picture for a notebook; `to_html` has all."""
        verdicts = [(v.question, v.answer, v.text) for v in self.verdicts]
        shown = html.table(("", "", ""), verdicts)
        if self.images and self.picture is not None:
            shown += html.image(self.images[0], self.picture.caption)
        title, color = f"Report of {self.path}", html.GREEN if self.ok else html.RED
        return html.block(title, shown, color=color)

    def to_html(self) -> str:
        """Return the report as one HTML page, which needs nothing else."""
        return page(self)

    def save(self, output: str | Path, *, force: bool = False) -> None:
        """Write the page to a file, whose name ends in ``.html``.

        An OutputError says that the file is there already, which `force` replaces, or that it
        cannot be written; a DiskSpaceError that the disk is full.
        """
        target = find_target(output, "report", _FORMATS, force=force)
        with written_aside(target) as aside:
            aside.write_text(self.to_html(), encoding="utf-8")


def report_export(
    path: str | Path,
    output: str | Path | None = None,
    *,
    source: str | Path | None = None,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    components: bool | None = None,
    to_key: str | None = None,
    rule: str | None = None,
    min_weight: float | None = None,
    top_k: int | None = None,
    max_edges: int | Literal["viewer"] | None = None,
    strongest: Literal["largest", "smallest"] | None = None,
    picture: bool | None = None,
    force: bool = False,
    progress: bool | None = False,
    output_storage_options: Mapping[str, Any] | None = None,
) -> GraphReport:
    """Verify an export, and report what its graph is like: as one HTML page, and as facts.

    Parameters
    ----------
    path
        Folder of the export, or its URL; or a zarr store that `symmetrize_connectivities` has
        written.
    output
        The file of the page, whose name ends in ``.html``; None to write none.
    source, key, neighbors_key, storage_options
        The store and matrix that the export was made of, as for `verify_export`.
    memory_limit, threads, scratch_dir, components
        As for `verify_export`.
    to_key, rule, min_weight, top_k, max_edges, strongest
        Of a store: the matrix in its `obsp`, by default "connectivities", and how it was made, as
        for `verify_element`.
    picture
        Whether to draw all edges, as `plot_graph` does; None for "if that is possible".
    force
        Whether to replace `output` if it is there.
    progress, output_storage_options
        As for `verify_export`; the options are for the URL of the export.

    Returns
    -------
    GraphReport
        `ok` is False if anything is wrong, which the page says too.

    Raises
    ------
    OutputError, DiskSpaceError
        If the page cannot be written; before all work, if it is there already, or if a picture is
        wanted and the extra `plot` is not installed.
    InvalidExportError, SourceError, DamagedGraphError, MemoryLimitError
        As for `verify_export`.
    """
    if output is not None:
        find_target(output, "report", _FORMATS, force=force)
    in_store = is_store(path)
    made = {
        "to_key": to_key, "rule": rule, "min_weight": min_weight, "top_k": top_k,
        "max_edges": max_edges, "strongest": strongest,
    }  # fmt: skip
    if not in_store and (told := [name for name, value in made.items() if value is not None]):
        raise ValueError(f"{', '.join(told)}: for stores that symmetrize has written")
    if in_store and output_storage_options is not None:
        raise ValueError("output_storage_options are for exports at a URL, not for stores")
    if picture:
        from .raster import check_extra

        check_extra()
    options: dict[str, Any] = {
        "source": source, "key": key, "neighbors_key": neighbors_key,
        "storage_options": storage_options, "memory_limit": memory_limit, "threads": threads,
    }  # fmt: skip
    its_options: dict[str, Any] = {}  # of the picture
    checks: dict[str, Any] = {"scratch_dir": scratch_dir, "components": components}
    observe: Callable[..., VerifyReport] = observe_export
    if in_store:
        observe = observe_element
        checks |= made | {"to_key": to_key or "connectivities"}
        its_options = {"source": None, "key": to_key or "connectivities", "neighbors_key": None}
    else:
        checks["output_storage_options"] = output_storage_options
        if is_url(plain_name(path)):
            its_options["storage_options"] = output_storage_options
    seen = Seen()
    with progress_bars(progress) as bars:
        stages = Stages(bars)
        verified = observe(path, stages, seen, **options, **checks)
        times = stages.times()
    if seen.degrees is None:
        drawn = Drawn(why="the edges are not well-formed, or could not be read")
    elif picture is False:
        drawn = Drawn(why="it was not wanted")
    else:
        drawn = draw(path, progress=progress, **(options | its_options))
    place = find_path(path, output_storage_options)
    stored = _Stored("store", weighted=True) if in_store else _stored(place)
    report = _report(place, stored, verified, seen, times, source, drawn)
    if output is not None:
        report.save(output, force=force)
    return report


def _report(
    place: AnyPath, stored: _Stored, verified: VerifyReport, seen: Seen, times:
    tuple[StageTime, ...], source: Any, drawn: Drawn,
) -> GraphReport:  # fmt: skip
    graph = None if verified.n_cells is None else (verified.n_cells, verified.n_edges or 0)
    name = None if source is None else str(plain_name(source))
    return GraphReport(
        path=str(place),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        ok=verified.ok,
        format=stored.format,
        weighted=stored.weighted,
        compression=stored.compression,
        files=stored.files,
        verdicts=verdicts(
            verified, differences=seen.differences, source=name, format=stored.format,
            weighted=bool(stored.weighted),
        ),
        ceilings=ceilings(*graph) if graph is not None else (),
        degrees=seen.degree_histogram(),
        component_sizes=seen.component_histogram(),
        lengths=seen.lengths(),
        weights=seen.weights(),
        picture=drawn.report,
        no_picture=drawn.why,
        stages=times,
        versions=_versions(),
        verification=verified,
        images=drawn.images,
    )  # fmt: skip


class _Stored(NamedTuple):
    """How the edges are stored, as far as the manifest tells."""

    format: str | None = None
    weighted: bool | None = None
    compression: int | None = None
    files: tuple[FileSize, ...] = ()


def _stored(place: AnyPath) -> _Stored:
    with suppress(InvalidExportError, OSError):
        if is_parquet(place):
            table = read_graph_table(place)
            names = [GRAPH, *(file.name for file in table.all_files)]
            return _Stored("Parquet", table.weighted, None, _sizes(place, names))
        manifest = read_manifest(place)
        names = [MANIFEST, *(manifest.path(side) for side in manifest.columns)]
        if isinstance(place, Path) and os.path.lexists(place / manifest.cells_path):
            names.append(manifest.cells_path)
        return _Stored("edge files", manifest.weighted, manifest.compression, _sizes(place, names))
    return _Stored()


def _sizes(place: AnyPath, names: list[str]) -> tuple[FileSize, ...]:
    found = []
    for name in names:
        n_bytes = None
        if isinstance(place, Path):
            with suppress(OSError):
                n_bytes = (place / name).stat().st_size
        found.append(FileSize(name, n_bytes))
    return tuple(found)


def _versions() -> dict[str, str]:
    """Return the versions of what has made the report, as far as it is installed."""
    found = {"cellgraph_dask": __version__, "Python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
