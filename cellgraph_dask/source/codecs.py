"""The codecs of a chunk, decoded without ever giving out more bytes than the chunk may hold.

A store is a stranger's: a few bytes of gzip or zstd can claim, or give, gigabytes, and numcodecs
would allocate them. Of every codec here the decoded size is known beforehand, from the shape of a
chunk; a header that says otherwise is refused before anything is allocated, and codecs without a
header are decoded as a stream that is stopped where it goes too far. What is not on the lists below
is left to zarr and HDF5 themselves.
"""

from __future__ import annotations

import bz2
import lzma
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import google_crc32c
import numcodecs
import numpy as np
from isal import igzip_lib
from numcodecs import Blosc

from ..errors import SourceError
from ..machine import buffers
from ..machine.buffers import Array
from ..machine.compiled import compiled

_BLOSC_HEADER = struct.Struct("<BBBBIII")  # versions, flags, typesize, nbytes, blocksize, cbytes
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = b"\x2a\x4d\x18"  # of frames that hold no data, after a byte from 0x50 to 0x5f
_SNAPPY = 2  # in the flags of Blosc
_STREAM_IN, _STREAM_OUT = 2**16, 2**22
_LZMA_MEMORY = 2**27  # for its dictionary: 65 MiB at the highest level

_COMPRESSORS = frozenset({"blosc", "zstd", "gzip", "zlib", "lzma", "bz2", "lz4", "lzf"})
_CHECKSUMS = frozenset({"crc32", "crc32c", "adler32", "fletcher32"})
_KNOWN = _COMPRESSORS | _CHECKSUMS | {"delta", "shuffle"}


class ChunkError(ValueError):
    """A chunk's bytes are not what its codec writes."""


class _Codec(NamedTuple):
    """A codec, and the bytes it must decode to; None where that follows from its input."""

    name: str
    codec: Any
    n_bytes: int | None


def chunk_codecs(
    said: Iterable[tuple[str, Mapping[str, Any]]], dtype: np.dtype[Any], n_bytes: int
) -> ChunkCodecs | None:
    """Return the codecs of chunks; None if one is not among those that are decoded here.

    They are `said` by names as numcodecs has them and settings, in the order in which they were
    applied to the `n_bytes` of a chunk's values; the checksum that is zarr's own has no settings.
    """
    codecs: list[_Codec] = []
    size: int | None = n_bytes
    for name, settings in said:
        if name not in _KNOWN:
            return None
        is_own = name in ("lzf", "crc32c") and not settings
        codec: Any = None if is_own else numcodecs.get_codec({"id": name, **settings})
        if not _is_readable(name, codec, dtype, is_first=not codecs):
            return None
        codecs.append(_Codec(name, codec, size))
        if name in _COMPRESSORS:
            if size is None:  # after another compressor
                return None
            size = None
        elif name in _CHECKSUMS and size is not None:
            size += 4
        elif name == "delta" and size is not None:
            size = size // dtype.itemsize * np.dtype(codec.astype).itemsize
    return ChunkCodecs(codecs, n_bytes)


def _is_readable(name: str, codec: Any, dtype: np.dtype[Any], *, is_first: bool) -> bool:
    """Whether a codec on the lists is of the kind that is read here."""
    if name == "lzma":
        return codec.format == lzma.FORMAT_XZ and codec.filters is None
    if name == "delta":
        kinds = {np.dtype(codec.dtype).kind, np.dtype(codec.astype).kind}
        return is_first and np.dtype(codec.dtype) == dtype and kinds <= set("iuf")
    if name == "shuffle":
        return type(codec.elementsize) is int and codec.elementsize > 0
    return True


class ChunkCodecs:
    """What turns the stored bytes of a chunk into the bytes of its values."""

    def __init__(self, codecs: list[_Codec], n_bytes: int) -> None:
        self._codecs = codecs  # in the order in which they were applied
        self._n_bytes = n_bytes
        # Of a stored chunk: no codec makes noise much larger than it is.
        self.most_encoded_bytes = n_bytes + n_bytes // 8 + 2**16
        self.n_buffers = 2 if len(codecs) < 2 else 3  # decoded chunks in memory at once, at most

    def __bool__(self) -> bool:
        """Whether anything is to be done at all."""
        return bool(self._codecs)

    def check_encoded(self, size: int | None) -> None:
        """Raise a ChunkError if stored bytes, if their number is known, are far too many."""
        if size is not None and size > self.most_encoded_bytes:
            raise ChunkError(f"it has {size} bytes for {self._n_bytes} bytes of values")

    def without(self, mask: int) -> ChunkCodecs:
        """Return the codecs of a chunk for which some, by the bits of a mask, were skipped."""
        kept = [codec for k, codec in enumerate(self._codecs) if not mask >> k & 1]
        return ChunkCodecs(kept, self._n_bytes)

    def decode(self, encoded: Array, out: Array) -> None:
        """Decode a chunk's stored bytes into `out`, both uint8.

        A ChunkError if it does not decode to exactly the bytes of `out`; codecs raise others of
        `arrays.DECODE_ERRORS`.
        """
        data: Any = encoded
        for k, (name, codec, n_bytes) in reversed(list(enumerate(self._codecs))):
            if name in _COMPRESSORS:
                into = out
                if k or n_bytes != out.size:
                    into = buffers.take("decompressed chunk", n_bytes or 0, np.uint8)
                _DECOMPRESS[name](codec, data, into)
                data = into
            elif name in _CHECKSUMS:
                data = _without_checksum(codec, data)
            else:
                data = np.frombuffer(codec.decode(data), np.uint8)
            if n_bytes is not None:
                _check_size(data.size, n_bytes)
        if data is not out:
            _check_size(data.size, out.size)  # one byte would be repeated
            out[:] = data


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise ChunkError(f"it holds {size} bytes, not {expected}")


