"""A picture as a file: drawn only if it can be written, and shown when it is whole."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..machine.memory import peak_bytes
from .picture import picture
from .scene import PlotReport
from .target import find_target, written_aside

FORMATS = ("png", "pdf", "svg")


def draw_file(path: Any, output: str | Path, *, force: bool = False, **options: Any) -> PlotReport:
    """Draw a graph into a file; see `plot_graph` for the options.

    An OutputError says that it cannot be written, or is there already.
    """
    began = time.perf_counter()
    target = find_target(output, "picture", FORMATS, force=force)
    drawn = picture(path, **options)
    with written_aside(target) as aside:
        drawn.save(aside, target.suffix[1:].lower())
    seconds = round(time.perf_counter() - began, 3)
    return replace(drawn.report, seconds=seconds, peak_memory_bytes=peak_bytes())
