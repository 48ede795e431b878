"""The graph's arithmetic, out of core: blocks are split into runs, and runs merged into edges.

It never learns who executes its tasks, nor what becomes of the edges.
"""

__all__ = [
    "degrees", "job", "keep", "merge", "pipeline", "ranking", "rows", "rules", "runs",
    "split", "stream", "symmetry", "thinning", "wishes",
]  # fmt: skip
