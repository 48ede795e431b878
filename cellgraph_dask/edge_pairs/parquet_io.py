"""Parquet files, written and read a row group at a time: the one module that knows pyarrow.

The bytes of a file follow from its rows and from the version of pyarrow alone. Integers are
DELTA_BINARY_PACKED, floats BYTE_STREAM_SPLIT (half the time and a tenth less than plain ones, as
weights that were float32 have bytes of zeros), all of it zstd; with statistics, checksums of pages,
and the order of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidExportError, OutputError
from ..machine.buffers import Array
from ..machine.files import begin_writeback, opened, read_at, write_at
from .parquet import MOST_ROWS

_WRITEBACK_BYTES = 1 << 23
_WRITTEN_BYTES = 1 << 20  # at once
_PAGES_BYTES = 6 << 20  # of a column that is read: as values, encoded, compressed
_WRITING_BYTES = 4 << 20  # pages on their way: of one column, and those that wait to be written
_LEVEL = -20  # of zstd, for numbers: 1 takes a third more time to save 8 percent
_TEXT_LEVEL = 1
_PAGE_BYTES = 1 << 17  # of values; they stay in a near cache from one step to the next
_HASHED_BYTES = 1 << 20
_NAMES = 1 << 16  # that are read at once
_MOST_TEXTS = 1 << 20  # bytes of names, and columns or row groups, that metadata may hold


def pyarrow() -> Any:
    """Return pyarrow with its Parquet; an OutputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OutputError(
            "Parquet files are written and read with pyarrow, which is not installed "
            "(pip install 'cellgraph-dask[parquet]')."
        ) from error
    return pyarrow


class Written(NamedTuple):
    """Size and digest of a file."""

    n_bytes: int
    sha256: str


class _Sink:
    """A file that is written from its start to its end; ends when it fails."""

    closed = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = sha256()
        self._end = 0

    def write(self, data: Any) -> int:
        if self._fd < 0:  # pyarrow closes what was given up
            return len(data)
        begin = self._end
        self._end = write_at(self._fd, memoryview(data), begin)
        self._digest.update(data)
        first, last = begin // _WRITEBACK_BYTES, self._end // _WRITEBACK_BYTES
        if first < last:
            begin_writeback(self._fd, first * _WRITEBACK_BYTES, last * _WRITEBACK_BYTES)
        return len(data)

    def tell(self) -> int:
        return self._end

    def flush(self) -> None:
        """Do nothing: the file is made durable when it is whole."""

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""

    def go_on(self, end: int, digest: Any) -> None:
        """Write behind what is there, of which this is the digest."""
        self._end, self._digest = end, digest

    def so_far(self) -> tuple[int, Any]:
        """Return the bytes that there are, and their digest."""
        return self._end, self._digest.copy()

    def finish(self, *, durable: bool) -> Written:
        os.ftruncate(self._fd, self._end)
        if durable:
            os.fsync(self._fd)
        else:  # it will be; most files are smaller than what writing has begun with
            first = self._end // _WRITEBACK_BYTES * _WRITEBACK_BYTES
            begin_writeback(self._fd, first, self._end)
        return Written(self._end, self._digest.hexdigest())

    def give_up(self) -> None:
        self._fd = -1


def _schema(columns: Mapping[str, Any]) -> Any:
    """Return the schema of columns by name: dtypes, or `str` for texts, which may be missing."""
    pa = pyarrow()
    fields = [
        pa.field(name, pa.string(), nullable=True)
        if dtype is str
        else pa.field(name, pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
        for name, dtype in columns.items()
    ]
    return pa.schema(fields)


def _encoding(dtype: Any) -> str:
    if dtype is str:
        return "PLAIN"
    return "DELTA_BINARY_PACKED" if np.dtype(dtype).kind == "i" else "BYTE_STREAM_SPLIT"


def write_table(
    path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str], n_sorted: int, groups:
    Iterable[Sequence[Any]],
) -> Written:  # fmt: skip
    """Write a file of row groups, each of them columns: arrays, or lists of texts; durably.

    Rows are sorted by the first `n_sorted` columns. Doing it twice at once gives the same file.
    """
    return _write(path, columns, metadata, n_sorted, groups)[0]


def write_body(
    path: Path, columns: Mapping[str, Any], n_sorted: int, groups: Iterable[Sequence[Any]]
) -> tuple[Written, int, Any]:
    """Write a file as `write_table` does but for its metadata; it is not durable.

    Besides, the bytes before its footer are returned, and their digest, for `finish_table`.
    """
    return _write(path, columns, None, n_sorted, groups)


