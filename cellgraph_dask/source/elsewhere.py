"""The objects of a zarr store that is not in files of this machine, by requests to it.

A thread asks for what it needs, one object or part of one at a time, and tries again when that
fails.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import SourceError
from .codecs import ChunkError

Bytes = NDArray[np.uint8]

_WAITS = (0.1, 0.5, 2.0)  # seconds before a request is tried again


class Elsewhere:
    """The objects of a zarr store that is on other machines, or in memory."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, key: str) -> _Requested:
        """Return an object; whether it exists is seen when it is read."""
        return _Requested(self._store, key)


class _Requested:
    """An object that is read by requests to its store."""

    def __init__(self, store: Store, key: str) -> None:
        self.size: int | None = None
        self._store = store
        self._key = key

    def whole(self) -> Bytes:
        return self._get(None)

    def fill(self, out: Bytes, offset: int) -> None:
        request = (
            RangeByteRequest(offset, offset + out.size)
            if offset >= 0
            else SuffixByteRequest(-offset)
        )
        content = self._get(request)
        if offset < 0:
            content = content[: out.size]
        if content.size != out.size:
            raise ChunkError(
                f"{content.size} bytes came for the {out.size} from byte {offset} on; the object "
                "is too short, or its server does not give parts of objects"
            )
        out[:] = content

    def _get(self, request: Any) -> Bytes:
        prototype = default_buffer_prototype()
        for wait in (*_WAITS, None):
            try:
                buffer = sync(self._store.get(self._key, prototype, request))
            except Exception as error:  # of any library that a store is made with
                if wait is None:
                    raise SourceError(
                        f"{self._key} cannot be read from {self._store}: {type(error).__name__}: "
                        f"{error}. Look at the connection and the storage options, and try again."
                    ) from error
                time.sleep(wait)
                continue
            if buffer is None:
                raise FileNotFoundError(self._key)
            return np.asarray(buffer.as_numpy_array()).view(np.uint8)
        raise AssertionError

    def close(self) -> None:
        pass
