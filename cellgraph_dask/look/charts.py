"""Histograms as inline SVG: plain text, with colors that the page's style decides.

Classes: `bar` for the bars, `outline` for a second series, `grid` and `axis` for lines. Text is of
our own making, but it is escaped all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 12.0, 14.0, 52.0
_ACROSS, _UP = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_MOST_LABELS = 9
_LABEL_WIDTH = 9.0  # of a character, at most; on small screens they are larger


def bar_chart(
    name: str, labels: Sequence[str], values: Sequence[float], *, title: str, description: str,
    across: str, up: str, outline: Sequence[float] | None = None, logarithmic: bool = False,
) -> str:  # fmt: skip
    """Return a bar chart.

    Parameters
    ----------
    name
        What the ids in it begin with; each chart of a page needs its own.
    labels, values
        Of the bars, from left to right.
    title, description
        What a screen reader tells of it.
    across, up
        What the axes show.
    outline
        Values of a second series, drawn as a line of steps.
    logarithmic
        Whether heights are by the logarithm, so that 1 can be seen beside a million.
    """
    most = max([*values, *(outline or ()), 0.0])
    ticks = _powers(most) if logarithmic else _steps(most)
    scale = _UP / _height(max(most, ticks[-1]), logarithmic=logarithmic)

    def y(value: float) -> float:
        return _TOP + _UP - scale * _height(value, logarithmic=logarithmic)

    step = _ACROSS / max(len(labels), 1)
    gap = min(2.0, step / 6)
    parts = [_grid(y(tick), _short(tick)) for tick in ticks]
    parts += [
        f'<rect class="bar" x="{_LEFT + k * step + gap / 2:.2f}" y="{y(value):.2f}" '
        f'width="{step - gap:.2f}" height="{_TOP + _UP - y(value):.2f}"/>'
        for k, value in enumerate(values)
        if value > 0
    ]
    if outline is not None:
        parts.append(_outline([y(value) for value in outline], step))
    parts += _labels(labels, step)
    parts.append(_text(_LEFT + _ACROSS / 2, _HEIGHT - 8, across, "middle"))
    parts.append(
        f'<text transform="translate(14 {_TOP + _UP / 2:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _height(value: float, *, logarithmic: bool) -> float:
    """Return how high a value stands; on a logarithmic scale 1 is not nothing."""
    if not logarithmic:
        return max(value, 0.0)
    return math.log10(2 * value) if value >= 1 else 0.0


def _steps(most: float) -> list[float]:
    """Return about five round numbers from 0 to the largest value, or beyond it."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= raw * 0.999)
    return [step * k for k in range(math.ceil(most / step * 0.999) + 1)]


def _powers(most: float) -> list[float]:
    """Return powers of ten from 1, a few of them, until the largest value is passed."""
    top = max(1, math.ceil(math.log10(max(most, 1.0))))
    return [10.0**k for k in range(0, top + 1, -(-top // 6))]


def _short(value: float) -> str:
    """Return a number for an axis: 1,500, 20k, 3M, 0.25."""
    for unit, word in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / (1e3 if word == 'k' else unit):.4g}{word}"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _grid(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _ACROSS}" y1="{y:.2f}" y2="{y:.2f}"/>'
    return line + _text(_LEFT - 8, y + 4, label, "end")


def _outline(heights: Sequence[float], step: float) -> str:
    bottom = _TOP + _UP
    path = [f"M{_LEFT:.2f} {bottom:.2f}"]
    path += [f"V{y:.2f}H{_LEFT + (k + 1) * step:.2f}" for k, y in enumerate(heights)]
    return f'<path class="outline" d="{"".join(path)}V{bottom:.2f}"/>'


def _labels(labels: Sequence[str], step: float) -> list[str]:
    """Label as many bars as there is room for, evenly, the first one among them."""
    if not labels:
        return []
    widest = max(map(len, labels)) * _LABEL_WIDTH + 10
    room = max(1, min(_MOST_LABELS, int(_ACROSS / widest)))
    every = max(1, -(-len(labels) // room))
    return [
        _text(_LEFT + (k + 0.5) * step, _TOP + _UP + 18, labels[k], "middle")
        for k in range(0, len(labels), every)
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
