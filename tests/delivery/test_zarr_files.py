"""Zarr arrays as files: what zarr and numcodecs read from them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import zarr
from numcodecs import blosc

from cellgraph_dask.delivery.zarr_files import (
    ArrayFiles,
    blosc_frame,
    byte_planes,
    write_documents,
    zlib_stream,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "i8", "f8"])
@pytest.mark.parametrize("n", [1, 31, 127, 128, 129, 1000, 9000, 1 << 18])
@pytest.mark.parametrize("kind", ["small", "noise", "zeros"])
def test_frames_are_blosc_s(dtype, n, kind):
    most = {"small": 50, "noise": 2**15, "zeros": 1}[kind]
    values = RNG.integers(0, most, n).astype(dtype)
    if kind == "noise":
        values = RNG.bytes(values.nbytes)
        values = np.frombuffer(values, dtype)
    planes = byte_planes(values)
    assert np.array_equal(planes, values.view(np.uint8).reshape(n, -1).T)
    frame = blosc_frame(planes)
    assert blosc.decompress(frame) == values.tobytes()
    theirs = blosc.compress(values, b"zlib", 6, blosc.SHUFFLE, 0)
    assert len(frame) <= 1.25 * len(theirs)
    assert zlib.decompress(zlib_stream(planes)) == planes.tobytes()
    assert frame[:2] == theirs[:2]
    assert frame[3:8] == theirs[3:8]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("values", "chunks"),
    [
        (np.arange(7, dtype=np.int32), (3,)),
        (RNG.random((5, 4)).astype(np.float32), (2, 3)),
        (RNG.random((3, 4, 5)), (2, 4, 2)),
        (np.array([True, False, True]), (2,)),
        (np.array(2.5), ()),
        (np.array(["a", "é" * 300, ""], object), (2,)),
        (np.zeros(0, np.float64), (1,)),
        (np.array([1, 300], ">u2"), (2,)),
        (np.zeros(9, np.int64), (4,)),
    ],
)
def test_zarr_reads_what_is_written(tmp_path, zarr_format, values, chunks):
    dtype = np.dtype(values.dtype).newbyteorder("<") if values.dtype != object else values.dtype
    array = ArrayFiles(tmp_path / "a", zarr_format, values.shape, chunks, dtype)
    array.write_metadata({"encoding-type": "array"})
    for number in range(array.n_chunks):
        array.write(number, values[array.corner(number)].astype(dtype))
        assert array.path(number).exists()
    found = zarr.open_array(tmp_path / "a", mode="r")
    assert found.metadata.zarr_format == zarr_format
    assert dict(found.attrs) == {"encoding-type": "array"}
    assert np.asarray(found[...]).tolist() == values.tolist()


def test_writing_twice_leaves_one_file(tmp_path):
    write_documents(tmp_path, {"zarr.json": "{}"})
    write_documents(tmp_path, {"zarr.json": "[]"})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["[]"]
