"""What an export was made from, in a file beside the edges that no viewer reads.

It holds nothing that differs between two exports of one matrix with the same options, and a digest
of itself, so that it is found if it is changed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from ..errors import InvalidExportError, shown
from ..machine.remote import AnyPath
from .format import ABSENT, FOLDER, Manifest, check_readable, named_read_errors

PROVENANCE = "provenance.json"  # in `FOLDER`
NOTHING = "{}"  # what the file says while one export replaces another
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Provenance:
    """What an export was made from.

    Attributes
    ----------
    source, key : str
        The store, without what is secret in a URL, and the matrix in it.
    options : dict
        Options that decide the bytes of the files.
    fingerprint : str or None
        Of the source, as it was read; None if that is neither in files nor at a URL.
    version : str
        Of this package.
    """

    source: str
    key: str
    options: dict[str, Any]
    fingerprint: str | None
    version: str

    @property
    def is_sound(self) -> bool:
        """Whether all of it, read from a file, is of its kind."""
        texts = (self.source, self.key, self.version, self.fingerprint or "")
        is_text = all(isinstance(text, str) and text.isprintable() for text in texts)
        return is_text and isinstance(self.options, dict)

    def to_json(self, manifest: Manifest) -> str:
        """Return the file's text, for the export of a manifest."""
        told = asdict(self) | {"source": printable(self.source), "key": printable(self.key)}
        return _text(told | {"graph": _figures(manifest)})

    def with_names(self, digest: str) -> Provenance:
        """Return the same with the SHA-256 of the names of cells that were selected."""
        cells = self.options["cells"] | {"names_sha256": digest}
        return replace(self, options=self.options | {"cells": cells})

    def differs(self, source: str, key: str, fingerprint: str | None) -> str | None:
        """Say what tells a matrix from the one of the export; None if nothing does."""
        source, key = printable(source), printable(key)
        if (source, key) != (self.source, self.key):
            return (
                f"the export was made from {self.key} of {self.source}, but it was compared with "
                f"{key} of {source}. Name the matrix with `key`, if it is the wrong one."
            )
        if fingerprint != self.fingerprint:
            return f"{source} has been written again since the export was made from it."
        return None


def read_provenance(out_dir: AnyPath, manifest: Manifest) -> Provenance | None:
    """Return what an export was made from; None if that is not told.

    An InvalidExportError says that the file was changed, or is of another export.
    """
    path = out_dir / f"{FOLDER}/{PROVENANCE}"
    check_readable(path, out_dir)
    raw = NOTHING.encode()
    with named_read_errors(path), suppress(*ABSENT), path.open("rb") as file:
        raw = file.read(MOST_BYTES)
    return _parse(path, raw, manifest) if raw != NOTHING.encode() else None


def _parse(path: AnyPath, raw: bytes, manifest: Manifest) -> Provenance:
    try:
        found = json.loads(raw)
        del found["sha256"]
        whole = _text(found).encode() == raw
        figures = found.pop("graph")
        provenance = Provenance(**found)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole or not provenance.is_sound:
        raise InvalidExportError(
            f"{path} is not as an export has written it. Remove it, and what the export was made "
            "from is not known."
        )
    if figures != _figures(manifest):
        raise InvalidExportError(
            f"{path} is of another export: it tells of {figures}, and the manifest of "
            f"{_figures(manifest)}. Remove it if another program has written the graph since."
        )
    return provenance


def _figures(manifest: Manifest) -> dict[str, int | None]:
    return {
        name: getattr(manifest, name)
        for name in ("n_cells", "n_edges", "max_neighbors", "compression")
    }


def _text(told: dict[str, Any]) -> str:
    digest = sha256(json.dumps(told).encode()).hexdigest()
    return json.dumps(told | {"sha256": digest}, indent=2) + "\n"


def printable(name: str) -> str:
    """Return the name of a source or key without secrets, and with escapes for what is no text."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown(name)
    )
