"""Checking an export, and proving its edges, with loops and data structures of its own.

It shares nothing with what makes an export: stages, delivery, plan, publish and export are never
reached from here.
"""

__all__ = ["api", "checks", "element", "observer", "parquet", "statistics"]
