"""Pieces of HTML for notebooks: escaped, without scripts, readable on light and dark."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

# The colors of text and background are the notebook's own; these are seen on either.
GREEN, RED, BLUE, ORANGE, GRAY = "#2e9e5b", "#d9534f", "#4a7fd4", "#d98a29", "#8886"

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;white-space:normal"


def block(title: str, *parts: str, color: str = "inherit") -> str:
    """Return a title, as text, above parts that are HTML."""
    head = f'<div style="font-weight:600;color:{color}">{escape(title)}</div>'
    return f'<div style="max-width:60em">{head}{"".join(parts)}</div>'


def listed(texts: Iterable[str], color: str = "inherit") -> str:
    """Return texts, one below the other."""
    return "".join(f'<div style="color:{color}">{escape(text)}</div>' for text in texts)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values in two columns."""
    name_style = f"{_CELL};font-weight:400;opacity:.75;min-width:10em"
    rows = "".join(
        f'<tr style="background:none"><th scope="row" style="{name_style}">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in pairs
    )
    return f'<table style="border:none;border-collapse:collapse">{rows}</table>' if rows else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line of names."""
    first = "".join(f'<th scope="col" style="{_CELL}">{escape(head)}</th>' for head in heads)
    first = first if any(heads) else ""
    lines = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f'<table style="border-collapse:collapse"><tr>{first}</tr>{lines}</table>'


def image(png: bytes, text: str) -> str:
    """Return a picture; a text says the same."""
    data = b64encode(png).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" '
        'style="max-width:100%;height:auto">'
    )


def bar(parts: Iterable[tuple[float, str]], whole: float, text: str) -> str:
    """Return a bar of parts, each a size and a color, of a whole; a text says the same."""
    filled = "".join(
        f'<span style="display:inline-block;height:100%;vertical-align:top;background:{color};'
        f'width:{min(100 * size / max(whole, 1e-9), 100):.2f}%"></span>'
        for size, color in parts
    )
    return (
        f'<div role="img" aria-label="{escape(text)}" title="{escape(text)}" '
        f'style="height:12px;max-width:480px;margin:4px 0;background:{GRAY};border-radius:3px;'
        f'overflow:hidden;font-size:12px;white-space:nowrap">{filled}</div>'
    )
