"""What is at a path: an AnnData store, an export, or the scratch folder of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .edge_pairs.format import MANIFEST
from .errors import SourceError
from .export.record import RUN
from .publish.work_folder import WORK_FOLDER
from .runtime.progress import Progress, progress_bars
from .source.embeddings import stored_embeddings
from .source.layout import is_array
from .verify.api import allowed
from .verify.checks import VerifyReport, verify

if TYPE_CHECKING:
    import zarr

_PREFIXES = ("cellgraph-dask-", WORK_FOLDER)
_MOST_RUN_BYTES = 2**20
_ARRAYS = ("indptr", "indices", "data")


@dataclass(frozen=True)
class MatrixInfo:
    """A member of `obsp`.

    Attributes
    ----------
    key : str
        Its key.
    format : str
        ``"csr_matrix"``, ``"csc_matrix"``, ``"array"``, or whatever it says it is.
    shape : tuple of int
        Rows and columns.
    n_entries : int or None
        Stored entries; None for a dense array.
    dtype, index_dtype : str or None
        Of the weights, and of the indices.
    chunk, shard : int or None
        Entries in a chunk and in a shard.
    codec : str or None
        What compresses a chunk.
    problem : str or None
        Why it cannot be described; then the rest is empty.
    """

    key: str
    format: str = ""
    shape: tuple[int, ...] = ()
    n_entries: int | None = None
    dtype: str | None = None
    index_dtype: str | None = None
    chunk: int | None = None
    shard: int | None = None
    codec: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class InspectReport:
    """What is at a path.

    Attributes
    ----------
    path : str
        The path.
    kind : {"store", "export", "scratch"}
        What is there.
    zarr_format : int or None
        Of a store.
    matrices : tuple of MatrixInfo
        Of a store: what `obsp` holds.
    embeddings : tuple of str
        Of a store: what `verify` could hold the graph against.
    export : VerifyReport or None
        Of an export: whether it is sound, and what its graph is like.
    run : dict or None
        Of a scratch folder: which run it belongs to, as far as that is noted in it. Of an export:
        the run that was interrupted while it replaced this export, if there is one.
    n_files, n_bytes : int or None
        Of a scratch folder: the files in it, and their size together.
    """

    path: str
    kind: str
    zarr_format: int | None = None
    matrices: tuple[MatrixInfo, ...] = ()
    embeddings: tuple[str, ...] = ()
    export: VerifyReport | None = None
    run: dict[str, Any] | None = None
    n_files: int | None = None
    n_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict())


def inspect(path: Path, progress: Progress, *, limit: int, threads: int) -> InspectReport:
    """Say what is at a path; an export is checked as `verify` does, with its components.

    Parameters
    ----------
    path
        A folder.
    progress
        Told of the edges of an export.
    limit, threads
        As for `verify.verify`.

    Raises
    ------
    SourceError
        If it is nothing that this package knows.
    """
    if (path / MANIFEST).exists():
        report = verify(path, progress, limit=limit, threads=threads, components=True)
        run = _read_run(path / WORK_FOLDER)
        return InspectReport(str(path), "export", export=report, run=run)
    for folder in (path, path / WORK_FOLDER):
        if folder.is_dir() and (folder.name.startswith(_PREFIXES) or (folder / RUN).exists()):
            return _inspect_scratch(folder)
    if not path.exists():
        raise SourceError(f"{path} does not exist; name a store, an export or a scratch folder.")
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, zarr.errors.BaseZarrError):
        raise SourceError(
            f"{path} is neither a zarr store nor an export nor a scratch folder; name one of these."
        ) from None
    return _inspect_store(path, group)


def _inspect_scratch(folder: Path) -> InspectReport:
    """Describe a scratch folder; other processes may be changing it."""
    run = _read_run(folder)
    n_files = n_bytes = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        if not path.is_dir():
            n_files += 1
            n_bytes += status.st_size
    return InspectReport(str(folder), "scratch", run=run, n_files=n_files, n_bytes=n_bytes)


def _read_run(folder: Path) -> dict[str, Any] | None:
    """Return what a folder says of its run; None if nothing, or if that is cut off."""
    try:
        with (folder / RUN).open("rb") as file:
            found = json.loads(file.read(_MOST_RUN_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _inspect_store(path: Path, group: zarr.Group) -> InspectReport:
    matrices: list[MatrixInfo] = []
    n_cells = 0
    if "obsp" in group and not is_array(group["obsp"]):
        for key in sorted(group["obsp"].keys()):
            try:
                matrices.append(_describe(key, group["obsp"][key]))
            except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
                matrices.append(MatrixInfo(key, problem=f"its metadata cannot be used: {error!r}"))
        n_cells = max((m.shape[0] for m in matrices if m.shape), default=0)
    return InspectReport(
        str(path),
        "store",
        zarr_format=int(group.metadata.zarr_format),
        matrices=tuple(matrices),
        embeddings=tuple(e.name for e in stored_embeddings(str(path), n_cells)),
    )


def _describe(key: str, member: Any) -> MatrixInfo:
    """Describe a member of obsp by its metadata alone."""
    kind = str(member.attrs.get("encoding-type", "unknown"))
    if is_array(member):
        return MatrixInfo(
            key, kind, tuple(member.shape), dtype=str(member.dtype), codec=_codec(member)
        )
    _, indices, data = (member[name] for name in _ARRAYS)
    return MatrixInfo(
        key,
        kind,
        tuple(int(n) for n in member.attrs["shape"]),
        n_entries=int(data.shape[0]),
        dtype=str(data.dtype),
        index_dtype=str(indices.dtype),
        chunk=int(indices.chunks[0]),
        shard=int(indices.shards[0]) if indices.shards else None,
        codec=_codec(indices),
    )


def _codec(array: zarr.Array) -> str | None:
    """Return the names of an array's compressors, such as "blosc (lz4)"."""
    names = []
    for codec in array.compressors:
        if hasattr(codec, "get_config"):  # of numcodecs, in format 2
            config = codec.get_config()
            name, inner = config["id"], config.get("cname")
        else:
            config = codec.to_dict()
            name, inner = config["name"], (config.get("configuration") or {}).get("cname")
        names.append(f"{name} ({getattr(inner, 'value', inner)})" if inner else str(name))
    return ", ".join(names) or None


def inspect_path(
    path: str | Path,
    *,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    progress: bool | None = False,
) -> InspectReport:
    """Say what is at a path: an AnnData store, an export, or the scratch folder of a run.

    Parameters
    ----------
    path
        The folder.
    memory_limit, threads
        As for `plan_export`; an export is read as a whole.
    progress
        As for `export_connectivities`.

    Raises
    ------
    SourceError
        If it is none of these.
    """
    limit, n_threads = allowed(memory_limit, threads)
    with progress_bars(progress) as bars:
        return inspect(Path(path), bars, limit=limit, threads=n_threads)
