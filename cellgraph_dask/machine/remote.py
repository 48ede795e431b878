"""Paths in remote storage, as far as exports need them; the one module that knows fsspec.

A URL such as ``s3://bucket/exports/atlas`` becomes a `RemotePath`, which is read like a
`pathlib.Path`. Whatever the libraries of the storage raise while it is read becomes an `OSError`
that says what happened, so that readers need not know where an export is.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import OutputError, hide, shown

_READ_BYTES = 1 << 22  # what a request for a part of a file asks for
_LOCAL = re.compile("(file|local):(?=/)", re.IGNORECASE)
_WEB = ("http", "https")
_DENIED = (401, 403)
_A_PAGE = "the server sent a web page in its place"
_PAGES = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in remote storage."""

    files: Any = field(repr=False)  # fsspec.AbstractFileSystem
    path: str = field(repr=False)  # in it
    url: str  # what the user calls it, without its secrets

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        """Return a path below this one."""
        return RemotePath(self.files, f"{self.path}/{name}", f"{self.url}/{name}")

    def read_text(self, encoding: str = "utf-8") -> str:
        """Text of a file."""
        with _as_os_errors(self.url):
            content = self.files.cat_file(self.path)
            if is_page(content):
                raise FileNotFoundError(_A_PAGE)
            return str(content, encoding)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file for reading from start to end."""
        assert mode == "rb"
        return cast("IO[Any]", _Reader(self))

    def size(self) -> int | None:
        """Size of a file in bytes, or None if there is no such file."""
        try:
            found = self.files.info(self.path)
        except FileNotFoundError:
            return None
        return int(found["size"] or 0) if found["type"] == "file" else None

    def exists(self) -> bool:
        """Whether there is such a file; some web servers say so of any, and send a page."""
        if self.size() is None:
            return False
        if urlsplit(self.path).scheme in _WEB:
            try:
                with self.open() as file:
                    file.read(64)
            except FileNotFoundError:
                return False
        return True

    def is_dir(self) -> bool:
        """Whether there is anything below this name."""
        with _as_os_errors(self.url):
            return bool(self.files.isdir(self.path))


AnyPath = Path | RemotePath


def is_denied(error: BaseException | None) -> bool:
    """Whether an error says that access was denied, in the words of any storage library."""
    while error is not None:
        names = ("status", "status_code", "code")
        status = next((getattr(error, name) for name in names if hasattr(error, name)), None)
        if isinstance(error, PermissionError) or status in _DENIED:
            return True
        error = error.__cause__
    return False


def is_page(content: bytes) -> bool:
    """Whether bytes begin like a web page."""
    return content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(_PAGES)


class _Reader:
    """A file that is read from start to end."""

    def __init__(self, path: RemotePath) -> None:
        self._url = path.url
        self._begins = True
        # Of a web server, one answer is read from start to end: not all of them give parts.
        block = 0 if urlsplit(path.path).scheme in _WEB else _READ_BYTES
        with _as_os_errors(path.url):
            self._file = path.files.open(path.path, "rb", block_size=block, cache_type="readahead")

    def read(self, n: int) -> bytes:
        with _as_os_errors(self._url):
            content = cast("bytes", self._file.read(n))
            if self._begins and is_page(content):
                raise FileNotFoundError(_A_PAGE)
            self._begins = False
            return content

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def is_url(path: Any) -> bool:
    """Whether a path is a URL of remote storage, and not a path of this machine."""
    return isinstance(path, str) and "://" in path and not _LOCAL.match(path)


def plain_name(name: Any) -> Any:
    """Return a path or URL as text: of a `UPath`, another path-like object, or bytes.

    What is none of these is returned as it is.
    """
    if hasattr(name, "protocol") and hasattr(name, "storage_options"):  # a UPath
        return str(name)
    return os.fsdecode(name) if isinstance(name, os.PathLike | bytes) else name


def options_of(name: Any, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the options for a path or URL, by default those that a `UPath` brings along."""
    if options is None and is_url(plain_name(name)):
        return getattr(name, "storage_options", None) or None
    return options


