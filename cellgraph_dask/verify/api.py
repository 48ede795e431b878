"""The public function that verifies an export, wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from ..source.opening import key_in, open_source
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
    given = _open_given(source, key, neighbors_key, storage_options)
    scratch = local_path(scratch_dir) if scratch_dir is not None else None
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(given.matrix)) if given is not None else None
        if isinstance(path, Path):
            folder = path
        else:
            try:
                folder = stack.enter_context(downloaded(path, scratch_dir))
            except InvalidExportError as error:
                return VerifyReport(False, (str(error),))
        compared = _compared(folder, given, scratch, limit, n_threads, progress, stack)
        stored = None
        if given is not None and compared.matrix is not None:
            stored = partial(_stored, given, compared.selection)
        check = verify_table if is_parquet(folder) else verify
        report = check(
            folder,
            progress,
            source=compared.matrix,
            limit=limit,
            threads=n_threads,
            scratch_dir=scratch,
            components=components,
            stored=stored,
            observer=observer,
        )
        if watch is not None:
            watch.check()
    found = (*report.problems, *compared.problems)
    problems = tuple(text.replace(str(folder), str(path)) for text in found)
    if report.n_cells is None and not is_export(path):
        raise InvalidExportError(problems[0])
    ok = report.ok and not compared.problems
    return replace(report, ok=ok, problems=problems, warnings=tuple(map(redact, report.warnings)))


class _Given(NamedTuple):
    """The source that the user gave, open."""

    source: Any
    storage_options: Mapping[str, Any] | None
    key: str  # of the matrix, if it was found in something
    matrix: Source


class _Compared(NamedTuple):
    """What an export is compared with: the graph of the cells that it is of."""

    matrix: Source | None  # None if there is none to compare with
    selection: Selection | None = None  # None for all cells
    problems: tuple[str, ...] = ()  # of the names of selected cells


def _open_given(
    source: Any, key: str, neighbors_key: str | None, storage_options: Mapping[str, Any] | None
) -> _Given | None:
    if source is None:
        return None
    matrix = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    if not isinstance(matrix, Source):
        raise SourceError(
            f"{matrix.key} is a dense matrix or a Dask array; an export is compared with "
            "sparse matrices in stores or in memory."
        )
    return _Given(source, storage_options, key_in(source, matrix), matrix)


def _compared(
    folder: Path, given: _Given | None, scratch: Path | None, limit: int, threads: int,
    progress: Progress, stack: ExitStack,
) -> _Compared:  # fmt: skip
    """Return what an export is compared with; its temporary files go when the stack does."""
    chosen = chosen_cells(folder)
    if chosen is None:
        return _Compared(given.matrix if given is not None else None)
    problems = tuple(check_names(chosen, folder))
    if given is None or problems:
        return _Compared(None, None, problems)
    temporary = scratch or folder
    try:
        selection = find_again(
            chosen, given.matrix, given.source, given.key, given.storage_options, limit
        )
        clear_dead(temporary)
        place = stack.enter_context(temporary_folder(temporary, hidden=scratch is None))
        matrix = restricted(given.matrix, selection, place, limit, threads, progress)
    except InvalidExportError as error:
        return _Compared(None, None, (str(error),))
    return _Compared(matrix, selection)


def _stored(given: _Given, selection: Selection | None, n_cells: int, most_bytes: int) -> Stored:
    """Return the embeddings of the cells that an export is of."""
    in_store = n_cells if selection is None else selection.n_cells
    embeddings, why = stored_embeddings(
        given.source, in_store, given.storage_options, key=given.key, most_bytes=most_bytes
    )
    if selection is not None:
        embeddings = [restrict(embedding, selection) for embedding in embeddings]
    return embeddings, why


def allowed(memory_limit: int | str | None, threads: int | None) -> tuple[int, int]:
    """Return memory limit in bytes and number of threads, as given or by default."""
    check_threads(threads)
    return limit_bytes(memory_limit), threads or default_threads()
