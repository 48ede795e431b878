"""Amounts as text for a person: counts with their nouns, durations, rates."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def counted(n: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``"1 edge"``, ``"2,000 edges"``, ``"3 entries"``."""
    plural = many or (f"{one[:-1]}ies" if one.endswith("y") else f"{one}s")
    return f"{n:,} {one if n == 1 else plural}"


def scaled(value: float, units: tuple[str, ...], digits: int = 1) -> str:
    """Return a number in the unit, each a thousand of the one before, in which it is short."""
    for unit in units:
        text = f"{value:.{digits if value < 100 - 0.5 * 10**-digits else 0}f}"
        if float(text) < 1000 or unit == units[-1]:
            break
        value /= 1000
    return f"{text} {unit}".rstrip()


def blocks(counts: Sequence[int]) -> str:
    """Return counts as a run of blocks, ``"▁▂▆█▃"``; only where nothing is, it is flat."""
    most = max(counts, default=0)
    return "".join(_BLOCKS[-(-n * (len(_BLOCKS) - 1) // most) if n else 0] for n in counts)


def format_rate(per_second: float, unit: str) -> str:
    """Return a rate: ``"3.1 M edges/s"``."""
    digits = 1 if per_second >= 1000 else 0
    return f"{scaled(per_second, ('', 'k', 'M', 'G'), digits)} {unit}".rstrip() + "/s"


def format_time(seconds: float) -> str:
    """Return a duration: ``"0.4 s"``, ``"12 s"``, ``"3:05 min"``, ``"2:03 h"``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{left:02} min"
    return f"{minutes // 60:,}:{minutes % 60:02} h"


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it: ``"0:12"``, ``"12:05"``, ``"2:03:05"``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
