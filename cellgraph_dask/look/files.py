"""A picture as a file: drawn only if it can be written, and shown when it is whole."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..machine.files import named_disk_errors
from ..machine.memory import peak_bytes
from ..machine.remote import local_path
from .picture import picture
from .scene import PlotReport

FORMATS = ("png", "pdf", "svg")


def draw_file(path: Any, output: str | Path, *, force: bool = False, **options: Any) -> PlotReport:
    """Draw a graph into a file; see `plot_graph` for the options.

    An OutputError says that it cannot be written, or is there already.
    """
    began = time.perf_counter()
    target = local_path(output)
    _check(target, force=force)
    drawn = picture(path, **options)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    with named_disk_errors(target.parent):
        try:
            drawn.save(aside, target.suffix[1:].lower())
            aside.replace(target)
        finally:
            with suppress(OSError):
                aside.unlink()
    seconds = round(time.perf_counter() - began, 3)
    return replace(drawn.report, seconds=seconds, peak_memory_bytes=peak_bytes())


def _check(target: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is drawn."""
    if target.suffix[1:].lower() not in FORMATS:
        raise OutputError(
            f"{target} is no picture by its name, which has to end in .png, .pdf or .svg."
        )
    if not os.access(target.parent, os.F_OK):
        raise OutputError(f"{target.parent} does not exist; make the folder of the picture first.")
    if os.access(target, os.F_OK) and not target.is_file():
        raise OutputError(f"{target} is not a file; name another one for the picture.")
    if os.access(target, os.F_OK) and not force:
        raise OutputError(f"{target} is there already. Replace it with `force=True`.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {target.parent}: Permission denied.")