def local_path(path: Any) -> Path:
    """Path on this machine, which may be given as a ``file://`` URL, or begin with ``~``.

    What is there by exactly that name comes first. An OutputError says that a URL names another
    machine.
    """
    text = plain_name(path)
    found = _LOCAL.match(text)
    if os.path.lexists(text):
        return Path(text)
    if found is None:
        return _at_home(text)
    rest = text[found.end() :]
    if rest.startswith("//"):
        host, slash, below = rest[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise OutputError(
                f"{text} names the machine {host!r}; a file on this one is file:///folder/name."
            )
        rest = f"/{below}"
    return Path(rest if os.path.lexists(rest) else unquote(rest))


def _at_home(text: str) -> Path:
    """Return a path with ``~`` for the home of a user, if that is known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


class Address(NamedTuple):
    """A URL as libraries take it, with the options for fsspec."""

    url: str
    options: dict[str, Any]


def address(url: str, options: Mapping[str, Any] | None) -> Address:
    """Return where a URL leads; from now on errors know the secrets in it.

    The query of a web address belongs to each request, and not to the end of the folder's name.
    """
    hide(url, options)
    parts, found = urlsplit(url), dict(options or {})
    if parts.scheme in _WEB and parts.query and "params" not in found:
        found["params"] = parse_qsl(parts.query, keep_blank_values=True)
        url = parts._replace(query="").geturl()
    scheme, colon, rest = url.partition("://")
    return Address(f"{scheme.lower()}{colon}{rest.rstrip('/')}", found)


def find_path(name: Any, options: Mapping[str, Any] | None = None) -> AnyPath:
    """Return a path of this machine, or one in remote storage.

    The options are for fsspec's file system: endpoint, credentials and the like. An OutputError
    says that no package for such URLs is installed, or that it refuses the URL or the options.
    """
    given = plain_name(name)
    if not is_url(given):
        return local_path(given)
    from fsspec.core import url_to_fs

    url, found = address(given, options_of(name, options))
    protocol, given = urlsplit(url).scheme, shown(url)
    try:
        try:  # listings that are kept would hide what others write
            files, path = url_to_fs(url, **{"use_listings_cache": False, **found})
        except TypeError:  # a file system without them
            files, path = url_to_fs(url, **found)
    except ImportError as error:
        raise OutputError(
            f"{given} cannot be used: the package for {protocol}:// is not installed ({error}). "
            "For s3:// it comes with this package's extra `remote`."
        ) from error
    except Exception as error:
        raise OutputError(
            f"{given} cannot be used: {describe(error)}. Check the URL and the storage options."
        ) from error
    if not files._strip_protocol(path).strip("/"):
        raise OutputError(f"{given} is not a folder; name one, such as {protocol}://bucket/export.")
    return RemotePath(files, path.rstrip("/"), given)


def default_options(
    url: Any, options: Mapping[str, Any] | None, other: Any, of_other: Any
) -> Mapping[str, Any] | None:
    """Return the options for a URL; if it has none, those of another URL of the same protocol."""
    options = options_of(url, options)
    url, other, of_other = plain_name(url), plain_name(other), options_of(other, of_other)
    if options is not None or not (is_url(url) and is_url(other)):
        return options
    same = urlsplit(url).scheme == urlsplit(other).scheme
    return cast("Mapping[str, Any] | None", of_other) if same else None


def describe(error: BaseException) -> str:
    """Return what an error of a storage library says, without a final stop."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text.rstrip(".")
    if isinstance(error, FileNotFoundError):
        return f"it is not there, or the bucket is not ({text})"
    if isinstance(error, PermissionError):
        return f"access was denied ({text})"
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    """Raise whatever goes wrong as an `OSError` with a number, text and URL."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, describe(error), url) from error
    except UnicodeError:
        raise
    except Exception as error:
        number = errno.EACCES if is_denied(error) else errno.EIO
        raise OSError(number, describe(error), url) from error
