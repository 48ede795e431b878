"""What is at a path: an AnnData store, an export, or the scratch folder of a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .edge_pairs.format import MANIFEST
from .edge_pairs.parquet import is_parquet
from .errors import CellgraphError, SourceError
from .export.record import RUN
from .machine.folders import read_plain
from .machine.remote import is_url, local_path, plain_name
from .machine.report import Report
from .publish.whole import work_beside
from .publish.work_folder import WORK_FOLDER
from .runtime.progress import progress_bars
from .runtime.stage import JOURNAL, StageDone, stages_done
from .source.embeddings import stored_embeddings
from .source.layout import (
    Node,
    find_matrix,
    format_of,
    is_array,
    open_array,
    sparse_layout,
    tables,
)
from .source.opening import ARRAYS, Root, open_root
from .verify.api import allowed
from .verify.checks import VerifyReport, verify
from .verify.parquet import verify_table

_PREFIXES = ("cellgraph-dask-", WORK_FOLDER)
_MOST_RUN_BYTES, _MOST_JOURNAL_BYTES, _MOST_RUNS = 2**20, 2**26, 10
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class MatrixInfo:
    """A matrix in a store."""

    key: str  # in `obsp`, or its path from the root if it is elsewhere
    format: str = ""  # "csr_matrix", "csc_matrix", "array", or whatever it says it is
    shape: tuple[int, ...] = ()
    n_entries: int | None = None  # stored entries; None for a dense array
    dtype: str | None = None  # of the weights
    index_dtype: str | None = None
    chunk: int | None = None  # entries in a chunk of `indices`, and in a shard
    shard: int | None = None
    codec: str | None = None  # what compresses a chunk
    problem: str | None = None  # why it cannot be described; then the rest is empty


@dataclass(frozen=True)
class InspectReport(Report):
    """What is at a path.

    Attributes
    ----------
    path : str
        The path.
    kind : {"store", "export", "scratch"}
        What is there.
    zarr_format : int or None
        Of a zarr store; None for an HDF5 file.
    matrices : tuple of MatrixInfo
        Of a store: what `obsp` holds, and the `obsp` of each table or modality; or the one matrix
        that was asked for.
    embeddings : tuple of str
        Of a store: what `verify` could hold the graph against.
    export : VerifyReport or None
        Of an export: whether it is sound, and what its graph is like.
    run : dict or None
        Of a scratch folder: which run it belongs to, as far as that is noted in it. Of an export:
        the run that was interrupted while it replaced this export, if there is one.
    running : bool or None
        Whether that run is still running; None if its process is on another machine.
    stages : tuple of StageDone
        How far that run has come: names of its stages, tasks that are done, and all of them, as far
        as it is noted.
    n_files, n_bytes : int or None
        Of a scratch folder: the files in it, and their size together.
    """

    _title = "What is there"

    path: str
    kind: str
    zarr_format: int | None = None
    matrices: tuple[MatrixInfo, ...] = ()
    embeddings: tuple[str, ...] = ()
    export: VerifyReport | None = None
    run: dict[str, Any] | None = None
    running: bool | None = None
    stages: tuple[StageDone, ...] = ()
    n_files: int | None = None
    n_bytes: int | None = None


def _inspect_scratch(folder: Path) -> InspectReport:
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # other processes may be changing it
            status = path.lstat()
            if not path.is_dir():
                sizes.append(status.st_size)
    run = _read_run(folder)
    for inside in [] if run else sorted(folder.glob("run-*"))[:_MOST_RUNS]:
        run = run or _read_run(inside)  # with `scratch_dir`, the rest is in the output folder
    return InspectReport(
        str(folder), "scratch", n_files=len(sizes), n_bytes=sum(sizes), **_state(run, folder)
    )


def _state(run: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Return what is known of a run whose record, or journal, is in a work folder."""
    if run is None:
        return {}
    number, out_dir = (str(run.get(name, "")) for name in ("id", "out_dir"))
    work, stages = folder, list[StageDone]()
    if out_dir and not is_url(out_dir):
        places = (folder, Path(out_dir) / WORK_FOLDER, work_beside(Path(out_dir)))
        work = next((place for place in places if _is_there(place / RUN)), folder)
    if _ID.fullmatch(number):
        with suppress(OSError, ValueError, TypeError, IndexError, RecursionError):
            content = read_plain(work / f"{JOURNAL}-{number}", most=_MOST_JOURNAL_BYTES)
            stages = stages_done(content)
    return {"run": run, "running": _is_running(run, work), "stages": tuple(stages)}


def _is_running(run: dict[str, Any], work: Path) -> bool | None:
    """Whether a process of this machine holds the lock of a work folder; None if another's may."""
    try:
        lock = (work / "lock").lstat()
        locks = Path("/proc/locks").read_text().splitlines()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    if str(run.get("process", "")).endswith(f" on {os.uname().nodename}"):
        return any(line.split()[-3].endswith(f":{lock.st_ino}") for line in locks)
    return None


