"""The errors a user can meet. Each message says what was found, what is allowed, what to change."""

from __future__ import annotations


class CellgraphError(Exception):
    """Anything that stops an export; the message is meant for the user as it stands."""


class SourceError(CellgraphError):
    """The store or the key is not one that can be read: missing, or of another kind."""


class DamagedGraphError(CellgraphError):
    """The matrix breaks a rule: indices, lengths, weights, or a chunk that is gone or broken."""


class MemoryLimitError(CellgraphError):
    """The memory limit is too small for the plan; the message names the smallest that will do.

    Attributes
    ----------
    needed_bytes : int or None
        That limit in bytes, as `memory_limit` takes it; None where it is not known.
    """

    def __init__(self, message: str, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class OutputError(CellgraphError):
    """The output folder cannot take the export: not writable, taken, or of another dataset."""


class DiskSpaceError(CellgraphError):
    """A disk is full, or would be."""


class ClusterError(CellgraphError):
    """The Dask cluster cannot do it: no workers, or one that cannot work or has died."""


class ResumeError(CellgraphError):
    """The run that was interrupted is another one, or cannot be resumed."""


class InvalidExportError(CellgraphError):
    """An export on disk is not a whole, well-formed edge-pair export."""