def _without_checksum(codec: Any, data: Array) -> Array:
    if data.size < 4:
        raise ChunkError(f"it has {data.size} bytes, too few for a checksum")
    if codec is not None:
        return np.frombuffer(codec.decode(data), np.uint8)
    found = google_crc32c.value(data[:-4].tobytes())  # zarr's own crc32c
    if found != int.from_bytes(data[-4:].tobytes(), "little"):
        raise ChunkError("its checksum does not match")
    return data[:-4]


def _blosc(codec: Blosc, encoded: Array, out: Array) -> None:
    """Compare a Blosc header with the chunk, before C code trusts it."""
    if encoded.size < _BLOSC_HEADER.size:
        raise ChunkError(f"it has {encoded.size} bytes, too few for Blosc")
    header = _BLOSC_HEADER.unpack_from(encoded.data)
    flags, type_size, n_bytes, block_size, c_bytes = header[2:]
    if flags >> 5 == _SNAPPY:
        raise SourceError(
            "a chunk is compressed with snappy inside Blosc, which numcodecs does not have. Write "
            "the matrix again with another compressor, such as lz4 or zstd."
        )
    _check_size(n_bytes, out.size)
    if c_bytes > encoded.size or encoded[c_bytes:].any():  # zeros may follow
        raise ChunkError(f"it has {encoded.size} bytes, but says {c_bytes}")
    if type_size == 0 or not 0 < block_size <= max(n_bytes, 1):
        raise ChunkError(f"it says it has blocks of {block_size} bytes")
    codec.decode(encoded[:c_bytes], out=out)


def _zstd(codec: Any, encoded: Array, out: Array) -> None:
    """Compare the sizes that frames claim with the chunk; numcodecs takes those that say less."""
    n_bytes, end = _zstd_frames(encoded)
    if encoded[end:].any():  # zeros may follow
        raise ChunkError("it goes on after its last zstd frame")
    if n_bytes is not None:  # else a writer did not know; then numcodecs compares at the end
        _check_size(n_bytes, out.size)
    codec.decode(encoded[:end], out=out)


def _zstd_frames(encoded: Array) -> tuple[int | None, int]:
    """Return the bytes that all frames say they hold, None if one does not, and where they end."""
    total: int | None = 0
    at = 0
    while at < encoded.size and (at == 0 or encoded[at : at + 4].any()):
        head = encoded[at : at + 18].tobytes()
        if head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5:
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        if head[:4] != _ZSTD_MAGIC or len(head) < 6:
            raise ChunkError("it does not start as zstd does")
        single, width = head[4] >> 5 & 1, (head[4] >> 5 & 1, 2, 4, 8)[head[4] >> 6]
        size_at = 5 + (not single) + (0, 1, 2, 4)[head[4] & 3]
        n_bytes = int.from_bytes(head[size_at : size_at + width], "little")
        known = total is not None and width > 0
        total = (total or 0) + n_bytes + (256 if width == 2 else 0) if known else None
        at += size_at + width
        is_last = False
        while not is_last:
            block = int.from_bytes(encoded[at : at + 3].tobytes(), "little")
            if at + 3 > encoded.size:
                raise ChunkError("it ends inside a zstd frame")
            is_last = bool(block & 1)
            at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        at += 4 * (head[4] >> 2 & 1)  # a checksum
    if at > encoded.size:
        raise ChunkError("it ends inside a zstd frame")
    return total, at


def _lz4(codec: Any, encoded: Array, out: Array) -> None:
    if encoded.size < 4:
        raise ChunkError(f"it has {encoded.size} bytes, too few for LZ4")
    _check_size(int.from_bytes(encoded[:4].tobytes(), "little"), out.size)
    codec.decode(encoded, out=out)


def _lzf(_: Any, encoded: Array, out: Array) -> None:
    if decode_lzf(encoded, out) != out.size:
        raise ChunkError(f"it does not hold {out.size} bytes of LZF")


