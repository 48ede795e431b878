"""The page of a report: whole, with nothing from outside, and as a browser shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cellgraph_dask import export_connectivities, report_export
from cellgraph_dask.edge_pairs.provenance import Provenance
from cellgraph_dask.errors import hide
from cellgraph_dask.look.page import page, text
from tests.helpers.browser import CHROMIUM, tab
from tests.look.test_report import graph, store  # noqa: F401 (a fixture)

AXE = "axe-core@4.14.1"
EVIL = "<script>alert(1)</script>\"'&\x00\u202e\udcff"
_VOID = {"meta", "link", "img", "br", "rect", "line", "path"}


class Parsed(HTMLParser):
    """The elements of a page: nested as they should be, and what they hold."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of some kinds."""
        return [attrs for tag, attrs in self.found if tag in tags]

    def text_of(self, tag: str) -> list[str]:
        """Return the texts right inside elements of a kind."""
        return [content for inside, content in self.texts if inside == tag]


@pytest.fixture(scope="module")
def report(store):  # noqa: F811
    """Give the report of an export with everything."""
    export_connectivities(store, store.parent / "export", weights=True)
    return report_export(store.parent / "export", source=store, picture=False)


SECTIONS = [
    "At a glance", "Picture", "Neighbors of a cell", "Connected components", "Lengths of the edges",
    "Weights", "Size, and what viewers take", "Where it comes from", "Files", "This verification",
]  # fmt: skip


def test_the_page_is_whole(report):
    parsed = Parsed(report.to_html())
    assert parsed.text_of("h2") == SECTIONS
    ids = [attrs["id"] for _, attrs in parsed.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in parsed.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    for attrs in parsed.all("section", "svg"):
        assert set((attrs.get("aria-labelledby") or "").split()) <= set(ids)
    assert len(parsed.all("h1")) == len(parsed.all("main")) == 1
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in parsed.found}


def test_nothing_comes_from_outside(report):
    content = report.to_html()
    parsed = Parsed(content)
    assert not parsed.all("script", "iframe", "object", "embed", "form")
    for _, attrs in parsed.found:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in content
    assert "@import" not in content
    assert "http://" not in content
    assert "https://" not in content


def test_each_chart_has_its_numbers_in_a_table(report):
    parsed = Parsed(report.to_html())
    cells = parsed.text_of("td")
    for histogram in (report.degrees, report.component_sizes, report.weights.histogram):
        assert {f"{n:,}" for n in histogram.counts} <= set(cells)
    assert {f"{n:,}" for n in (*report.lengths.edges, *report.lengths.random)} <= set(cells)
    assert len(parsed.all("details")) == len([a for a in parsed.all("svg") if "role" in a]) == 4


def test_what_others_wrote_is_text(report):
    evil = Provenance("s3://user:pass-word@host/x?token=hush", EVIL, {EVIL: EVIL}, EVIL, EVIL)
    found = replace(
        report.verification, provenance=evil, problems=(EVIL,), warnings=(EVIL,), source=EVIL
    )
    verdict = replace(report.verdicts[0], text=EVIL, answer=EVIL)
    content = page(replace(report, path=EVIL, verification=found, verdicts=(verdict,)))
    parsed = Parsed(content)
    assert not parsed.all("script")
    assert "<script>" not in content
    assert any("<script>alert(1)</script>\"'&\\x00\\u202e\\udcff" in t for _, t in parsed.texts)
    assert "pass-word" not in content
    assert "hush" not in content
    content.encode()


def test_texts_hold_no_secret():
    hide(None, {"secret": "sesame-street"})
    assert text("it says <sesame-street>") == "it says &lt;…&gt;"


# In a browser

in_browser = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium is installed"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Give a tab that has no network."""
    with tab(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(report, store, tmp_path_factory):  # noqa: F811
    """Give the files of some pages: one with everything, one of a damaged export."""
    folder = tmp_path_factory.mktemp("pages")
    report_export(store.parent / "export", folder / "sound.html", source=store)
    shutil.copytree(store.parent / "export", folder / "export")
    path = folder / "export/connectivity/edges.dst.bin"
    path.write_bytes(bytes(path.stat().st_size))
    damaged = report_export(folder / "export", folder / "damaged.html", source=store)
    assert not damaged.ok
    return [folder / "sound.html", folder / "damaged.html"]


class TestInABrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_asks_for_nothing_and_complains_of_nothing(self, browser, pages, scheme):
        colors = {}
        for path in pages:
            browser.open(path, scheme=scheme)
            assert browser.requests() == [path.as_uri()]
            assert browser.complaints() == []
            heads = browser.run("[...document.querySelectorAll('h2')].map(e => e.innerText)")
            assert set(SECTIONS) <= set(heads)
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
            colors[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
        assert colors[scheme] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]

    def test_a_small_screen_is_wide_enough(self, browser, pages):
        for path in pages:
            browser.open(path, width=360)
            assert browser.run("document.documentElement.scrollWidth") <= 360

    def test_it_is_printed(self, browser, pages):
        browser.open(pages[0], scheme="dark")
        browser.call("Emulation.setEmulatedMedia", media="print")
        color = browser.run("getComputedStyle(document.body).backgroundColor")
        assert color == "rgb(255, 255, 255)"
        assert browser.run("document.querySelector('nav').offsetHeight") == 0
        assert browser.pdf().startswith(b"%PDF")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(self, browser, pages, axe, scheme):
        for path in pages:
            browser.open(path, scheme=scheme)
            browser.run("document.querySelectorAll('details').forEach(e => e.open = true)")
            browser.run(axe)
            found = browser.run(
                "axe.run(document).then(r => r.violations.map(v => "
                "v.id + ': ' + v.nodes.map(n => n.html + ' ' + n.failureSummary).join('; ')))"
            )
            assert found == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """Give the code of axe-core, from the file that AXE_JS names or else from npm."""
    if "AXE_JS" in os.environ:
        return Path(os.environ["AXE_JS"]).read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "pack", AXE, "--prefer-offline", "--fetch-retries=0", "--fetch-timeout=20000"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"{AXE} is not there: npm gives it, or AXE_JS names its axe.min.js")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        return files.extractfile("package/axe.min.js").read().decode()