def finish_table(
    path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str], n_sorted: int, n_bytes:
    int, digest: Any = None,
) -> Written:  # fmt: skip
    """Give a file of `write_body` its metadata, durably: the bytes are those of `write_table`.

    The digest is computed if it is not known any more.
    """
    pa = pyarrow()
    with opened(path, os.O_RDWR) as fd:
        sink = _Sink(fd)
        if digest is None:
            digest = _digest_of_fd(fd, n_bytes)
        sink.go_on(n_bytes, digest)
        empty = pa.BufferOutputStream()
        writer = _writer(pa, empty, columns, n_sorted)
        writer.add_key_value_metadata(dict(metadata))
        writer.close()
        footer = pa.parquet.read_metadata(pa.BufferReader(empty.getvalue()))
        footer.append_row_groups(pa.parquet.read_metadata(str(path)))
        encoded = pa.BufferOutputStream()
        footer.write_metadata_file(encoded)
        sink.write(memoryview(encoded.getvalue())[4:])  # behind the magic number
        return sink.finish(durable=True)


def _writer(pa: Any, sink: Any, columns: Mapping[str, Any], n_sorted: int) -> Any:
    return pa.parquet.ParquetWriter(
        sink, _schema(columns), version="2.6", data_page_version="1.0", store_schema=False,
        use_dictionary=False, compression="zstd",
        compression_level={
            name: _TEXT_LEVEL if dtype is str else _LEVEL for name, dtype in columns.items()
        },
        column_encoding={name: _encoding(dtype) for name, dtype in columns.items()},
        data_page_size=_PAGE_BYTES, write_statistics=True, write_page_checksum=True,
        sorting_columns=[pa.parquet.SortingColumn(k) for k in range(n_sorted)],
        memory_pool=pa.system_memory_pool(),
    )  # fmt: skip


def _write(
    path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None, n_sorted: int,
    groups: Iterable[Sequence[Any]],
) -> tuple[Written, int, Any]:  # fmt: skip
    """Write a file; return size and digest, and those of what is before the footer."""
    pa = pyarrow()
    schema = _schema(columns)
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        sink = _Sink(fd)
        try:
            # Pages are small, and each would wait for its turn in Python.
            pages = pa.BufferedOutputStream(
                pa.PythonFile(sink, mode="w"), _WRITTEN_BYTES, pa.system_memory_pool()
            )
            writer = _writer(pa, pages, columns, n_sorted)
            for group in groups:
                arrays = [_arrow(values, f.type) for values, f in zip(group, schema, strict=True)]
                table = pa.Table.from_arrays(arrays, schema=schema)
                writer.write_table(table, row_group_size=max(1, table.num_rows))
            pages.flush()
            n_bytes, digest = sink.so_far()
            if metadata is not None:
                writer.add_key_value_metadata(dict(metadata))
            writer.close()
            pages.flush()
            return sink.finish(durable=metadata is not None), n_bytes, digest
        finally:
            sink.give_up()


# To turn lists into columns, or columns into arrays, pyarrow imports pandas, which takes a quarter
# of a second and 30 MB.
def _arrow(values: Any, kind: Any) -> Any:
    pa = pyarrow()
    if isinstance(values, np.ndarray):  # without a copy
        values = np.ascontiguousarray(values)
        return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(values)])
    return pa.array(values, kind)


def _values(column: Any) -> Array:
    """Return the values of a column, none of which is missing, mostly without a copy."""
    chunks = [np.from_dlpack(chunk) for chunk in getattr(column, "chunks", [column])]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def writing_bytes(columns: Mapping[str, Any]) -> int:
    """Return the most bytes that `write_table` needs besides the row group that it is given."""
    return _WRITING_BYTES + len(columns) * _PAGE_BYTES


def reading_bytes(columns: Mapping[str, Any]) -> int:
    """Return the most bytes that reading a row group takes: the columns, and what is decoded."""
    row = sum(int(np.dtype(dtype).itemsize) for dtype in columns.values())
    return 2 * MOST_ROWS * row + len(columns) * _PAGES_BYTES


def warm_up() -> None:
    """Load all of pyarrow that writing and reading edges take."""
    pa = pyarrow()
    sink = pa.BufferOutputStream()
    column = _arrow(np.zeros(1, np.int64), pa.int64())
    pa.parquet.write_table(pa.Table.from_arrays([column], ["src"]), sink, compression="zstd")
    pa.parquet.ParquetFile(pa.BufferReader(sink.getvalue())).read_row_group(0)


def digest_of(path: Path) -> Written:
    """Return size and digest of a file; an OSError if it cannot be read."""
    with opened(path, os.O_RDONLY) as fd:
        n_bytes = os.fstat(fd).st_size
        return Written(n_bytes, _digest_of_fd(fd, n_bytes).hexdigest())


