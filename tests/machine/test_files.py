"""New files have the bytes they were given, whether they go past the system's cache or not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from cellgraph_dask import export_connectivities
from cellgraph_dask.machine import files
from cellgraph_dask.machine.files import FullError, opened, write_new
from tests.helpers.disks import Disks
from tests.helpers.planting import edges_of
from tests.helpers.stores import directed_graph, write_store

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR
ROOM = files._PAST_CACHE_BYTES
SIZES = [[0], [1], [4095, 1], [ROOM], [ROOM - 4, 8, 0, ROOM], [3 * ROOM + 4097]]


@pytest.fixture
def little_memory(monkeypatch):
    """Make every file one that takes a good part of the memory."""
    monkeypatch.setattr(files, "machine_memory", lambda: 0)


def parts_of(sizes):
    rng = np.random.default_rng(sum(sizes))
    parts = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    return [part.view(np.uint32) if part.size % 4 == 0 else part for part in parts]


def write(path, parts):
    with opened(path, NEW) as fd:
        return write_new(fd, parts)


def check(path, sizes):
    parts = parts_of(sizes)
    written = write(path, parts)
    content = b"".join(part.tobytes() for part in parts)
    assert path.read_bytes() == content
    assert written == (len(content), zlib.crc32(content))


def pages_in_cache(path):
    """Return how many pages of a file the system has in its cache, by mincore(2)."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        n_pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * n_pages)()
        view = (ctypes.c_char * size).from_buffer(mapped)
        begin = ctypes.c_void_p(ctypes.addressof(view))
        status = ctypes.CDLL(None, use_errno=True).mincore(begin, ctypes.c_size_t(size), found)
        del view
        assert status == 0
        return sum(state & 1 for state in found)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_small_ones(tmp_path, sizes):
    check(tmp_path / "f", sizes)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_those_that_go_past_the_cache(tmp_path, sizes):
    check(tmp_path / "f", sizes)


@pytest.fixture
def on_disk():
    """Return a folder on a disk whose files can go past the cache, or skip."""
    with TemporaryDirectory(dir="/var/tmp") as folder:
        device = Path(folder).stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        kinds = {mount[mount.index("-") + 1] for mount in mounts if mount[2] == number}
        if not kinds & {"ext4", "xfs"}:
            pytest.skip(f"/var/tmp is not on ext4 or xfs, but on {kinds}")
        yield Path(folder)


@pytest.mark.usefixtures("little_memory")
def test_only_the_last_part_stays_in_the_cache(on_disk):
    path = on_disk / "f"
    write(path, parts_of([4 * ROOM + 5 * mmap.PAGESIZE]))
    assert pages_in_cache(path) <= 5
    assert path.read_bytes()
    assert pages_in_cache(path) == (4 * ROOM) // mmap.PAGESIZE + 5


@pytest.mark.usefixtures("little_memory")
def test_those_on_a_disk(on_disk):
    for number, sizes in enumerate(SIZES):
        check(on_disk / str(number), sizes)


@pytest.mark.usefixtures("little_memory")
def test_a_disk_whose_blocks_are_larger(tmp_path, monkeypatch):
    real, refused = os.pwrite, []

    def refuse(fd, view, offset):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "no")
        return real(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    check(tmp_path / "f", [3 * ROOM + 4097])
    assert refused in ([], [0])  # once, if the file system takes the flag


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EINVAL])
def test_what_the_disk_says(tmp_path, monkeypatch, error):
    def fail(*_):
        raise OSError(error, "no")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="no") as raised:
        write(tmp_path / "f", parts_of([2 * ROOM]))
    assert raised.value.errno == error
    assert isinstance(raised.value, FullError) == (error == errno.ENOSPC)


@pytest.mark.usefixtures("little_memory")
def test_a_disk_in_memory(tmp_path):
    with Disks(tmp_path) as disks:
        disk = disks.mount("disk", "size=16m")
        check(disk / "f", [2 * ROOM + 5])
        with pytest.raises(FullError):
            write(disk / "g", parts_of([16 * 2**20]))


@pytest.mark.parametrize(("n_files", "past"), [(1, False), (4, False), (5, True)])
def test_many_files_go_past_the_cache_and_few_stay(tmp_path, monkeypatch, n_files, past):
    monkeypatch.setattr(files, "machine_memory", lambda: 8 * ROOM)
    went = []
    write = files._write_past_cache
    monkeypatch.setattr(
        files, "_write_past_cache", lambda fd, parts: went.append(fd) or write(fd, parts)
    )
    with opened(tmp_path / "f", NEW) as fd:
        assert write_new(fd, parts_of([ROOM]), n_files)[0] == ROOM
    assert bool(went) == past


@pytest.mark.parametrize("more", [{}, {"rule": "max", "top_k": 3}])
def test_an_export_whose_runs_go_past_the_cache(tmp_path, monkeypatch, more):
    store = write_store(tmp_path / "s.zarr", directed_graph(3000, 7), chunk=1000)
    export_connectivities(store, tmp_path / "cached", memory_limit="4GB", **more)
    monkeypatch.setattr(files, "machine_memory", lambda: 0)
    monkeypatch.setattr(files, "_PAST_CACHE_BYTES", 2 * files._BLOCK)
    n_past = []
    write = files._write_past_cache
    monkeypatch.setattr(
        files, "_write_past_cache", lambda fd, parts: n_past.append(fd) or write(fd, parts)
    )
    export_connectivities(store, tmp_path / "past", memory_limit="4GB", **more)
    assert n_past
    assert edges_of(tmp_path / "cached") == edges_of(tmp_path / "past") != []
