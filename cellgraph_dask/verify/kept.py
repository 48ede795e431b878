"""Which edges an export keeps of its matrix, as it says itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..edge_pairs.parquet import RULES
from ..edge_pairs.provenance import Provenance
from ..errors import InvalidExportError

STRONGEST = ("largest", "smallest")


@dataclass(frozen=True)
class Kept:
    """How the weights of both directions become one, and which pairs are kept by them.

    A ValueError says which of these cannot be.
    """

    rule: str | None = None  # None: both directions are the same, or weights do not matter
    min_weight: float | None = None
    top_k: int | None = None  # of either cell
    max_edges: int | None = None
    strongest: str | None = None  # by default the largest weights

    def __post_init__(self) -> None:
        for name, allowed in (("rule", RULES), ("strongest", STRONGEST)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or value not in allowed):
                raise ValueError(f"{name} is {_short(value)}, not one of {', '.join(allowed)}")
        for name in ("top_k", "max_edges"):
            n: Any = getattr(self, name)
            if n is None:
                continue
            if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
                raise ValueError(f"{name} is {_short(n)}, not a whole number from 1 on")
            object.__setattr__(self, name, int(n))  # maybe one of numpy
        least: Any = self.min_weight
        if least is not None:
            value = math.nan
            if not isinstance(least, bool) and isinstance(least, Real):
                with suppress(OverflowError):
                    value = float(least)
            if not 0 <= value < math.inf:
                raise ValueError(f"min_weight is {_short(least)}, not a finite number from 0 on")
            object.__setattr__(self, "min_weight", value)

    @property
    def thinning(self) -> dict[str, Any] | None:
        """What pairs are kept by; None if all are."""
        names = ("min_weight", "top_k", "max_edges")
        told = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if told and self.strongest is not None:
            told["strongest"] = self.strongest
        return told or None

    @property
    def words(self) -> str:
        """The same in words."""
        return ", ".join(f"{name} {value}" for name, value in (self.thinning or {}).items())


def kept_of(provenance: Provenance | None) -> Kept:
    """Return what an export keeps; an InvalidExportError names an option that cannot be."""
    options: Mapping[str, Any] = provenance.options if provenance is not None else {}
    names = ("rule", "min_weight", "top_k", "max_edges", "strongest")
    try:
        return Kept(**{name: options.get(name) for name in names})
    except ValueError as error:
        raise InvalidExportError(
            f"the export says of itself that {error}. So it is not known which edges it should "
            "hold, and they cannot be proved. Export again."
        ) from None


def _short(value: Any) -> str:
    """Return a value as JSON-like text, at most the beginning."""
    if isinstance(value, int) and abs(value) >= 2**63:  # too long for `repr`, maybe
        return "so large a number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"
