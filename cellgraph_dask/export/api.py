"""The public functions that plan an export and do it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..machine.files import absolute
from ..machine.remote import default_options
from ..plan.options import Directions, Format, Options
from ..plan.plan import ExportPlan, prepare
from ..plan.thinning import thinning_of
from ..runtime.cluster import client_for
from ..source.matrix import Source
from ..source.opening import key_in, open_source
from ..source.selection import Cells
from ..source.spool import LazyMatrix, estimate, sketch
from ..stages.job import Method
from ..stages.rules import Rule
from ..stages.wishes import Strongest
from .choosing import choose
from .run import ExportReport, computing, output_of, refuse_inside, run_export

if TYPE_CHECKING:
    from distributed import Client

    from ..delivery.cells_table import CellsTable


def plan_export(
    source: Any,
    out_dir: str | Path | None = None,
    *,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cells: Cells | None = None,
    compression: int | None = None,
    weights: bool = False,
    rule: Rule | None = None,
    min_weight: float | None = None,
    top_k: int | None = None,
    max_edges: int | Literal["viewer"] | None = None,
    strongest: Strongest | None = None,
    format: Format = "cellucid",
    directions: Directions = "one",
    cells_table: bool = False,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    client: Client | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
) -> ExportPlan:
    """Return what an export would do and need. Nothing is written.

    Parameters
    ----------
    source
        The graph, or where it is: a path or URL of a zarr AnnData store (a folder, or a zip archive
        of one), an ``.h5ad`` or ``.h5mu`` file, a `zarr.Group` or store, an `anndata.AnnData` in
        memory, backed or lazy, a matrix of scipy or PyData sparse, anything that numpy makes a
        two-dimensional array of, or a Dask array of any of these.
    out_dir
        Where the export would go; the working directory's disk is looked at if not given.
    key
        Key of `obsp`, or with slashes a path inside the store.
    neighbors_key
        Name of one of scanpy's neighbor graphs (``uns[neighbors_key]``), instead of `key`.
    storage_options
        For fsspec, if `source` is a URL: endpoint, credentials and the like.
    cells
        Which cells to export; by default all. The path of a text file with a name on each line,
        ``"obs:COLUMN=VALUE"`` for those with that value in a column of `obs`, a sequence of names,
        or a mask of true and false. They get numbers from 0 on, in the order of `obs`, and their
        names are written beside: ``connectivity/cells.txt``, or `cells.parquet`.
    compression
        Level of gzip, 1 to 9; None for plain files.
    weights
        Whether to write the weights of the edges too, as float64: the three files of cellucid 0.9.1
        to 0.9.4. Without a `rule` the matrix must be symmetric in its weights, bit by bit.
    rule : {"ones", "max", "min", "mean", "sum", "fuzzy"}, optional
        How the weights of both directions of a pair become one: ``a`` of the smaller cell's row and
        ``b`` of the larger one's, repeats added up, 0 where nothing is stored. "fuzzy" is
        ``a + b - a * b``, for weights from 0 to 1, "ones" gives 1. What comes to 0 is no edge, so
        "min" keeps mutual neighbors. Weights must not be negative then.
    min_weight
        Keep edges with a weight of at least that. Thinning works on the weights of pairs, after the
        `rule`; without a rule the matrix must be symmetric in its weights, bit by bit.
    top_k
        Keep an edge if it is among so many strongest ones of either of its cells. Of equally strong
        ones, those to cells with smaller numbers are kept. It takes 9 or 13 bytes of memory a cell.
    max_edges
        Keep the so many strongest edges of the graph, after `min_weight` and `top_k`; "viewer" for
        as many as the viewer of cellucid 0.9.1 to 0.9.4 draws. Of equally strong ones, the first in
        the order of the files are kept.
    strongest : {"largest", "smallest"}, optional
        Which weights make the strongest edges: by default the largest. It must be given for a key
        that is called distances.
    format : {"cellucid", "parquet"}
        Edge files of cellucid, or a folder of Parquet files (the extra ``parquet``) with the
        columns ``src``, ``dst`` and, with `weights`, ``weight``. Such a folder is shown as a whole.
    directions : {"one", "both"}
        Of Parquet: each edge once, with source < destination, or in both directions.
    cells_table
        Whether to write ``cells.parquet`` too: numbers, names and places of the cells.
    memory_limit
        Most resident memory of this process, such as ``"512MB"``; by default half of what the
        machine or cgroup has.
    threads
        Most threads; by default one for each core this process may use.
    scratch_dir
        Where temporary files would go; by default beside the output.
    client
        A `distributed.Client`: its workers do the work, and the memory limit is that of each
        worker. By default the one that is active, if any; else threads of this process, as inside
        a task of a cluster and where the active client is asynchronous.
    output_storage_options
        For fsspec, if `out_dir` is a URL: endpoint, credentials and the like.

    Returns
    -------
    ExportPlan

    Raises
    ------
    SourceError, DamagedGraphError
        If the store or the matrix cannot be exported.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    OutputError
        If an export into `out_dir` would be refused, as that is of another generation of cellucid.
    """
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    opened, table = _chosen(
        opened, source, storage_options, cells, cells_table, memory_limit, client, format
    )
    options = Options(
        out_dir if out_dir is not None else absolute(Path()),
        compression=compression,
        weights=weights,
        rule=rule,
        thinning=thinning_of(opened.key, opened.n_cells, min_weight, top_k, max_edges, strongest),
        format=format,
        directions=directions,
        cells_table=table,
        memory_limit=memory_limit,
        threads=threads,
        scratch_dir=scratch_dir,
        client=client_for(client),
        output_storage_options=default_options(
            out_dir or "", output_storage_options, source, storage_options
        ),
    )
    folder, upload_bytes = Path.cwd(), 0
    if out_dir is not None:
        output = output_of(options, force=True)
        folder, upload_bytes = output.folder, output.upload_bytes
    method: Method | None = None
    if out_dir is not None:
        refuse_inside(opened, options)
    if isinstance(opened, LazyMatrix):
        opened = estimate(opened, computing(opened, options.client, memory_limit, 1))
        method = "general"
    elif options.client is not None and not opened.origin.is_shared:
        opened, method = sketch(opened), "general"
    return prepare(opened, folder, options, upload_bytes=upload_bytes, method=method).plan


def _chosen(
    opened: Source | LazyMatrix, source: Any, storage_options: Mapping[str, Any] | None,
    cells: Cells | None, cells_table: bool, memory_limit: int | str | None, client: Client | None,
    format: Format,
) -> tuple[Source | LazyMatrix, CellsTable | None]:  # fmt: skip
    """Return the graph of the cells that are to be exported, and what their table is made from."""
    key, n_cells = key_in(source, opened), opened.n_cells
    selection = None
    if cells is not None:
        opened, selection = choose(opened, source, storage_options, cells, memory_limit, client)
    elif not cells_table:
        return opened, None
    from ..delivery.cells_table import table_of_cells  # with what the extra `parquet` takes

    table = table_of_cells(source, n_cells, storage_options, key, selection)
    if selection is not None and format != "parquet":
        table.check_names()
    return opened, table


def export_connectivities(
    source: Any,
    out_dir: str | Path,
    *,
    key: str = "connectivities",
    neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cells: Cells | None = None,
    compression: int | None = None,
    weights: bool = False,
    rule: Rule | None = None,
    min_weight: float | None = None,
    top_k: int | None = None,
    max_edges: int | Literal["viewer"] | None = None,
    strongest: Strongest | None = None,
    format: Format = "cellucid",
    directions: Directions = "one",
    cells_table: bool = False,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    scratch_dir: str | Path | None = None,
    keep_scratch: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: bool | None = False,
    client: Client | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export a neighbor graph as the edge files of cellucid 0.0.9, or of 0.9.4 with weights.

    Of ``S = C + C.T`` every nonzero above the diagonal becomes an edge, sorted by source and
    destination. The work is done out of core; readers see an earlier export, or this one complete.

    Parameters
    ----------
    source, key, neighbors_key, storage_options, cells, compression, weights, rule, format
        As for `plan_export`.
    directions
        As for `plan_export`.
    min_weight, top_k, max_edges, strongest
        As for `plan_export`.
    cells_table
        As for `plan_export`.
    memory_limit, threads, scratch_dir
        As for `plan_export`.
    out_dir
        Folder of the export, or a URL such as ``s3://bucket/export``. The edge files go to
        ``connectivity/`` in it.
    keep_scratch
        Whether to leave temporary files where they are, whether the export succeeds or fails.
    force
        Whether to replace an export that is there.
    resume
        Whether to resume a run into `out_dir` that was interrupted: killed, canceled, or left
        by its cluster. What it has finished is checked and kept; the bytes are the same. If there
        is none, the export starts from the beginning.
    progress
        Whether to show progress bars, on standard error or in the output of a notebook's cell;
        None for "on a terminal or in a notebook".
    client, output_storage_options
        As for `plan_export`.

    Returns
    -------
    ExportReport

    Raises
    ------
    SourceError, DamagedGraphError
        If the store or the matrix cannot be exported.
    MemoryLimitError
        If the limit is too small; the message names the smallest that will do.
    ClusterError
        If the workers of the cluster cannot do it.
    OutputError, DiskSpaceError
        If the output or scratch folder cannot be written.
    ResumeError
        If the interrupted run was another one, or its source has changed since.

    Examples
    --------
    >>> report = export_connectivities("atlas.zarr", "export", memory_limit="1GB")
    ... # doctest: +SKIP
    >>> report.n_edges  # doctest: +SKIP
    86012345
    """
    opened = open_source(source, key, neighbors_key=neighbors_key, storage_options=storage_options)
    opened, table = _chosen(
        opened, source, storage_options, cells, cells_table, memory_limit, client, format
    )
    return run_export(
        opened,
        Options(
            out_dir,
            compression=compression,
            weights=weights,
            rule=rule,
            thinning=thinning_of(
                opened.key, opened.n_cells, min_weight, top_k, max_edges, strongest
            ),
            format=format,
            directions=directions,
            cells_table=table,
            memory_limit=memory_limit,
            threads=threads,
            scratch_dir=scratch_dir,
            keep_scratch=keep_scratch,
            force=force,
            resume=resume,
            progress=progress,
            client=client_for(client),
            output_storage_options=default_options(
                out_dir, output_storage_options, source, storage_options
            ),
        ),
    )
