"""Running stages: as values, on threads, on a cluster, and again after an interruption.

It knows nothing of what a stage computes.
"""

__all__ = ["cluster", "progress", "stage", "threads", "versions"]
