#!/usr/bin/env bash
# Start a scheduler and two workers by hand, export on them, and stop them, even after an error.
#
# The workers can also be on other machines that see this folder under the same path.
#
# Run it in an empty folder, in the environment of cellgraph-dask:
#
#     bash cluster_by_hand.sh
set -euo pipefail

pids=()
stop() {
    # On SIGTERM a worker ends its own child process too.
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap stop EXIT
trap 'exit 1' INT TERM

python -c 'from pathlib import Path; from cellgraph_dask.demo import make_demo_store as make
make(Path("cells.zarr"), n_cells=20_000)'

# --host 127.0.0.1: for this machine only. Leave it out if workers are on others.
python -m dask scheduler --host 127.0.0.1 --port 0 --no-dashboard \
    --scheduler-file scheduler.json >scheduler.log 2>&1 &
pids+=($!)
for n in 1 2; do
    python -m dask worker --scheduler-file scheduler.json --nthreads 1 --memory-limit 600MB \
        --no-dashboard --death-timeout 60 >"worker-$n.log" 2>&1 &
    pids+=($!)
done

# An export uses the workers that are there when it starts; wait for both.
python - <<'end'
from pathlib import Path
from time import monotonic, sleep

from distributed import Client

give_up = monotonic() + 60
while not Path("scheduler.json").exists():
    assert monotonic() < give_up, "no scheduler: see scheduler.log"
    sleep(0.05)
with Client(scheduler_file="scheduler.json") as client:
    client.wait_for_workers(2, timeout=60)
    print(f"workers   {', '.join(sorted(client.scheduler_info()['workers']))}")
end

python -m cellgraph_dask export cells.zarr export --scheduler-file scheduler.json --compression 6
python -m cellgraph_dask verify export
