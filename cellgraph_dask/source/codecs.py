"""The codecs of a chunk, decoded without ever giving out more bytes than the chunk may hold.

A store is a stranger's: a few bytes of gzip or zstd can claim, or give, gigabytes, and numcodecs
would allocate them. Of every codec here the decoded size is known beforehand, from the shape of a
chunk; a header that says otherwise is refused before anything is allocated, and codecs without a
header are decoded as a stream that is stopped where it goes too far. Only codecs on the lists below
are run at all: no pickle, nothing that a store brings along.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import Blosc
from zlib_ng import zlib_ng

from ..errors import SourceError
from ..machine.buffers import Array
from .zarr_store import ArrayMetadata, Codec

_BLOSC_HEADER = struct.Struct("<BBBBIII")  # versions, flags, typesize, nbytes, blocksize, cbytes
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LZ4_HEADER = struct.Struct("<I")  # decoded bytes
_STREAM_IN, _STREAM_OUT = 2**20, 2**22
_LZMA_MEMORY = 2**27  # for its dictionary: 65 MiB at the highest level

_COMPRESSORS = frozenset({"blosc", "zstd", "gzip", "zlib", "lzma", "bz2", "lz4"})
_CHECKSUMS = frozenset({"crc32", "crc32c", "adler32", "fletcher32"})
_KNOWN = _COMPRESSORS | _CHECKSUMS | {"delta", "shuffle"}
_V3_PREFIX = "numcodecs."


class ChunkError(ValueError):
    """A chunk's bytes are not what its codec writes."""


# What numcodecs' and zarr's codecs raise on damaged bytes.
DECODE_ERRORS: tuple[type[BaseException], ...] = (
    OSError, ValueError, RuntimeError, TypeError, EOFError, MemoryError, OverflowError,
    ZeroDivisionError, zlib.error, zlib_ng.error, lzma.LZMAError,  # type: ignore[assignment]
)  # fmt: skip


class _Codec(NamedTuple):
    """A codec, and the bytes it must decode to; None where that follows from its input."""

    name: str
    codec: Any
    n_bytes: int | None


class ChunkCodecs:
    """What turns a chunk's file into the bytes of its values.

    Parameters
    ----------
    codecs
        Names and numcodecs objects, in the order in which they were applied.
    dtype
        Dtype of the stored values.
    n_bytes
        Bytes of the values of a chunk.
    what
        Name of the array, for errors.

    Raises
    ------
    SourceError
        If a codec is not one of those that are read here.
    """

    def __init__(
        self, codecs: Iterable[tuple[str, Any]], dtype: np.dtype[Any], n_bytes: int, what: str
    ) -> None:
        self._codecs: list[_Codec] = []
        size: int | None = n_bytes
        for name, codec in codecs:
            self._codecs.append(_Codec(name, codec, size))
            problem = _unreadable(name, codec, dtype, first=len(self._codecs) == 1)
            if problem or (name in _COMPRESSORS and size is None):
                raise SourceError(
                    f"{what} is encoded with {name!r}{problem or ' after another compressor'}; "
                    f"{', '.join(sorted(_COMPRESSORS))} can be read, one of them, with checksums, "
                    "shuffle and delta. Write the matrix again with one of those."
                )
            if name in _COMPRESSORS:
                size = None
            elif name in _CHECKSUMS and size is not None:
                size += 4
            elif name == "delta" and size is not None:
                size = size // dtype.itemsize * np.dtype(codec.astype).itemsize
        self._codecs.reverse()
        self.n_bytes = n_bytes

    def __bool__(self) -> bool:
        """Tell whether anything is to be done at all."""
        return bool(self._codecs)

    @property
    def most_encoded_bytes(self) -> int:
        """Most bytes of a file that holds a chunk: no codec makes noise much larger than it is."""
        return self.n_bytes + self.n_bytes // 8 + 2**16

    def decode(self, encoded: Array, out: Array) -> None:
        """Decode a chunk's file into `out`, both uint8.

        Raises
        ------
        ChunkError
            If it does not decode to exactly the bytes of `out`. Codecs raise others of
            `DECODE_ERRORS`.
        """
        data: Any = encoded
        for name, codec, n_bytes in self._codecs:
            if name in _COMPRESSORS:
                into = out
                if codec is not self._codecs[-1].codec or n_bytes != out.size:
                    into = np.empty(n_bytes or 0, np.uint8)
                _DECOMPRESS[name](codec, data, into)
                data = into
            elif name in _CHECKSUMS:
                data = _without_checksum(name, codec, data)
            else:
                data = np.frombuffer(codec.decode(data), np.uint8)
            if n_bytes is not None and data.size != n_bytes:
                raise ChunkError(f"it holds {data.size} bytes, not {n_bytes}")
        if data is not out:
            out[:] = data


