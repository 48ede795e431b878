"""One export from start to end: the public functions, the methods tried, the record of a run.

It never computes an edge.
"""

__all__ = ["api", "check", "record", "run", "symmetrize"]
