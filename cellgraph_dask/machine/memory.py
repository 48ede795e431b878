"""Memory in four words: limit, reserved, projected, measured.

*limit* is what the user allows, *reserved* what the interpreter and its libraries already hold,
*projected* our upper bound for a plan, and *measured* what a run peaked at. All are resident bytes
of this process. Sizes come in as ``"512MB"`` and go out the same way.
"""

from __future__ import annotations

import numbers
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MemoryLimitError
from .amounts import counted, scaled

_UNITS = ["", "K", "M", "G", "T"]
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?\s*$", re.IGNORECASE)

_MOST_BYTES = 2**63

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def parse_bytes(size: int | str) -> int:
    """Return a size in bytes: ``"512MB"`` is 512·10⁶, ``"512MiB"`` 512·2²⁰, an int is itself.

    What is not a positive number with an optional unit, or more than any machine has, raises a
    ValueError.
    """
    given: Any = size
    if isinstance(given, numbers.Integral):
        value: float = int(given)
    else:
        match = _SIZE.match(given) if isinstance(given, str) else None
        if match is None:
            raise ValueError(
                f"{_short(given)} is not a size; write it as 512MB, 4GiB or a byte count"
            )
        number, unit, binary = match.groups()
        value = float(number) * (1024 if binary else 1000) ** _UNITS.index(unit.upper())
    if value < 1:
        raise ValueError(f"a size must be positive, not {_short(given)}")
    if value >= _MOST_BYTES:
        raise ValueError(f"a size must be less than 8 EiB, not {_short(given)}")
    return int(value)


def _short(value: object) -> str:
    """Return a value as Python writes it, at most the beginning."""
    if isinstance(value, int) and abs(value) >= _MOST_BYTES:  # too long for `repr`, maybe
        return "so large a number" if value > 0 else "so small a number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def format_bytes(n: int) -> str:
    """Return `n` bytes for a person: ``"512 MB"``, ``"1.2 GB"`` (decimal units)."""
    return counted(n, "byte") if n < 1000 else scaled(n / 1000, ("kB", "MB", "GB", "TB"))


def machine_memory() -> int:
    """Return the bytes this process may use: the machine's memory or its cgroups', the smallest."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _cgroup_limits():
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def _cgroup_limits() -> Iterator[Path]:
    """Yield the files that may hold a limit: of our cgroup and all above it, versions 1 and 2."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, file = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = Path(name.lstrip("/"))
        for folder in (inside, *inside.parents):  # in a container they may stand for the root
            yield root / folder / file


def limit_bytes(memory_limit: int | str | None) -> int:
    """Return the limit that the user names, or half of what the machine or cgroup has."""
    return machine_memory() // 2 if memory_limit is None else parse_bytes(memory_limit)


def resident_bytes() -> int:
    """Return the resident bytes of this process now (its peak, where /proc is not available)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can (Linux); else it keeps counting."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Return the most resident bytes this process has held since `reset_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# For what no formula counts: thread stacks, the interpreter's own growth, the allocator's slack.
SLACK_BYTES = 36 * 2**20
_ROUND_BYTES = 8 * 2**20  # reserved memory is rounded up, so that plans repeat


def round_reserved(resident: int) -> int:
    """Round resident bytes up, so that the same plan comes out of every start."""
    return -(-resident // _ROUND_BYTES) * _ROUND_BYTES


def too_small(what: str, limit: int, reserved: int, needed: int) -> MemoryLimitError:
    """Return the refusal of a limit, given the bytes that are taken, and those that will do."""
    least = -(-needed // 10**6) * 10**6
    return MemoryLimitError(
        f"the memory limit of {format_bytes(limit)} is too small for this {what}: "
        f"{format_bytes(reserved)} are taken by Python and its libraries. The smallest limit that "
        f"will do is {least // 10**6}MB (`memory_limit`).",
        needed_bytes=least,
    )
