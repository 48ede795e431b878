"""Third stage: the largest degree, from the degree runs that the merge left.

A cell's degree is the number of edges it is the source of plus the number it is the destination of.
The second kind lies scattered over all pieces, so it takes a pass of its own, a range of cells at a
time; the counters of all cells at once would be 8 bytes a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import kernels, workspace
from .job import Job
from .merge import degree_layout
from .scratch import RunReader

_SLAB = 1 << 18  # destinations looked at in one go
_RANGE_CELLS = 1 << 22  # most cells counted by one task: 32 MB


class CellRange(NamedTuple):
    """The partitions ``[first, last)`` whose degrees one task counts."""

    number: int
    first: int
    last: int


def cut_cells(job: Job, piece_entries: int) -> list[CellRange]:
    """Cut the partitions into ranges whose counters need no more room than a piece."""
    cells = min(_RANGE_CELLS, piece_entries)
    step = max(1, cells >> job.shift)
    firsts = range(0, job.n_partitions, step)
    return [
        CellRange(k, first, min(first + step, job.n_partitions)) for k, first in enumerate(firsts)
    ]


def largest_degree(job: Job, n_pieces: int, cells: CellRange) -> int:
    """Return the largest degree among a range of cells.

    Parameters
    ----------
    job
        The export.
    n_pieces
        Number of degree runs.
    cells
        The cells, by partition.
    """
    width = 1 << job.shift
    degrees = workspace.take("degrees", width * (cells.last - cells.first), np.int64)
    degrees[:] = 0
    layout = degree_layout()
    for piece in range(n_pieces):
        with RunReader(job.scratch.run("merge", piece), layout, job.n_partitions) as run:
            starts = run.starts(0, cells.first, cells.last)
            for f in range(cells.last - cells.first):
                of_partition = degrees[f * width : (f + 1) * width]
                for at in range(int(starts[f]), int(starts[f + 1]), _SLAB):
                    local = workspace.take(
                        "destinations", min(_SLAB, int(starts[f + 1]) - at), np.uint16
                    )
                    run.read(0, "dst", at, local)
                    kernels.count_values(local, 0, of_partition)
            per_source = run.starts(1, cells.first, cells.last)
            n = int(per_source[-1] - per_source[0])
            if n:
                counts = workspace.take("counts", n, np.uint32)
                run.read(1, "n", int(per_source[0]), counts)
                # Partitions before or after the piece's own have no counts in its run.
                has_counts = np.flatnonzero(np.diff(per_source))
                begin = int(has_counts[0]) * width
                degrees[begin : begin + n] += counts
    return int(degrees.max(initial=0))
