"""Opening whatever holds a matrix: a zarr store of any kind, an HDF5 file, objects in memory."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CellgraphError, OutputError, SourceError, shown
from ..machine.files import absolute
from ..machine.remote import address, is_url, local_path, options_of, plain_name
from .arrays import MemoryArray, StoredArray, check_access
from .cells import count_cells
from .checks import check_arrays, check_shape, check_weights
from .in_memory import compress
from .layout import (
    Found,
    Node,
    Tree,
    find_matrix,
    holds_matrices,
    is_array,
    metadata_of,
    open_array,
    sparse_layout,
    told,
)
from .matrix import Origin, Source
from .spool import LazyMatrix, of_dask, of_dense

if TYPE_CHECKING:
    from .zarr_store import ZarrGroup

ARRAYS = ("indptr", "indices", "data")

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK"


def _as_it_is(node: Node) -> Any:
    return node


class Root(NamedTuple):
    """What holds a matrix, opened: a group of zarr or h5py, or a `Tree` of what is in memory.

    `stored` returns a one-dimensional array of it as blocks are read from it; `dense` an array in
    a form that can be sliced later, also in another process.
    """

    node: Node
    origin: Origin
    stored: Callable[[Any], StoredArray] = _as_it_is
    dense: Callable[[Any], Any] = _as_it_is
    zarr_format: int | None = None


def open_source(
    source: Any, key: str = "connectivities", *, neighbors_key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source | LazyMatrix:  # fmt: skip
    """Open a matrix, wherever it is, and check what its metadata say.

    The parameters are those of `plan_export`. A `LazyMatrix` has no row pointers yet: it has to be
    computed or searched first. Raises a SourceError if there is no such store or key, or it is not
    a matrix over the cells, and a DamagedGraphError if its arrays do not fit together.
    """
    if neighbors_key is not None and key != "connectivities":
        raise ValueError("give key or neighbors_key, not both")
    if not is_container(source):
        if storage_options:
            raise ValueError("storage options are for URLs")
        if neighbors_key is not None or key != "connectivities":
            raise ValueError("key and neighbors_key are for stores, files and AnnData")
        origin = Origin(f"{type(source).__name__} in memory")
        return _open_object(origin, Found("matrix", source, ()), None)
    with open_root(source, storage_options) as root:
        found = find_matrix(root.node, root.origin.path, key, neighbors_key)
        n_cells, notes = count_cells(root.node, root.origin.path, found.key)
        found = found._replace(notes=(*found.notes, *notes))
        if isinstance(root.node, Tree):
            return _open_object(root.origin, found, n_cells)
        return _open_node(root, found, n_cells)


def is_container(source: Any) -> bool:
    """Whether a source is something that a matrix is found in by a key, and not a matrix."""
    return (
        isinstance(plain_name(source), str)
        or _is(source, "zarr", "Group")
        or _is(source, "zarr.abc.store", "Store")
        or holds_matrices(source)
    )


def key_in(source: Any, matrix: Source | LazyMatrix) -> str:
    """Return the key of an open matrix in its source; "" if the source is the matrix itself."""
    return matrix.key if is_container(source) else ""


def _is(source: object, module: str, name: str) -> bool:
    """Whether an object is of a class; its library is not imported for that."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


@contextmanager
def open_root(source: Any, storage_options: Mapping[str, Any] | None = None) -> Iterator[Root]:
    """Open what holds a matrix; a SourceError if there is nothing, or something else."""
    path, storage_options = plain_name(source), options_of(source, storage_options)
    path = path if isinstance(path, str) else None
    if storage_options and (path is None or not is_url(path)):
        raise ValueError("storage options are for URLs, not for paths")
    if path is None:
        if holds_matrices(source):
            yield Root(Tree(source), Origin(f"{type(source).__name__} in memory"))
            return
        yield _zarr_object(source)
    elif is_url(path):
        yield _zarr_url(path, storage_options)
    else:
        path = str(_local(path))
        if _is_hdf5(path):
            from .hdf5 import stored_array
            from .hdf5_datasets import DenseDataset, open_file

            with open_file(path) as file:
                yield Root(file, _file_origin(path), stored_array, DenseDataset)
        else:
            yield _zarr_files(path)


