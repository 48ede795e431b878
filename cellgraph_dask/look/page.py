"""A report as one HTML page: no script, no network, nothing beside it.

Whatever comes from files or the user passes through `text`, which takes out secrets, shows what
cannot be printed as escapes, and escapes what HTML would take for its own. A policy in the page
tells browsers to load and run nothing, should that ever fail.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import redact
from ..machine.memory import format_bytes
from .charts import bar_chart
from .report_facts import Histogram
from .report_values import GraphFacts

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MARKS = {"good": "✓", "bad": "✕", "warning": "!", "unknown": "?"}
_MOST_LINEAR = 50  # components in a bin; beside more, one could not be seen
_NUMBER = ' class="number"'

_STAGES = {
    "start": "opening, and loading compiled code",
    "files": "sizes and digests of the files",
    "unpack": "unpacking the edges",
    "edges": "looking at all edges",
    "matrix": "reading the matrix of the source",
    "ends": "handing edges to their cells",
    "rank": "finding the strongest edges of each cell",
    "mark": "marking them",
    "select": "finding the strongest edges of all",
    "compare": "comparing edges and matrix",
}


def text(value: object) -> str:
    """Return a text for HTML, in elements and in attributes."""
    shown = redact(str(value))
    return escape("".join(c if c.isprintable() else _escaped(c) for c in shown))


def _escaped(c: str) -> str:
    return " " if c.isspace() else c.encode("unicode_escape").decode()


def page(report: GraphFacts) -> str:
    """Return a report as a page."""
    sections = [
        ("glance", "At a glance", _glance(report)),
        *_texts("problems", "What is wrong", report.verification.problems),
        *_texts("warnings", "Warnings", report.verification.warnings),
        ("picture", "Picture", _picture(report)),
        ("neighbors", "Neighbors of a cell", _degrees(report)),
        ("components", "Connected components", _components(report)),
        ("lengths", "Lengths of the edges", _lengths(report)),
        ("weights", "Weights", _weights(report)),
        ("viewers", "Size, and what viewers take", _viewers(report)),
        ("origin", "Where it comes from", _origin(report)),
        ("files", "Files", _files(report)),
        ("check", "This verification", _check(report)),
    ]
    level, verdict = "good", "The graph is sound."
    if not report.ok:
        level, verdict = "bad", "Something is wrong with this graph."
    elif report.verification.warnings:
        level, verdict = "warning", "The graph is sound, but look at the warnings."
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{content}</section>\n'
        for name, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="cellgraph_dask {text(__version__)}">
<title>{text(report.path)}: report of a neighbor graph</title>
<link rel="icon" href="data:,">
<style>{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{text(report.path)}</h1>
<p class="lead {level}">{verdict}</p>
<p class="note">Report of a neighbor graph, made {_time(report.created)} by cellgraph_dask \
{text(__version__)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{body}</main>
<footer>Made by cellgraph_dask {text(__version__)}. This file needs no network and no other \
file.</footer>
</body>
</html>
"""


def _time(created: str) -> str:
    shown = created.replace("T", " ").replace("+00:00", " UTC")
    return f'<time datetime="{text(created)}">{text(shown)}</time>'


