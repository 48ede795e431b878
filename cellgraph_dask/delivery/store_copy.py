"""The rest of an AnnData beside a new graph: copied from the store that the graph comes from.

Of a zarr store in a folder, and in the same format, the files are copied as they are. All else is
written anew, a chunk at a time: arrays of numbers, and texts. What is small and of another kind
(records, nulls) is left to anndata, as is an AnnData in memory. Only `obsp` is left out, and each
index of a data frame becomes an array of texts if it was a group.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from ..publish.consolidated import is_group
from ..runtime.stage import ResumableExecutor, Stage
from ..source.layout import (
    Node,
    Tree,
    arrays_below,
    children,
    format_of,
    get,
    is_array,
    metadata_of,
    text_of,
)
from ..source.opening import Root, open_root
from ..source.selection import Selection
from ..stages.runs import Written, holds
from .object_copy import check_object, write_object
from .row_names import TEXT_BYTES, Index, index_groups, texts_in, unnamed_in
from .store_rows import Entries, NewEntries, NewIndptr, Rows, check_rows, has_rows, shape_of
from .zarr_files import (
    DOCUMENTS,
    ArrayFiles,
    ZarrFormat,
    chunk_bytes,
    chunks_for,
    encoding,
    group_documents,
    vector_chunks,
    write_documents,
)

_OBSP = "obsp"
_BATCH_BYTES = 1 << 25  # of files that one task copies
_BATCH_FILES = 64
_MOST_SMALL_BYTES = 1 << 26  # of what is read as a whole
_SELECTING_BYTES = 1 << 25  # to find selected rows, and their entries


class Copied(NamedTuple):
    """What a task has copied: the size and checksum of each file."""

    written: list[Written]


class FileTask(NamedTuple):
    """Files that one task copies."""

    number: int
    names: tuple[str, ...]
    n_bytes: int


class ChunkTask(NamedTuple):
    """Chunks ``[first, last)`` of an array that one task writes anew."""

    number: int
    array: int
    first: int
    last: int
    n_bytes: int


@dataclass(frozen=True)
class StoreCopy:
    """What is to be copied: the AnnData at a path `group` of a source, into a new zarr store."""

    source: Any = field(compare=False)
    group: str
    zarr_format: ZarrFormat
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    thread_bytes: int = 0  # the most that a thread needs
    notes: tuple[str, ...] = ()  # what readers do not take of it
    selection: Selection | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, source: Any, group: str, zarr_format: ZarrFormat, options: Mapping[str, Any] | None,
        selection: Selection | None = None,
    ) -> StoreCopy:  # fmt: skip
        """Return what is to be copied of a source, having looked at all of it."""
        with open_root(source, options) as root:
            if isinstance(root.node, Tree):
                if group:
                    raise SourceError(
                        f"{root.origin.path} holds several AnnData; give the one with the graph, "
                        "or write them to a store."
                    )
                check_object(source, root.origin.path)
                most, notes = _BATCH_BYTES, unnamed_in(source)
            else:
                node = _anndata_in(root, group)
                most = _thread_bytes(node)  # first, as it refuses links in a circle
                indexes = list(index_groups(root, node, skip=_OBSP))
                most = max([most, *(index.n_bytes for index in indexes)])
                notes = [index.note for index in indexes if index.note]
                if selection is not None:
                    check_rows(node, selection.n_cells)
                    most += _SELECTING_BYTES
        return cls(source, group, zarr_format, options, most, tuple(notes), selection)

    def run(self, folder: Path, executor: ResumableExecutor) -> int:
        """Copy it all into a folder, where `obsp` is; return the bytes of its files."""
        with open_root(self.source, self.storage_options) as root:
            file = root.origin.file
            if isinstance(root.node, Tree):
                return write_object(self._objects(), folder, self.zarr_format)
            node = _anndata_in(root, self.group)
            found = index_groups(root, node, skip=_OBSP)
            indexes = {index.path: index for index in found if not index.flaw}
            anew = _Anew(root, self.zarr_format, indexes, self.selection)
            n_bytes = 0
            if (
                self.selection is None
                and file is not None
                and Path(file).is_dir()
                and root.zarr_format == self.zarr_format
                and (Path(file) / self.group).is_dir()
            ):
                for path, index in indexes.items():
                    anew.index(index, folder / path)
                n_bytes = _copy_files(Path(file) / self.group, folder, executor, set(indexes))
            else:
                anew.group(node, folder)
        tasks = list(anew.tasks())
        task, kept = partial(write_anew, tuple(anew.arrays)), partial(anew_holds, anew.arrays)
        sizes = [task.n_bytes for task in tasks]
        stage = Stage("copy", task, tasks, sizes, "bytes", Copied, kept, f"anew {self.zarr_format}")
        return n_bytes + anew.n_bytes + _sum(executor.run(stage))

    def _objects(self) -> Any:
        """Return the AnnData in memory, or the selected cells of it."""
        if self.selection is None:
            return self.source
        return self.source[self.selection.original(np.arange(len(self.selection)))]


def _thread_bytes(anndata: Node) -> int:
    """Return the most bytes that a thread needs to copy a part of an AnnData in a store."""
    most = 2**20
    for node in arrays_below(anndata, skip=_OBSP):
        itemsize = max(np.dtype(getattr(node, "dtype", np.float64)).itemsize, 1)
        stored = getattr(node, "shards", None) or getattr(node, "chunks", None) or (1,)
        here = chunks_for(tuple(node.shape or ()), getattr(node, "chunks", None))
        written = math.prod(here)
        is_text = text_of(node.attrs.get("encoding-type")) == "string-array"
        at_once = max(written, math.prod(stored)) if is_text else written
        values = at_once * (TEXT_BYTES if is_text else 2 * itemsize)
        most = max(most, 3 * math.prod(stored) * itemsize + values + chunk_bytes(itemsize, written))
    return most


def _sum(copied: Sequence[Copied]) -> int:
    return sum(Written(*written).n_bytes for task in copied for written in task.written)


def _anndata_in(root: Root, group: str) -> Node:
    """Return the group of an AnnData; a SourceError if it has no `obs`."""
    node = root.node if not group else get(root.node, group)
    if node is None or get(node, "obs") is None or get(node, "var") is None:
        raise SourceError(
            f"{root.origin.path} has no AnnData at {group or 'its root'}: obs or var is missing. "
            "Give an AnnData store, or write the graph into a store that is there."
        )
    return node


# Files as they are ------------------------------------------------------------------------------


def _copy_files(top: Path, folder: Path, executor: ResumableExecutor, skip: set[str]) -> int:
    """Copy the files of a zarr group, but for what is in groups at the paths of `skip`."""
    tasks = list(_batches(top, skip))
    task, kept = partial(copy_files, top, folder), partial(files_hold, folder)
    stage = Stage(
        "copy", task, tasks, [task.n_bytes for task in tasks], "bytes", Copied, kept, "files"
    )
    return _sum(executor.run(stage))


def _batches(top: Path, skip: set[str]) -> Iterator[FileTask]:
    number, names, n_bytes = 0, [], 0
    for name in _files(top, "", skip):
        names.append(name)
        n_bytes += (top / name).stat().st_size
        if n_bytes >= _BATCH_BYTES or len(names) >= _BATCH_FILES:
            yield FileTask(number, tuple(names), n_bytes)
            number, names, n_bytes = number + 1, [], 0
    if names:
        yield FileTask(number, tuple(names), n_bytes)


def _files(top: Path, path: str, skip: set[str]) -> Iterator[str]:
    """Yield the files of a group or array, sorted; those of other things in it are left out."""
    folder = top / path
    here = sorted(os.listdir(folder))  # noqa: PTH208
    documents = [name for name in here if name in DOCUMENTS]
    yield from (f"{path}/{name}".lstrip("/") for name in documents)
    is_of_groups = is_group(folder)
    for name in here:
        inner = f"{path}/{name}".lstrip("/")
        if name in documents:
            continue
        if not is_of_groups:
            yield from _chunks(top, inner)
        elif inner == _OBSP:
            yield from (f"{inner}/{name}" for name in DOCUMENTS if (top / inner / name).is_file())
        elif inner not in skip and any((top / inner / name).is_file() for name in DOCUMENTS):
            yield from _files(top, inner, skip)


def _chunks(top: Path, path: str) -> Iterator[str]:
    """Yield the files of chunks; hidden ones are none."""
    if (top / path).is_dir():
        for name in sorted(os.listdir(top / path)):  # noqa: PTH208
            yield from _chunks(top, f"{path}/{name}")
    elif not path.rpartition("/")[2].startswith("."):
        yield path


def copy_files(top: Path, folder: Path, task: FileTask) -> Copied:
    """Copy some files, each appearing as a whole."""
    written = []
    for name in task.names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
        try:
            shutil.copyfile(top / name, aside)
            aside.rename(target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        written.append(_written(target))
    return Copied(written)


def _written(path: Path) -> Written:
    from zlib_ng import zlib_ng

    n_bytes = crc = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(1 << 20):
            crc = zlib_ng.crc32(part, crc)
            n_bytes += len(part)
    return Written(n_bytes, crc)


def files_hold(folder: Path, kept: tuple[FileTask, Copied]) -> bool:
    """Whether copied files are still there."""
    task, copied = kept
    pairs = zip(task.names, copied.written, strict=True)
    return all(holds(folder / name, Written(*written)) for name, written in pairs)


# Arrays anew ------------------------------------------------------------------------------------


class _Anew:
    """Groups that are written now, and arrays whose chunks tasks will write."""

    def __init__(
        self, root: Root, zarr_format: ZarrFormat, indexes: Mapping[str, Index],
        selection: Selection | None,
    ) -> None:  # fmt: skip
        self._root, self._format, self._indexes = root, zarr_format, indexes
        self._selection = selection
        self.arrays: list[tuple[Any, ArrayFiles]] = []  # what is read, and what is written
        self.n_bytes = 0  # of what has been written

    def group(self, node: Node, folder: Path, path: str = "") -> None:
        """Write a group and plan all that is in it, but for the members of `obsp`."""
        attributes = _plain_attributes(node)
        if self._rows_of(path) and format_of(node)[0]:
            self._sparse_rows(node, folder, attributes)
            return
        write_documents(folder, group_documents(self._format, attributes))
        for name in children(node):
            child, inner = get(node, name), f"{path}/{name}".lstrip("/")
            if inner == _OBSP:
                write_documents(
                    folder / name, group_documents(self._format, _plain_attributes(child))
                )
            elif is_array(child):
                self._array(child, folder, name, self._rows_of(inner))
            elif inner in self._indexes:
                self.index(self._indexes[inner], folder / name, self._rows_of(inner))
            else:
                self.group(child, folder / name, inner)

    def _rows_of(self, path: str) -> Selection | None:
        """Return which rows of what is at a path are copied, if not all."""
        return self._selection if has_rows(path) else None

    def _sparse_rows(self, node: Node, folder: Path, attributes: dict[str, Any]) -> None:
        """Plan the selected rows of a CSR matrix."""
        assert self._selection is not None
        n_rows = len(self._selection)
        write_documents(folder, group_documents(self._format, shape_of(attributes, n_rows)))
        entries = Entries(self._root.dense(get(node, "indptr")), self._selection)
        for name in ("indptr", "indices", "data"):
            stored: Any = get(node, name)
            reader: Any = NewIndptr(entries)
            if name != "indptr":
                reader = NewEntries(self._root.dense(stored), entries)
            length = n_rows + 1 if name == "indptr" else entries.n_entries
            dtype = np.dtype(stored.dtype).newbyteorder("<")
            place = folder / name
            array = ArrayFiles(place, self._format, (length,), vector_chunks(length), dtype)
            array.write_metadata(_plain_attributes(stored))
            if length:
                self.arrays.append((reader, array))

    def index(self, index: Index, folder: Path, selection: Selection | None = None) -> None:
        """Plan an index that is a group, as an array of texts."""
        shape = (index.length if selection is None else len(selection),)
        array = ArrayFiles(folder, self._format, shape, vector_chunks(*shape), np.dtype(object))
        array.write_metadata(encoding("string-array", "0.2.0"))
        if index.length:
            self.arrays.append((_of_rows(index.texts, selection), array))

    def _array(self, node: Node, folder: Path, name: str, selection: Selection | None) -> None:
        attributes, dtype = _plain_attributes(node), node.dtype
        kind = attributes.get("encoding-type", "array")
        is_text = kind in ("string-array", "string") or dtype.kind == "T"
        shape = getattr(node, "shape", None)
        if shape is None or kind == "null" or not (is_text or dtype.kind in "biuf"):
            self._by_anndata(node, folder, name)
            return
        shape = tuple(int(n) for n in shape)
        if selection is not None and shape:
            shape = (len(selection), *shape[1:])
        dtype = np.dtype(object) if is_text else np.dtype(dtype).newbyteorder("<")
        chunks = chunks_for(shape, getattr(node, "chunks", None))
        array = ArrayFiles(folder / name, self._format, shape, chunks, dtype)
        array.write_metadata(attributes)
        if not shape:
            value = node[()]
            self.n_bytes += array.write(0, np.array(value, dtype).reshape(())).n_bytes
        elif math.prod(shape):
            with metadata_of(name):
                reader = texts_in(self._root, node) if is_text else self._root.dense(node)
            self.arrays.append((_of_rows(reader, selection), array))

    def _by_anndata(self, node: Node, folder: Path, name: str) -> None:
        """Have anndata copy what is small and of a kind that only it knows."""
        import anndata
        import zarr

        raw = getattr(node, "array", node)  # what anndata reads
        n_bytes = int(getattr(raw, "nbytes", 0) or 0)
        try:
            if n_bytes > _MOST_SMALL_BYTES:
                raise ValueError(f"it has {n_bytes} bytes")
            with warnings.catch_warnings():  # of what zarr 3 has no specification for
                warnings.simplefilter("ignore")
                group = zarr.open_group(str(folder), mode="r+", zarr_format=self._format)
                anndata.io.write_elem(group, name, anndata.io.read_elem(raw))
        except Exception as error:
            raise SourceError(
                f"{name} of {self._root.origin.path} cannot be copied: {error}. Open the store "
                "with anndata, remove it or write it anew, and try again."
            ) from error

    def tasks(self) -> Iterator[ChunkTask]:
        """Yield the tasks that write the chunks of all arrays."""
        number = 0
        for k, (_, array) in enumerate(self.arrays):
            size = math.prod(array.chunks) * (32 if array.is_text else array.dtype.itemsize)
            step = max(1, _BATCH_BYTES // size)
            for first in range(0, array.n_chunks, step):
                last = min(first + step, array.n_chunks)
                yield ChunkTask(number, k, first, last, (last - first) * size)
                number += 1


def _of_rows(reader: Any, selection: Selection | None) -> Any:
    return reader if selection is None else Rows(reader, selection)


def write_anew(arrays: Sequence[tuple[Any, ArrayFiles]], task: ChunkTask) -> Copied:
    """Write some chunks of an array from what is stored elsewhere."""
    reader, array = arrays[task.array]
    written = []
    for number in range(task.first, task.last):
        values = np.asarray(reader[array.corner(number)])
        written.append(array.write(number, values.astype(array.dtype, copy=False)))
    return Copied(written)


def anew_holds(arrays: Sequence[tuple[Any, ArrayFiles]], kept: tuple[ChunkTask, Copied]) -> bool:
    """Whether written chunks are still there."""
    task, copied = kept
    array = arrays[task.array][1]
    pairs = zip(range(task.first, task.last), copied.written, strict=True)
    return all(holds(array.path(number), Written(*written)) for number, written in pairs)


def _plain_attributes(node: Node) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in dict(node.attrs).items()}


def _plain(value: Any) -> Any:
    """Return an attribute as JSON has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool | dict):
        return value
    raise SourceError(
        f"an attribute is a {type(value).__name__}, as AnnData before 0.8 wrote them. Read the "
        "file with anndata and write it again."
    )
