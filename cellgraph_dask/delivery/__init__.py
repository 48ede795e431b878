"""Edges become files: written by threads of this process, or from parts of many processes.

It never computes an edge and never shows a file to readers.
"""

__all__ = [
    "cells_table", "edge_files", "element", "parquet", "parquet_product", "parts", "products",
    "row_names", "store_copy", "zarr_files",
]  # fmt: skip
