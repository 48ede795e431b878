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
# What a document of format 3 may hold. Of anything else a reader must know what it means.
_FIELDS = frozenset(
    {"zarr_format", "node_type", "attributes", "consolidated_metadata", "shape", "data_type"}
    | {"chunk_grid", "chunk_key_encoding", "fill_value", "codecs", "storage_transformers"}
    | {"dimension_names"}
)
# Settings of the codecs of format 3, and of what is written in the same way, and their types.
_SETTINGS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "bytes": {"endian": str},
    "transpose": {"order": (list, tuple)},
    "crc32c": {},
    "gzip": {"level": int},
    "zstd": {"level": int, "checksum": bool},
    "blosc": {"cname": str, "clevel": int, "shuffle": str, "typesize": int, "blocksize": int},
    _SHARDING: {
        "chunk_shape": (list, tuple),
        "codecs": (list, tuple),
        "index_codecs": (list, tuple),
        "index_location": str,
    },
    "regular": {"chunk_shape": (list, tuple)},
    "default": {"separator": str},
    "v2": {"separator": str},
}
_WORDS = {
    "endian": ("little", "big"),
    "index_location": ("start", "end"),
    "separator": (".", "/"),
}


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
        As stored, with its byte order; object for what numpy has no dtype of.
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
    # A list stands for a structured dtype, as in obs before AnnData 0.7.
    dtype = np.dtype(said) if isinstance(said, str) else np.dtype(object)
    codecs = [*(document.get("filters") or ()), *filter(None, [document.get("compressor")])]
    shape, chunks = _sizes(document["shape"]), _sizes(document["chunks"])
    _same_length(shape, chunks)
    order, separator = document["order"], document.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in _WORDS["separator"]:
        raise ValueError(f"order {str(order)[:80]}, separator {str(separator)[:80]}")
    return ArrayMetadata(
        path,
        zarr_format=2,
        shape=shape,
        chunks=chunks,
        shards=None,
        dtype=dtype,
        fill_value=_fill_value(document["fill_value"], dtype),
        codecs=tuple(
            Codec(str(codec["id"]), {k: v for k, v in codec.items() if k != "id"})
            for codec in codecs
        ),
    )


def _format_3(path: str, document: Mapping[str, Any]) -> ArrayMetadata:
    check_fields(document)
    said = document["data_type"]
    is_number = isinstance(said, str) and said in _NUMBERS
    dtype = np.dtype(said) if is_number else np.dtype(object)
    grid, keys = _codec(document["chunk_grid"]), _codec(document["chunk_key_encoding"])
    if grid.name != "regular":
        raise ValueError(f"its chunks form a {grid.name!r} grid, not a regular one")
    if keys.name not in ("default", "v2"):
        raise ValueError(f"its chunks have keys of the unknown kind {keys.name!r}")
    shape, chunks = _sizes(document["shape"]), _sizes(grid.settings["chunk_shape"])
    _same_length(shape, chunks)
    chain = _codecs(document["codecs"])
    shards: tuple[int, ...] | None = None
    index_codecs: tuple[Codec, ...] = ()
    index_at_start = False
    if chain and chain[0].name == _SHARDING:
        sharding = chain[0].settings
        shards, chunks = chunks, _sizes(sharding["chunk_shape"])
        _same_length(shape, chunks)
        index_codecs = _codecs(sharding["index_codecs"])
        index_at_start = sharding.get("index_location", "end") == "start"
        if len(chain) > 1:
            raise ValueError(f"its shards are encoded with {chain[1].name!r} once more")
        chain = _codecs(sharding["codecs"])
    if any(codec.name == "bytes" and codec.settings.get("endian") == "big" for codec in chain):
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
        key_prefix=f"c{keys.settings.get('separator', '/')}" if keys.name == "default" else "",
        index_codecs=index_codecs,
        index_at_start=index_at_start,
    )


def _codecs(said: Sequence[Any]) -> tuple[Codec, ...]:
    return tuple(_codec(one) for one in said)


def _codec(said: Any) -> Codec:
    """Return a name with settings; a name alone has none.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a setting of a codec that is known here is not one.
    """
    if isinstance(said, str):
        said = {"name": said}
    name, settings = str(said["name"]), said.get("configuration", {})
    if not isinstance(settings, Mapping) or said.keys() - {"name", "configuration"}:
        raise TypeError(f"{str(said)[:80]} is no name with a configuration")
    # Members of enums, as zarr's own objects have them, stand for their values.
    settings = {key: getattr(value, "value", value) for key, value in settings.items()}
    known = _SETTINGS.get(name)
    if known is not None:
        for key, value in settings.items():
            is_bool = isinstance(value, bool)  # which is an int to Python
            if not isinstance(value, known[key]) or is_bool != (known[key] is bool):
                raise TypeError(f"{name} has the {key} {str(value)[:80]}")
            if key in _WORDS and value not in _WORDS[key]:
                raise ValueError(f"{name} has the {key} {str(value)[:80]!r}")
    return Codec(name, settings)


def check_fields(document: Mapping[str, Any]) -> None:
    """Check that a document of format 3 holds nothing that has to be understood and is not.

    Raises
    ------
    TypeError, ValueError
        If it does, or its attributes are none.
    """
    for name in document.keys() - _FIELDS:
        value = document[name]
        if not isinstance(value, Mapping) or value.get("must_understand") is not False:
            raise ValueError(f"its metadata hold {name[:80]!r}, which is not known")
    if document.get("storage_transformers"):
        raise ValueError("it has storage transformers, which are not known")
    if not isinstance(document.get("attributes") or {}, Mapping):
        raise TypeError("its attributes are no object")


def _sizes(said: Any) -> tuple[int, ...]:
    """Return a shape: whole numbers."""
    if not isinstance(said, list | tuple) or not all(type(n) is int for n in said):
        raise TypeError(f"{str(said)[:80]} is no shape")
    return tuple(said)


def _same_length(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    if len(shape) != len(chunks):
        raise ValueError(f"its shape is {shape}, that of its chunks {chunks}")


def _fill_value(said: Any, dtype: np.dtype[Any]) -> Any:
    """Return a number of an array's dtype; of other dtypes what is said."""
    if said is None or dtype.kind not in "biuf":
        return said
    if isinstance(said, str) and said.startswith("0x"):  # the bits of a float
        return np.frombuffer(bytes.fromhex(said[2:]), dtype.newbyteorder(">"))[0]
    if isinstance(said, str) and dtype.kind != "f":
        raise TypeError(f"{said[:80]!r} is no fill value of {dtype}")
    return dtype.type(said)  # "NaN", "Infinity" and "-Infinity" as well
