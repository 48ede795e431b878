"""Temporary files that were damaged are noticed, whatever byte it is, and take no memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cellgraph_dask.stages.rows import RowSink
from cellgraph_dask.stages.runs import RunReader, Scratch, write_run

SRC = np.repeat(np.array([5, 7, 8, 9], np.uint32), [3, 1, 4, 2])
DST = np.arange(SRC.size, dtype=np.uint32)
WEIGHTS = np.linspace(0.5, 1, SRC.size).astype(np.float32)


@pytest.fixture
def rows(tmp_path):
    sink = RowSink(Scratch(str(tmp_path)), np.dtype(np.float32))
    sink.write(0, SRC, DST, WEIGHTS)
    return sink


def read(sink):
    columns = np.zeros_like(SRC), np.zeros_like(DST), np.zeros_like(WEIGHTS)
    sink.read(0, *columns)
    return columns


def test_rows_come_back(rows):
    assert all(map(np.array_equal, read(rows), (SRC, DST, WEIGHTS)))


def test_any_bit_of_rows(rows):
    path = rows.scratch.run("rows", 0)
    content = path.read_bytes()
    n_noticed = 0
    tracemalloc.start()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read(rows)  # whose checksum tells if they are others
        except (OSError, EOFError, ValueError):
            n_noticed += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert n_noticed > 8 * 8 * 3


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 20, 40])
def test_a_file_that_was_cut(tmp_path, n_bytes):
    path = tmp_path / "f.run"
    write_run(path, [({"a": DST}, np.array([0, 3, DST.size]))])
    path.write_bytes(path.read_bytes()[-n_bytes:] if n_bytes else b"")
    with pytest.raises((OSError, EOFError, ValueError)):
        RunReader(path, [({"a": np.dtype(np.uint32)}, 3)])
