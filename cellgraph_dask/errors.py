"""The errors a user can meet. Each message says what was found, what is allowed, what to change.

No message, log, record or report holds a secret: names are told as `shown` gives them, and what
libraries say as `redact` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/\s'\"<>]*)@([^\s'\"<>]*)")
_QUERY = re.compile(r"(://[^?\s'\"<>]*)\?[^\s'\"<>]+")
_WITH_CONTAINERS = ("abfs", "abfss", "adl", "wasb", "wasbs")  # scheme://container@account
_PUBLIC = re.compile(
    "url|region|version|protocol|style|host|profile|project|bucket|encoding|^anon|^use_|^cache|"
    "(account|endpoint)_name",
    re.IGNORECASE,
)
_LEAST = 6  # characters of a secret; what is shorter is found in any text
_secrets: set[str] = set()  # that this process was given


def shown(url: str) -> str:
    """Return a text without users, passwords and queries of the URLs in it; always the same."""
    return _QUERY.sub(r"\1?…", _USER.sub(_without_user, url))


def redact(text: str) -> str:
    """Return a text as `shown`, and without all secrets that this process was given."""
    text = shown(text)
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _without_user(found: re.Match[str]) -> str:
    scheme, user, rest = found.groups()
    if scheme.lower() in _WITH_CONTAINERS and ":" not in user:
        return found[0]
    return f"{scheme}://…" if "?" in user else f"{scheme}://…@{rest}"


def hide(url: str | None, options: Mapping[str, Any] | None) -> None:
    """Have `redact` know the secrets in a URL and in the options of its storage."""
    found = set(_values(options or {}))
    if url is not None:
        parts = urlsplit(url)
        found |= {part.partition("=")[2] or part for part in parts.query.split("&")}
        found |= {parts.password or ""}
    for secret in found:
        _secrets.update(text for text in (secret, unquote(secret)) if len(text) >= _LEAST)


def _values(options: Mapping[Any, Any] | Iterable[Any]) -> Iterable[str]:
    """Yield the texts in options that may be secret."""
    pairs = options.items() if isinstance(options, Mapping) else (("", v) for v in options)
    for name, value in pairs:
        if isinstance(value, str):
            if not _PUBLIC.search(str(name)):
                yield value
        elif isinstance(value, Mapping | list | tuple):
            yield from _values(value)


class CellgraphError(Exception):
    """Anything that stops an export; the message is meant for the user as it stands."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(arg) if isinstance(arg, str) else arg for arg in args))


class SourceError(CellgraphError):
    """The store or the key is not one that can be read: missing, or of another kind."""


class DamagedGraphError(CellgraphError):
    """The matrix breaks a rule: indices, lengths, weights, or a chunk that is gone or broken."""


class MemoryLimitError(CellgraphError):
    """The memory limit is too small for the plan; the message names the smallest that will do.

    Attributes
    ----------
    needed_bytes : int or None
        That limit in bytes, as `memory_limit` takes it; None where it is not known.
    """

    def __init__(self, message: str, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class OutputError(CellgraphError):
    """The output folder cannot take the export: not writable, taken, or of another dataset."""


class DiskSpaceError(CellgraphError):
    """A disk is full, or would be."""


class ClusterError(CellgraphError):
    """The Dask cluster cannot do it: no workers, or one that cannot work or has died."""


class ResumeError(CellgraphError):
    """The run that was interrupted is another one, or cannot be resumed."""


class InvalidExportError(CellgraphError):
    """An export on disk is not a whole, well-formed edge-pair export."""
