"""What the user wants of a graph's edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

Strongest = Literal["largest", "smallest"]
STRONGEST: tuple[Strongest, ...] = get_args(Strongest)


@dataclass(frozen=True)
class Thinning:
    """Which edges the user wants to keep; by default all.

    Raises a ValueError if a number is outside its range, or options contradict each other.
    """

    min_weight: float | None = None
    top_k: int | None = None  # strongest edges of a cell; an edge stays if it is one of either end
    max_edges: int | None = None  # strongest edges of the graph
    strongest: Strongest | None = None  # by default the largest weights

    def __post_init__(self) -> None:
        if self.strongest is not None and self.strongest not in STRONGEST:
            raise ValueError(
                f"strongest must be one of {', '.join(STRONGEST)}, not {self.strongest!r}"
            )
        for name in ("top_k", "max_edges"):
            n: Any = getattr(self, name)
            if n is None:
                continue
            if isinstance(n, bool) or not isinstance(n, Integral):
                raise ValueError(f"{name} must be a whole number, not {n!r}")
            if n < 1:
                raise ValueError(f"{name} must be at least 1, not {n}")
            object.__setattr__(self, name, int(n))  # maybe one of numpy
        least: Any = self.min_weight
        if least is not None:
            if isinstance(least, bool) or not isinstance(least, Real):
                raise ValueError(f"min_weight must be a number, not {least!r}")
            try:
                value = float(least)
            except OverflowError:
                value = math.inf
            if not 0 <= value < math.inf:
                raise ValueError(f"min_weight must be a finite number, at least 0, not {value}")
            object.__setattr__(self, "min_weight", value)
        if self.strongest is not None and not self:
            raise ValueError("strongest says which edges min_weight, top_k and max_edges keep")

    def __bool__(self) -> bool:
        return any(n is not None for n in (self.min_weight, self.top_k, self.max_edges))

    @property
    def options(self) -> dict[str, Any]:
        """What the user has asked for, for the record and the provenance."""
        names = ("min_weight", "top_k", "max_edges", "strongest")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


ALL = Thinning()
