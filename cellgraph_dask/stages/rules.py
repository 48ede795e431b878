"""The weight of a pair of cells: a rule of its two directions.

With ``a = C[i, j]`` and ``b = C[j, i]``, i < j, repeats added up and what is not stored being 0, a
pair is an edge if the rule gives more than 0. Both directions of an edge have the same bits.
"""

from __future__ import annotations

from typing import Literal, get_args

Rule = Literal["ones", "max", "min", "mean", "sum", "fuzzy"]

RULES: tuple[Rule, ...] = get_args(Rule)  # compiled loops know a rule by its place
