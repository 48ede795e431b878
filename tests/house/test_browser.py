"""A gzip export in a real browser: DecompressionStream takes it, and every edge is right.

Browsers are stricter than Python and zlib: a second gzip member is an error to them.
"""

from __future__ import annotations

import gzip
import os
import queue
import shutil
import signal
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellgraph_dask import export_connectivities
from cellgraph_dask.delivery import edge_files
from cellgraph_dask.edge_pairs import gzip_member
from tests.helpers.browser import CHROMIUM, OPTIONS
from tests.helpers.stores import symmetric_graph, write_store
from tests.oracle import oracle_edges, read_export

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium is installed"
    ),
]


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and takes the page's result."""

    def __init__(self, *arguments, results: queue.Queue[str], **options) -> None:
        self._results = results
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self._results.put(self.rfile.read(length).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, queue.Queue[str]]]:
    """Serve a folder on the loopback; give its address and where results arrive."""
    results: queue.Queue[str] = queue.Queue()
    handler = partial(_Handler, directory=str(folder), results=results)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", results
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium(profile: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Open a page in a browser of our own, and close that browser with all its processes."""
    assert CHROMIUM is not None, "Chromium has to be installed where CI=true"
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [
                CHROMIUM,
                *OPTIONS,
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                address,
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def page_result(folder: Path, edges: tuple[np.ndarray, np.ndarray]) -> str:
    """Return what the page says of the export in ``folder/export``."""
    shutil.copy(Path(__file__).parents[1] / "helpers" / "check_edges.html", folder / "index.html")
    for side, values in zip(("src", "dst"), edges, strict=True):
        (folder / f"expected.{side}").write_bytes(values.astype("<u4").tobytes())
    with served(folder) as (address, results), chromium(folder / "profile", address):
        return results.get(timeout=60)


def members(path: Path) -> int:
    """Return the number of gzip members in a file."""
    raw, n = path.read_bytes(), 0
    while raw:
        inflate = zlib.decompressobj(31)
        inflate.decompress(raw)
        assert inflate.eof
        raw, n = inflate.unused_data, n + 1
    return n


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 6, 9])
def test_every_edge_of_small_parts(tmp_path, monkeypatch, level):
    monkeypatch.setattr(edge_files, "PART_EDGES", 100)
    matrix = symmetric_graph(400, 8)
    source = write_store(tmp_path / "s.zarr", matrix)
    report = export_connectivities(source, tmp_path / "export", compression=level, threads=2)
    assert report.n_edges > 1000
    assert page_result(tmp_path, oracle_edges(matrix)) == f"PASS {report.n_edges} edges"


def test_every_edge_of_more_than_one_part(tmp_path):
    # Sixteen diagonals: so many edges that even parts of their usual size are two to a file.
    n_cells = 70_000
    steps = np.arange(1, 17)
    src = np.repeat(np.arange(n_cells), steps.size)
    dst = src + np.tile(steps, n_cells)
    src, dst = src[dst < n_cells], dst[dst < n_cells]
    assert gzip_member.PART_EDGES < src.size < 2 * gzip_member.PART_EDGES
    indptr = np.searchsorted(src, np.arange(n_cells + 1))
    matrix = sparse.csr_matrix((np.ones(src.size, np.float32), dst, indptr), (n_cells, n_cells))
    source = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(source, tmp_path / "export", compression=6)
    assert page_result(tmp_path, (src, dst)) == f"PASS {src.size} edges"


def test_a_plain_export(tmp_path):
    matrix = symmetric_graph(50, 4)
    source = write_store(tmp_path / "s.zarr", matrix)
    report = export_connectivities(source, tmp_path / "export")
    assert page_result(tmp_path, oracle_edges(matrix)) == f"PASS {report.n_edges} edges"


def test_an_export_without_edges(tmp_path):
    matrix = sparse.csr_matrix((5, 5), dtype=np.float32)
    source = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(source, tmp_path / "export", compression=6)
    assert page_result(tmp_path, oracle_edges(matrix)) == "PASS 0 edges"


def test_the_page_refuses_a_second_member(tmp_path):
    # What the check is worth: Python reads this file without a word, the browser does not.
    matrix = symmetric_graph(50, 4)
    source = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(source, tmp_path / "export", compression=6)
    path = tmp_path / "export/connectivity/edges.dst.bin.gz"
    assert members(path) == 1
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:]))
    assert members(path) == 2
    assert read_export(tmp_path / "export").dst.tolist() == oracle_edges(matrix)[1].tolist()
    assert page_result(tmp_path, oracle_edges(matrix)).startswith("FAIL TypeError")


def test_the_page_refuses_a_wrong_edge(tmp_path):
    matrix = symmetric_graph(50, 4)
    source = write_store(tmp_path / "s.zarr", matrix)
    export_connectivities(source, tmp_path / "export", compression=6)
    src, dst = oracle_edges(matrix)
    dst[-1] -= 1
    result = page_result(tmp_path, (src, dst))
    assert result.startswith(f"FAIL Error: destinationsPath: edge {dst.size - 1} is")
