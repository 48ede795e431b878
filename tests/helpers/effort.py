"""How much is tried of what could go on for ever: in CI all of it, elsewhere a part.

``CI=true pytest`` does as much as CI.
"""

from __future__ import annotations

import os

THOROUGH = "CI" in os.environ
# One of so many points, bits, or drawn examples is tried: a number that shares no factor with the
# bits of a byte, or it would always be the same one.
PART = 1 if THOROUGH else 7


def part_of(n: int) -> int:
    """Return how many of `n` examples are drawn."""
    return max(1, n // PART)
