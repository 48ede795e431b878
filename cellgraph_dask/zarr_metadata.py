"""What the metadata documents of a zarr array say, by the specifications of formats 2 and 3.

It is arithmetic on JSON, without zarr: importing that takes longer than exporting a small graph.
The specifications: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Names of data types in format 3 that are names of numpy's as well. Others, such as strings, are
# told from these by the dtype object.
_NUMBERS = frozenset(
    {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)
_SHARDING = "sharding_indexed"


@dataclass(frozen=True)
class Codec:
    """A codec as the metadata name it.

    Attributes
    ----------
    name : str
        ``id`` in format 2, ``name`` in format 3.
    settings : dict
        All else.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayMetadata:
    """The metadata of an array.

    Attributes
    ----------
    path : str
        Path inside the store.
    zarr_format : {2, 3}
        Format.
    shape, chunks : tuple of int
        Of the array, and of a chunk, the smallest part that can be decoded.
    shards : tuple of int or None
        Shape of a shard, if chunks lie in shards.
    dtype : numpy.dtype
        As stored, with its byte order; object for what is neither a number nor a bool.
    fill_value : scalar or None
        What stands where a chunk is not in the store.
    codecs : tuple of Codec
        Of a chunk, in the order in which they were applied. In format 3 one of them is "bytes".
    key_prefix : str
        What the number of a chunk (or shard) follows in its key, for arrays of one dimension.
    index_codecs : tuple of Codec
        Of the index of a shard.
    index_at_start : bool
        Whether a shard begins with its index, and does not end with it.
    """

    path: str
    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    fill_value: Any
    codecs: tuple[Codec, ...]
    key_prefix: str = ""
    index_codecs: tuple[Codec, ...] = ()
    index_at_start: bool = False


def array_metadata(path: str, document: Mapping[str, Any]) -> ArrayMetadata:
    """Return what a document (``.zarray`` or ``zarr.json``) says.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it lacks something, or something in it is not what it must be.
    """
    return (_format_3 if document["zarr_format"] == 3 else _format_2)(path, document)


def _format_2(path: str, document: Mapping[str, Any]) -> ArrayMetadata:
    said = document["dtype"]
    dtype = np.dtype(said) if isinstance(said, str) else np.dtype(object)  # structured, in old obs
    codecs = [*(document.get("filters") or ()), *filter(None, [document.get("compressor")])]
    return ArrayMetadata(
        path,
        zarr_format=2,
        shape=_sizes(document["shape"]),
        chunks=_sizes(document["chunks"]),
        shards=None,
        dtype=dtype if dtype.kind in "biufc" else np.dtype(object),
        fill_value=_fill_value(document.get("fill_value"), dtype),
        codecs=tuple(
            Codec(str(codec["id"]), {k: v for k, v in codec.items() if k != "id"})
            for codec in codecs
        ),
    )


def _format_3(path: str, document: Mapping[str, Any]) -> ArrayMetadata:
    said = document["data_type"]
    is_number = isinstance(said, str) and said in _NUMBERS
    dtype = np.dtype(said) if is_number else np.dtype(object)
    grid, keys = _codec(document["chunk_grid"]), _codec(document["chunk_key_encoding"])
    if grid.name != "regular":
        raise ValueError(f"its chunks form a {grid.name!r} grid, not a regular one")
    if keys.name not in ("default", "v2"):
        raise ValueError(f"its chunks have keys of the unknown kind {keys.name!r}")
    separator = str(keys.settings.get("separator", "/"))
    shape, chunks = _sizes(document["shape"]), _sizes(grid.settings["chunk_shape"])
    chain = _codecs(document["codecs"])
    shards: tuple[int, ...] | None = None
    index_codecs: tuple[Codec, ...] = ()
    index_at_start = False
    if chain and chain[0].name == _SHARDING:
        sharding = chain[0].settings
        shards, chunks = chunks, _sizes(sharding["chunk_shape"])
        index_codecs = _codecs(sharding["index_codecs"])
        index_at_start = _text(sharding.get("index_location", "end")) == "start"
        if len(chain) > 1:
            raise ValueError(f"its shards are encoded with {chain[1].name!r} once more")
        chain = _codecs(sharding["codecs"])
    order = next((codec.settings.get("endian") for codec in chain if codec.name == "bytes"), None)
    if _text(order) == "big":
        dtype = dtype.newbyteorder(">")
    return ArrayMetadata(
        path,
        zarr_format=3,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        fill_value=_fill_value(document["fill_value"], dtype),
        codecs=chain,
        key_prefix=f"c{separator}" if keys.name == "default" else "",
        index_codecs=index_codecs,
        index_at_start=index_at_start,
    )


def _codecs(said: Sequence[Any]) -> tuple[Codec, ...]:
    return tuple(_codec(one) for one in said)


def _codec(said: Any) -> Codec:
    """Return a name with settings; a name alone has none."""
    if isinstance(said, str):
        return Codec(said)
    return Codec(str(said["name"]), dict(said.get("configuration") or {}))


def _sizes(said: Any) -> tuple[int, ...]:
    """Return a shape: whole numbers."""
    if not isinstance(said, list | tuple) or not all(type(n) is int for n in said):
        raise TypeError(f"{str(said)[:80]} is no shape")
    return tuple(said)


def _text(said: Any) -> Any:
    """Return the text of an enum's member, as zarr's own objects have it, or of a text."""
    return getattr(said, "value", said)


def _fill_value(said: Any, dtype: np.dtype[Any]) -> Any:
    """Return a number of an array's dtype; of other dtypes what is said."""
    if said is None or dtype.kind not in "biuf":
        return said
    if isinstance(said, str) and said.startswith("0x"):  # the bits of a float
        return np.frombuffer(bytes.fromhex(said[2:]), dtype.newbyteorder(">"))[0]
    if isinstance(said, str) and dtype.kind != "f":
        raise TypeError(f"{said[:80]!r} is no fill value of {dtype}")
    return dtype.type(said)  # "NaN", "Infinity" and "-Infinity" as well
