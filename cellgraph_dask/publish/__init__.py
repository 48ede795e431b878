"""From files that were made aside to the export that readers see, all or nothing.

It never looks into an edge file and knows no matrix.
"""

__all__ = ["publish", "upload", "work_folder"]
