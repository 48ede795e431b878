"""A neighbor graph made symmetric, as an element of an AnnData store: what today's viewer takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..delivery.element import Element
from ..delivery.row_names import notes_in_place
from ..delivery.store_copy import StoreCopy
from ..delivery.zarr_files import DOCUMENTS, ZarrFormat
from ..errors import OutputError, SourceError
from ..machine.remote import is_url, local_path, plain_name
from ..plan.options import Options
from ..plan.thinning import thinning_of
from ..runtime.cluster import client_for
from ..source.cells import levels
from ..source.layout import get
from ..source.matrix import Source
from ..source.opening import is_container, open_root, open_source
from ..source.selection import Cells
from ..source.spool import LazyMatrix
from ..stages.rules import Rule
from ..stages.wishes import Strongest
from .choosing import choose
from .run import ExportReport, run_export

if TYPE_CHECKING:
    from distributed import Client

_BAD_NAME = re.compile(r'[/\\<>:"|?*\x00-\x1f]')


def symmetrize_connectivities(
    source: Any,
    dest: str | Path,
    *,
    cells: Cells | None = None,
    rule: Rule | None = None,
    min_weight: float | None = None,
    top_k: int | None = None,
    max_edges: int | Literal["viewer"] | None = None,
    strongest: Strongest | None = None,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    to_key: str = "connectivities",
    drop_diagonal: bool = False,
    dtype: Literal["float32", "float64"] = "float32",
    zarr_format: ZarrFormat | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    keep_scratch: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: bool | None = False,
    client: Client | None = None,
) -> ExportReport:
    """Make a neighbor graph symmetric, in a zarr AnnData store that the current viewer opens.

    What is written is a canonical CSR: columns strictly rising, each weight the same in both
    directions, no zeros, no repeats, no diagonal; in the chunks in which cellucid 0.9.5 writes it.

    Parameters
    ----------
    source, key, neighbors_key, storage_options
        As for `plan_export`; the matrix must be in an AnnData.
    dest
        A new folder: an AnnData store with all of the source's but its other `obsp`. Or the
        source itself, if that is a zarr store in a folder: then the graph is added to it. Either
        is seen by readers only when it is complete.
    rule : {"ones", "max", "min", "mean", "sum", "fuzzy"}, optional
        How the weights a and b of both directions become one, an absent one being 0. `min` keeps
        mutual neighbors only, `fuzzy` is a + b - a b, for weights from 0 to 1. By default only a
        matrix is taken that is symmetric in its weights as it is.
    cells, min_weight, top_k, max_edges, strongest
        Which cells and edges are kept, as for `plan_export`. With `cells`, a new store has their
        rows alone, of all that there is for each cell.
    to_key
        Name of the new element in `obsp`.
    drop_diagonal
        Whether to leave out weights on the diagonal; by default they are an error.
    dtype : {"float32", "float64"}
        Dtype of the weights; they are rounded once.
    zarr_format : {2, 3}, optional
        Of a new store; by default as the source, or 2.
    memory_limit, threads, scratch_dir, keep_scratch, force, resume, progress, client
        As for `export_connectivities`; `force` allows to replace an element, or a store, that is
        there.

    Returns
    -------
    ExportReport
        `n_edges` counts pairs of cells, so half the entries of the new matrix.

    Raises
    ------
    SourceError, DamagedGraphError
        If the matrix cannot be taken: it is not symmetric and no rule is given, it has negative
        weights, or weights that become 0 or infinite in `dtype`.
    OutputError, DiskSpaceError
        If `dest` is there already, or cannot be written.
    MemoryLimitError, ClusterError, ResumeError
        As for `export_connectivities`.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, not {dtype!r}")
    if zarr_format not in (None, 2, 3):
        raise ValueError(f"zarr_format must be 2 or 3, not {zarr_format!r}")
    _check_key(to_key)
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    group, stored, notes = _place_of(opened, source, storage_options)
    inside = _is_same(opened.origin.file, dest) and stored is not None
    if inside and zarr_format not in (None, stored):
        raise ValueError(f"{dest} is of zarr format {stored}; an element of it cannot have another")
    selection = None
    if cells is not None:
        if inside:
            raise ValueError(f"{dest} has other cells too; name a new store for these cells")
        opened, selection = choose(opened, source, storage_options, cells, memory_limit, client)
    made: ZarrFormat = zarr_format or (3 if stored == 3 else 2)
    element = Element(
        rule, to_key, drop_diagonal, dtype, made, group,
        None if inside else StoreCopy.of(source, group, made, storage_options, selection),
        thinning_of(opened.key, opened.n_cells, min_weight, top_k, max_edges, strongest),
        notes,
    )  # fmt: skip
    options = Options(
        dest,
        rule=rule,
        memory_limit=memory_limit,
        threads=threads,
        scratch_dir=scratch_dir,
        keep_scratch=keep_scratch,
        force=force,
        resume=resume,
        progress=progress,
        client=client_for(client),
        made=element,
    )
    return run_export(opened, options)


def _check_key(name: str) -> None:
    """Raise a ValueError if a name cannot be that of an element on every platform."""
    if not name or _BAD_NAME.search(name) or name in (".", "..", *DOCUMENTS, ".zmetadata"):
        raise ValueError(f"to_key must be a name without / and other signs of paths, not {name!r}")
    if name.startswith(".") or name.endswith((" ", ".")):
        raise ValueError(f"to_key must not begin with a dot, nor end so or with a space: {name!r}")


def _place_of(
    opened: Source | LazyMatrix, source: Any, storage_options: Mapping[str, Any] | None
) -> tuple[str, int | None, tuple[str, ...]]:
    """Return the path of the AnnData that a matrix is in, the zarr format of its store, and notes.

    These are on a store that stays as it is.
    """
    if not is_container(source):
        raise SourceError(
            f"{opened.origin.path} has no cells beside it, of which a store could be made. Give "
            "the AnnData, or its store or file, with the matrix in obsp."
        )
    with open_root(source, storage_options) as root:
        for level in levels(opened.key):
            if get(root.node, f"{level}/obs".lstrip("/")) is not None:
                anndata = get(root.node, level) if level else root.node
                is_zarr = root.zarr_format is not None
                return level, root.zarr_format, tuple(notes_in_place(anndata) if is_zarr else ())
    raise SourceError(f"{opened.origin.path} has no obs above {opened.key}; an AnnData has.")


def _is_same(file: str | None, dest: str | Path) -> bool:
    """Whether a store is the folder that a path leads to."""
    dest = plain_name(dest)
    if file is None or is_url(dest):
        return False
    is_same = os.path.realpath(file) == os.path.realpath(local_path(dest))
    if is_same and not Path(file).is_dir():
        raise OutputError(
            f"{dest} is one file, and a graph can be added to a zarr store in a folder only. Name "
            "a new folder, to which the rest is copied."
        )
    return is_same
