"""HDF5 datasets: what all of them have, and those that HDF5 itself reads, within bounds.

HDF5 reads as fill values whatever is not there: chunks that were lost, files that a virtual dataset
joins. And its filters give out as many bytes as they like. So both are looked at before it reads.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5d, h5s

from ..errors import DamagedGraphError, SourceError
from ..machine.buffers import Array
from . import stamps
from .arrays import STEP, Span, StoredArray, check_access, cut_spans
from .codecs import ChunkError, count_decoded
from .layout import told

SHUFFLE = 2
_FILTERS = {
    1: "zlib", SHUFFLE: "shuffle", 3: "fletcher32", 32000: "lzf", 32001: "blosc",
    32015: "zstd",
}  # fmt: skip
_BLOSC, _SNAPPY = 32001, 3  # by its settings; numcodecs has no snappy, hdf5plugin has
# Compressors that give out as much as they like, until they are stopped.
_COMPRESSORS = {1: "zlib", 307: "bz2", 32015: "zstd"}
# Those that say, in these bytes of a chunk, how much they will give: szip,
# Blosc, LZ4, Blosc2.
_SIZE_AT: dict[int, tuple[int, int, Literal["little", "big"]]] = {
    4: (0, 4, "little"), 32001: (4, 8, "little"), 32004: (0, 8, "big"), 32026: (30, 38, "big"),
}  # fmt: skip
_COUNTED = (5, 6)  # nbit and scale-offset: their settings say how many values a chunk has
_FIRST_PLUGIN = 256  # filters below are HDF5's own
ADVICE = "copy it again from where it came, or write it again."
_without_locks: set[str] = set()  # files on disks that have no locks

log = logging.getLogger(__name__)


def read_only(path: str) -> h5py.File:
    """Open a file as h5py does; on a disk without locks without one, which is logged once."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock" not in str(error) or error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise
    if path not in _without_locks:
        _without_locks.add(path)
        log.warning("the disk of %s has no locks: nothing tells whether it is written to", path)
    return h5py.File(path, "r", locking=False)


@contextmanager
def open_file(path: str) -> Iterator[h5py.File]:
    """Open a file; a SourceError if it is not a whole HDF5 file."""
    try:
        file = read_only(path)
    except PermissionError as error:
        raise SourceError(f"{path} cannot be opened: {os.strerror(errno.EACCES)}.") from error
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        if (
            "unable to lock file" in text
            or "already open for write" in text
            or (isinstance(error, BlockingIOError))
        ):
            raise SourceError(
                f"{path} is open for writing in another program ({text}). Close it there and try "
                "again; if nothing writes to it, set HDF5_USE_FILE_LOCKING=FALSE."
            ) from error
        raise SourceError(
            f"{path} is not an HDF5 file that can be opened ({text}). Copy it again from "
            "where it came, or write it again."
        ) from error
    with file:
        yield file


def filters_of(dataset: h5py.Dataset) -> Iterator[tuple[int, tuple[int, ...], str]]:
    """Yield code, settings and label of each filter, in the order of writing."""
    properties = dataset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        code, _, values, label = properties.get_filter(k)
        yield code, values, label.decode(errors="replace").strip("\0") if label else ""


def codecs_of(dataset: h5py.Dataset) -> list[tuple[str, dict[str, Any]]] | None:
    """Return its filters as `chunk_codecs` takes them; None if one is unknown."""
    said: list[tuple[str, dict[str, Any]]] = []
    for code, values, _ in filters_of(dataset):
        if code not in _FILTERS or (code == _BLOSC and _SNAPPY in values[6:7]):
            return None
        item = int(values[0]) if values else dataset.dtype.itemsize
        said.append((_FILTERS[code], {"elementsize": item} if code == SHUFFLE else {}))
    return said


def require_filters(dataset: h5py.Dataset) -> None:
    """Register the filters of hdf5plugin, if it is installed and one of them is needed.

    If a filter is still missing, a SourceError is raised.
    """
    for code, _, label in filters_of(dataset):
        if code >= _FIRST_PLUGIN and importlib.util.find_spec("hdf5plugin"):
            importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            raise SourceError(
                f"{dataset.name.lstrip('/')} is compressed with filter {code} of HDF5 "
                f"({label[:80] or 'no name'}), which is not installed here. Install hdf5plugin "
                "(pip install hdf5plugin), or write the file again with gzip or lzf."
            )


