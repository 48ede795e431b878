"""Any small matrix gives the oracle's edges, however it is stored, cut and worked on."""

import tempfile
import warnings
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from cellgraph_dask.source.opening import open_source
from cellgraph_dask.stages.job import Tuning
from tests.helpers.effort import part_of
from tests.helpers.exporting import run_export
from tests.helpers.stores import put

INDEX_DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"]
FLOAT_DTYPES = ["f2", "f4", "f8", ">f8"]
INTEGER_DTYPES = ["i1", "i2", "i4", "i8"]
UNSIGNED_DTYPES = ["u1", "u2", "u4", "u8", "?"]


def oracle(n, entries):
    """Return the sorted edges of C + C.T, added up exactly; entries are (i, j, weight)."""
    total = defaultdict(Fraction)
    for i, j, w in entries:
        total[min(i, j), max(i, j)] += Fraction(w)
    edges = sorted(pair for pair, w in total.items() if w != 0 and pair[0] < pair[1])
    degrees = np.bincount(np.array(edges, int).ravel(), minlength=1) if edges else [0]
    return edges, int(max(degrees))


def weights_of(dtype):
    kind = np.dtype(dtype)
    if kind.kind == "f":  # sums of these are exact in any order
        return st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0, 0.25, 2.0, -0.0])
    if kind.kind == "b":
        return st.booleans().map(int)
    info = np.iinfo(kind)
    special = [0, 1, 2, info.max, info.min, info.max - 1]
    if info.min < 0:
        special += [-1, -2, -info.max]
    return st.sampled_from(special)


@st.composite
def stores(draw):
    """Draw a matrix, and how it is stored and cut."""
    around = st.sampled_from([255, 256, 257, 65_534, 65_535, 65_536])
    n = draw(st.one_of(st.integers(1, 12), around))
    # Cells that meet often, so that there are repeats, both directions, and hubs.
    cells = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=6)) | {0, n - 1})
    rows = draw(st.lists(st.sampled_from(cells), max_size=40))
    columns = [draw(st.sampled_from(cells)) for _ in rows]
    dtype = draw(st.sampled_from(FLOAT_DTYPES + INTEGER_DTYPES + UNSIGNED_DTYPES))
    weights = [draw(weights_of(dtype)) for _ in rows]
    if draw(st.booleans()):  # a symmetric matrix, perhaps with repeats and signs
        rows, columns, weights = rows + columns, columns + rows, weights * 2
    wide_enough = [d for d in INDEX_DTYPES if np.iinfo(d).max >= n - 1]
    return {
        "n": n,
        "entries": sorted(zip(rows, columns, weights, strict=True), key=lambda e: e[0]),
        "dtype": dtype,
        "index_dtype": draw(st.sampled_from(wide_enough)),
        "csc": draw(st.booleans()),
        "chunk": draw(st.sampled_from([1, 2, 3, 7, 100])),
        "zarr_format": draw(st.sampled_from([2, 3])),
        "tuning": Tuning(
            block_entries=draw(st.sampled_from([1, 2, 5, 1000])),
            # Tens of thousands of blocks would take a second, and show no more than hundreds.
            block_rows=draw(st.sampled_from([1, 3, 100_000] if n < 300 else [999, 100_000])),
            piece_entries=draw(st.sampled_from([1, 2, 5, 1000])),
            shift=draw(st.sampled_from([0, 1, 8])) if n < 300 else draw(st.sampled_from([8, 16])),
            threads=draw(st.sampled_from([1, 2, 4])),
        ),
        "compression": draw(st.sampled_from([None, None, 1])),
        "method": draw(st.sampled_from([None, "symmetric", "general"])),
    }


def looks_lost(indptr, chunk):
    """Tell whether chunks of zeros at the head would be taken for lost ones if they were absent."""
    at = np.argmax(indptr > 0) // chunk * chunk
    return indptr[at] > np.diff(indptr[at:]).max(initial=0)


def write(path, case):
    """Write the store with the arrays exactly as drawn: rows unsorted, repeats kept."""
    entries, n, fmt = case["entries"], case["n"], case["zarr_format"]
    rows = np.array([e[0] for e in entries], np.int64)
    columns = [e[1] for e in entries]
    arrays = {
        "indptr": np.searchsorted(rows, np.arange(n + 1)).astype("i8"),
        "indices": np.array(columns, case["index_dtype"]),
        "data": np.array([e[2] for e in entries], case["dtype"]),
    }
    store = MemoryStore()
    root = zarr.open_group(store, mode="w", zarr_format=fmt)
    group = root.create_group("obsp/connectivities")
    kind = "csc_matrix" if case["csc"] else "csr_matrix"
    group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": [n, n]})
    for name, values in arrays.items():
        chunk = max(1, case["chunk"] if name != "indptr" else min(n + 1, 100 * case["chunk"]))
        # The matrix may hold chunks of nothing but stored zeros or repeated zero columns.
        told = case["chunk"] > 4 or (name == "indptr" and chunk > 4 and looks_lost(values, chunk))
        with zarr.config.set({"array.write_empty_chunks": bool(told)}):
            array = group.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=(chunk,), fill_value=0
            )
            array[:] = values
    put(store, path)


def exported(out_dir, n):
    import gzip
    import json

    manifest = json.loads((out_dir / "connectivity_manifest.json").read_text())
    read = gzip.open if manifest["compression"] else open
    dtype = "<u2" if n <= 65_535 else "<u4"
    sides = []
    for name in ("sourcesPath", "destinationsPath"):
        with read(out_dir / manifest[name], "rb") as file:
            sides.append(np.frombuffer(file.read(), dtype).tolist())
    return list(zip(*sides, strict=True)), manifest


@pytest.mark.slow
@settings(max_examples=part_of(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=stores())
def test_any_matrix(case):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        store, out_dir = Path(folder, "s.zarr"), Path(folder, "out")
        write(store, case)
        tuning = case["tuning"]
        run_export(
            open_source(store),
            out_dir,
            tuning=tuning,
            compression=case["compression"],
            method=case["method"],
        )
        edges, manifest = exported(out_dir, case["n"])
        expected, max_neighbors = oracle(case["n"], case["entries"])
        assert edges == expected
        assert manifest["n_edges"] == len(expected)
        assert manifest["max_neighbors"] == max_neighbors
        assert not list(Path(folder).glob("out/.*"))


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_sums_that_would_overflow_keep_their_edge(tmp_path, dtype):
    info = np.iinfo(dtype)
    entries = [(0, 1, info.max // 2 + 1), (1, 0, info.max // 2 + 1), (1, 2, info.min or 2**63),
               (2, 1, info.min or 2**63)]  # fmt: skip
    case = {
        "n": 3, "entries": entries, "dtype": dtype, "index_dtype": "i4", "csc": False,
        "chunk": 100, "zarr_format": 3,
    }  # fmt: skip
    write(tmp_path / "s.zarr", case)
    run_export(open_source(tmp_path / "s.zarr"), tmp_path / "out")
    assert exported(tmp_path / "out", 3)[0] == [(0, 1), (1, 2)]
