"""The groups and arrays of a zarr store, as `layout` looks for a matrix in them.

On this machine their metadata are read from the documents themselves. They, and not the copy that
consolidated metadata are, say what is there; and zarr need not be imported. Stores elsewhere are
opened by zarr, which knows how to ask for consolidated metadata once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from .layout import Node, is_array, metadata_of
from .objects import LocalObjects, NotAFileError
from .zarr_store import ArrayMetadata, array_metadata, check_fields

if TYPE_CHECKING:
    import zarr

# Metadata are read whole, and take ten times their size as Python's objects.
_MOST_METADATA_BYTES = 2**24
_FORMATS = {"zarr.json": 3, ".zarray": 2, ".zgroup": 2}

Document = Mapping[str, Any]


class ZarrArray:
    """An array, by its metadata.

    Parameters
    ----------
    metadata
        What they say.
    read
        Returns the values at an index.
    """

    def __init__(self, metadata: ArrayMetadata, read: Callable[[Any], Any]) -> None:
        self.metadata = metadata
        self.shape, self.chunks, self.dtype = metadata.shape, metadata.chunks, metadata.dtype
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        """Return the values at an index."""
        return self._read(index)


class LocalGroup:
    """A group of a store on this machine.

    Parameters
    ----------
    objects
        The objects of the store.
    path
        Path of the group in it.
    zarr_format
        Its format, which is that of everything in it.
    attrs
        Its attributes.
    read
        Returns the values at an index of an array of the store, given its path. zarr does that.

    Attributes
    ----------
    objects : LocalObjects
        The objects of the store.
    """

    def __init__(
        self,
        objects: LocalObjects,
        path: str,
        zarr_format: int,
        attrs: Document,
        read: Callable[[str, Any], Any],
    ) -> None:
        self.objects = objects
        self.attrs = attrs
        self._path = path
        self._format = zarr_format
        self._read = read

    def __getitem__(self, path: str) -> Node:
        """Return what is at a path.

        Raises
        ------
        KeyError
            If nothing is.
        SourceError
            If its metadata are broken.
        """
        full = f"{self._path}/{path}".strip("/")
        node = self._node(full)
        if node is None:
            raise KeyError(path)
        return node

    def _node(self, path: str) -> LocalGroup | ZarrArray | None:
        """Return what is at a path from the root, or None."""
        with metadata_of(path):
            if not {".", ".."}.isdisjoint(path.split("/")):
                raise ValueError("a path in a store must not point upwards")
            document, is_group, attrs = _look_up(self.objects, path, self._format)
            if document is None:
                return None
            if is_group:
                return LocalGroup(self.objects, path, self._format, attrs, self._read)
            return ZarrArray(array_metadata(path, document), partial(self._read, path))

    def keys(self) -> list[str]:
        """Return the names in it."""
        with metadata_of(self._path or "the store"):
            names = self.objects.names(self._path)
        return [name for name in names if name in self]

    def __contains__(self, name: str) -> bool:
        return self._node(f"{self._path}/{name}".strip("/")) is not None


def open_root(objects: LocalObjects, path: str, read: Callable[[str, Any], Any]) -> LocalGroup:
    """Return the group at a path of a store on this machine; parameters as for `LocalGroup`.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If there is no group.
    """
    for zarr_format in (3, 2):
        document, is_group, attrs = _look_up(objects, path, zarr_format)
        if is_group:
            return LocalGroup(objects, path, zarr_format, attrs, read)
        if document is not None:
            raise TypeError("it is an array, not a group")
    raise FileNotFoundError("it has neither zarr.json nor .zgroup")


def _look_up(
    objects: LocalObjects, path: str, zarr_format: int
) -> tuple[Document | None, bool, Document]:
    """Return the document of a node, None if there is no node; if it is a group; its attributes."""
    if zarr_format == 3:
        document = _document(objects, path, "zarr.json")
        if document is None:
            return None, False, {}
        if document["node_type"] not in ("group", "array"):
            raise ValueError("it is neither a group nor an array")
        check_fields(document)
        return document, document["node_type"] == "group", document.get("attributes") or {}
    document = _document(objects, path, ".zarray")
    is_group = False
    if document is None:
        document = _document(objects, path, ".zgroup")
        is_group = document is not None
    # Attributes are whole, of arrays as well, or nothing is believed.
    attrs = None if document is None else _document(objects, path, ".zattrs")
    return document, is_group, attrs or {}


def _document(objects: LocalObjects, path: str, name: str) -> Document | None:
    """Return a metadata document, or None if it is not there."""
    key = f"{path}/{name}".lstrip("/")
    where = f"{objects.path}/{key}"
    try:
        stored = objects.open(key)
    except NotADirectoryError:
        return None
    except NotAFileError as error:
        raise SourceError(f"{where} is not a file; write the store again.") from error
    if stored is None:
        return None
    try:
        if stored.size is not None and stored.size > _MOST_METADATA_BYTES:
            raise SourceError(
                f"{where} has {stored.size:,} bytes; metadata of up to {_MOST_METADATA_BYTES:,} "
                "are read. Write the store again without such large attributes."
            )
        document = _checked(json.loads(stored.whole().tobytes()))
    finally:
        stored.close()
    if name in _FORMATS and document["zarr_format"] != _FORMATS[name]:
        raise ValueError(f"{name} has zarr_format {str(document['zarr_format'])[:80]}")
    return document


def _checked(document: Any) -> Document:
    if not isinstance(document, dict):
        raise TypeError(f"an object was expected, not {str(document)[:80]}")
    return document


class RemoteGroup:
    """A group of a store elsewhere, opened by zarr.

    Parameters
    ----------
    group
        The group.

    Attributes
    ----------
    objects : Elsewhere
        The objects of the store.
    """

    def __init__(self, group: zarr.Group) -> None:
        from .elsewhere import Elsewhere

        self._group = group
        self.objects = Elsewhere(group.store)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes."""
        with metadata_of(self._group.path or "the store"):
            return dict(self._group.attrs)

    def __getitem__(self, path: str) -> Node:
        """Return what is at a path; see `LocalGroup`."""
        full = f"{self._group.path}/{path}".strip("/")
        with metadata_of(full):
            try:
                node = self._group[path]
            except KeyError as error:
                # A field that is missing in the metadata is a KeyError too.
                consolidated = self._group.metadata.consolidated_metadata is not None
                if not consolidated and not isinstance(error.__cause__, FileNotFoundError):
                    raise
                node = None
            if node is not None and is_array(node):
                return ZarrArray(
                    array_metadata(node.path, node.metadata.to_dict()), node.__getitem__
                )
        if node is None:
            raise KeyError(path)
        return RemoteGroup(node)

    def keys(self) -> list[str]:
        """Return the names in it."""
        return list(self._group.keys())
