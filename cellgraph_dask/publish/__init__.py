"""From files that were made aside to the export that readers see, all or nothing.

It holds the export's folder while the files are made (for an export in remote storage, a folder of
this machine), and shows them in one order of steps. It never looks into an edge file and knows no
matrix.
"""

__all__ = ["apart", "consolidated", "element", "output", "whole", "work_folder"]
