"""What servers do that are not object stores by the book.

Some deny access to keys that do not exist, where the user may not list. Some answer whatever they
do not have with a web page. Some send whole objects where a part was asked for.
"""

from __future__ import annotations

from typing import Any

from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import WrapperStore

from ..machine.remote import is_denied, is_page


class RemoteMetadata(WrapperStore[Any]):  # type: ignore[misc]
    """A remote store as zarr reads metadata of it: what is denied or a web page is not there.

    `odd` tells what the server did, for an error where nothing is found then.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.odd: list[str] = []

    def _with_store(self, store: Store) -> RemoteMetadata:
        """Keep what has been noted, in a copy of this."""
        other = RemoteMetadata(store)
        other.odd = self.odd
        return other

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return an object or a part of it, or None."""
        try:
            found = await super().get(key, prototype, byte_range)
        except Exception as error:  # of any library that a store is made with
            if not is_denied(error):
                raise
            self.odd.append(f"access to {key} was denied ({error})")
            return None
        if found is not None and is_page(found[:64].to_bytes()):
            self.odd.append(f"the server sent a web page for {key}")
            return None
        return found


async def gives_parts(store: Store, key: str) -> tuple[bool, bool]:
    """Return whether a server gives parts of objects: from a place on, and from their end.

    A small object is asked for, as the whole of it may come.
    """
    answers = []
    for request in (RangeByteRequest(0, 1), SuffixByteRequest(1)):
        try:
            found = await store.get(key, default_buffer_prototype(), request)
        except Exception:  # whoever reads chunks will say what is wrong
            found = None
        answers.append(found is None or len(found) == 1)
    return answers[0], answers[1]
