"""Looking at a graph: pictures of all its edges, and a report of an export as a page.

It reads exports and stores. It never makes an edge, and writes nothing but what is looked at.
"""

__all__ = ["files", "opened", "picture", "report"]