def _is_there(path: Path) -> bool:
    """Whether there is something, as far as this user may look."""
    return os.access(path, os.F_OK)


def _read_run(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run in a folder; None if there is none, or if it is cut off."""
    try:
        found = json.loads(read_plain(folder / RUN, most=_MOST_RUN_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _inspect_store(
    path: str | Path,
    key: str | None,
    neighbors_key: str | None,
    storage_options: Mapping[str, Any] | None,
) -> InspectReport:
    with open_root(path, storage_options) as root:
        if key is not None or neighbors_key is not None:
            found = find_matrix(root.node, str(path), key or "connectivities", neighbors_key)
            members = {found.key.removeprefix("obsp/"): found.node}
        else:
            members = _members_of(root, "obsp", "")
            for obsp in [f"{table}/obsp" for table in tables(root.node)]:
                members |= _members_of(root, obsp, f"{obsp}/")
        matrices = tuple(_describe(root, name, node) for name, node in members.items())
    n_cells = max((m.shape[0] for m in matrices if m.shape), default=0)
    embeddings = tuple(e.name for e in stored_embeddings(path, n_cells, storage_options)[0])
    return InspectReport(str(path), "store", root.zarr_format, matrices, embeddings)


def _members_of(root: Root, path: str, prefix: str) -> dict[str, Node | CellgraphError]:
    """Return the members of an `obsp` by their keys, or why they cannot be opened."""
    try:
        obsp = root.node[path]
    except KeyError:
        return {}
    except CellgraphError as error:
        if not prefix:
            raise
        return {path: error}  # the other tables may be sound
    members: dict[str, Node | CellgraphError] = {}
    for name in [] if is_array(obsp) else sorted(obsp.keys()):
        try:
            members[f"{prefix}{name}"] = obsp[name]
        except CellgraphError as error:
            members[f"{prefix}{name}"] = error
    return members


def _describe(root: Root, key: str, member: Node | CellgraphError) -> MatrixInfo:
    """Describe a matrix by its metadata alone."""
    try:
        if isinstance(member, CellgraphError):
            raise member
        _, encoding = format_of(member)
        kind = "unknown" if encoding is None else str(encoding)
        if is_array(member):
            dense = root.dense(member)
            shape = tuple(int(n) for n in dense.shape)
            return MatrixInfo(key, kind, shape, dtype=str(dense.dtype), codec=dense.codec)
        _, n_rows, n_columns = sparse_layout(key, member)
        _, indices, data = (root.dense(open_array(member, key, name)) for name in ARRAYS)
    except (CellgraphError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return MatrixInfo(key, problem=f"its metadata cannot be used: {error}")
    return MatrixInfo(
        key,
        kind,
        (n_rows, n_columns),
        n_entries=int(data.shape[0]),
        dtype=str(data.dtype),
        index_dtype=str(indices.dtype),
        chunk=int(indices.chunks[0]) if indices.chunks else None,
        shard=int(indices.shards[0]) if indices.shards else None,
        codec=indices.codec,
    )


def inspect_path(
    path: str | Path,
    *,
    key: str | None = None,
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    progress: bool | None = False,
) -> InspectReport:
    """Say what is at a path: an AnnData store, an export, or the scratch folder of a run.

    Parameters
    ----------
    path
        A folder; of a store anything that `export_connectivities` takes by a path or URL.
    key, neighbors_key
        As for `export_connectivities`: describe this matrix of a store only.
    storage_options
        As for `export_connectivities`.
    memory_limit, threads
        As for `plan_export`; an export is read as a whole, and checked as `verify_export` does.
    progress
        As for `export_connectivities`.

    Raises
    ------
    SourceError
        If it is none of these.
    """
    if key is not None and neighbors_key is not None:
        raise ValueError("give key or neighbors_key, not both")
    if is_url(plain_name(path)):
        return _inspect_store(path, key, neighbors_key, storage_options)
    folder = local_path(path)
    in_parquet = is_parquet(folder)
    if in_parquet or _is_there(folder / MANIFEST):
        limit, n_threads = allowed(memory_limit, threads)
        check = verify_table if in_parquet else verify
        with progress_bars(progress) as bars:
            report = check(folder, bars, limit=limit, threads=n_threads, components=True)
        work = work_beside(folder) if in_parquet else folder / WORK_FOLDER
        state = _state(_read_run(work), work)
        return InspectReport(str(folder), "export", export=report, **state)
    for scratch in (folder, folder / WORK_FOLDER, work_beside(folder)):
        named = scratch.name.startswith(_PREFIXES)
        if _is_there(scratch / RUN) or (named and _is_there(scratch) and scratch.is_dir()):
            return _inspect_scratch(scratch)
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(
            f"{path} does not exist; name a store, an export or a scratch folder."
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        return _inspect_store(path, key, neighbors_key, storage_options)
    except SourceError as error:
        if key is not None or neighbors_key is not None:
            raise
        raise SourceError(
            f"{path} is neither an export nor a scratch folder, nor a store: {error}"
        ) from error
