"""Start a command from a small process, and report what it used.

``python -I -S launch.py REPORT_FD CGROUP_PROCS COMMAND...`` (CGROUP_PROCS may be empty)

On Linux the ``ru_maxrss`` of a process starts at the memory of the one that forked it, so a big
parent hides the peak of a small child. This script imports next to nothing, so that it does not.
"""

import json
import os
import sys
import time

report_fd, cgroup_procs, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
start = time.perf_counter()
pid = os.fork()
if pid == 0:
    try:
        os.close(report_fd)
        if cgroup_procs:
            with open(cgroup_procs, "w") as procs:
                procs.write("0")
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        os._exit(127)
_, status, usage = os.wait4(pid, 0)
report = {
    "seconds": time.perf_counter() - start,
    "returncode": os.waitstatus_to_exitcode(status),
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}
os.write(report_fd, json.dumps(report).encode())
