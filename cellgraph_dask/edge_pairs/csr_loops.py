"""The compiled loops that make a sparse matrix of edges."""

from __future__ import annotations

import numpy as np

from ..machine.buffers import Array
from ..machine.compiled import compiled


@compiled()
def count_cells(cells: Array, counts: Array) -> None:
    """Add one to ``counts[cell]`` for each cell (int64, in place)."""
    for k in range(cells.size):
        counts[np.int64(cells[k])] += 1


@compiled()
def place_values(rows: Array, values: Array, next_slot: Array, out: Array) -> None:
    """Write each value to the next slot of its row in `out`, and move that slot on."""
    for k in range(rows.size):
        at = next_slot[rows[k]]
        out[at] = values[k]
        next_slot[rows[k]] = at + 1
