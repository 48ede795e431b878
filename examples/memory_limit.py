"""See how a memory limit that is too small is refused before anything is written, and what helps.

Run it in an empty folder::

    python memory_limit.py
"""

import re
from pathlib import Path

from cellgraph_dask import plan_export
from cellgraph_dask.demo import make_demo_store
from cellgraph_dask.errors import MemoryLimitError

store = Path("cells.zarr")
make_demo_store(store, n_cells=20_000)

try:
    plan_export(store, memory_limit="64MB")
except MemoryLimitError as error:
    print(f"refused   {error}\n")
    smallest = re.search(r"(\d+MB) \(`memory_limit`\)", str(error))[1]

# The limit that the message names is enough for one thread. More memory first allows more threads,
# then larger blocks. Here "reserved" includes what was loaded to make the store; a new process,
# such as the command line, holds less.
print("limit    reserved  threads  blocks")
for limit in (smallest, "1GB", "4GB"):
    plan = plan_export(store, memory_limit=limit)
    reserved = f"{plan.reserved_memory_bytes / 1e6:.0f} MB"
    print(f"{limit:<8} {reserved:<9} {plan.threads:<8} {plan.n_blocks}")
assert not Path("connectivity").exists()  # planning wrote nothing
