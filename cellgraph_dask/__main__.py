"""Run the command line as ``python -m cellgraph_dask``."""

from .cli import main

if __name__ == "__main__":
    main()
