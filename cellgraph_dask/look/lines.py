"""The compiled loop that draws edges as lines, a pixel at a time.

It releases the GIL, allocates nothing and raises nothing (see `compiled`). Cells must exist.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled

COUNT, CATEGORIES, NUMBERS = range(3)  # what is summed up by pixel besides counts
_ONE = 1 << 32  # a pixel, in fixed point


@compiled()
def draw_lines(
    src: Array, dst: Array, x: Array, y: Array, view: Array, mode: int, values: Array, colors:
    Array, counts: Array, sums: Array, tally: Array,
) -> None:  # fmt: skip
    """Add one to each pixel of a line from cell to cell, once a line, and its color to `sums`.

    `x` and `y` (float32, NaN for no place) are places of cells; `view` (float64) is left, bottom,
    pixels for a unit across and up, and the square of a length. `counts` (uint32) and `sums`
    (float64, another dimension in front) have rows from the bottom. With `CATEGORIES`, `values` are
    codes of cells, and an edge adds the row of `colors` of both ends' code, or the last one; with
    `NUMBERS`, the mean of both ends, and a one, if that is finite. `tally` (int64) counts edges
    with an end that has no place, and those that are longer than the length.
    """
    height, width = counts.shape
    for e in range(src.size):
        a = src[e]
        b = dst[e]
        dx = np.float64(x[b]) - np.float64(x[a])
        dy = np.float64(y[b]) - np.float64(y[a])
        length = dx * dx + dy * dy
        if not length >= 0:  # NaN
            tally[0] += 1
            continue
        if length > view[4]:
            tally[1] += 1
        # In pixels; the line is cut at the border: from the share `first` of it to `last`.
        px = (np.float64(x[a]) - view[0]) * view[2]
        py = (np.float64(y[a]) - view[1]) * view[3]
        dx *= view[2]
        dy *= view[3]
        first = 0.0
        last = 1.0
        for side in range(2):
            at = px if side == 0 else py
            step = dx if side == 0 else dy
            most = np.float64(width if side == 0 else height)
            if step == 0:
                if at < 0 or at >= most:
                    last = -1.0
            else:
                enter = -at / step
                leave = (most - at) / step
                if step < 0:
                    enter, leave = leave, enter
                first = max(first, enter)
                last = min(last, leave)
        if first > last:
            continue
        # An end that is very far away has lost the digits that tell its pixel.
        x0 = min(max(px + first * dx, 0.0), np.float64(width))
        y0 = min(max(py + first * dy, 0.0), np.float64(height))
        x1 = min(max(px + last * dx, 0.0), np.float64(width))
        y1 = min(max(py + last * dy, 0.0), np.float64(height))
        n = np.int64(max(abs(np.floor(x1) - np.floor(x0)), abs(np.floor(y1) - np.floor(y0))))
        fx = np.int64(x0 * _ONE) + n  # for the digits that each step loses
        fy = np.int64(y0 * _ONE) + n
        step_x = np.int64((x1 - x0) * _ONE / max(n, 1))
        step_y = np.int64((y1 - y0) * _ONE / max(n, 1))
        known: Any = False
        code = colors.shape[0] - 1
        mean = 0.0
        if mode == CATEGORIES:
            if values[a] == values[b] and values[a] >= 0:
                code = np.int64(values[a])
        elif mode == NUMBERS:
            mean = (np.float64(values[a]) + np.float64(values[b])) / 2
            known = abs(mean) < np.inf
        for _ in range(n + 1):
            row = min(max(fy >> 32, 0), height - 1)
            column = min(max(fx >> 32, 0), width - 1)
            counts[row, column] += 1
            if mode == CATEGORIES:
                for k in range(3):
                    sums[k, row, column] += colors[code, k]
            elif known:
                sums[0, row, column] += mean
                sums[1, row, column] += 1
            fx += step_x
            fy += step_y