def _digest_of_fd(fd: int, n_bytes: int) -> Any:
    """Return the digest of the first bytes of an open file."""
    digest = sha256()
    for at in range(0, n_bytes, _HASHED_BYTES):
        part = np.empty(min(_HASHED_BYTES, n_bytes - at), np.uint8)
        read_at(fd, part, at)
        digest.update(part.data)
    return digest


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow says of a file into an InvalidExportError."""
    try:
        yield
    except (InvalidExportError, OutputError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidExportError(f"{path} cannot be read as Parquet: {text}") from error


class TableReader:
    """A file of edges, open; row groups are read by any thread, one at a time.

    An InvalidExportError says that the file is missing, or is not of the rows, the columns and the
    row groups that are expected.
    """

    def __init__(self, path: Path, columns: Mapping[str, Any], n_rows: int, row_group: int) -> None:
        pa = pyarrow()
        self._path = path
        self._columns = columns
        self._file: Any = None
        with _named_errors(path):
            source = pa.OSFile(str(path))
            try:
                self._file = pa.parquet.ParquetFile(
                    source, pre_buffer=False, page_checksum_verification=True,
                    thrift_string_size_limit=_MOST_TEXTS, thrift_container_size_limit=_MOST_TEXTS,
                )  # fmt: skip
                self._source = source
                self._check(n_rows, row_group)
            except BaseException:
                source.close()
                raise

    def _check(self, n_rows: int, row_group: int) -> None:
        found = self._file.metadata
        n_groups, in_file = -(-n_rows // row_group), 0
        for k in range(found.num_row_groups):
            rows = found.row_group(k).num_rows
            whole = rows == row_group or k == n_groups - 1
            in_file += rows if whole else -(2**62)
        if (in_file, found.num_row_groups) != (n_rows, n_groups):
            raise InvalidExportError(
                f"{self._path} has {found.num_rows} rows in {found.num_row_groups} row groups; "
                f"{n_rows} rows in groups of {row_group} were expected."
            )
        names = {field.name: str(field.type) for field in self._file.schema_arrow}
        wanted = {f.name: str(f.type) for f in _schema(self._columns)}
        if names != wanted:
            raise InvalidExportError(
                f"{self._path} has the columns {names}; {wanted} were expected."
            )

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value metadata."""
        found = self._file.metadata.metadata or {}
        return {
            key.decode(errors="replace"): v.decode(errors="replace") for key, v in found.items()
        }

    @property
    def n_groups(self) -> int:
        """Number of row groups."""
        return int(self._file.metadata.num_row_groups)

    def read(self, group: int) -> list[Array]:
        """Return the columns of a row group."""
        with _named_errors(self._path):
            table = self._file.read_row_group(group, use_threads=False)
            columns = []
            for column in table.columns:
                if column.null_count:
                    raise InvalidExportError(f"{self._path} has rows without a value.")
                columns.append(_values(column))
            return columns

    def close(self) -> None:
        """Close the file."""
        self._file = None
        self._source.close()
        pyarrow().default_memory_pool().release_unused()


def cell_names(path: Path) -> Iterator[str]:
    """Yield the names in a table of cells."""
    pa = pyarrow()
    with _named_errors(path):
        source = pa.OSFile(str(path))
        try:
            file = pa.parquet.ParquetFile(source, page_checksum_verification=True)
            for batch in file.iter_batches(_NAMES, columns=["name"], use_threads=False):
                yield from (name or "" for name in batch.column(0).to_pylist())
        finally:
            source.close()


def check_cells(path: Path, n_cells: int) -> None:
    """Refuse a table of cells that does not have each cell once, in order."""
    pa = pyarrow()
    with _named_errors(path):
        source = pa.OSFile(str(path))
        try:
            file = pa.parquet.ParquetFile(source, page_checksum_verification=True)
            start = 0
            for batch in file.iter_batches(MOST_ROWS, columns=["cell"], use_threads=False):
                cells = _values(batch.column(0))
                if not np.array_equal(cells, np.arange(start, start + cells.size)):
                    raise InvalidExportError(f"{path} does not have the cells in order.")
                start += cells.size
            if start != n_cells:
                raise InvalidExportError(f"{path} has {start} cells instead of {n_cells}.")
        finally:
            source.close()


def embedding_of(path: Path) -> str | None:
    """Return the name of the embedding that a table of cells holds, if it holds one."""
    pa = pyarrow()
    with _named_errors(path):
        schema = pa.parquet.read_schema(path)
        name = (schema.metadata or {}).get(b"embedding")
        return name.decode(errors="replace") if name and {"x", "y"} <= set(schema.names) else None


def read_places(path: Path, n_at_once: int) -> Iterator[Array]:
    """Yield where the cells are by a table of cells, ``(n, 2)``, in their order."""
    pa = pyarrow()
    with _named_errors(path):
        source = pa.OSFile(str(path))
        try:
            file = pa.parquet.ParquetFile(source, page_checksum_verification=True)
            for batch in file.iter_batches(n_at_once, columns=["x", "y"], use_threads=False):
                yield np.stack([_values(batch.column(k)) for k in range(2)], axis=1)
        finally:
            source.close()
