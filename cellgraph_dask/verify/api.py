"""The public function that verifies an export, wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..edge_pairs.parquet import is_parquet
from ..edge_pairs.reader import downloaded
from ..errors import InvalidExportError, SourceError, redact
from ..machine.memory import limit_bytes
from ..machine.remote import find_path, local_path
from ..machine.temporary import clear_dead, temporary_folder
from ..runtime.progress import Progress, progress_bars
from ..runtime.threads import check_threads, default_threads
from ..source.embeddings import restrict, stored_embeddings
from ..source.matrix import Source
from ..source.opening import is_container, open_source
from ..source.selection import Selection
from ..source.stamps import Watch
from .alignment import Stored
from .cells import check_names, chosen_cells, find_again, restricted
from .checks import VerifyReport, verify
from .files import is_export
from .observer import Observer
from .parquet import verify_table


def verify_export(
    out_dir: str | Path,
    *,
    source: str | Path | None = None,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    components: bool | None = None,
    progress: bool | None = False,
    output_storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Check an export; with its source, prove that its edges are exactly the matrix's.

    Parameters
    ----------
    out_dir
        Folder of the export, or its URL.
    source, key, neighbors_key, storage_options
        The store and matrix that it was made of, as for `plan_export`. Without a source the files
        are checked for themselves: manifest, sizes, order, largest degree, gzip.
    memory_limit, threads
        As for `plan_export`.
    scratch_dir
        Where temporary files go, if the proof needs any; by default a hidden folder in `out_dir`.
        An export at a URL is downloaded to it, or else to the system's folder for temporary files.
    components
        Whether to count connected components; None for "unless the graph is large".
    progress, output_storage_options
        As for `export_connectivities`.

    Returns
    -------
    VerifyReport
        `ok` is False if anything is wrong; `problems` says what.

    Raises
    ------
    SourceError, DamagedGraphError
        If the source cannot be read.
    InvalidExportError
        If there is nothing of an export.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    OutputError, DiskSpaceError
        If the scratch folder cannot be written.
    """
    with progress_bars(progress) as bars:
        return observe_export(
            out_dir, bars, None, source=source, key=key, neighbors_key=neighbors_key,
            storage_options=storage_options, memory_limit=memory_limit, threads=threads,
            scratch_dir=scratch_dir, components=components,
            output_storage_options=output_storage_options,
        )  # fmt: skip


def observe_export(
    out_dir: str | Path, progress: Progress, observer: Observer | None, *,
    source: str | Path | None, key: str, neighbors_key: str | None, storage_options:
    Mapping[str, Any] | None, memory_limit: int | str | None, threads: int | None, scratch_dir:
    str | Path | None, components: bool | None, output_storage_options: Mapping[str, Any] | None,
) -> VerifyReport:  # fmt: skip
    """Do what `verify_export` does, and tell an observer what comes to be seen."""
    limit, n_threads = allowed(memory_limit, threads)
    path = find_path(out_dir, output_storage_options)
    opened: Source | None = None
    watch: Watch | None = None
    if source is not None:
        found = open_source(
            source, key, neighbors_key=neighbors_key, storage_options=storage_options
        )
        if not isinstance(found, Source):
            raise SourceError(
                f"{found.key} is a dense matrix or a Dask array; an export is compared with "
                "sparse matrices in stores or in memory."
            )
        opened, watch = found, Watch(found)
        key = found.key if is_container(source) else ""
    selection: Selection | None = None

    def stored(n_cells: int, most_bytes: int) -> Stored:
        if selection is None:
            return stored_embeddings(
                source, n_cells, storage_options, key=key, most_bytes=most_bytes
            )
        embeddings, why = stored_embeddings(
            source, selection.n_cells, storage_options, key=key, most_bytes=most_bytes
        )
        return [restrict(embedding, selection) for embedding in embeddings], why

    with ExitStack() as stack:
        if watch is not None:
            stack.enter_context(watch)
        if isinstance(path, Path):
            folder = path
        else:
            try:
                folder = stack.enter_context(downloaded(path, scratch_dir))
            except InvalidExportError as error:
                return VerifyReport(False, (str(error),))
        others: list[str] = []
        matrix: Source | None = opened
        chosen = chosen_cells(folder)
        if chosen is not None:
            others = check_names(chosen, folder)
            if opened is not None and not others:
                temporary = local_path(scratch_dir) if scratch_dir is not None else folder
                try:
                    selection = find_again(chosen, opened, source, key, storage_options, limit)
                    clear_dead(temporary)
                    private = temporary_folder(temporary, hidden=scratch_dir is None)
                    place = stack.enter_context(private)
                    matrix = restricted(opened, selection, place, limit, n_threads, progress)
                except InvalidExportError as error:
                    others.append(str(error))
            matrix = None if others else matrix
        check = verify_table if is_parquet(folder) else verify
        report = check(
            folder,
            progress,
            source=matrix,
            limit=limit,
            threads=n_threads,
            scratch_dir=local_path(scratch_dir) if scratch_dir is not None else None,
            components=components,
            stored=stored if source is not None and matrix is not None else None,
            observer=observer,
        )
        if watch is not None:
            watch.check()
    problems = tuple(text.replace(str(folder), str(path)) for text in (*report.problems, *others))
    if report.n_cells is None and not is_export(path):
        raise InvalidExportError(problems[0])
    ok = report.ok and not others
    return replace(report, ok=ok, problems=problems, warnings=tuple(map(redact, report.warnings)))


def allowed(memory_limit: int | str | None, threads: int | None) -> tuple[int, int]:
    """Return memory limit in bytes and number of threads, as given or by default."""
    check_threads(threads)
    return limit_bytes(memory_limit), threads or default_threads()