def _local(path: str) -> Path:
    try:
        return local_path(path)
    except OutputError as error:
        raise SourceError(*error.args) from error


def _file_origin(path: str) -> Origin:
    return Origin(path, str(absolute(Path(path))), is_shared=True, is_lasting=True)


def _is_hdf5(path: str) -> bool:
    """Whether a path is an HDF5 file, by its content; a SourceError if it is no source at all."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return False
        if not stat.S_ISREG(mode):
            raise SourceError(
                f"{path} is a pipe, a socket or a device, which can be read once only, from its "
                "start. Write what comes from it to a file, and give that."
            )
        with open(path, "rb") as file:
            head = file.read(512)
            if head.startswith(_ZIP):
                return False
            at, size = 512, file.seek(0, os.SEEK_END)
            while not head.startswith(_HDF5) and at < size:  # after a block of the user's
                file.seek(at)
                head, at = file.read(len(_HDF5)), 2 * at
            if head.startswith(_HDF5):
                return True
            file.seek(0)
            kind = _kind_of(file.read(512), path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(
            f"{path} does not exist; give the folder, zip archive or URL of a zarr AnnData store, "
            "or an .h5ad file."
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
    raise SourceError(
        f"{path} is {kind}"
        if kind
        else f"{path} is not a zarr store (a folder, or a zip archive of one) and not an HDF5 file "
        "such as .h5ad; give one of these."
    )


_UNPACK = "which cannot be read in parts. Unpack it, and give what is in it"
_TABLE = (
    "a table, not a matrix over the cells. Read it in Python, and give the matrix itself, or an "
    ".h5ad file with the graph in obsp"
)
_MAGIC = {
    b"\x1f\x8b": ("compressed with gzip", "gunzip"),
    b"BZh": ("compressed with bzip2", "bunzip2"),
    b"\xfd7zXZ": ("compressed with xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unzstd"),
}


def _kind_of(head: bytes, path: str) -> str:
    """Say what a file is that is no source, and what to do; "" if that is not known."""
    name = path.lower()
    for magic, (kind, tool) in _MAGIC.items():
        if head.startswith(magic):
            is_tar = name.endswith((".tgz", ".tbz2", ".txz")) or ".tar." in name
            what = f"a tar archive {kind}" if is_tar else kind
            return f"{what}, {_UNPACK} ({'tar -xf' if is_tar else tool})."
    if head[257:262] == b"ustar":
        return f"a tar archive, {_UNPACK} (tar -xf)."
    if name.endswith((".csv", ".tsv", ".txt", ".mtx", ".parquet")):
        return f"{_TABLE}."
    if name.endswith((".rds", ".rdata", ".qs")):
        return "a file of R. Write it as .h5ad there, for example with zellkonverter or anndataR."
    return ""


def _zarr_files(path: str, prefix: str | None = None) -> Root:
    """Open a group of a zarr store in files of this machine; by default the AnnData in it."""
    from . import zarr_objects, zarr_store

    origin = _file_origin(path)
    objects: zarr_objects.Folder | zarr_objects.Archive
    if Path(path).is_dir():
        objects = zarr_objects.Folder(str(origin.file))
    else:
        objects = zarr_objects.Archive(str(origin.file))
        try:
            names = list(objects.members)
        except Exception as error:  # of strange bytes, zipfile raises anything
            check_access(error, path)
            raise SourceError(
                f"{path} is not a whole zip archive ({told(error)}). Copy it again from where it "
                "came."
            ) from error
        if prefix is None:  # the root, or a folder in it
            roots = [n for n in names if n.rpartition("/")[2] in (".zgroup", "zarr.json")]
            packed = [n for n in names if n.endswith((".h5ad", ".h5mu", ".h5"))]
            if packed and not roots:
                raise SourceError(f"{path} is a zip archive of {packed[0]}, {_UNPACK} (unzip).")
            root = min(roots, key=lambda name: name.count("/"), default="")
            prefix = root.rpartition("/")[0]
    return _zarr_root(origin, lambda: zarr_store.open_local(objects, prefix or ""))


def _zarr_url(url: str, options: Mapping[str, Any] | None) -> Root:
    from . import zarr_store

    target = address(url, options)
    name = shown(target.url)
    if target.url.endswith((".h5ad", ".h5mu")):
        raise SourceError(
            f"{name} is an HDF5 file on another machine, which cannot be read in parts. Copy "
            "it to this one, or write it as a zarr store."
        )
    origin = Origin(name, is_shared=True, is_lasting=True)
    return _zarr_root(origin, lambda: zarr_store.open_remote(*target))


def _zarr_object(source: Any) -> Root:
    """Open a `zarr.Group`, or the root of a store of zarr."""
    from zarr.storage import LocalStore, MemoryStore, ZipStore

    from . import zarr_store

    is_group = _is(source, "zarr", "Group")
    store, prefix = (source.store, source.path) if is_group else (source, "")
    if isinstance(store, LocalStore):
        return _zarr_files(str(store.root), prefix)
    if isinstance(store, ZipStore):
        return _zarr_files(str(store.path), prefix)
    origin = Origin(str(store), is_shared=not isinstance(store, MemoryStore))
    return _zarr_root(origin, lambda: zarr_store.open_remote(store, path=prefix))


def _zarr_root(origin: Origin, open_group: Callable[[], ZarrGroup]) -> Root:
    from . import zarr_dense, zarr_store

    try:
        group = open_group()
    except CellgraphError:
        raise
    except Exception as error:  # of strange metadata, zarr raises anything
        check_access(error, origin.path)
        hint = ""
        if origin.file is None:
            hint = " Look at the URL, the connection and the storage options, too."
        raise SourceError(
            f"{origin.path} is not a zarr store that can be opened ({told(error)}); give what "
            f"AnnData.write_zarr made: a folder, a zip archive of it, or its URL.{hint}"
        ) from error
    return Root(group, origin, zarr_store.stored_array, zarr_dense.DenseArray, group.zarr_format)


def _open_node(root: Root, found: Found, n_cells: int | None) -> Source | LazyMatrix:
    key, node, notes = found
    if is_array(node):
        with metadata_of(key):
            dense = root.dense(node)
        check = getattr(dense, "check", None)
        if check is not None:
            check()
        return of_dense(root.origin, key, dense, n_cells, notes)
    layout, n_rows, n_columns = sparse_layout(key, node)
    nodes = [open_array(node, key, name) for name in ARRAYS]
    n_cells = check_shape(key, (n_rows, n_columns), n_cells)
    check_arrays(key, n_cells, *nodes)
    arrays = []
    for name, array in zip(ARRAYS, nodes, strict=True):
        with metadata_of(f"{key}/{name}"):
            arrays.append(root.stored(array))
    indptr, indices, data = arrays
    return Source(indptr, indices, data, root.origin, key, layout, n_cells, indices.size, notes)


def _open_object(origin: Origin, found: Found, n_cells: int | None) -> Source | LazyMatrix:
    key, matrix, notes = found
    matrix = matrix.data if _is(matrix, "xarray", "DataArray") else matrix
    if _is(matrix, "dask.array", "Array"):
        return of_dask(origin, key, matrix, n_cells, notes)
    group = getattr(matrix, "group", None)
    if group is not None and hasattr(matrix, "to_memory"):  # anndata's, of a matrix in a store
        is_zarr = _is(group, "zarr", "Group")
        where = (group.store, f"/{group.path}") if is_zarr else (group.file.filename, group.name)
        opened = open_source(*where)
        check_shape(key, (opened.n_cells, opened.n_cells), n_cells)
        return opened
    layout, *values, shape = compress(matrix, key)
    n_cells = check_shape(key, (int(shape[0]), int(shape[1])), n_cells)
    arrays = (MemoryArray(f"{key}/{name}", v) for name, v in zip(ARRAYS, values, strict=True))
    indptr, indices, data = arrays
    check_weights(key, data.dtype)
    return Source(indptr, indices, data, origin, key, layout, n_cells, indices.size, notes)
