"""Where a matrix comes from, and how its entries are read, with every value checked.

It knows no stage, no executor and no output.
"""

__all__ = ["blocks", "checks", "embeddings", "in_memory", "layout", "matrix", "opening", "spool"]
