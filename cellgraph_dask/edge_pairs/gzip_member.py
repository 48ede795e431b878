"""One part of a gzip member, by the fastest encoder that is as good as the level asks.

Edge files are of two kinds. Destinations in random cell order hardly repeat, and ISA-L codes them
several times faster than zlib, to about the same size. Sources, and destinations of cells in
spatial order, repeat all the time, and there zlib-ng finds what ISA-L misses. A sample from the
middle of each part goes to the encoders, and the fastest that makes it small enough gets the part,
so the choice depends on nothing but the data and the level.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from isal import isal_zlib
from zlib_ng import zlib_ng

Buffer = Any

_SAMPLE_BYTES = 1 << 15
_RAW = -15  # deflate without a header, 32 kB window


def _encoder(library: Any, level: int) -> Callable[..., bytes]:
    """Return a function that deflates with a library at one of its levels."""

    def encode(data: Buffer, *, last: bool) -> bytes:
        encoder = library.compressobj(level, library.DEFLATED, _RAW)
        end = library.Z_FINISH if last else library.Z_SYNC_FLUSH
        return encoder.compress(data) + encoder.flush(end)  # type: ignore[no-any-return]

    return encode


# From fast to slow; the last of a ladder is what the others are held against. zlib itself is here
# because at its levels 1 (on random destinations) and 4 (on sources) nothing as small is faster.
_FAST = (_encoder(isal_zlib, 2), _encoder(zlib_ng, 5))
_MIDDLE = (*_FAST, _encoder(zlib, 1), _encoder(zlib, 4))
_SMALL = (*_MIDDLE, _encoder(zlib_ng, 9))
# For each level: what is tried, and how much larger than with the last it may be.
_LADDERS = (
    dict.fromkeys(range(1, 4), (_FAST, 1.1))
    | dict.fromkeys(range(4, 7), (_MIDDLE, 1.009))
    | dict.fromkeys(range(7, 10), (_SMALL, 1.007))
)


def deflate_part(data: Buffer, level: int, *, last: bool) -> bytes:
    """Return `data` as raw deflate blocks that may be joined to those of other parts.

    Parameters
    ----------
    data
        Bytes of a part.
    level
        1 to 9. At any level the size is about zlib's at that level, or less.
    last
        Whether the stream ends with this part; if not, it ends in a sync flush.

    Returns
    -------
    bytes
    """
    ladder, most = _LADDERS[level]
    middle = max(0, (len(data) - _SAMPLE_BYTES) // 2)
    sample = data[middle : middle + _SAMPLE_BYTES]
    enough = most * len(ladder[-1](sample, last=True))
    for encode in ladder[:-1]:
        if len(encode(sample, last=True)) <= enough:
            return encode(data, last=last)
    return ladder[-1](data, last=last)
