"""Charts: bars as high as their values, labels that fit, text that is escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from cellgraph_dask.look.charts import bar_chart


def drawn(labels, values, **options):
    """Return a chart as XML."""
    told = {"title": "t", "description": "d", "across": "a", "up": "u"} | options
    return ET.fromstring(bar_chart("c", labels, values, **told))


def bars(chart):
    """Return the heights of the bars."""
    return [float(bar.get("height")) for bar in chart.iter("rect")]


def texts(chart):
    """Return all texts of the axes, with their places."""
    return {text.text: (text.get("x"), text.get("y")) for text in chart.iter("text")}


def test_bars_are_as_high_as_their_values():
    chart = drawn(["a", "b", "c", "d"], [1, 2, 0, 4])
    heights = bars(chart)
    assert len(heights) == 3  # of nothing there is no bar
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.02)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.02)
    found = texts(chart)
    assert {"0", "1", "2", "3", "4", "a", "b", "c", "d", "u"} <= set(found)
    top = float(next(bar.get("y") for bar in chart.iter("rect") if bars(chart)))
    assert float(found["1"][1]) - 4 == pytest.approx(top, abs=0.1)


def test_on_a_logarithmic_scale_one_is_seen_beside_a_million():
    heights = bars(drawn(["a", "b", "c"], [1, 1000, 10**6], logarithmic=True))
    assert heights[0] > 5
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.02)
    assert {"1", "1,000", "1M"} & set(texts(drawn(["a"], [10**6], logarithmic=True)))


@pytest.mark.parametrize("most", [0, 1e-9, 0.3, 1, 7, 99, 1234, 10**7, 3 * 10**12])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_all_is_inside_the_picture(most, logarithmic):
    chart = drawn(
        [str(k) for k in range(40)], [most] * 40, outline=[most / 2] * 40, logarithmic=logarithmic
    )
    for bar in chart.iter("rect"):
        x, y, width, height = (float(bar.get(k)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= 640
        assert 10 <= y <= y + height <= 220
    for line in chart.iter("line"):
        assert 10 <= float(line.get("y1")) <= 220


def test_labels_do_not_overlap():
    labels = [f"{k:,} to {k + 999:,}" for k in range(100_000, 140_000, 1000)]
    chart = drawn(labels, [1] * 40)
    at = sorted(float(x) for text, (x, _) in texts(chart).items() if " to " in text)
    assert len(at) >= 2
    assert min(b - a for a, b in pairwise(at)) > 9 * len(labels[0])


def test_the_outline_has_a_step_for_each_value():
    chart = drawn(["a", "b", "c"], [1, 2, 3], outline=[3, 2, 1])
    (path,) = chart.iter("path")
    assert len(re.findall("H", path.get("d"))) == 3


def test_an_empty_chart_is_drawn():
    assert bars(drawn([], [])) == []


def test_texts_are_escaped():
    evil = '<script>&"'
    chart = drawn([evil], [1], title=evil, description=evil, across=evil, up=evil)
    assert evil in texts(chart)
    assert chart.find("title").text == evil
    assert not list(chart.iter("script"))
