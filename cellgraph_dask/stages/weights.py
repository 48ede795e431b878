"""What weights must be where a rule combines them: no less than 0, and for fuzzy no more than 1."""

from __future__ import annotations

from ..errors import DamagedGraphError
from ..source.matrix import Block, BlockEntries
from . import weighted_loops
from .job import Job


def check_weights(job: Job, block: Block, entries: BlockEntries) -> None:
    """Raise a DamagedGraphError that names the first weight of a block that a job cannot take."""
    if job.rule is None or entries.weights is None:
        return
    rules = job.rule == "fuzzy", job.refuse_diagonal
    at, row = weighted_loops.first_refused(
        entries.indices, entries.weights, entries.indptr, block.first_row, *rules
    )
    if at < 0:
        return
    column, weight = int(entries.indices[at]), entries.weights[at]
    cells = (row, column) if job.source.layout == "csr" else (column, row)
    found = f"the weight of cells {cells} in {job.source.key} is {weight}"
    if row == column and 0 <= weight and (weight <= 1 or job.rule != "fuzzy"):
        raise DamagedGraphError(
            f"{found}: a cell is its own neighbor, which no edge can be. Drop the diagonal with "
            "`drop_diagonal=True`, or set it to zero."
        )
    if weight < 0:
        raise DamagedGraphError(
            f"{found}; weights must not be negative. Compute the neighbors again, or replace such "
            "weights."
        )
    raise DamagedGraphError(
        f"{found}; the rule fuzzy is for weights from 0 to 1. Choose another rule, such as max, or "
        "scale the weights."
    )