def _texts(name: str, title: str, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return a section with a list of texts, if there are some."""
    if not texts:
        return []
    items = "".join(f"<li>{text(one)}</li>" for one in texts)
    return [(name, title, f'<ul class="texts">{items}</ul>')]


def _glance(report: GraphFacts) -> str:
    items = "".join(
        f'<li class="{verdict.level}"><span class="mark" aria-hidden="true">'
        f"{_MARKS[verdict.level]}</span><div><h3>{text(verdict.question)}</h3>"
        f'<p><span class="answer">{text(verdict.answer)}.</span> {text(verdict.text)}</p></div>'
        "</li>"
        for verdict in report.verdicts
    )
    found = report.verification
    figures = [
        ("Cells", found.n_cells),
        ("Edges", found.n_edges),
        ("Neighbors on average", found.mean_degree),
        ("Most neighbors", found.max_neighbors),
        ("Isolated cells", found.n_isolated),
        ("Components", found.n_components),
    ]
    known = "".join(
        f"<div><dt>{name}</dt><dd>{_count(value)}</dd></div>"
        for name, value in figures
        if value is not None
    )
    figures_list = f'<dl class="figures">{known}</dl>' if known else ""
    return f'<ul class="verdicts">{items}</ul>{figures_list}'


def _picture(report: GraphFacts) -> str:
    shown = report.picture
    if shown is None or not report.images:
        why = (report.no_picture or "").rstrip(".")
        return f'<p class="note">There is no picture: {text(why)}.</p>'
    light, *others = [b64encode(image).decode() for image in report.images]
    sources = "".join(
        '<source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}">'
        for dark in others
    )
    width, height = shown.size
    what = "edges" if shown.kind == "export" else "stored entries"
    alternative = (
        f"{shown.n_drawn:,} {what} of {shown.n_cells:,} cells, drawn as lines over "
        f"{shown.embedding} and shaded by their density."
    )
    warnings = "".join(f"<p>{text(one)}</p>" for one in shown.warnings)
    return (
        f'<figure><picture>{sources}<img src="data:image/png;base64,{light}" width="{width}" '
        f'height="{height}" alt="{text(alternative)}"></picture><figcaption>'
        f"{text(alternative)} {text(shown.caption)}</figcaption></figure>{warnings}"
    )


def _degrees(report: GraphFacts) -> str:
    found, histogram = report.verification, report.degrees
    if histogram is None or found.degree_quantiles is None:
        return _none(report, "There are no cells.")
    least, low, quarter, middle, most_of, high, most = found.degree_quantiles
    said = (
        f"Cells have {least:,} to {most:,} neighbors, {found.mean_degree:,.1f} on average. Half of "
        f"them have {quarter:,} to {most_of:,}, nine tenths {low:,} to {high:,}; the median is "
        f"{middle:,}."
    )
    return _histogram("degrees", histogram, said, across="neighbors", up="cells", whole=True)


def _components(report: GraphFacts) -> str:
    histogram = report.component_sizes
    if histogram is None:
        return _none(report, "They were not counted: it takes long for large graphs.")
    if sum(histogram.counts) == 1:
        return "<p>There is one component, of all cells.</p>"
    said = (
        f"There are {report.verification.n_components:,} components, the largest of "
        f"{report.verification.largest_component:,} cells. A cell without neighbors is one of its "
        "own."
    )
    logarithmic = max(histogram.counts) > _MOST_LINEAR
    said += " The scale is logarithmic." if logarithmic else ""
    return _histogram(
        "sizes", histogram, said, across="cells in a component", up="components", whole=True,
        logarithmic=logarithmic,
    )  # fmt: skip


def _lengths(report: GraphFacts) -> str:
    lengths, aligned = report.lengths, report.verification.alignment
    if lengths is None or aligned is None:
        why = "; ".join(report.verification.unchecked)
        return _none(report, f"They are not known. Not checked: {why}." if why else "None found.")
    n = aligned.n_sampled
    said = (
        f"{n:,} edges were picked at random, and each was compared with a random pair of cells, in "
        f"{aligned.embedding}: {aligned.value:.1%} are shorter than their pair. Where a graph "
        "belongs to its embedding, edges are short; where they are as long as random pairs, the "
        "rows of the matrix are not in the order of the cells."
    )
    labels = [_number(start) for start in lengths.starts]
    shares = [[100 * count / max(n, 1) for count in part] for part in (lengths.edges,
                                                                       lengths.random)]  # fmt: skip
    chart = bar_chart(
        "lengths-chart", labels, shares[0], outline=shares[1],
        title="Histogram of the lengths of edges and of random pairs",
        description="The table below has the same numbers.",
        across="length in the embedding", up="percent",
    )  # fmt: skip
    key = (
        '<ul class="key"><li><svg viewBox="0 0 20 12" aria-hidden="true"><rect class="bar" '
        'width="20" height="12"/></svg>edges</li><li><svg viewBox="0 0 20 12" aria-hidden="true">'
        '<path class="outline" d="M0 6H20"/></svg>random pairs</li></ul>'
    )
    bins = _bins(lengths.starts, lengths.stops, whole=False)
    rows = [
        (label, f"{edges:,}", f"{random:,}")
        for label, edges, random in zip(bins, lengths.edges, lengths.random, strict=True)
    ]
    table = _table("Edges and random pairs by length", ("Length", "Edges", "Random pairs"), rows)
    return f"<p>{text(said)}</p><figure>{key}{chart}</figure>{_folded(table)}"


def _weights(report: GraphFacts) -> str:
    weights = report.weights
    if weights is None:
        return _none(
            report, "The edges have no weights."
            if report.weighted is False
            else "There are no edges.",
        )  # fmt: skip
    if weights.least == weights.largest:
        return f"<p>All edges have the weight {_number(weights.least)}.</p>"
    said = (
        f"Weights are {_number(weights.least)} to {_number(weights.largest)}, "
        f"{_number(weights.mean)} on average. The bins double in width with each power of two."
    )
    return _histogram(
        "weights", weights.histogram, said, across="weight (from)", up="edges", whole=False
    )  # fmt: skip


def _viewers(report: GraphFacts) -> str:
    if not report.ceilings:
        return _none(report, "")
    rows = [
        (one.viewer, one.what, one.found, one.allowed, "yes" if one.fits else "no")
        for one in report.ceilings
    ]
    heads = ("Viewer", "What is limited", "This graph", "At most", "Fits")
    table = _table("Limits of the viewers of Cellucid", heads, rows, numbers=())
    return (
        "<p>Each generation of Cellucid reads other files: two edge files without weights (0.0.9), "
        "three files with weights (0.9.1 to 0.9.4), or the AnnData store itself (0.9.5 and "
        f"later).</p>{table}"
    )


def _origin(report: GraphFacts) -> str:
    found = report.verification
    made, rows, said = found.provenance, [], ""
    if made is None:
        said = "<p>It does not say what it was made from.</p>"
    else:
        rows = [
            ("Source", made.source),
            ("Matrix", made.key),
            ("Fingerprint of the source", made.fingerprint or "none was taken"),
            ("Exported by", f"cellgraph_dask {made.version}"),
        ]
        rows += [(f"Option {name}", value) for name, value in _options(made.options)]
    if found.source is not None:
        rows.append(("Compared with", f"{found.key} of {found.source}"))
    return said + (_pairs("What it was made from", rows) if rows else "")


def _files(report: GraphFacts) -> str:
    if report.format == "store":
        return "<p>The graph is a matrix in a store.</p>"
    if not report.files:
        return "<p>The manifest could not be read, so the files are not known.</p>"
    kind = report.format or ""
    if report.format == "edge files":
        kind += " with weights" if report.weighted else " without weights"
        kind += f", gzip level {report.compression}" if report.compression else ", plain"
    sizes = [file.n_bytes for file in report.files]
    rows = [
        (file.name, "not known" if file.n_bytes is None else format_bytes(file.n_bytes))
        for file in report.files
    ]
    total = sum(n for n in sizes if n is not None)
    said = f"<p>{text(kind[:1].upper() + kind[1:])}.</p>"
    if None not in sizes:
        rows.append(("all together", format_bytes(total)))
    return said + _table("Files of the export", ("File", "Size"), rows)


def _check(report: GraphFacts) -> str:
    found = report.verification
    rows = [
        (
            _STAGES.get(stage.name, stage.name),
            f"{stage.total:,} {stage.unit}" if stage.total else "",
            f"{stage.seconds:,.2f} s",
            format_bytes(stage.peak_memory_bytes),
        )
        for stage in report.stages
    ]
    if report.picture is not None:
        drawn = report.picture
        rows.append(
            (
                "drawing the picture",
                f"{drawn.n_drawn:,} {'edges' if drawn.kind == 'export' else 'entries'}",
                f"{drawn.seconds:,.2f} s",
                format_bytes(drawn.peak_memory_bytes),
            )
        )
    heads = ("Stage", "Amount", "Time", "Most memory until then")
    said = (
        f"It took {found.seconds:,.2f} s and at most {format_bytes(found.peak_memory_bytes)} of "
        f"{format_bytes(found.memory_limit_bytes)} allowed, on up to {found.threads:,} "
        f"{'thread' if found.threads == 1 else 'threads'}. What the export itself took is not "
        "noted in its files, which are the same for the same matrix and options."
    )
    stages = _table("Time and memory of the verification", heads, rows, numbers=(1, 2, 3))
    versions = _pairs("Versions with which it was made", report.versions.items())
    return f"<p>{text(said)}</p>{stages}{versions}"


def _none(report: GraphFacts, why: str) -> str:
    """Say why there is nothing to show."""
    if report.degrees is None and not report.ok:
        why = "Not known, because the edges are not well-formed or could not be read."
    return f'<p class="note">{text(why)}</p>'


def _histogram(
    name: str, histogram: Histogram, said: str, *, across: str, up: str, whole: bool, logarithmic:
    bool = False,
) -> str:  # fmt: skip
    """Return a chart with what is said of it, and its numbers as a table."""
    bins = _bins(histogram.starts, histogram.stops, whole=whole)
    labels = bins if whole else [_number(start) for start in histogram.starts]
    chart = bar_chart(
        f"{name}-chart", labels, histogram.counts, title=f"Histogram: {up} by {across}",
        description=f"{said} The table below has the same numbers.", across=across, up=up,
        logarithmic=logarithmic,
    )  # fmt: skip
    rows = [(label, f"{n:,}") for label, n in zip(bins, histogram.counts, strict=True)]
    heads = (across.capitalize(), up.capitalize())
    table = _table(f"{up.capitalize()} by {across}", heads, rows)
    return f"<p>{text(said)}</p><figure>{chart}</figure>{_folded(table)}"


def _bins(starts: Sequence[float], stops: Sequence[float], *, whole: bool) -> list[str]:
    """Return bins in words."""
    if not whole:
        return [f"{_number(a)} to {_number(b)}" for a, b in zip(starts, stops, strict=True)]
    pairs = [(int(a), int(b) - 1) for a, b in zip(starts, stops, strict=True)]
    return [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in pairs]


def _number(value: float) -> str:
    return f"{value:.3g}"


def _options(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values of options in words, those inside others too."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _options(value, f"{above}{name}, ")
        elif value is None or isinstance(value, bool):
            yield above + name, "yes" if value else "no"
        else:
            yield above + name, value if isinstance(value, str) else json.dumps(value)


def _count(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _folded(table: str) -> str:
    return f"<details><summary>The numbers as a table</summary>{table}</details>"


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] | None
    = None,
) -> str:  # fmt: skip
    """Return a table; by default all columns but the first one are numbers."""
    aligned = range(1, len(heads)) if numbers is None else numbers
    marks = [_NUMBER if k in aligned else "" for k in range(len(heads))]
    head = "".join(
        f'<th scope="col"{mark}>{text(one)}</th>' for one, mark in zip(heads, marks, strict=True)
    )
    body = "".join(
        "<tr>" + f'<th scope="row">{text(row[0])}</th>'
        + "".join(f"<td{mark}>{text(one)}</td>" for one, mark in zip(row[1:], marks[1:],
                                                                  strict=True))
        + "</tr>"
        for row in rows
    )  # fmt: skip
    return (
        f'<div class="wide"><table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pairs(caption: str, pairs: Iterable[tuple[str, Any]]) -> str:
    """Return a table of names and values."""
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th><td class="long">{text(value)}</td></tr>'
        for name, value in pairs
    )
    return (
        f'<div class="wide"><table><caption>{text(caption)}</caption><tbody>{body}</tbody></table>'
        "</div>"
    )