def check_filters(dataset: h5py.Dataset) -> None:
    """Raise a SourceError if filters are missing, or of what they give out nothing is known."""
    require_filters(dataset)
    filters = list(filters_of(dataset))
    n_values = math.prod(dataset.chunks or (1,))
    for k, (code, values, _) in enumerate(filters):
        follows = [other for other, _, _ in filters[k + 1 :] if other not in (SHUFFLE, 3)]
        claims = code in _COUNTED and (len(values) < 3 or values[2] != n_values)
        if (code in _COMPRESSORS and follows) or claims:
            raise SourceError(
                f"{dataset.name.lstrip('/')} has filters of HDF5 whose memory is not known before "
                f"they are used ({', '.join(str(c) for c, _, _ in filters)}). Write the file again "
                "with gzip or lzf alone."
            )


def check_chunk(dataset: h5py.Dataset, corner: tuple[int, ...]) -> None:
    """Raise a ChunkError if the chunk at a corner gives out more than a chunk may."""
    filters = [code for code, _, _ in filters_of(dataset)]
    if not filters:
        return
    info = dataset.id.get_chunk_info_by_coord(corner)
    if info.byte_offset is None:
        return
    n_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    most = n_bytes + n_bytes // 8 + 2**16
    if info.size > most:
        raise ChunkError(f"it has {info.size} bytes for {n_bytes} bytes of values")
    applied = [code for k, code in enumerate(filters) if not info.filter_mask >> k & 1]
    while applied and applied[-1] in (3, SHUFFLE):  # a checksum follows, four bytes
        applied.pop()
    if not applied or applied[-1] not in (*_COMPRESSORS, *_SIZE_AT):
        return
    _, encoded = dataset.id.read_direct_chunk(corner)
    if applied[-1] in _SIZE_AT:
        first, last, order = _SIZE_AT[applied[-1]]
        claimed = int.from_bytes(encoded[first:last], order)
        if claimed > most:
            raise ChunkError(f"it says it holds {claimed} bytes, not {n_bytes}")
    else:
        count_decoded(_COMPRESSORS[applied[-1]], np.frombuffer(encoded, np.uint8), most)


