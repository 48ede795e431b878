"""A matrix that is written again while it is read: an error, never a mixture."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

from cellgraph_dask import export_connectivities, verify_export
from cellgraph_dask.errors import ResumeError, SourceError
from cellgraph_dask.runtime.stage import Journal
from cellgraph_dask.source import stamps
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.source.spool import Source
from tests.helpers.servers import serving
from tests.helpers.stores import ARRAYS, chunk_file, snapshot, symmetric_graph, write_store

GRAPHS = [symmetric_graph(40, 3, seed=seed) for seed in range(3)]
BEFORE, AFTER = GRAPHS[0], GRAPHS[0].copy()
AFTER.indices[:] = 39 - GRAPHS[0].indices  # another graph, of the same size in all its parts
KEY = "obsp/connectivities"

Write = Callable[[Path, Any], object]  # a matrix to a place


def zarr_folder(**options: Any) -> Write:
    return lambda path, matrix: write_store(path, matrix, codec="none", chunk=20, **options)


def linked_chunks(path: Path, matrix: Any) -> None:
    """Write the chunks of indices to a folder elsewhere, and a link to it."""
    elsewhere = path.with_name("other disk")
    write_store(path, matrix, codec="none", chunk=20, zarr_format=3)
    folder = path / KEY / "indices/c"
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def linked_chunks_only(path: Path, matrix: Any) -> None:
    """Write a link the first time, and afterwards only what it leads to."""
    if not path.exists():
        linked_chunks(path, matrix)
        return
    for k, start in enumerate(range(0, matrix.indices.size, 20)):
        chunk = np.zeros(20, np.int32)
        values = matrix.indices[start : start + 20]
        chunk[: values.size] = values
        (path.with_name("other disk") / str(k)).write_bytes(chunk.tobytes())


def zip_archive(path: Path, matrix: Any) -> None:
    folder = path.with_name("unzipped")
    zarr_folder()(folder, matrix)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    shutil.rmtree(folder)


@contextmanager
def hdf5(path: Path, matrix: Any) -> Iterator[h5py.Group]:
    with h5py.File(path, "w") as file:
        group = file.create_group(KEY)
        group.attrs["encoding-type"] = "csr_matrix"
        group.attrs["shape"] = matrix.shape
        file.create_dataset("obs/_index", data=[b"c"] * matrix.shape[0])
        file["obs"].attrs["_index"] = "_index"
        yield group


def h5ad(path: Path, matrix: Any) -> None:
    with hdf5(path, matrix) as group:
        for name in ARRAYS:
            group[name] = getattr(matrix, name)


@contextmanager
def without_indices(path: Path, matrix: Any) -> Iterator[h5py.Group]:
    """Write a matrix whose indices are still to be written."""
    with hdf5(path, matrix) as group:
        for name in ("indptr", "data"):
            group[name] = getattr(matrix, name)
        yield group


def external(path: Path, matrix: Any) -> None:
    """Write the indices as a file of their own; the HDF5 file itself only once."""
    matrix.indices.astype(np.int32).tofile(path.with_name("indices.raw"))
    if path.exists():
        return
    n = matrix.indices.size
    with without_indices(path, matrix) as group:
        raw = [(str(path.with_name("indices.raw")), 0, 4 * n)]
        group.create_dataset("indices", (n,), np.int32, external=raw)


def virtual(path: Path, matrix: Any) -> None:
    """Write the indices to another HDF5 file, of which the dataset is a view."""
    with h5py.File(path.with_name("indices.h5"), "w") as file:
        file["indices"] = matrix.indices.astype(np.int32)
    if path.exists():
        return
    n = matrix.indices.size
    with without_indices(path, matrix) as group:
        layout = h5py.VirtualLayout((n,), np.int32)
        layout[:] = h5py.VirtualSource("indices.h5", "indices", (n,))
        group.create_virtual_dataset("indices", layout)


def external_link(path: Path, matrix: Any) -> None:
    """Write the matrix to another file, and a link to it."""
    with h5py.File(path.with_name("other.h5"), "w") as file:
        for name in ARRAYS:
            file[name] = getattr(matrix, name)
    if path.exists():
        return
    with hdf5(path, matrix) as group:
        for name in ARRAYS:
            group[name] = h5py.ExternalLink("other.h5", name)


def same_times(write: Write) -> Write:
    """Put the times of all files back, as archives do that are unpacked."""

    def written(path: Path, matrix: Any) -> None:
        write(path, matrix)
        for file in path.rglob("*"):
            os.utime(file, (1, 1))

    return written


WRITERS: dict[str, Write] = {
    "zarr 2": zarr_folder(),
    "zarr 3": zarr_folder(zarr_format=3),
    "shards": zarr_folder(zarr_format=3, shard=40),
    "the same times": same_times(zarr_folder()),
    "linked chunks": linked_chunks,
    "what a link leads to": linked_chunks_only,
    "zip": zip_archive,
    "h5ad": h5ad,
    "external storage": external,
    "virtual storage": virtual,
    "another file": external_link,
}


@pytest.fixture
def once(monkeypatch):
    """Return a function that has something done when the next export has finished a task."""
    add = Journal.add

    def after_a_task(act: Callable[[], object]) -> None:
        left = [act]

        def noting(self, *line):
            add(self, *line)
            if left:
                left.pop()()

        monkeypatch.setattr(Journal, "add", noting)

    return after_a_task


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_published(tmp_path, once, kind):
    write, source, out_dir = WRITERS[kind], tmp_path / "s", tmp_path / "out"
    write(source, AFTER)
    export_connectivities(source, out_dir)
    shown = snapshot(out_dir)
    write(source, BEFORE)
    once(lambda: write(source, AFTER))
    with pytest.raises(SourceError, match=r"s changed while it was being read.*Start again"):
        export_connectivities(source, out_dir, force=True)
    assert snapshot(out_dir) == shown
    export_connectivities(source, out_dir, force=True)
    provenance = shown.pop("connectivity/provenance.json")
    assert snapshot(out_dir, but="provenance.json") == shown
    assert provenance != (out_dir / "connectivity/provenance.json").read_bytes()


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_dense(tmp_path, monkeypatch, kind):
    dense = [graph.toarray() for graph in (BEFORE, AFTER)]
    source = tmp_path / "s"

    def write(matrix: np.ndarray) -> None:
        if kind == "hdf5":
            with h5py.File(source, "w") as file:
                file["obsp/connectivities"] = matrix
            return
        root = zarr.open_group(source, mode="w", zarr_format=3)
        root.create_group("obsp").create_array("connectivities", data=matrix, chunks=(10, 40))

    write(dense[0])
    made = Source.read_block

    def read_block(self, *block: Any, **options: Any) -> Any:
        if left:
            write(left.pop())
        return made(self, *block, **options)

    left = [dense[1]]
    monkeypatch.setattr(Source, "read_block", read_block)
    with pytest.raises(SourceError, match="changed while it was being read"):
        export_connectivities(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_connectivities(source, tmp_path / "out")


def test_damage_in_what_has_changed_is_told_as_that(tmp_path, once):
    source = zarr_folder()(tmp_path / "s", BEFORE)
    once(lambda: shutil.rmtree(source / KEY / "data"))
    with pytest.raises(SourceError, match="changed while it was being read"):
        export_connectivities(source, tmp_path / "out", threads=1)


def test_a_resumed_run_looks_again(tmp_path, once):
    source = zarr_folder()(tmp_path / "s", BEFORE)

    def interrupt() -> None:
        raise KeyboardInterrupt

    once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_connectivities(source, tmp_path / "out")
    read_block = Source.read_block
    with pytest.MonkeyPatch.context() as patched:

        def writing(self, *block: Any, **options: Any) -> Any:
            zarr_folder()(source, AFTER)
            return read_block(self, *block, **options)

        patched.setattr(Source, "read_block", writing)
        # What is kept of the first run is not there to be resumed again: it is of another matrix.
        for chunk in (tmp_path / "out").glob(".cellgraph-dask/journal-*"):
            chunk.write_bytes(b"")
        with pytest.raises(SourceError, match="changed while it was being read"):
            export_connectivities(source, tmp_path / "out", resume=True)
    assert snapshot(tmp_path / "out") == {}


@pytest.mark.usefixtures("leaves_scratch")
def test_a_change_between_two_runs_behind_a_link(tmp_path, once):
    source = tmp_path / "s"
    linked_chunks(source, BEFORE)

    def interrupt() -> None:
        raise KeyboardInterrupt

    once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_connectivities(source, tmp_path / "out")
    linked_chunks_only(source, AFTER)
    with pytest.raises(ResumeError, match="has changed since"):
        export_connectivities(source, tmp_path / "out", resume=True)


def test_verify(tmp_path, monkeypatch):
    source = zarr_folder()(tmp_path / "s", BEFORE)
    export_connectivities(source, tmp_path / "out")
    read_block = Source.read_block

    def writing(self, *block: Any, **options: Any) -> Any:
        zarr_folder()(source, AFTER)
        return read_block(self, *block, **options)

    monkeypatch.setattr(Source, "read_block", writing)
    with pytest.raises(SourceError, match="changed while it was being read"):
        verify_export(tmp_path / "out", source=source)


def test_what_others_leave_is_no_change(tmp_path, once):
    source = zarr_folder()(tmp_path / "s", BEFORE)
    folder = source / KEY / "indices"

    def litter() -> None:
        zarr.consolidate_metadata(source)
        for name in (".nfs0001", ".DS_Store", "._0", "Thumbs.db", "0.tmp", "0.__lock", "~0"):
            (folder / name).write_text("?")
            (source / name).write_text("?")
        (folder / "@eaDir").mkdir()
        (folder / ".zarray").write_bytes((folder / ".zarray").read_bytes())

    once(litter)
    export_connectivities(source, tmp_path / "out")
    assert verify_export(tmp_path / "out", source=source).proof == "sums"


def test_links_in_circles_end(tmp_path):
    source = zarr_folder()(tmp_path / "s", BEFORE)
    folder = source / KEY / "indices"
    for k in range(100, 400):
        (folder / str(k)).symlink_to(folder)
    (folder / "999").symlink_to(tmp_path / "nowhere")
    assert stamps.of_folder(str(folder)) == stamps.of_folder(str(folder))


class Remote:
    """A store that is served from a folder."""

    def __init__(self, url: str, options: dict[str, Any], put: Callable[[Path], None]) -> None:
        self.url, self.options, self._put = url, options, put

    def write(self, folder: Path, matrix: Any) -> None:
        self._put(zarr_folder(zarr_format=3)(folder, matrix))


@pytest.fixture(params=["http", pytest.param("s3", marks=pytest.mark.slow)])
def remote(request, tmp_path) -> Iterator[Remote]:
    if request.param == "http":
        with serving(tmp_path) as url:
            yield Remote(f"{url}/s", {}, lambda _: None)
        return
    s3 = request.getfixturevalue("s3")
    bucket = s3.make_bucket()
    files = s3.file_system()
    put = lambda folder: files.put(f"{folder}/", f"{bucket}/s/", recursive=True)  # noqa: E731
    yield Remote(f"s3://{bucket}/s", s3.options(), put)


def test_remote_stores(tmp_path, once, remote):
    remote.write(tmp_path / "s", BEFORE)
    once(lambda: remote.write(tmp_path / "s", AFTER))
    with pytest.raises(SourceError, match="changed while it was being read"):
        export_connectivities(remote.url, tmp_path / "out", storage_options=remote.options)
    assert not (tmp_path / "out").exists()
    export_connectivities(remote.url, tmp_path / "out", storage_options=remote.options)


def test_matrices_in_memory_have_no_fingerprint_to_take(tmp_path):
    opened = open_source(sparse.csr_matrix(BEFORE))
    assert opened.fingerprint() == opened.fingerprint()


def test_one_chunk_is_enough(tmp_path):
    source = zarr_folder()(tmp_path / "s", BEFORE)
    before = open_source(source).fingerprint()
    for array in ARRAYS:
        file = chunk_file(source, array, 1)
        file.write_bytes(file.read_bytes())
        after = open_source(source).fingerprint()
        assert after != before
        before = after
