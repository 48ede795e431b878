"""Buffers that a thread keeps from task to task, so that memory is allocated once.

Fresh arrays of tens of megabytes for every task would cost page faults and leave it to the
allocator how much freed memory the process keeps. Each thread holds one buffer for each name
instead; it goes when the thread ends.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

_here = threading.local()


def take(name: str, size: int, dtype: DTypeLike) -> Array:
    """Return `size` elements of this thread's buffer `name`, uninitialized.

    They are good until the same thread takes the same name again.
    """
    buffers: dict[str, NDArray[np.uint8]] = _here.__dict__.setdefault("buffers", {})
    n_bytes = size * np.dtype(dtype).itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.size < n_bytes:
        buffers.pop(name, None)  # let go of the old one before asking for the new one
        del buffer
        buffer = buffers[name] = np.empty(n_bytes, np.uint8)
    return buffer[:n_bytes].view(dtype)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def return_freed() -> None:
    """Have the allocator give what was freed back to the system, where it can.

    It keeps much of what ended threads have used, which nobody else may get for long.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def release() -> None:
    """Give this thread's buffers back."""
    _here.__dict__.pop("buffers", None)
