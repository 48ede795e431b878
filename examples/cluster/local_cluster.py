"""Export on a Dask cluster of two processes on this machine, and see that the bytes are the same.

This shows how it is done; for real work on one machine, threads do the same with less memory.
In a notebook leave out the last two lines, and call ``main()``.

Run it in an empty folder::

    python local_cluster.py
"""

from pathlib import Path

from distributed import Client, LocalCluster

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.demo import make_demo_store

store = Path("cells.zarr")


def main() -> None:
    """Export twice: on the cluster, then on threads."""
    make_demo_store(store, n_cells=20_000)

    # The memory limit is per process. The active client is used without being named.
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        plan = plan_export(store)
        print(f"workers   {plan.n_workers}, with {plan.threads} thread each")
        print(f"memory    limit {plan.memory_limit_bytes / 1e6:.0f} MB for each of them")
        report = export_connectivities(store, "on-cluster")
        print(f"cluster   {report.n_edges:,} edges in {report.seconds:.1f} s")
        print(f"memory    {report.peak_memory_bytes / 1e6:.0f} MB, in the worker with the most")

    report = export_connectivities(store, "on-threads")
    print(f"threads   {report.n_edges:,} edges in {report.seconds:.1f} s")
    for path in sorted(Path("on-cluster").rglob("*.*")):
        assert path.read_bytes() == ("on-threads" / path.relative_to("on-cluster")).read_bytes()
    print("compared  the same bytes in all files")


if __name__ == "__main__":  # the workers import this file, and must not start clusters of their own
    main()
