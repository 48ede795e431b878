"""What a verification tells of the graph besides its report, while it looks at the edges."""

from __future__ import annotations

from ..edge_pairs.reader import Slab
from ..machine.buffers import Array
from .statistics import Degrees


class Observer:
    """Is told what a verification comes to see; this one keeps nothing."""

    def look(self, slab: Slab) -> None:
        """Take edges into account that are in order, once each; called on several threads.

        Their weights may still turn out to be none; then `found` is not called.
        """

    def found(self, degrees: Degrees, component_sizes: dict[int, int] | None) -> None:
        """Take what all edges, which are well-formed, come to.

        For each number of cells it is told how many components there are of so many.
        """

    def compared(self, problems: list[str]) -> None:
        """Take what comparing the edges with their source has shown to be wrong."""

    def measured(self, edges: Array, random: Array) -> None:
        """Take the lengths of sampled edges and as many random pairs, float64, in an embedding."""