def _unreadable(name: str, codec: Any, dtype: np.dtype[Any], *, first: bool) -> str:
    """Return why a codec cannot be read, or nothing."""
    if name == "lzma" and (codec.format != lzma.FORMAT_XZ or codec.filters is not None):
        return " in another format than xz, or with filters"
    if name == "delta":
        kinds = {np.dtype(codec.dtype).kind, np.dtype(codec.astype).kind}
        if not first or np.dtype(codec.dtype) != dtype or not kinds <= set("iuf"):
            return " of another dtype"
    elif name == "shuffle":
        if type(codec.elementsize) is not int or codec.elementsize < 1:
            return " of no element size"
    elif name not in _COMPRESSORS and name not in _CHECKSUMS:
        return ", which is not known"
    return ""


def array_codecs(metadata: ArrayMetadata, n_bytes: int) -> ChunkCodecs:
    """Return the codecs of an array's chunks (those inside its shards, if it has any).

    Raises
    ------
    SourceError
        If it has a codec that is not read here.
    """
    what, dtype = metadata.path, metadata.dtype
    if metadata.zarr_format == 2:
        codecs = [(codec.name, _numcodec(codec.name, codec.settings)) for codec in metadata.codecs]
        return ChunkCodecs(codecs, dtype, n_bytes, what)
    if metadata.shards and [c.name for c in metadata.index_codecs] != ["bytes", "crc32c"]:
        raise SourceError(f"{what} has shards of an unusual kind; write the matrix again.")
    chain = [codec for codec in metadata.codecs if codec.name != "transpose"]  # of one dimension
    if not chain or chain[0].name != "bytes":
        raise SourceError(
            f"{what} is encoded with {chain[0].name if chain else 'nothing'!r}, which is not "
            "known; write the matrix again."
        )
    return ChunkCodecs([_codec_of_format_3(c) for c in chain[1:]], dtype, n_bytes, what)


