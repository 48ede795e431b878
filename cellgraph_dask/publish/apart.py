"""Source and output keep apart: neither is made, nor cleared away, inside the other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from ..edge_pairs.format import FOLDER
from ..errors import OutputError, shown
from ..machine.remote import address, is_url
from .work_folder import WORK_FOLDER

_STORE_FILES = ("zarr.json", ".zgroup")


def check_apart(name: str, file: str | None, out_dir: Any, scratch_dir: Any) -> None:
    """Refuse folders inside the source, and a source where a run makes and deletes files.

    The source is a URL, or a file or folder of this machine that messages call `name`. Links are
    followed. An OutputError says which is inside which.
    """
    if is_url(out_dir):
        own, place = _of_url(name), _of_url(shown(address(out_dir, None).url))
        if file is None and own is not None and place is not None:
            _refuse(name, own, [place])
    if file is None:
        return
    store = Path(os.path.realpath(file))
    while any(os.access(store.parent / name, os.F_OK) for name in _STORE_FILES):
        store = store.parent  # a group in a larger store
    folders = [Path(os.path.realpath(f)) for f in (out_dir, scratch_dir) if not is_url(f) and f]
    _refuse(name, store, folders)
    if not is_url(out_dir):
        for folder in (WORK_FOLDER, FOLDER):
            if _is_inside(Path(os.path.realpath(file)), folders[0] / folder):
                raise OutputError(
                    f"{name} is in {folder}/ of the output folder, where files are made and "
                    "deleted. Move it out of there, or choose another folder."
                )


def _refuse(name: str, store: PurePath, folders: Iterable[PurePath]) -> None:
    for folder in folders:
        if _is_inside(folder, store):
            raise OutputError(
                f"{folder} is inside the store {name} itself; its files would become part of the "
                "store. Choose a folder beside it."
            )


def _is_inside(path: PurePath, folder: PurePath) -> bool:
    return path == folder or folder in path.parents


def _of_url(url: str) -> PurePath | None:
    """Return a URL as a path that can be compared, or None if it is none."""
    scheme, found, rest = url.partition("://")
    return PurePosixPath(scheme, os.path.normpath(rest)) if found else None
