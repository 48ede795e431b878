"""Where a matrix comes from, and how its entries are read, with every value checked.

`opening` finds and opens it, whatever holds it; what comes out is a `matrix.Source` of three stored
arrays. It knows no stage, no executor and no output.
"""

__all__ = [
    "arrays", "blocks", "cells", "columns", "embeddings", "layout", "listing", "matrix", "names",
    "opening", "selected", "selection", "spool", "stamps", "texts",
]  # fmt: skip