def _numcodec(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the object of numcodecs for one of its codecs; None if it is not read here."""
    return numcodecs.get_codec({"id": name, **settings}) if name in _KNOWN else None


def _codec_of_format_3(codec: Codec) -> tuple[str, Any]:
    """Return name and numcodecs object; crc32c has none."""
    name = codec.name.removeprefix(_V3_PREFIX)
    if name != codec.name:
        return name, _numcodec(name, codec.settings)
    if name in ("blosc", "gzip", "zstd"):
        return name, _numcodec(name, {})
    return name if name == "crc32c" else f"codec {name}", None


def _without_checksum(name: str, codec: Any, data: Array) -> Array:
    if data.size < 4:
        raise ChunkError(f"it has {data.size} bytes, too few for a checksum")
    if codec is None:  # zarr's own crc32c
        found = google_crc32c.value(data[:-4].tobytes())
        if found != int.from_bytes(data[-4:].tobytes(), "little"):
            raise ChunkError("its checksum does not match")
        return data[:-4]
    return np.frombuffer(codec.decode(data), np.uint8)


def _blosc(codec: Blosc, encoded: Array, out: Array) -> None:
    """Compare a Blosc header with the chunk, before C code trusts it."""
    if encoded.size < _BLOSC_HEADER.size:
        raise ChunkError(f"it has {encoded.size} bytes, too few for Blosc")
    *_, type_size, n_bytes, block_size, c_bytes = _BLOSC_HEADER.unpack_from(encoded.data)
    if n_bytes != out.size:
        raise ChunkError(f"it holds {n_bytes} bytes, not {out.size}")
    if c_bytes != encoded.size:
        raise ChunkError(f"it has {encoded.size} bytes, but says {c_bytes}")
    if type_size == 0 or not 0 < block_size <= max(n_bytes, 1):
        raise ChunkError(f"it says it has blocks of {block_size} bytes")
    codec.decode(encoded, out=out)


def _zstd(codec: Any, encoded: Array, out: Array) -> None:
    """Compare a frame's header with the chunk; numcodecs takes one that says less."""
    head = encoded[:18].tobytes()
    if head[:4] != _ZSTD_MAGIC or len(head) < 6:
        raise ChunkError("it does not start as zstd does")
    flags = head[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    if width:  # else the writer did not know; then numcodecs compares at the end
        at = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        n_bytes = int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
        if n_bytes != out.size:
            raise ChunkError(f"it holds {n_bytes} bytes, not {out.size}")
    codec.decode(encoded, out=out)


def _lz4(codec: Any, encoded: Array, out: Array) -> None:
    if encoded.size < _LZ4_HEADER.size:
        raise ChunkError(f"it has {encoded.size} bytes, too few for LZ4")
    (n_bytes,) = _LZ4_HEADER.unpack_from(encoded.data)
    if n_bytes != out.size:
        raise ChunkError(f"it holds {n_bytes} bytes, not {out.size}")
    codec.decode(encoded, out=out)


class _Inflate:
    """zlib's decompressor with the manners of those of bz2 and lzma."""

    def __init__(self, wbits: int) -> None:
        self._inflate = zlib_ng.decompressobj(wbits=wbits)

    def decompress(self, data: Any, max_length: int) -> bytes:
        tail = self._inflate.unconsumed_tail
        given = tail if not len(data) else bytes(data)
        part: bytes = self._inflate.decompress(given, max_length)
        return part

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def eof(self) -> bool:
        return bool(self._inflate.eof)

    @property
    def unused_data(self) -> bytes:
        unused: bytes = self._inflate.unused_data
        return unused


def _streamed(make: Callable[[], Any]) -> Callable[[Any, Array, Array], None]:
    """Return a decoder that stops where a stream gives more than it may."""

    def decode(_: Any, encoded: Array, out: Array) -> None:
        stream, at, position = make(), 0, 0
        while not stream.eof:
            given = encoded[at : at + _STREAM_IN].tobytes() if stream.needs_input else b""
            at += len(given)
            part = stream.decompress(given, min(_STREAM_OUT, out.size - position + 1))
            if not given and not part and not stream.eof:
                raise ChunkError(f"it ends early, after {position} of {out.size} bytes")
            if position + len(part) > out.size:
                raise ChunkError(f"it holds more than {out.size} bytes")
            out[position : position + len(part)] = np.frombuffer(part, np.uint8)
            position += len(part)
        if position != out.size:
            raise ChunkError(f"it holds {position} bytes, not {out.size}")
        if stream.unused_data or at < encoded.size:
            raise ChunkError("its file goes on after its end")

    return decode


_DECOMPRESS: dict[str, Callable[[Any, Array, Array], None]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "gzip": _streamed(lambda: _Inflate(31)),
    "zlib": _streamed(lambda: _Inflate(15)),
    "bz2": _streamed(bz2.BZ2Decompressor),
    "lzma": _streamed(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)),
}
