"""Cells chosen by names, by columns and by masks, and their rows and columns of any matrix."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import threading
import warnings
from functools import partial
from pathlib import Path

import anndata
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from scipy import sparse

from cellgraph_dask.errors import MemoryLimitError, SourceError
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.threads import compute_on_threads
from cellgraph_dask.source import names, selection, texts
from cellgraph_dask.source.matrix import Block
from cellgraph_dask.source.opening import open_source
from cellgraph_dask.source.selected import selected
from cellgraph_dask.source.selection import select_cells
from cellgraph_dask.source.spool import spool
from tests.helpers.stores import symmetric_graph, write_store

N = 40
NAMES = [f"cell-{k}" for k in range(N)]
GROUPS = np.arange(N) % 4
COLUMNS = {
    "category": pd.Categorical(GROUPS.astype(str), categories=list("3210x")),
    "numbered": pd.Categorical(GROUPS),
    "text": np.char.add("g", GROUPS.astype(str)).astype(object),
    "integer": GROUPS, "small": GROUPS.astype("u1"), "float": GROUPS / 2,
    "flag": GROUPS == 1, "a=b": GROUPS, "odd name": GROUPS,
    "nullable": pd.array([None if k == 2 else int(k) for k in GROUPS], "Int64"),
    "nullable flag": pd.array([None if k == 2 else bool(k % 2) for k in GROUPS], "boolean"),
    "holes": pd.Categorical([None if k == 2 else f"g{k}" for k in GROUPS]),
}  # fmt: skip
CHOSEN = {
    "category=3": 3, "numbered=1": 1, "text=g2": 2, "integer=0": 0, "integer=1.0": 1, "small=2": 2,
    "float=0.5": 1, "float=1": 2, "flag=true": 1, "flag=True": 1, "a=b=3": 3, "odd name=1": 1,
    "nullable=3": 3, "holes=g3": 3,
}  # fmt: skip


def make_adata():
    adata = anndata.AnnData(obs=pd.DataFrame(COLUMNS, index=NAMES))
    adata.obsp["connectivities"] = symmetric_graph(N)
    return adata


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the same AnnData in stores of both formats, in a file, and in memory."""
    folder, adata = tmp_path_factory.mktemp("sources"), make_adata()
    found = {"memory": adata, "h5ad": folder / "a.h5ad"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(found["h5ad"])
        for zarr_format in (2, 3):
            with anndata.settings.override(zarr_write_format=zarr_format):
                found[f"zarr {zarr_format}"] = folder / f"{zarr_format}.zarr"
                adata.write_zarr(found[f"zarr {zarr_format}"])
        shutil.copy(found["h5ad"], folder / "b.h5ad")
        found["backed"] = anndata.read_h5ad(folder / "b.h5ad", backed="r")
        if hasattr(anndata.experimental, "read_lazy"):
            found["lazy"] = anndata.experimental.read_lazy(found["zarr 3"])
    yield found
    found["backed"].file.close()


def chosen(source, cells, **options):
    """Return which cells are selected."""
    found = select_cells(source, "obsp/connectivities", N, cells, **options)
    return found.original(np.arange(len(found))).tolist()


def numbers(group):
    return np.flatnonzero(group == GROUPS).tolist()


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr 2", "zarr 3", "backed", "lazy"])
def test_columns_however_they_are_written(sources, kind, monkeypatch):
    monkeypatch.setattr(names, "_FEW", 1)
    monkeypatch.setattr(names, "_MANY", 1)  # steps of 64 cells
    if kind not in sources:
        pytest.skip("this anndata reads nothing lazily")
    for text, group in CHOSEN.items():
        assert chosen(sources[kind], f"obs:{text}") == numbers(group), text
    assert chosen(sources[kind], "obs:nullable flag=false") == numbers(0)
    picked = [NAMES[k] for k in (39, 0, 7)]
    assert chosen(sources[kind], picked) == [0, 7, 39]
    with pytest.raises(SourceError, match=r"no cell has category=9; there are '0', '1', '2', '3'"):
        chosen(sources[kind], "obs:category=9")
    with pytest.raises(SourceError, match="no cell has category=x; there are"):
        chosen(sources[kind], "obs:category=x")  # a category without cells
    with pytest.raises(SourceError, match=r"no column 'categori'; it has .* mean 'category'\?"):
        chosen(sources[kind], "obs:categori=3")


def test_columns_of_old_files(tmp_path):
    adata = make_adata()
    with h5py.File(tmp_path / "records.h5ad", "w") as file:  # before 0.7
        kinds = [("index", h5py.string_dtype()), ("group", "i1"), ("n", "i8")]
        file["obs"] = np.array(list(zip(NAMES, GROUPS, GROUPS, strict=True)), kinds)
        file["uns/group_categories"] = np.array([f"g{k}" for k in range(4)], h5py.string_dtype())
        graph = file.create_group("obsp/connectivities")
        matrix = adata.obsp["connectivities"]
        graph.attrs.update({"encoding-type": "csr_matrix", "shape": matrix.shape})
        for name in ("indptr", "indices", "data"):
            graph[name] = getattr(matrix, name)
    assert chosen(tmp_path / "records.h5ad", "obs:group=g2") == numbers(2)
    assert chosen(tmp_path / "records.h5ad", "obs:n=1") == numbers(1)
    assert chosen(tmp_path / "records.h5ad", ["cell-3"]) == [3]
    store = write_store(tmp_path / "s.zarr", matrix, consolidated=False)  # before 0.8
    obs = zarr.open_group(store, mode="r+")["obs"]
    obs.create_array("group", data=GROUPS.astype("i1"))
    obs.create_group("__categories").create_array("group", data=np.array([5, 6, 7, 8]))
    assert chosen(store, "obs:group=7") == numbers(2)
    with pytest.raises(SourceError, match="has no column 'x'; it has group"):
        chosen(store, "obs:x=1")


@pytest.mark.parametrize(
    "content",
    [
        b"cell-7\ncell-0\n", b"cell-7\ncell-0", b"\xef\xbb\xbfcell-7\r\n\r\ncell-0\r\n",
        b"\n \ncell-7\n\ncell-0",
    ],
)  # fmt: skip
def test_files_of_names(sources, tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    for cells in (path, str(path), f"file://{path}"):
        assert chosen(sources["zarr 2"], cells) == [0, 7]


def test_files_that_are_pipes(sources, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for content, expected in (("cell-3\ncell-1\n", [1, 3]), ("cell-3\nx\n", None)):
        writer = threading.Thread(target=path.write_text, args=[content])
        writer.start()
        if expected:
            assert chosen(sources["memory"], path) == expected
        else:
            with pytest.raises(SourceError, match="there is no cell line 2 of"):
                chosen(sources["memory"], path)
        writer.join()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cell-1\n\nx\ncell-99\n", r"no cell 'x', line 3 of .*names.txt, .* 40 .* is 'cell-0'\."),
        (b"cell-2\ncell-1\n\ncell-2\n", r"'cell-2', line 4 of .* is the same as line 1 of"),
        (b"", r"selects none of the 40 cells"), (b"\n\r\n", r"selects none of the 40 cells"),
        ("cell-1\n".encode("utf-16"), "line 1 of .* is not text in UTF-8"),
        (b"cell-1\n" + b"x" * 70_000, "line 2 of .* is longer than 65536 bytes"),
        (b"cell-1 \n", r"there is no cell 'cell-1 ', line 1 of"),
    ],
)  # fmt: skip
def test_files_that_are_refused(sources, tmp_path, content, message):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        chosen(sources["zarr 3"], path)


def test_what_else_is_refused(sources, tmp_path):
    adata = sources["memory"]
    for cells, message in (
        (tmp_path / "none.txt", "cannot be read: No such file"), (tmp_path, "cannot be read: Is a"),
        ("obs:category", "does not name a value"), (["cell-1", "y", "x"], "no cell 'y', number 1,"),
        (np.zeros(N, bool), "a mask selects none of the 40 cells"), ([], "selects none"),
        (["cell-1", "cell-1"], "'cell-1', number 1, is the same as number 0"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=message):
            chosen(adata, cells)
    for cells in (np.ones(3, bool), [True], [1, 2], np.arange(4), ["cell-1", 2]):
        with pytest.raises(ValueError, match=r"needs a value for each|cells must be names"):
            chosen(adata, cells)
    with pytest.raises(SourceError, match=re.escape("matrix[cells][:, cells]")):
        select_cells(symmetric_graph(N), "", N, ["cell-1"])
    twice = make_adata()
    twice.obs_names = ["a", "b", *NAMES[2:-1], "a"]
    assert chosen(twice, ["b", "cell-9"]) == [1, 9]
    with pytest.raises(SourceError, match="several cells are called 'a'"):
        chosen(twice, ["cell-9", "a"])
    assert chosen(twice, "obs:integer=3") == numbers(3)


def test_masks(sources):
    mask = GROUPS == 2
    for cells in (mask, mask.tolist(), pd.Series(mask), pd.array(mask, "boolean")):
        assert chosen(sources["memory"], cells) == numbers(2)
    assert chosen(sources["memory"], pd.Index(["cell-5", "cell-4"])) == [4, 5]
    assert chosen(sources["memory"], np.array(["cell-5", "cell-4"])) == [4, 5]


def test_the_memory_that_finding_cells_takes_is_counted(sources):
    with pytest.raises(MemoryLimitError, match=r"finding the cells takes .* Allow") as told:
        chosen(sources["zarr 2"], ["cell-1"], limit=10**6)
    assert chosen(sources["zarr 2"], ["cell-1"], limit=told.value.needed_bytes + 10**8) == [1]


def test_chunks_that_are_too_large_are_refused(sources, monkeypatch):
    monkeypatch.setattr(names, "_MOST_AT_ONCE", 3)
    with pytest.raises(SourceError, match=rf"obs/text comes in chunks .* {texts.ADVICE}"):
        chosen(sources["zarr 2"], "obs:text=g1")
    monkeypatch.setattr(names, "_MOST_NUMBERS", 3)
    with pytest.raises(SourceError, match="obs/integer comes in chunks of 40 values"):
        chosen(sources["zarr 2"], "obs:integer=1")


@given(hn.arrays(bool, st.integers(1, 400)))
def test_numbers_of_selected_cells(mask):
    bits = selection._Bits(mask.size)
    bits.set(0, mask)
    some = pickle.loads(pickle.dumps(selection.Selection("x", mask.size, bits.words)))
    cells = np.flatnonzero(mask)
    assert len(some) == cells.size
    expected = np.full(mask.size, -1)
    expected[cells] = np.arange(cells.size)
    for dtype in (np.int32, np.int64):
        assert some.rank(np.arange(mask.size, dtype=dtype)).tolist() == expected.tolist()
    assert some.count(np.arange(mask.size + 1)).tolist() == [0, *np.cumsum(mask).tolist()]
    assert some.original(np.arange(cells.size)).tolist() == cells.tolist()


def taken(matrix, mask, folder):
    """Return the selected rows and columns of what is opened, as they are spooled."""
    bits = selection._Bits(mask.size)
    bits.set(0, mask)
    part = selected(open_source(matrix), selection.Selection("x", mask.size, bits.words))
    compute = partial(
        compute_on_threads, n_threads=2, limit=2**60, task_bytes=part.task_bytes
    )  # fmt: skip
    folder.mkdir()
    found = spool(part, folder, compute, Progress())
    indptr, indices, data = found.read_rows(Block(0, 0, found.n_entries, 0, found.n_cells))
    kind = sparse.csc_array if found.layout == "csc" else sparse.csr_array
    return kind((data, indices, indptr), shape=(found.n_cells, found.n_cells))


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "dask", "dask sparse", "zarr", "zarr csc"])
def test_rows_and_columns_are_those_of_scipy(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("cellgraph_dask.source.selected._BLOCK_ENTRIES", 37)
    rng = np.random.default_rng(0)
    matrix = sparse.random(70, 70, 0.2, random_state=1, format="csr")
    base = {
        "csr": lambda: matrix, "csc": matrix.tocsc, "dense": matrix.toarray,
        "dask": lambda: da.from_array(matrix.toarray(), chunks=(30, 17)),
        "dask sparse": lambda: da.from_array(matrix.toarray(), chunks=(30, 70)).map_blocks(
            sparse.csr_matrix
        ),
        "zarr": lambda: write_store(tmp_path / "s.zarr", matrix, chunk=16),
        "zarr csc": lambda: write_store(tmp_path / "s.zarr", matrix.tocsc(), chunk=16),
    }[kind]()  # fmt: skip
    for k, share in enumerate((0.5, 1, 0.02)):
        mask = rng.random(70) < share
        mask[-1] = True
        got = taken(base, mask, tmp_path / str(k))
        cells = np.flatnonzero(mask)
        assert got.nnz == matrix[cells][:, cells].nnz
        assert (got != matrix[cells][:, cells]).nnz == 0


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8", "bool"])
def test_nothing_is_added_up(tmp_path, dtype):
    indptr, indices = np.array([0, 4, 6, 8]), np.array([2, 0, 2, 1, 1, 0, 0, 2])
    data = np.array([1, 2, 3, 4, 0, 5, 6, 7]).astype(dtype)
    matrix = sparse.csr_matrix((3, 3), dtype="f4")
    matrix.indptr, matrix.indices, matrix.data = indptr, indices, data
    got = taken(matrix, np.array([True, False, True]), tmp_path / "a")
    assert got.indptr.tolist() == [0, 3, 5]
    assert got.indices.tolist() == [1, 0, 1, 0, 1]
    assert got.data.tolist() == data[[0, 1, 2, 6, 7]].tolist()
    assert got.data.dtype == ("f4" if dtype == "f2" else dtype)


def test_a_part_of_a_hub_is_not_held_with_all_that_follows(tmp_path, monkeypatch):
    """Blocks share a task only while they have few entries together."""
    monkeypatch.setattr("cellgraph_dask.source.selected._BLOCK_ENTRIES", 2**10)
    matrix = sparse.csr_matrix(np.ones((300, 300), "f4"))
    bits = selection._Bits(300)
    bits.set(0, np.arange(300) < 200)
    part = selected(open_source(matrix), selection.Selection("x", 300, bits.words))
    assert part.array.shape == (200, 200)
    assert sum(part.loads) == pytest.approx(200 * 300 / 16, rel=0.1)
    assert Path(tmp_path).exists()
