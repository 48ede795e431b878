"""Lines: from pixel to pixel without gaps, cut at the border, whatever their ends are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cellgraph_dask.look import lines

SIZE = 40
PLACE = st.floats(0, SIZE - 0.5, width=32)
ANYWHERE = st.sampled_from([-1e38, -1e30, -1e9, 1e9, 1e30, 1e38]) | st.floats(-99, 99, width=32)


def drawn(ends, *, view=(0, 0, 1, 1, 1e9), mode=lines.COUNT, values=None, colors=None, n_sums=0):
    """Draw one line; return counts, sums and tally."""
    x, y = (np.array(side, np.float32) for side in zip(*ends, strict=True))
    counts, tally = np.zeros((SIZE, SIZE), np.uint32), np.zeros(2, np.int64)
    sums = np.zeros((n_sums, SIZE, SIZE))
    lines.draw_lines(
        np.zeros(1, np.uint32), np.ones(1, np.uint32), x, y, np.array(view, np.float64), mode,
        x[:0] if values is None else values,
        np.zeros((1, 3), np.float32) if colors is None else colors, counts, sums, tally,
    )  # fmt: skip
    return counts, sums, tally


@given(st.tuples(PLACE, PLACE), st.tuples(PLACE, PLACE))
@example((1.5, 0), (4, 0))  # an end on the border of a pixel
def test_a_line_has_a_pixel_for_each_step_from_end_to_end(one, other):
    counts, _, tally = drawn([one, other])
    (c0, r0), (c1, r1) = (np.floor(np.float32(end)).astype(int) for end in (one, other))
    assert counts.sum() == max(abs(c1 - c0), abs(r1 - r0)) + 1
    assert counts[r0, c0] == 1
    assert counts.max() == 1
    rows, columns = np.nonzero(counts)
    # All lie on the line, to a pixel.
    along = np.hypot(c1 - c0, r1 - r0)
    if along:
        off = abs((columns - c0) * (r1 - r0) - (rows - r0) * (c1 - c0)) / along
        assert off.max() <= 1.5
    assert tally.tolist() == [0, 0]


@given(st.tuples(ANYWHERE, ANYWHERE), st.tuples(ANYWHERE, ANYWHERE))
def test_a_line_with_ends_anywhere_stays_on_the_canvas(one, other):
    counts, _, _ = drawn([one, other])
    assert counts.max() <= 2  # two at a corner, maybe
    assert counts.sum() <= 2 * SIZE
    back, _, _ = drawn([other, one])
    if max(map(abs, (*one, *other))) < 1e6:  # further away, digits that tell pixels are lost
        assert abs(int(counts.sum()) - int(back.sum())) <= 2


def test_a_line_through_the_canvas_is_cut():
    counts, _, _ = drawn([(-100, 20.5), (100, 20.5)])
    assert counts[20].tolist() == [1] * SIZE or counts[20].sum() == SIZE + 1  # and its end
    assert counts.sum() == counts[20].sum()
    assert not drawn([(-100, 50), (100, 50)])[0].any()


def test_ends_without_a_place_and_long_lines_are_counted():
    counts, _, tally = drawn([(1, np.nan), (5, 5)])
    assert not counts.any()
    assert tally.tolist() == [1, 0]
    assert drawn([(0, 0), (3, 4)], view=(0, 0, 1, 1, 24.9))[2].tolist() == [0, 1]
    assert drawn([(0, 0), (3, 4)], view=(0, 0, 1, 1, 25))[2].tolist() == [0, 0]


@pytest.mark.parametrize(("codes", "color"), [((1, 1), 1), ((1, 0), 2), ((-1, -1), 2)])
def test_a_line_brings_the_color_of_both_its_ends(codes, color):
    colors = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5]], np.float32)
    counts, sums, _ = drawn(
        [(1, 1), (9, 3)], mode=lines.CATEGORIES, values=np.array(codes, np.int16), colors=colors,
        n_sums=3,
    )  # fmt: skip
    assert np.array_equal(sums, counts * colors[color][:, None, None])


@pytest.mark.parametrize(("values", "mean", "known"), [((1, 4), 2.5, 1), ((np.nan, 4), 0, 0)])
def test_a_line_brings_the_mean_of_both_its_ends(values, mean, known):
    counts, sums, _ = drawn(
        [(1, 1), (9, 3)], mode=lines.NUMBERS, values=np.array(values, np.float32), n_sums=2
    )
    assert np.array_equal(sums, [counts * mean, counts * known])
