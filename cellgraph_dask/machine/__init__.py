"""The ground: memory, buffers, files, remote storage and compiled loops.

It knows nothing of graphs, stores or Dask, and decides nothing.
"""

__all__ = [
    "amounts", "buffers", "compiled", "files", "folders", "html", "interrupts", "memory", "remote",
    "report", "temporary",
]  # fmt: skip
