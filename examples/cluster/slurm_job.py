#!/usr/bin/env python
"""Export on SLURM: a small job that submits the workers' jobs, with dask-jobqueue.

Install ``cellgraph-dask[slurm]`` in an environment on shared storage, activate it, and submit this
file from a shared folder. Its own job only plans and hands out work: one core and 2 GB are enough::

    sbatch --cpus-per-task=1 --mem=2G --time=04:00:00 slurm_job.py atlas.zarr export --jobs 4

Look at the job script of the workers first, without submitting anything::

    python slurm_job.py atlas.zarr export --dry-run
"""

import argparse
import sys

from dask_jobqueue import SLURMCluster
from distributed import Client

from cellgraph_dask import export_connectivities

parser = argparse.ArgumentParser(description="Export a neighbor graph on SLURM.")
parser.add_argument("source", help="AnnData store, on shared storage")
parser.add_argument("out_dir", help="folder of the export, on shared storage")
parser.add_argument("--jobs", type=int, default=2, help="number of worker jobs")
parser.add_argument("--cores", type=int, default=4, help="threads of each worker")
parser.add_argument("--memory", default="8GB", help="memory of each worker")
parser.add_argument("--walltime", default="02:00:00", help="longest time of a worker's job")
parser.add_argument("--partition", help="SLURM partition")
parser.add_argument("--account", help="SLURM account")
parser.add_argument("--interface", help="network interface, such as ib0")
parser.add_argument("--scratch-dir", help="shared folder for temporary files")
parser.add_argument("--compression", type=int, help="gzip level")
parser.add_argument("--force", action="store_true", help="replace an existing export")
parser.add_argument("--dry-run", action="store_true", help="print the workers' job script only")


def main() -> None:
    """Start the workers, export on them, and end them."""
    options = parser.parse_args()
    with SLURMCluster(
        job_name="cellgraph-worker",
        cores=options.cores,
        processes=1,  # one process with all threads, so that Python is loaded once
        memory=options.memory,  # of the job, and the worker's limit
        walltime=options.walltime,
        queue=options.partition,
        account=options.account,
        interface=options.interface,
        log_directory="cellgraph-logs",
        python=sys.executable,
        scheduler_options={"dashboard_address": ":0"},  # any port that is free
    ) as cluster:
        if options.dry_run:
            print(cluster.job_script())
            return
        cluster.scale(jobs=options.jobs)
        with Client(cluster) as client:
            # An export uses the workers that are there, so wait until the queue has started all.
            client.wait_for_workers(options.jobs)
            report = export_connectivities(
                options.source,
                options.out_dir,
                scratch_dir=options.scratch_dir,
                compression=options.compression,
                force=options.force,
            )
    print(report.to_json())


if __name__ == "__main__":
    main()
