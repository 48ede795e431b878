"""What decides the bytes of an export in this process: the package's code, and libraries.

Processes of one cluster must agree on it. The digest is of files, so it counts only if they are
those that were imported.
"""

from __future__ import annotations

import hashlib
import platform
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ClusterError

_PACKAGE = Path(__file__).parents[1]
# They compute, or encode and decode. The second ones need not be installed, but where they are
# installed twice they are to be the same.
_LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "dask", "zarr", "numcodecs", "h5py", "isal",
              "zlib-ng")  # fmt: skip
_OPTIONAL = ("hdf5plugin", "pyarrow", "sparse")
_imported = time.time_ns()


@cache
def versions() -> dict[str, str | None]:
    """Return versions by name, and under "code of cellgraph_dask" a digest of its sources.

    A ClusterError says that the sources are no longer those that this process has imported.
    """
    found: dict[str, str | None] = {"code of cellgraph_dask": _digest()}
    found["Python"] = ".".join(platform.python_version_tuple()[:2])
    for name in (*_LIBRARIES, *_OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def difference(here: dict[str, str | None], there: dict[str, str | None]) -> str | None:
    """Return what differs, as a text; None if nothing does."""
    for name, wanted in here.items():
        found = there.get(name)
        if found != wanted and not (name in _OPTIONAL and None in (found, wanted)):
            return f"{name} {found or '(none)'} instead of {wanted or '(none)'}"
    return None


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.stat().st_ctime_ns > _imported:
            raise ClusterError(
                f"{path} has changed since this process imported cellgraph_dask; start it again."
            )
        name = path.relative_to(_PACKAGE).as_posix()
        digest.update(f"{name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
