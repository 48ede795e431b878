"""What an export will do and need: sizes that fit a memory limit.

It never writes anything and never runs a task of an export.
"""

__all__ = ["options", "plan", "thinning", "tuning"]
