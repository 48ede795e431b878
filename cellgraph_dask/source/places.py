"""Where the arrays of a matrix are: a zarr store of any kind, an HDF5 file, raw files, memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ..errors import CellgraphError, SourceError
from .arrays import RawArray, StoredArray
from .chunks import ChunkedArray
from .layout import Node, metadata_of, told
from .objects import Archive, Folder, LocalObjects
from .zarr_nodes import RemoteGroup, open_root

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

ARRAYS = ("indptr", "indices", "data")


class Place(Protocol):
    """Where a matrix is.

    Attributes
    ----------
    path : str
        What errors and reports call it.
    file : str or None
        The file or folder that workers on other machines must see; None if there is none.
    is_shared : bool
        Whether other processes can open it.
    is_lasting : bool
        Whether it will be there for another run, by the same name.
    """

    @property
    def path(self) -> str:
        """See the class."""

    @property
    def file(self) -> str | None:
        """See the class."""

    @property
    def is_shared(self) -> bool:
        """See the class."""

    @property
    def is_lasting(self) -> bool:
        """See the class."""

    def files(self, key: str) -> Iterator[Path]:
        """Yield the files that hold a matrix, in the same order each time."""

    def absolute(self) -> Self:
        """Return the same place, for processes with another working directory."""

    def arrays(self, key: str) -> dict[str, StoredArray]:
        """Return `indptr`, `indices` and `data` of a sparse matrix."""


@dataclass(frozen=True, eq=False)
class MemoryPlace:
    """The memory of this process."""

    path: str
    content: Mapping[str, StoredArray] = field(repr=False)
    file = None
    is_shared = False
    is_lasting = False

    def files(self, key: str) -> Iterator[Path]:
        """Yield nothing."""
        yield from ()

    def absolute(self) -> MemoryPlace:
        """Return itself."""
        return self

    def arrays(self, key: str) -> dict[str, StoredArray]:
        """Return the arrays of the matrix."""
        return dict(self.content)


_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_STARTS = (0, 512, 1024, 2048)
_ZIP = b"PK"


@dataclass(frozen=True)
class ZarrPlace:
    """A zarr store: a folder, a zip archive, a URL, or a store object of zarr.

    Attributes
    ----------
    path : str
        Folder, archive or URL; of a store object its description.
    options : dict or None
        What fsspec is to be told about a URL.
    store : zarr.abc.store.Store or None
        The store object, if it is none of the others.
    prefix : str
        Path of the AnnData in the store.
    """

    path: str
    options: Mapping[str, Any] | None = field(default=None, repr=False)  # may hold passwords
    store: Store | None = None
    prefix: str = ""

    @property
    def file(self) -> str | None:
        """Folder or archive."""
        return None if self.store is not None or is_url(self.path) else self.path

    @property
    def is_shared(self) -> bool:
        """Whether it is not in this process's memory."""
        if self.store is None:
            return True
        from zarr.storage import MemoryStore

        return not isinstance(self.store, MemoryStore)

    @property
    def is_lasting(self) -> bool:
        """Whether it has a name."""
        return self.store is None

    def files(self, key: str) -> Iterator[Path]:
        """Yield the files of a matrix; none if it is not on this machine."""
        if self.file is None:
            return
        if Path(self.file).is_file():
            yield Path(self.file)
        for folder, folders, names in os.walk(Path(self.file, self.prefix, key)):
            folders.sort()
            for name in sorted(names):
                yield Path(folder, name)

    def absolute(self) -> ZarrPlace:
        """Return the same place with an absolute path."""
        return self if self.file is None else replace(self, path=str(Path(self.path).absolute()))

    @contextmanager
    def open(self) -> Iterator[Node]:
        """Open the root group.

        Raises
        ------
        SourceError
            If it is not a zarr store.
        """
        try:
            root = self._open()
        except CellgraphError:
            raise
        except Exception as error:  # of strange metadata, zarr raises anything
            hint = "" if self.file is not None else (
                " Look at the address, the connection and the storage options, too."
            )  # fmt: skip
            raise SourceError(
                f"{self.path} is not a zarr store that can be opened ({told(error)}); give what "
                f"AnnData.write_zarr made: a folder, a zip archive of it, or its URL.{hint}"
            ) from error
        yield root

    def _open(self) -> Node:
        if self.file is not None:
            return open_root(self._local_objects, self.prefix, self._read)
        import zarr

        if self.store is not None:
            return RemoteGroup(zarr.open_group(self.store, mode="r", path=self.prefix))
        options = dict(self.options) if self.options else None
        return RemoteGroup(zarr.open_group(self.path, mode="r", storage_options=options))

    @property
    def _local_objects(self) -> LocalObjects:
        return Folder(self.path) if Path(self.path).is_dir() else Archive(self.path)

    def _read(self, path: str, index: Any) -> Any:
        """Return values of an array in files of this machine, read by zarr."""
        import zarr
        from zarr.storage import LocalStore, ZipStore

        is_folder = Path(self.path).is_dir()
        store = LocalStore(self.path) if is_folder else ZipStore(self.path, mode="r")
        try:
            return zarr.open_array(store, mode="r", path=path)[index]
        finally:
            store.close()

    def arrays(self, key: str) -> dict[str, StoredArray]:
        """Return the arrays of a sparse matrix."""
        with self.open() as root:
            return self.arrays_in(root, key)

    def arrays_in(self, root: Node, key: str) -> dict[str, StoredArray]:
        """Return the arrays of a sparse matrix in the root group, while it is open."""
        arrays: dict[str, StoredArray] = {}
        for name in ARRAYS:
            with metadata_of(f"{key}/{name}"):
                arrays[name] = ChunkedArray(root[f"{key}/{name}"].metadata, root.objects)
        return arrays


