"""What a verification means, in plain words: the verdicts of a report, and the viewers' limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..edge_pairs.format import MOST_WEIGHTED_CELLS, VIEWER_BYTES, viewer_bytes
from ..machine.amounts import counted
from ..machine.memory import format_bytes
from ..machine.report import Report
from ..verify.checks import VerifyReport

Level = Literal["good", "bad", "warning", "unknown"]
_MOST_CURRENT_CELLS = 2**31 - 1  # whose numbers fit the int32 of today's viewer

_PLAIN, _WEIGHTED = "cellucid 0.0.9", "cellucid 0.9.1 to 0.9.4"
_CURRENT = "cellucid 0.9.5 and later"

_PROOFS = {
    "sums": "by sums of hashes of all of them",
    "comparison": "each one compared",
    "signed": "each one compared, with weights added up",
    "weights": "each one compared, with its weight",
}


@dataclass(frozen=True)
class Verdict(Report):
    """An answer to one question.

    Attributes
    ----------
    question : str
        What is asked.
    level : {"good", "bad", "warning", "unknown"}
        How it is; "unknown" if it was not found out.
    answer : str
        The answer in a few words.
    text : str
        What it rests on.
    """

    question: str
    level: Level
    answer: str
    text: str


@dataclass(frozen=True)
class Ceiling(Report):
    """What a viewer takes at most, and what this graph has of it.

    Attributes
    ----------
    viewer : str
        Its generation of cellucid.
    what : str
        What is limited.
    found, allowed : str
        Of this graph, and at most.
    fits : bool
        Whether the graph is within the limit.
    """

    viewer: str
    what: str
    found: str
    allowed: str
    fits: bool


def ceilings(n_cells: int, n_edges: int) -> tuple[Ceiling, ...]:
    """Return the limits of the viewers that are known."""
    cells, browser = f"{n_cells:,}", viewer_bytes(n_cells, n_edges)
    return (
        Ceiling(_PLAIN, "cells", cells, "no limit in its loader", True),
        Ceiling(
            _WEIGHTED, "cells", cells, f"{MOST_WEIGHTED_CELLS:,}", n_cells <= MOST_WEIGHTED_CELLS
        ),
        Ceiling(
            _WEIGHTED, "memory in the browser", format_bytes(browser), format_bytes(VIEWER_BYTES),
            browser <= VIEWER_BYTES,
        ),
        Ceiling(
            _CURRENT, "cells", cells, f"{_MOST_CURRENT_CELLS:,}", n_cells <= _MOST_CURRENT_CELLS
        ),
    )  # fmt: skip


def verdicts(
    report: VerifyReport, *, differences: list[str] | None, source: str | None, format: str | None,
    weighted: bool,
) -> tuple[Verdict, ...]:  # fmt: skip
    """Return what a verification means.

    `differences` from the source are None if the edges were not compared; `source` is what the user
    named as such; `format` and `weighted` are as in a `GraphReport`.
    """
    answers = [_sound(report, in_store=format == "store"), _equal(report, differences, source)]
    answers += [_aligned(report), _connected(report)]
    if report.n_cells is not None and report.n_edges is not None:
        viewer: str | None = _WEIGHTED if weighted else _PLAIN
        if format in ("Parquet", "store"):
            viewer = _CURRENT if format == "store" else None
        answers.append(_size(report.n_cells, report.n_edges, viewer))
    return tuple(answers)


def _sound(report: VerifyReport, *, in_store: bool) -> Verdict:
    question = "Is it sound?"
    if report.ok:
        text = (
            f"Manifest, sizes, and the order of all {counted(report.n_edges or 0, 'edge')} are as "
            "the format wants them."
        )
        if in_store:
            text = (
                f"Columns rise in each row, and both directions of all "
                f"{counted(report.n_edges or 0, 'edge')} have the same positive weight."
            )
        if report.warnings:
            return Verdict(question, "warning", "Yes, with a warning", text)
        return Verdict(question, "good", "Yes", text)
    n = len(report.problems)
    return Verdict(question, "bad", "No", f"{counted(n, 'problem')} found; see below.")


def _equal(report: VerifyReport, differences: list[str] | None, source: str | None) -> Verdict:
    question = "Are its edges those of the source?"
    if source is None:
        return Verdict(
            question, "unknown", "Not checked", "No source was named to compare them with."
        )
    if differences is None:
        return Verdict(
            question, "bad", "Not shown", f"What is wrong kept them from being compared with "
            f"{source}.",
        )  # fmt: skip
    matrix = f"{report.key} of {report.source}"
    if not differences:
        how = _PROOFS[report.proof or "comparison"]
        if report.thinning:
            kept = ", ".join(f"{name} {value}" for name, value in report.thinning.items())
            matrix += f" that are kept by {kept}"
        return Verdict(question, "good", "Yes", f"They are exactly those of {matrix}: {how}.")
    return Verdict(question, "bad", "No", f"They differ from {matrix}; see below.")


def _aligned(report: VerifyReport) -> Verdict:
    question = "Do the edges join cells that are near each other?"
    aligned = report.alignment
    if aligned is None:
        why = "; ".join(report.unchecked) or "the edges could not be looked at"
        return Verdict(question, "unknown", "Not checked", f"{_sentence(why)}.")
    text = (
        f"{_percent(aligned.value)} of {aligned.n_sampled:,} sampled edges are shorter than a "
        f"random pair of cells in {aligned.embedding}; by chance it would be 50%."
    )
    if aligned.shuffled:
        text += " Are the rows of the matrix in the order of the cells?"
        return Verdict(question, "warning", "They look shuffled", text)
    return Verdict(question, "good", "Yes", text)


def _connected(report: VerifyReport) -> Verdict:
    question = "Is the graph connected?"
    if report.n_components is None or report.largest_component is None or not report.n_cells:
        return Verdict(question, "unknown", "Not checked", "Connected components were not counted.")
    if report.n_components == 1:
        text = f"There is one component, of {counted(report.n_cells, 'cell')}."
        return Verdict(question, "good", "Yes", text)
    share = report.largest_component / report.n_cells
    text = (
        f"It has {report.n_components:,} components. The largest has "
        f"{counted(report.largest_component, 'cell')}, {_percent(share)} of all"
    )
    if report.n_isolated:
        text += f"; {counted(report.n_isolated, 'cell')} {_have(report.n_isolated)} no neighbor"
    return Verdict(question, "warning", "No", f"{text}.")


def _size(n_cells: int, n_edges: int, viewer: str | None) -> Verdict:
    question = "Is it small enough for its viewer?"
    if viewer is None:
        return Verdict(
            question, "unknown", "It has none", "Parquet files are for programs; their columns "
            "are read in parts.",
        )  # fmt: skip
    size = f"{counted(n_edges, 'edge')} of {counted(n_cells, 'cell')}"
    if viewer == _PLAIN:
        text = f"The viewer of {viewer} sets no limit; this graph has {size}."
        return Verdict(question, "good", "Yes", text)
    if viewer == _CURRENT:
        text = (
            f"{viewer} reads {size} from the store, a part at a time. Numbers of up to "
            f"{_MOST_CURRENT_CELLS:,} cells fit; more of its limits is not known."
        )
        return Verdict(question, "good" if n_cells <= _MOST_CURRENT_CELLS else "warning",
                       "Yes" if n_cells <= _MOST_CURRENT_CELLS else "No", text)  # fmt: skip
    needed, allowed = (format_bytes(n) for n in (viewer_bytes(n_cells, n_edges), VIEWER_BYTES))
    text = f"{size} take {needed} in the browser; {viewer} allows {allowed}."
    if all(limit.fits for limit in ceilings(n_cells, n_edges) if limit.viewer == viewer):
        return Verdict(question, "good", "Yes", text)
    return Verdict(question, "warning", "No", text)


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _percent(share: float) -> str:
    """Return a share in percent; what is not all is not called 100%."""
    return f"{share:.1%}" if share <= 0.999 or share == 1 else "more than 99.9%"


def _sentence(text: str) -> str:
    """Return a text that begins with a capital."""
    return text[:1].upper() + text[1:]
