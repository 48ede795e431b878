"""Notebooks: how they show plans and reports, progress in a kernel, clients of any kind."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cellgraph_dask import (
    check_connectivities,
    export_connectivities,
    inspect_path,
    open_export,
    plan_export,
    report_export,
    verify_export,
)
from cellgraph_dask.export.check import BrokenRule, CheckReport
from cellgraph_dask.machine import html
from cellgraph_dask.verify.checks import VerifyReport
from tests.helpers.stores import directed_graph, symmetric_graph, write_store

ROOT = Path(__file__).parents[2]
PICTURE: Any = SimpleNamespace(caption="all <edges>")
EXAMPLE = ROOT / "examples/notebook.ipynb"


class _Page(HTMLParser):
    """Collects the text, and refuses what notebooks should not run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = {"style", "role", "aria-label", "title", "scope", "src", "alt"}
        assert {name for name, _ in attrs} <= names
        assert dict(attrs).get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        if tag != "img":
            assert tag in {"div", "span", "table", "tr", "th", "td"}
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def text_of(shown) -> str:
    """Return the text of what a notebook shows."""
    page = _Page()
    page.feed(shown._repr_html_())
    page.close()
    assert page.open == []
    return " ".join(" ".join(page.text).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    store = write_store(folder / "a&<b>.zarr", symmetric_graph(40))
    plan = plan_export(store, folder / "out", memory_limit="4GB")
    report = export_connectivities(store, folder / "out")
    return store, folder / "out", plan, report


def test_a_plan_draws_its_memory(made):
    _, _, plan, _ = made
    text = text_of(plan)
    assert text.startswith("Export plan Memory: ")
    assert "4.0 GB allowed" in text
    assert "a&<b>.zarr" in text
    assert "cells 40" in text
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", plan._repr_html_())]
    shares = (plan.reserved_memory_bytes, plan.projected_memory_bytes - plan.reserved_memory_bytes)
    assert widths == [pytest.approx(100 * part / 4e9, abs=0.01) for part in shares]


def test_a_report_of_an_export(made):
    *_, report = made
    text = text_of(report)
    assert text.startswith("Export ")
    assert f"edges {report.n_edges:,}" in text
    assert re.search(r"time [\d.]+ s", text)
    assert re.search(r"peak memory [\d.]+ [MG]B", text)
    assert "symmetric yes" in text


def test_a_verification(made):
    store, out, *_ = made
    report = verify_export(out, source=store)
    text = text_of(report)
    assert text.startswith("Verification: nothing is wrong ")
    assert "proof sums" in text
    assert re.search(r"degree histogram [▁▂▃▄▅▆▇█]+ from", text)
    assert "provenance source" in text
    wrong = VerifyReport(False, ("edge 3 is <b>wrong</b>",), ("a warning",))
    assert text_of(wrong).startswith(
        "Verification: something is wrong edge 3 is <b>wrong</b> a warning"
    )
    assert "<b>" not in wrong._repr_html_()


def test_what_is_at_a_path(made):
    store, out, *_ = made
    text = text_of(inspect_path(store))
    assert "matrices key format shape entries" in text
    assert "connectivities csr_matrix 40, 40" in text
    assert "Verification: nothing is wrong" in text_of(inspect_path(out))


def test_a_check(tmp_path):
    store = write_store(tmp_path / "s.zarr", directed_graph())
    report = check_connectivities(store)
    text = text_of(report)
    assert text.startswith("Check: something is wrong")
    assert "rule count row column text" in text
    assert report.broken[0].text in text
    rule = BrokenRule("cells", 1, None, None, "too many")
    report = CheckReport(False, "cellucid-0.9.5", "s", "k", 3, 1, (rule,), None, None, 0.1, 10)
    assert "rule count text cells 1 too many" in text_of(report)


def test_a_report_with_its_picture(made):
    pytest.importorskip("matplotlib")
    _, out, *_ = made
    shown = report_export(out, picture=False)
    assert text_of(shown).startswith(f"Report of {out} Is it sound? Yes ")
    drawn = replace(shown, picture=PICTURE, images=(b"\x89PNG<>", b""))
    assert '<img src="data:image/png;base64,' in drawn._repr_html_()
    assert 'alt="all &lt;edges&gt;"' in drawn._repr_html_()
    assert "PNG" not in text_of(drawn)


def test_an_open_export(made):
    _, out, _, report = made
    with open_export(out) as graph:
        text = text_of(graph)
    assert text.startswith("Graph in ")
    assert f"cells 40 edges {report.n_edges:,}" in text
    assert "columns src uint16, dst uint16" in text


def test_a_bar_stays_inside():
    assert "width:100.00%" in html.bar([(5, html.RED)], 1, "too much")
    assert "width:0.00%" in html.bar([(0, html.RED)], 0, "nothing")


# In a kernel


def executed(cells: list[str] | Path, folder: Path, monkeypatch) -> list[list[dict[str, Any]]]:
    """Run cells, or those of a notebook, in a kernel; return the outputs of each."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
    monkeypatch.setenv("IPYTHONDIR", os.fspath(folder / ".ipython"))
    monkeypatch.setenv("HOME", os.fspath(folder))  # Jupyter wants one
    if isinstance(cells, Path):
        notebook = nbformat.read(cells, 4)
    else:
        new = nbformat.v4
        notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs: list[dict[str, Any]]) -> str:
    """Return the text of outputs."""
    page = _Page()
    for output in outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/html" in data:
            page.feed(data["text/html"])
        else:
            page.text.append(data["text/plain"])
    return " ".join(" ".join(page.text).split())


@pytest.mark.slow
def test_the_example_runs_and_its_outputs_tell(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    *outputs, drawn = executed(EXAMPLE, tmp_path, monkeypatch)
    made, plan, export, verified, checked, opened, neighbors = map(shown, outputs)
    assert made.startswith("What is there path cells.zarr kind store")
    assert "2.0 GB allowed" in plan
    assert re.match(r"stream: 100%, [\d,]+ of [\d,]+ entries, 0:0\d, .*/s Export ", export)
    assert verified.startswith("Verification: nothing is wrong")
    assert "one-sided" in checked
    assert "cells 2,000" in opened
    assert neighbors.startswith("array([")
    assert ["image/png" in output["data"] for output in drawn] == [True]


def test_the_example_holds_no_outputs():
    cells = json.loads(EXAMPLE.read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


CLIENTS = [
    """
from distributed import Client
from cellgraph_dask import export_connectivities, plan_export
options = dict(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None)
def do():
    report = export_connectivities("s.zarr", "out", memory_limit="2GB", force=True, progress=None)
    return plan_export("s.zarr", memory_limit="2GB").n_workers, report.n_edges
""",
    """
import asyncio
asynchronous = await Client(asynchronous=True, **options)
here = do()  # on threads, with a warning
there = await asyncio.to_thread(do)
try:
    plan_export("s.zarr", memory_limit="2GB", client=asynchronous)
except Exception as error:
    print(type(error).__name__)
await asynchronous.close()
here, there
""",
    """
synchronous = Client(**options)
found = do()
synchronous.close()
found
""",
]


@pytest.mark.slow
@pytest.mark.cluster
def test_clients_of_any_kind_in_a_kernel(tmp_path, monkeypatch):
    """A kernel has a running event loop: an asynchronous client there cannot be waited for."""
    write_store(tmp_path / "s.zarr", symmetric_graph(40))
    n_edges = symmetric_graph(40).nnz // 2
    _, asynchronous, synchronous = executed(CLIENTS, tmp_path, monkeypatch)
    text = shown(asynchronous)
    assert "the threads of this process do the work" in text
    assert "ClusterError" in text
    assert f"((0, {n_edges}), (1, {n_edges}))" in text
    text = shown(synchronous)
    assert "stream: 100%" in text
    assert f"(1, {n_edges})" in text
