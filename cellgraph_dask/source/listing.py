"""The names in a store on this machine, quickly: what a shell completes while a user types.

Only names of files, or of the groups of an HDF5 file, are looked at, and no library of stores is
imported for a folder or a zip archive. Nothing is checked, so nothing here says what can be
exported.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ..machine.remote import is_url, local_path, plain_name

_MOST_NAMES = 10_000
_MARKS = {"connectivities_key", "connectivities", "distances"}  # of what scanpy calls neighbors

Names = Callable[[str], list[str]]  # from the path of a group to what is in it


@contextmanager
def listing(path: Path) -> Iterator[Names]:
    """Give the function that lists the groups of a store; an OSError if it is none."""
    if path.is_dir():
        yield lambda group: _in_folder(path / group)
    elif not path.is_file():  # a pipe would have us wait
        raise FileNotFoundError(path)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        yield lambda group: _in_archive(names, f"{group}/")
    else:
        import h5py

        with h5py.File(path, "r", locking=False) as file:
            yield lambda group: sorted(islice(file.get(group, {}), _MOST_NAMES))


def _in_folder(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            inside = [e.name for e in islice(entries, _MOST_NAMES) if e.is_dir()]
            return sorted(name for name in inside if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _in_archive(names: list[str], above: str) -> list[str]:
    below = {name[len(above) :].split("/", 1)[0] for name in names if name.startswith(above)}
    return sorted(name for name in below if name and not name.startswith((".", "zarr.json")))


def is_store(path: Any) -> bool:
    """Whether there is a zarr store in a folder, and not an export."""
    return not is_url(plain_name(path)) and any(
        os.path.isfile(local_path(path) / name)  # noqa: PTH113 (which raises nothing)
        for name in (".zgroup", "zarr.json")
    )


def matrices(names: Names) -> list[str]:
    """Return what ``--key`` may be: names in `obsp`, and paths of other graphs."""
    paths = [f"{table}/obsp" for table in _tables(names)]
    found = [*names("obsp"), *(f"{path}/{name}" for path in paths for name in names(path))]
    old = [f"uns/{graph}/{name}" for graph in graphs(names) for name in names(f"uns/{graph}")]
    return found or [name for name in old if name.endswith(("/connectivities", "/distances"))]


def graphs(names: Names) -> list[str]:
    """Return what ``--neighbors-key`` may be: what scanpy calls neighbors in `uns`."""
    return [name for name in names("uns") if _MARKS & set(names(f"uns/{name}"))]


def embeddings(names: Names) -> list[str]:
    """Return what is in `obsm`, with what is most likely an embedding first."""
    paths = ["obsm", *(f"{table}/obsm" for table in _tables(names))]
    found = {name for path in paths for name in names(path)}
    return sorted(found, key=lambda name: (not name.startswith("X_"), name))


def columns(names: Names) -> list[str]:
    """Return the columns of `obs`."""
    paths = ["obs", *(f"{table}/obs" for table in _tables(names))]
    found = {name: None for path in paths for name in names(path)}
    return [name for name in found if not name.startswith("_")]


def _tables(names: Names) -> list[str]:
    return [f"{holder}/{name}" for holder in ("mod", "tables") for name in names(holder)]
