"""From the cells that a user has chosen to the graph of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..machine.memory import limit_bytes
from ..runtime.cluster import client_for
from ..source.matrix import Source
from ..source.opening import key_in
from ..source.selected import selected
from ..source.selection import Cells, Selection, select_cells
from ..source.spool import LazyMatrix
from ..source.stamps import Watch

if TYPE_CHECKING:
    from distributed import Client


def choose(
    opened: Source | LazyMatrix, source: Any, storage_options: Mapping[str, Any] | None,
    cells: Cells, memory_limit: int | str | None, client: Client | None,
) -> tuple[LazyMatrix, Selection]:  # fmt: skip
    """Return the graph of the cells that are chosen, and which they are; see `plan_export`."""
    is_here = client_for(client) is None  # else the limit is that of workers
    with Watch(opened) as watch:
        selection = select_cells(
            source, key_in(source, opened), opened.n_cells, cells,
            storage_options=storage_options, limit=limit_bytes(memory_limit if is_here else None),
        )  # fmt: skip
        part = selected(opened, selection)
        watch.check()
    return part, selection
