"""Which generation of cellucid a folder is of; files of two generations do not mix.

From 0.9.1 to 0.9.4 the graph had weights, and the viewer refuses a whole dataset whose graph has
none. So a graph without weights must not get into such a folder, nor one with them into another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import InvalidExportError, OutputError
from ..machine.remote import AnyPath
from .format import ABSENT, IDENTITY, MANIFEST, WEIGHT_KEYS, read_json

EMBEDDINGS = "embeddings"  # a folder that `prepare` of 0.9.3 and 0.9.4 makes

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


def weighted_sign(out_dir: AnyPath) -> str | None:
    """Return what shows that a folder is of cellucid 0.9.1 to 0.9.4; None if nothing does.

    One sign is enough. Files that are not JSON show nothing; an InvalidExportError says that one
    cannot be read at all.
    """
    manifest, identity = (_object(out_dir, name) for name in (MANIFEST, IDENTITY))
    version, data_version = (identity.get(k) for k in ("version", "cellucid_data_version"))
    match = _VERSION.match(data_version) if isinstance(data_version, str) else None
    if match and (int(match[1]), int(match[2])) >= (0, 9):
        return f"{IDENTITY} says cellucid_data_version {data_version!r}"
    if isinstance(version, int | float) and version >= 3:
        return f"{IDENTITY} has version {version!r}"
    for key in WEIGHT_KEYS:
        if key in manifest:
            return f"{MANIFEST} has the key {key}"
    folder = out_dir / EMBEDDINGS
    if folder.is_dir():
        return f"there is a folder {EMBEDDINGS}"
    return None


def check_generation(out_dir: AnyPath, *, weighted: bool) -> None:
    """Raise an OutputError if a folder is not of the generation of a graph with or without weights.

    An OSError says that it cannot be read.
    """
    try:
        sign = weighted_sign(out_dir)
        prepared = bool(_object(out_dir, IDENTITY))
    except InvalidExportError as error:
        raise error.__cause__ or error from None
    if sign is not None and not weighted:
        raise OutputError(
            f"{out_dir} was prepared by cellucid 0.9.1 to 0.9.4 ({sign}). Their viewer refuses the "
            "whole dataset if its graph has no weights: write them too, with `weights=True`. For a "
            "graph without: Prepare the folder with cellucid 0.0.9, or export into a folder of its "
            "own."
        )
    if sign is None and weighted and prepared:
        raise OutputError(
            f"{out_dir} was prepared by cellucid 0.0.9 ({IDENTITY} has nothing of 0.9.1 to 0.9.4), "
            "whose viewer reads graphs without weights. Leave the weights out, or export into a "
            "folder of its own."
        )


def _object(out_dir: AnyPath, name: str) -> Mapping[str, Any]:
    """Return the JSON object in a file, empty if there is none."""
    found: Any = None
    try:
        with suppress(*ABSENT):
            found = read_json(out_dir / name, out_dir)
    except InvalidExportError as error:
        if isinstance(error.__cause__, OSError):
            raise
    return found if isinstance(found, Mapping) else {}
