"""Run the command line, as ``cellgraph-dask`` or ``python -m cellgraph_dask``."""

from __future__ import annotations

import gc

_MOST_NEW_OBJECTS = 50_000  # some megabytes; a small export makes fewer, besides those of modules


def main() -> None:
    """Run the command line, and look for garbage seldom: it makes little that is in circles."""
    gc.set_threshold(_MOST_NEW_OBJECTS)
    from .cli import main

    main()


if __name__ == "__main__":
    main()