def _streamed(make: Callable[[], Any], magic: bytes = b"") -> Callable[[Any, Array, Array], None]:
    """Return a decoder that stops where a stream gives more than it may.

    `make` returns a decompressor as `bz2` and `lzma` have them; `magic` is what another member
    starts with, of formats that can have several.
    """

    def decode(_: Any, encoded: Array, out: Array) -> None:
        stream, at, position = make(), 0, 0
        while True:
            given = encoded[at : at + _STREAM_IN].tobytes() if stream.needs_input else b""
            at += len(given)
            try:
                part = stream.decompress(given, min(_STREAM_OUT, out.size - position + 1))
            except (igzip_lib.IsalError, lzma.LZMAError) as error:  # type: ignore[misc]
                raise ChunkError(str(error)) from error
            if position + len(part) > out.size:
                raise ChunkError(f"it holds more than {out.size} bytes")
            out[position : position + len(part)] = np.frombuffer(part, np.uint8)
            position += len(part)
            if stream.eof:
                at -= len(stream.unused_data)
                head = encoded[at : at + max(len(magic), 1)].tobytes()
                if not magic or head != magic:
                    break
                stream = make()
            elif not given and not part:
                raise ChunkError(f"it ends early, after {position} of {out.size} bytes")
        _check_size(position, out.size)
        if encoded[at:].any() or (at < encoded.size and not magic):  # zeros may follow members
            raise ChunkError("its file goes on after its end")

    return decode


def _inflater() -> Any:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)


def count_decoded(name: str, encoded: Array, most: int) -> None:
    """Raise a ChunkError if what a compressor made decodes to more bytes than that.

    Nothing is kept of what it decodes to. Other codecs than the compressors known here pass.
    """
    if name in _CLAIMS:
        n_bytes = int.from_bytes(encoded[_CLAIMS[name]].tobytes(), "little")
        if n_bytes > most:
            raise ChunkError(f"it says it holds {n_bytes} bytes, not {most} at most")
    elif name == "zstd":
        said, _ = _zstd_frames(encoded)
        if said is None or said > most:
            raise ChunkError(f"it may hold more than {most} bytes")
    elif name in _STREAMS:
        errors: Any = (igzip_lib.IsalError, lzma.LZMAError, OSError)
        with suppress(*errors):  # its decoder will say more
            _count_streamed(*_STREAMS[name], encoded, most)


def _count_streamed(make: Callable[[], Any], magic: bytes, encoded: Array, most: int) -> None:
    stream = make()
    at = n_bytes = 0
    while at < encoded.size or not (stream.needs_input or stream.eof):
        given = encoded[at : at + _STREAM_IN].tobytes() if stream.needs_input else b""
        at += len(given)
        n_bytes += len(stream.decompress(given, _STREAM_IN))
        if n_bytes > most:
            raise ChunkError(f"it holds more than {most} bytes")
        if stream.eof:
            at -= len(stream.unused_data)
            if not magic or encoded[at : at + len(magic)].tobytes() != magic:
                return
            stream = make()


def inflate(encoded: Array, out: Array) -> None:
    """Decode raw deflate into `out`, both uint8; see `ChunkCodecs.decode` for errors."""
    _INFLATE(None, encoded, out)


_INFLATE = _streamed(lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE))
# What makes a decompressor, and what another member starts with where there may be several.
_STREAMS: dict[str, tuple[Callable[[], Any], bytes]] = {
    "gzip": (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), b"\x1f\x8b"),
    "zlib": (_inflater, b""),
    "bz2": (bz2.BZ2Decompressor, b"BZh"),
    "lzma": (
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY), b"\xfd7zXZ\0",
    ),
}  # fmt: skip
_CLAIMS = {"blosc": slice(4, 8), "lz4": slice(0, 4)}  # where a header says how much it holds
_DECOMPRESS: dict[str, Callable[[Any, Array, Array], None]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "lzf": _lzf,
    **{name: _streamed(make, magic) for name, (make, magic) in _STREAMS.items()},
}


@compiled(int)
def decode_lzf(encoded: Array, out: Array) -> int:
    """Decode LZF, as HDF5's filter writes it, and return the number of bytes written to `out`.

    It is -1 if `encoded` is not sound, or holds more than fits.
    """
    at: Any = 0
    n: Any = 0
    while at < encoded.size:
        control: Any = np.int64(encoded[at])
        at += 1
        if control < 32:  # so many bytes and one more, as they are
            length: Any = control + 1
            if at + length > encoded.size or n + length > out.size:
                return -1
            for k in range(length):
                out[n + k] = encoded[at + k]
            at += length
        else:  # some bytes that were there before
            length = control >> 5
            if length == 7:
                if at >= encoded.size:
                    return -1
                length += np.int64(encoded[at])
                at += 1
            if at >= encoded.size:
                return -1
            back: Any = ((control & 31) << 8) + np.int64(encoded[at]) + 1
            at += 1
            length += 2
            if back > n or n + length > out.size:
                return -1
            for k in range(length):
                out[n + k] = out[n + k - back]
        n += length
    return int(n)
