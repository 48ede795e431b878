"""Consolidated metadata of zarr groups: one file that holds those of all below, for web readers.

They are made anew from the metadata themselves, which say what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..machine.files import fsync_folder, write_aside

_V2, _V3 = ".zmetadata", "zarr.json"
_V2_DOCUMENTS = (".zgroup", ".zarray", ".zattrs")
_MOST_DEPTH = 32


def is_group(folder: Path) -> bool:
    """Whether a folder is a zarr group."""
    if (folder / ".zgroup").is_file():
        return True
    return (folder / _V3).is_file() and _read(folder / _V3).get("node_type") == "group"


def is_consolidated(group: Path) -> bool:
    """Whether a group has consolidated metadata."""
    if (group / _V2).is_file():
        return True
    return (group / _V3).is_file() and _read(group / _V3).get("consolidated_metadata") is not None


def strip(group: Path) -> None:
    """Take the consolidated metadata of a group away: readers then look at the metadata."""
    if (group / _V3).is_file():
        found = _read(group / _V3)
        found.pop("consolidated_metadata", None)
        _replace(group / _V3, json.dumps(found, indent=2))
    else:
        (group / _V2).unlink(missing_ok=True)
        fsync_folder(group)


def consolidate(group: Path) -> None:
    """Write the consolidated metadata of a group, durably and as a whole."""
    if (group / _V3).is_file():
        found = _read(group / _V3)
        found.pop("consolidated_metadata", None)
        metadata = {path: _of_node(_read(folder / _V3)) for path, folder in _nodes(group, _V3)}
        inline = {"kind": "inline", "must_understand": False, "metadata": metadata}
        # In the place where zarr has it.
        node_type = found.pop("node_type", "group")
        found |= {"consolidated_metadata": inline, "node_type": node_type}
        _replace(group / _V3, json.dumps(found, indent=2))
        return
    documents: dict[str, Any] = {}
    for path, folder in (("", group), *_nodes(group, ".zgroup")):
        for name in _V2_DOCUMENTS:
            if (folder / name).is_file():
                documents[f"{path}/{name}".lstrip("/")] = _read(folder / name)
    text = json.dumps({"metadata": documents, "zarr_consolidated_format": 1}, indent=2)
    _replace(group / _V2, text)


def _of_node(document: dict[str, Any]) -> dict[str, Any]:
    if document.get("node_type") == "group":
        node_type = document.pop("node_type")
        inline = {"kind": "inline", "must_understand": False, "metadata": {}}
        document |= {"consolidated_metadata": inline, "node_type": node_type}
    return document


def _nodes(group: Path, kind: str, path: str = "", depth: int = 0) -> Iterator[tuple[str, Path]]:
    """Yield the groups and arrays below a group with their paths, sorted."""
    if depth > _MOST_DEPTH:
        return
    for name in sorted(os.listdir(group)):  # noqa: PTH208
        folder, inner = group / name, f"{path}/{name}".lstrip("/")
        if kind == _V3:
            if (folder / _V3).is_file():
                yield inner, folder
                if is_group(folder):
                    yield from _nodes(folder, kind, inner, depth + 1)
        elif (folder / ".zgroup").is_file():
            yield inner, folder
            yield from _nodes(folder, kind, inner, depth + 1)
        elif (folder / ".zarray").is_file():
            yield inner, folder


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not an object of JSON")
    return found


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_aside(path, text, aside=aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
