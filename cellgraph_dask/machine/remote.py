"""Paths in remote storage, as far as exports need them; the one module that knows fsspec.

A URL such as ``s3://bucket/exports/atlas`` becomes a `RemotePath`, which is read like a
`pathlib.Path`. Whatever the libraries of the storage raise while it is read becomes an `OSError`
that says what happened, so that readers need not know where an export is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from ..errors import OutputError

_READ_BYTES = 1 << 22  # what a request for a part of a file asks for
_LOCAL = ("file", "local")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in remote storage."""

    files: Any  # fsspec.AbstractFileSystem
    path: str  # in it
    url: str  # what the user calls it

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        """Return a path below this one."""
        return RemotePath(self.files, f"{self.path}/{name}", f"{self.url}/{name}")

    def read_text(self, encoding: str = "utf-8") -> str:
        """Text of a file."""
        with _as_os_errors(self.url):
            return str(self.files.cat_file(self.path), encoding)

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
        """Whether there is such a file."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is anything below this name."""
        with _as_os_errors(self.url):
            return bool(self.files.isdir(self.path))


AnyPath = Path | RemotePath


class _Reader:
    """A file that is read from start to end."""

    def __init__(self, path: RemotePath) -> None:
        self._url = path.url
        with _as_os_errors(path.url):
            self._file = path.files.open(
                path.path, "rb", block_size=_READ_BYTES, cache_type="readahead"
            )

    def read(self, n: int) -> bytes:
        with _as_os_errors(self._url):
            return cast("bytes", self._file.read(n))

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL of remote storage, and not a path of this machine."""
    return isinstance(path, str) and "://" in path and urlsplit(path).scheme not in _LOCAL


def local_path(path: str | Path) -> Path:
    """Path of a folder of this machine, which may be given as a ``file://`` URL."""
    if isinstance(path, str) and "://" in path:
        return Path(unquote(urlsplit(path).path))
    return Path(path)


def find_path(name: str | Path, options: Mapping[str, Any] | None = None) -> AnyPath:
    """Return a path of this machine, or one in remote storage.

    The options are for fsspec's file system: endpoint, credentials and the like. An OutputError
    says that no package for such URLs is installed, or that it refuses the URL or the options.
    """
    if not is_url(name):
        return local_path(name)
    from fsspec.core import url_to_fs

    url = str(name)
    protocol = urlsplit(url).scheme
    try:
        try:  # listings that are kept would hide what others write
            files, path = url_to_fs(url, **{"use_listings_cache": False, **(options or {})})
        except TypeError:  # a file system without them
            files, path = url_to_fs(url, **(options or {}))
    except ImportError as error:
        raise OutputError(
            f"{url} cannot be used: the package for {protocol}:// is not installed ({error}). For "
            "s3:// it comes with this package's extra `remote`."
        ) from error
    except Exception as error:
        raise OutputError(
            f"{url} cannot be used: {describe(error)}. Check the URL and the storage options."
        ) from error
    if not files._strip_protocol(path).strip("/"):
        raise OutputError(f"{url} is not a folder; name one, such as {protocol}://bucket/export.")
    return RemotePath(files, path.rstrip("/"), url.rstrip("/"))


def default_options(
    url: str | Path, options: Mapping[str, Any] | None, other: str | Path, of_other: Any
) -> Mapping[str, Any] | None:
    """Return the options for a URL; if it has none, those of another URL of the same protocol."""
    if options is not None or not (is_url(url) and is_url(other)):
        return options
    same = urlsplit(str(url)).scheme == urlsplit(str(other)).scheme
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
        raise OSError(errno.EIO, describe(error), url) from error