class Dataset(StoredArray):
    """What all datasets of one dimension have; `name` leads to it in its file."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.name = dataset.name.lstrip("/")
        self.size = int(dataset.shape[0])
        self.dtype = dataset.dtype.newbyteorder("=")
        self.chunk_size = int((dataset.chunks or (STEP,))[0])
        self.path = os.path.abspath(dataset.file.filename)  # noqa: PTH100

    @cached_property
    def _places(self) -> Array:
        """Offset in the file (-1 if never written), bytes and skipped filters of each chunk."""
        places = np.zeros((3, -(-self.size // self.chunk_size)), np.int64)
        places[0] = -1

        def note(info: Any) -> None:
            number = info.chunk_offset[0] // self.chunk_size
            if number < places.shape[1]:
                places[:, number] = info.byte_offset, info.size, info.filter_mask

        with read_only(self.path) as file:
            dataset = file[self.name].id
            if hasattr(dataset, "chunk_iter"):  # since HDF5 1.12.3
                dataset.chunk_iter(note)
            else:
                for k in range(dataset.get_num_chunks()):
                    note(dataset.get_chunk_info(k))
        return places

    def files(self) -> Iterator[Path]:
        """Yield the files that its values are in, in the same order each time."""
        yield Path(self.path)

    def stamp(self) -> str:
        """See `StoredArray`."""
        return stamps.of_files(map(str, self.files()))


def external_files(dataset: h5py.Dataset) -> Iterator[tuple[str, int, int]]:
    """Yield the path, first byte and number of bytes of each part; or a DamagedGraphError."""
    left = math.prod(dataset.shape) * dataset.dtype.itemsize
    for name, offset, n_bytes in dataset.external:
        path, size = beside(dataset, name), min(int(n_bytes), left)
        if os.stat(path).st_size < offset + size:  # noqa: PTH116
            raise missing(dataset, f"{path} should have {offset + size} bytes, and is shorter")
        left -= size
        yield path, int(offset), size
    if left:
        raise missing(dataset, f"no file is named for its last {left} bytes")


def _other_files(dataset: h5py.Dataset) -> list[str]:
    """Return the paths of external and virtual storage, as far as it is there."""
    names = [name for name, _, _ in dataset.external or ()]
    names += [s.file_name for s in dataset.virtual_sources()] if dataset.is_virtual else []
    paths: list[str] = []
    for name in dict.fromkeys(names):
        with suppress(DamagedGraphError):
            paths.append(path_of_virtual(dataset, name))
    return paths


def beside(dataset: h5py.Dataset, name: str) -> str:
    """Return the path of a file that a dataset refers to, where HDF5 looks for it and beside it."""
    own = os.path.abspath(dataset.file.filename)  # noqa: PTH100
    for path in (os.path.join(os.path.dirname(own), name), os.path.abspath(name)):  # noqa: PTH100, PTH118, PTH120
        if Path(path).is_file():
            return path
    raise missing(dataset, f"the file {name} is missing, or is not a file")


def missing(dataset: h5py.Dataset, what: str) -> DamagedGraphError:
    """Return the error that says what is missing of a dataset that is kept in other files."""
    return DamagedGraphError(
        f"{dataset.name.lstrip('/')} is kept in other files than {dataset.file.filename}, and "
        f"{what}. Copy all of them from where they came, or write the matrix again into one file."
    )


def path_of_virtual(dataset: h5py.Dataset, file_name: str) -> str:
    """Return the path of a file as virtual datasets name it: a point is their own."""
    return str(dataset.file.filename) if file_name == "." else beside(dataset, file_name)


def stretch(dataset: h5py.Dataset, space: Any, n: int | None) -> tuple[int, int]:
    """Return the first value and the number of values that a selection is of, if it has no gaps."""
    if n is not None and space.get_select_type() == h5s.SEL_ALL:
        return 0, n
    try:
        (first,), (last,) = space.get_select_bounds()
        if last - first + 1 == space.get_select_npoints() and n in (None, last - first + 1):
            return int(first), int(last - first + 1)
    except (ValueError, RuntimeError, TypeError):  # of several dimensions, or without an end
        pass
    raise SourceError(
        f"{dataset.name.lstrip('/')} is a virtual dataset that is not made of whole stretches of "
        "others; write it as one array."
    )


class SlicedDataset(Dataset):
    """A dataset that only HDF5 itself can read, a chunk at a time."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        check_filters(dataset)
        super().__init__(dataset)
        # Encoded, between filters, decoded; and HDF5's cache of chunks.
        self.work_bytes = 4 * self.chunk_size * self.dtype.itemsize + 2**20

    def read(self, start: int, stop: int, out: Array) -> list[Span]:
        """Read the values ``[start, stop)`` into `out`; see `StoredArray.read`."""
        absent: list[Span] = []
        a = start
        try:
            with read_only(self.path) as file:
                dataset = file[self.name]
                require_filters(dataset)
                for a, b in cut_spans(start, stop, self.chunk_size):
                    if dataset.chunks is not None:
                        check_chunk(dataset, (a // self.chunk_size * self.chunk_size,))
                    if _is_absent(dataset, a):
                        if dataset.fillvalue:
                            raise ValueError(
                                f"it was never written; fill value {dataset.fillvalue!r}, not 0"
                            )
                        absent.append((a, b))
                    dataset.read_direct(out, np.s_[a:b], np.s_[a - start : b - start])
        except SourceError:
            raise
        except Exception as error:
            check_access(error, f"chunk {self.key_of(a)} of {self.name}")
            raise DamagedGraphError(
                f"chunk {self.key_of(a)} of {self.name} does not decode: {told(error)}. "
                f"The file is damaged there; {ADVICE}"
            ) from error
        return absent


def _is_absent(dataset: h5py.Dataset, at: int) -> bool:
    """Whether the chunk that holds value `at` was never written, so that it reads as fill value."""
    if dataset.chunks is None:
        layout = dataset.id.get_create_plist().get_layout()
        return bool(layout == h5d.CONTIGUOUS and dataset.id.get_offset() is None)
    (chunk,) = dataset.chunks
    return dataset.id.get_chunk_info_by_coord((at // chunk * chunk,)).byte_offset is None


class DenseDataset:
    """A dataset of any dimensions, in pieces; small, picklable, and opened for each of them."""

    shards = None

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.path = os.path.abspath(dataset.file.filename)  # noqa: PTH100
        self._name = dataset.name
        self.shape = tuple(int(n) for n in dataset.shape)
        self.ndim = len(self.shape)
        self.dtype = dataset.dtype
        self.chunks = dataset.chunks
        names = [_FILTERS.get(k, label or f"filter {k}") for k, _, label in filters_of(dataset)]
        self.codec = ", ".join(names) or None
        self._files = (self.path, *_other_files(dataset))

    def stamp(self) -> str:
        """Return what changes when it is written again."""
        return stamps.of_files(self._files)

    def check(self) -> None:
        """Raise a SourceError or DamagedGraphError if not all values are there to be read."""
        with open_file(self.path) as file:
            dataset = file[self._name]
            check_filters(dataset)
            _check_whole(dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return the values at an index, which is of slices."""
        with open_file(self.path) as file:
            dataset = file[self._name]
            check_filters(dataset)
            if dataset.is_virtual or dataset.external is not None:
                _check_whole(dataset)
            index = index if isinstance(index, tuple) else (index,)
            corners = [
                range(part.indices(size)[0] // chunk * chunk, part.indices(size)[1], chunk)
                for part, size, chunk in zip(index, self.shape, self.chunks or (), strict=False)
            ]
            corners += [range(0, self.shape[k], self.chunks[k])
                        for k in range(len(corners), len(self.chunks or ()))]  # fmt: skip
            for corner in product(*corners) if self.chunks else ():
                try:
                    check_chunk(dataset, corner)
                except ChunkError as error:
                    raise DamagedGraphError(
                        f"the chunk at {corner} of {self._name.lstrip('/')} does not decode: "
                        f"{error}. The file is damaged there; {ADVICE}"
                    ) from error
            return dataset[index]


def _check_whole(dataset: h5py.Dataset) -> None:
    """Raise a DamagedGraphError if HDF5 would read values that are not there as fill values."""
    if dataset.is_virtual:
        n_found = 0
        for space, file_name, name, _ in dataset.virtual_sources():
            path = path_of_virtual(dataset, file_name)
            with open_file(path) as file:
                if name not in file or not hasattr(file[name], "shape"):
                    raise missing(dataset, f"{path} has no array {name}")
                if file[name].is_virtual or file[name].chunks is not None:
                    raise SourceError(
                        f"{dataset.name.lstrip('/')} joins arrays that are virtual or have chunks "
                        "themselves; write it as one array."
                    )
                _check_whole(file[name])
            n_found += int(space.get_select_npoints())
        if n_found < math.prod(dataset.shape):
            raise missing(dataset, "not every value is mapped to one of another dataset")
    elif dataset.external is not None:
        for _ in external_files(dataset):
            pass
    else:
        absent = _n_absent(dataset)
        if absent:
            raise DamagedGraphError(
                f"{absent} of {dataset.name.lstrip('/')} are not in the file, and would be read as "
                f"{dataset.fillvalue!r}. Copy the file again from where it came; if they really "
                "are zeros, write them."
            )


def _n_absent(dataset: h5py.Dataset) -> str:
    """Return, in words, how much of a dataset was never written or is lost; "" if nothing."""
    if not math.prod(dataset.shape):
        return ""
    if dataset.chunks is None:
        layout = dataset.id.get_create_plist().get_layout()
        gone = layout == h5d.CONTIGUOUS and dataset.id.get_offset() is None
        return "all values" if gone else ""
    n = math.prod(-(-size // c) for size, c in zip(dataset.shape, dataset.chunks, strict=True))
    n_absent = n - int(dataset.id.get_num_chunks())
    return f"{n_absent} of {n} chunks" if n_absent > 0 else ""
