"""What a graph looks like: a report of an export, for people who look before they read.

It reads what is there and has it verified; it changes nothing but the file that it was asked for.
"""

__all__ = ["report"]
