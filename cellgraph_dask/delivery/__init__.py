"""Edges become files: written by threads of this process, or from parts of many processes.

It never computes an edge and never shows a file to readers.
"""

__all__ = ["edge_files", "element", "parts", "products", "store_copy", "zarr_files"]
