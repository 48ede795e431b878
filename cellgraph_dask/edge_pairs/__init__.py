"""A graph at rest, as edge pairs of the Cellucid viewer or in Parquet: reading it, opening it.

It never makes an edge and never writes to an export's folder.
"""

__all__ = [
    "components", "format", "generation", "graph", "gzip_member", "parquet", "parquet_edges",
    "parquet_io", "provenance", "reader",
]  # fmt: skip
