"""The command line: parsing, and plans and reports in words. It never computes anything."""

from .commands import main

__all__ = ["main"]
