"""One part of a gzip member, by the fastest encoder that is as good as the level asks.

Edge files are of two kinds. Destinations in random cell order hardly repeat, and ISA-L codes them
several times faster than zlib, to about the same size. Sources, and destinations of cells in
spatial order, repeat all the time, and there zlib-ng finds what ISA-L misses. A sample from the
middle of each part goes to the encoders, and the fastest that makes it small enough gets the part,
so the choice depends on nothing but the data and the level.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from zlib_ng import zlib_ng

from ..errors import InvalidExportError
from ..machine.buffers import Array
from ..machine.files import write_at
from ..machine.remote import AnyPath
from .format import named_read_errors

Buffer = Any

PART_EDGES = 1 << 20  # edges in a deflate part; changing it changes the bytes of gzip files
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, mtime 0, unknown system
_COPY_BYTES = 1 << 22
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

    The size is about zlib's at that level, or less. If it is not the last part of its stream, it
    ends in a sync flush.
    """
    ladder, most = _LADDERS[level]
    middle = max(0, (len(data) - _SAMPLE_BYTES) // 2)
    sample = data[middle : middle + _SAMPLE_BYTES]
    enough = most * len(ladder[-1](sample, last=True))
    for encode in ladder[:-1]:
        if len(encode(sample, last=True)) <= enough:
            return encode(data, last=last)
    return ladder[-1](data, last=last)


class DeflatePart(NamedTuple):
    """A deflate part: its place in the file that holds it, CRC-32 and length of its input."""

    offset: int
    n_bytes: int
    crc: int
    n_raw: int


def deflate_edges(values: Array, level: int, *, last: bool) -> tuple[bytes, int]:
    """Return the deflate part of some edges, and the CRC-32 of their bytes."""
    raw = np.ascontiguousarray(values).view(np.uint8).data if values.size else b""
    return deflate_part(raw, level, last=last), zlib_ng.crc32(raw)


def join_parts(fd: int, parts: Iterable[tuple[int, DeflatePart]], n_raw: int) -> int:
    """Write one gzip member to `fd`: a header, all parts, the checksum of their input.

    Each part comes with the open file that holds it; `n_raw` are the bytes of input in all. Returns
    the bytes written.
    """
    end = write_at(fd, GZIP_HEADER, 0)
    crc = 0
    for source, part in parts:
        for at in range(0, part.n_bytes, _COPY_BYTES):
            n = min(_COPY_BYTES, part.n_bytes - at)
            end = write_at(fd, os.pread(source, n, part.offset + at), end)
        crc = zlib_ng.crc32_combine(crc, part.crc, part.n_raw)
    return write_at(fd, struct.pack("<II", crc, n_raw % 2**32), end)


def inflate_member(file: Any, path: AnyPath) -> Iterator[bytes]:
    """Yield what one gzip member holds, in parts of at most 4 MiB.

    The open file must be one whole member with a right checksum and nothing after it; an
    InvalidExportError says what it is instead.
    """
    inflate = zlib_ng.decompressobj(wbits=31)
    pending = b""
    try:
        while not inflate.eof:
            encoded = pending or file.read(2**20)
            if not encoded:
                raise InvalidExportError(f"{path} ends inside its gzip member.")
            yield inflate.decompress(encoded, 2**22)
            pending = inflate.unconsumed_tail
    except zlib_ng.error as error:  # type: ignore[misc]
        raise InvalidExportError(f"{path} is not sound gzip: {error}.") from error
    if inflate.unused_data or pending or file.read(1):
        raise InvalidExportError(
            f"{path} goes on after its gzip member; browsers refuse such files."
        )


def check_gzip_header(path: Path) -> None:
    """Refuse a gzip header that neither we nor cellucid 0.0.9 write.

    Nothing in the checksum covers the header, and readers skip most of it. Python's gzip module,
    with which cellucid writes, notes time and name there.
    """
    with named_read_errors(path), path.open("rb") as file:
        head = file.read(64)
    by_cellucid = (
        head[:4] == b"\x1f\x8b\x08\x08"
        and head[8:9] in (b"\x00", b"\x02", b"\x04")
        and head[9:10] == b"\xff"
        and head[10:].startswith(path.stem.encode() + b"\x00")
    )
    if head[:10] != GZIP_HEADER and not by_cellucid:
        raise InvalidExportError(
            f"{path} has the gzip header {head[:10].hex()}, not {GZIP_HEADER.hex()}: it was "
            "changed, or compressed by another program."
        )
