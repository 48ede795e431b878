"""A CSR element that threads write together: whatever the pieces, their order and interruptions."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from cellgraph_dask.delivery import csr_files, zarr_files
from cellgraph_dask.delivery.csr_files import CsrFiles
from cellgraph_dask.delivery.places import StoppedError
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.stage import Journal, ResumableExecutor
from cellgraph_dask.runtime.threads import Threads
from cellgraph_dask.stages.job import Job
from cellgraph_dask.stages.runs import Scratch

CHUNK = 16


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    for module in (csr_files, zarr_files):
        monkeypatch.setattr(module, "CHUNK_VALUES", CHUNK)
    monkeypatch.setattr(csr_files, "_SLAB", 3)


class _Sized:
    """A source of which only the number of cells matters."""

    def __init__(self, n_cells):
        self.n_cells = n_cells


def job_of(folder, n_cells):
    """Return a job whose scratch is in a folder."""
    (folder / "scratch").mkdir(exist_ok=True, parents=True)
    return Job(_Sized(n_cells), Scratch(str(folder / "scratch")), 8, "symmetric", "max", True, True)


def opened(folder, n_cells, dtype, zarr_format, journal):
    """Return the element of a folder, to be written or resumed."""
    executor = ResumableExecutor(Threads(1, Progress()), journal)
    return CsrFiles(
        folder / "element", job_of(folder, n_cells), executor, dtype=np.dtype(dtype),
        zarr_format=zarr_format,
    )  # fmt: skip


@st.composite
def pieces_of_rows(draw):
    """Draw rows, some without edges, and where they are cut into pieces."""
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), min_size=1, max_size=30))
    n = sum(lengths)
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    done = draw(st.sets(st.integers(0, len(cuts))))
    return lengths, [0, *cuts, n], done


@pytest.mark.slow
@given(
    rows=pieces_of_rows(),
    zarr_format=st.sampled_from([2, 3]),
    dtype=st.sampled_from(["f4", "f8"]),
    late=st.booleans(),
    lost=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_pieces(tmp_path_factory, rows, zarr_format, dtype, late, lost, seed):
    folder = tmp_path_factory.mktemp("csr")
    lengths, cuts, done = rows
    n_cells, n = len(lengths), sum(lengths)
    rng = np.random.default_rng(seed)
    src = np.repeat(np.arange(n_cells, dtype=np.uint32), lengths)
    dst = rng.integers(0, n_cells, n).astype(np.uint32)
    weights = rng.random(n).astype(dtype)
    counts = np.diff(cuts).tolist()

    def columns(k):
        return [column[cuts[k] : cuts[k + 1]] for column in (src, dst, weights)]

    with closing(Journal(folder, "j")) as journal:  # only some pieces are finished
        files = opened(folder, n_cells, dtype, zarr_format, journal)
        places = [files.place(k, columns(k)[0]) for k in range(len(counts))]
        assert places == cuts[:-1]
        for k in done:
            files.write(places[k], *columns(k))
        files.close()
    chunks = [path for path in (folder / "element").rglob("*") if path.is_file()]
    if lost and chunks:
        chunks[0].write_bytes(b"damaged")
    with closing(Journal(folder, "j")) as journal:
        files = opened(folder, n_cells, dtype, zarr_format, journal)
        kept = {}
        for k in done:
            wanted = columns(k)
            found = [np.zeros_like(column) for column in wanted]
            try:
                files.read(places[k], *found)
            except EOFError:  # of its chunks one is not full, or damaged
                assert lost or counts[k] < 2 * CHUNK or cuts[k] % CHUNK or cuts[k + 1] % CHUNK
                continue
            assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
            kept[k] = counts[k]
        files.keep(kept)
        rest = [k for k in range(len(counts)) if k not in kept]
        for k in rest:
            assert files.place(k, columns(k)[0]) == places[k]
        for k in reversed(rest) if late else rest:
            files.write(places[k], *columns(k))
        n_bytes = files.finish(counts)
        files.close()
    group = zarr.open_group(folder / "element", mode="r")
    assert group["indptr"][:].tolist() == np.searchsorted(src, np.arange(n_cells + 1)).tolist()
    assert np.array_equal(group["indices"][:], dst.astype(np.int32))
    assert np.array_equal(group["data"][:], weights)
    assert {name: str(array.dtype) for name, array in group.arrays()} == {
        "indptr": "int32", "indices": "int32", "data": np.dtype(dtype).name,
    }  # fmt: skip
    names = (".zarray", ".zattrs", ".zgroup", "zarr.json")
    chunks = [p for p in (folder / "element").rglob("*") if p.is_file() and p.name not in names]
    assert n_bytes == sum(path.stat().st_size for path in chunks)


def test_tasks_that_wait_end_when_another_fails(tmp_path):
    with closing(Journal(tmp_path, "j")) as journal:
        files = opened(tmp_path, 9, "f4", 2, journal)
        files.stop()
        with pytest.raises(StoppedError):
            files.place(1, np.zeros(5, np.uint32))
        files.close()