@dataclass(frozen=True)
class HDF5Place:
    """An HDF5 file: `.h5ad`, `.h5mu`."""

    path: str
    is_shared = True
    is_lasting = True

    @property
    def file(self) -> str:
        """The file."""
        return self.path

    def files(self, key: str) -> Iterator[Path]:
        """Yield the file."""
        yield Path(self.path)

    def absolute(self) -> HDF5Place:
        """Return the same place with an absolute path."""
        return HDF5Place(str(Path(self.path).absolute()))

    @contextmanager
    def open(self) -> Iterator[Node]:
        """Open the file.

        Raises
        ------
        SourceError
            If it is not a whole HDF5 file.
        """
        import h5py

        try:
            file = h5py.File(self.path, "r")
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"{self.path} is not an HDF5 file that can be opened ({error}). Copy it again from "
                "where it came, or write it again."
            ) from error
        with file:
            yield file

    def arrays(self, key: str) -> dict[str, StoredArray]:
        """Return the arrays of a sparse matrix."""
        with self.open() as root:
            return self.arrays_in(root, key)

    def arrays_in(self, root: Node, key: str) -> dict[str, StoredArray]:
        """Return the arrays of a sparse matrix in the file, while it is open."""
        from .hdf5 import open_dataset

        arrays: dict[str, StoredArray] = {}
        for name in ARRAYS:
            with metadata_of(f"{key}/{name}"):
                arrays[name] = open_dataset(root[f"{key}/{name}"])
        return arrays


def is_url(path: str) -> bool:
    """Tell whether a source is an address for fsspec, and not a path."""
    return "://" in path or "::" in path


def locate(source: str | os.PathLike[str], options: Mapping[str, Any] | None) -> Any:
    """Return the place that a path or URL names, by what is there and not by its ending.

    Raises
    ------
    SourceError
        If there is nothing, or something else.
    """
    path = os.fspath(source)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if is_url(path):
        if path.endswith((".h5ad", ".h5mu")):
            raise SourceError(
                f"{path} is an HDF5 file on another machine, which cannot be read in parts. Copy "
                "it to this one, or write it as a zarr store."
            )
        return ZarrPlace(path, options)
    if options:
        raise ValueError("storage options are for URLs, not for paths")
    try:
        there, is_folder = Path(path).exists(), Path(path).is_dir()
        head = b""
        if there and not is_folder:
            with open(path, "rb") as file:
                head = file.read(4096)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
    if not there:
        raise SourceError(
            f"{path} does not exist; give the folder, zip archive or URL of a zarr AnnData store, "
            "or an .h5ad file."
        )
    if is_folder:
        return ZarrPlace(path)
    if any(head.startswith(_HDF5, at) for at in _HDF5_STARTS):
        return HDF5Place(path)
    if head.startswith(_ZIP):
        return ZarrPlace(path, prefix=_root_in_archive(path))
    raise SourceError(
        f"{path} is not a zarr store (a folder, or a zip archive of one) and not an HDF5 file such "
        "as .h5ad; give one of these."
    )


def _root_in_archive(path: str) -> str:
    """Return the folder in a zip archive that is a zarr store: the root, or one in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(
            f"{path} is not a whole zip archive ({error}). Copy it again from where it came."
        ) from error
    roots = [n for n in names if n.rsplit("/", 1)[-1] in (".zgroup", "zarr.json")]
    root = min(roots, key=lambda name: name.count("/"), default="")
    return root.rpartition("/")[0]


def place_of_group(group: zarr.Group) -> ZarrPlace:
    """Return the place of an open group: its folder or archive, or the store object."""
    from zarr.storage import LocalStore, ZipStore

    store = group.store
    if isinstance(store, LocalStore):
        return ZarrPlace(str(Path(store.root)), prefix=group.path)
    if isinstance(store, ZipStore):
        return ZarrPlace(str(store.path), prefix=group.path)
    return ZarrPlace(str(store), store=store, prefix=group.path)


@dataclass(frozen=True)
class RawPlace:
    """A folder of raw files, `indptr` and parts of entries, and a table of the parts.

    Attributes
    ----------
    path : str
        What it was made from, for errors and reports.
    folder : str
        Where the files are.
    """

    path: str
    folder: str
    is_shared = True
    is_lasting = False

    @property
    def file(self) -> str:
        """The folder."""
        return self.folder

    def files(self, key: str) -> Iterator[Path]:
        """Yield the files."""
        yield from sorted(Path(self.folder).iterdir())

    def absolute(self) -> RawPlace:
        """Return the same place with an absolute path."""
        return replace(self, folder=str(Path(self.folder).absolute()))

    def arrays(self, key: str) -> dict[str, StoredArray]:
        """Return the arrays of the matrix."""
        folder = Path(self.folder)
        with np.load(folder / "table.npz") as table:
            starts, index = table["starts"], np.dtype(str(table["index"]))
            weights = [np.dtype(str(dtype)) for dtype in table["weights"]]
            n_rows = int(table["n_rows"])
        paths = [folder / f"part-{k:06d}" for k in range(len(weights))]
        begins = np.zeros(len(weights), np.int64)
        rows, everywhere = np.array([0, n_rows + 1]), np.zeros(1, np.int64)
        return {
            "indptr": RawArray(
                f"{key}/indptr", [np.dtype(np.int64)], rows, everywhere, [folder / "indptr"]
            ),
            "indices": RawArray(f"{key}/indices", [index] * len(paths), starts, begins, paths),
            "data": RawArray(
                f"{key}/data", weights, starts, np.diff(starts) * index.itemsize, paths
            ),
        }
