"""The picture of a report: drawn once, on white and on black; or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple

from ..errors import MemoryLimitError, redact
from .picture import picture
from .scene import PlotReport

_SMALL = (720, 600)  # pixels


class Drawn(NamedTuple):
    """A picture, or why there is none."""

    report: PlotReport | None = None
    images: tuple[bytes, ...] = ()  # PNG, on white and on black
    why: str | None = None


def draw(
    path: Any, *, source: Any, key: str, neighbors_key: str | None, storage_options:
    Mapping[str, Any] | None, memory_limit: int | str | None, threads: int | None, progress: bool |
    None,
) -> Drawn:  # fmt: skip
    """Draw a graph over the best embedding; see `plot_graph` for the options."""
    options: dict[str, Any] = {
        "source": source, "key": key, "neighbors_key": neighbors_key, "storage_options":
        storage_options, "memory_limit": memory_limit, "threads": threads, "progress": progress,
    }  # fmt: skip
    images = []
    try:
        try:
            drawn = picture(path, **options)
        except MemoryLimitError:  # which a smaller one may fit
            drawn = picture(path, **options, size=_SMALL)
        for background in ("white", "black"):
            with BytesIO() as file:
                scene = replace(drawn, report=replace(drawn.report, background=background))
                scene.save(file, "png")
                images.append(file.getvalue())
    except Exception as error:  # of any library that reads or draws; all else is known by now
        return Drawn(why=redact(str(error)) or type(error).__name__)
    return Drawn(drawn.report, tuple(images))
