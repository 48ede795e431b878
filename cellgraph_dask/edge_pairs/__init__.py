"""The edge-pair format of the Cellucid viewer at rest: names, manifest, gzip, reading, opening.

It never makes an edge and never writes to an export's folder.
"""

__all__ = [
    "format", "generation", "graph", "gzip_member", "parquet", "parquet_edges", "parquet_io",
    "provenance", "reader",
]  # fmt: skip
