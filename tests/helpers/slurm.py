"""A SLURM of the tests' own: its daemons run on this machine, in a folder that goes when they go.

munged vouches for the user, slurmctld is the controller, and slurmd the one node. All three belong
to the user who runs the tests, listen on the loopback only, and see nothing of another SLURM that
may be installed. Programs and jobs find this one by ``SLURM_CONF``, and are known by it.
"""

from __future__ import annotations

import getpass
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ["munged", "munge", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue"]
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # where Debian has daemons

# CPUs and memory are what a job and two workers ask for, whatever this machine has. Nothing uses
# cgroups, as a container may have none to give. A busy machine must not cost a job: times are long.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
MessageTimeout=60
BatchStartTimeout=60
KillWait=5
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=3 RealMemory=4096
PartitionName=tests Nodes=node Default=YES State=UP
"""


class NotStartedError(Exception):
    """SLURM cannot run here; the message says why."""


class Slurm:
    """A SLURM that runs, or is about to: its programs, jobs, logs and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        # Without what a job of another SLURM, in which the tests may run, says of itself.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SCANCEL", "SINFO", "SQUEUE"))
        } | {"PATH": PATH, "SLURM_CONF": str(self.configuration)}

    def run(self, *command: str, **environment: str) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ChildProcessError(f"{command} ended with {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    def jobs(self, states: str = "all") -> dict[int, tuple[str, str]]:
        """Return name and state of every job, also of those that have ended."""
        lines = self.run("squeue", "--noheader", f"--states={states}", "--format=%i %j %T")
        table = [line.split() for line in lines.splitlines()]
        return {int(number): (name, state) for number, name, state in table}

    def running(self) -> dict[int, tuple[str, str]]:
        """Return name and state of the jobs that wait, run, or are being ended."""
        return self.jobs("pending,running,completing")

    def logs(self) -> str:
        """Return what the daemons have said."""
        return "\n".join(f"{p.name}:\n{p.read_text()}" for p in sorted(self.folder.glob("*.log")))

    def processes(self) -> list[int]:
        """Return all processes of the daemons and of jobs."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # others' processes, and those that have just ended
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Return whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def own_slurm() -> Iterator[Slurm]:
    """Start a SLURM, and leave none of its processes.

    Raises
    ------
    NotStartedError
        If a program is not installed, or a daemon cannot run here.
    """
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        raise NotStartedError(f"not installed: {', '.join(missing)}")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise NotStartedError(f"its users need names: {error}") from error
    # Not below pytest's folder: the path of a socket must not be longer than 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        slurm = Slurm(Path(folder))
        configure(slurm)
        try:
            with munged(slurm), controller(slurm), node(slurm):
                try:
                    yield slurm
                finally:
                    end_jobs(slurm)
        finally:
            kill_what_is_left(slurm)


def configure(slurm: Slurm) -> None:
    """Write the configuration, a key, and the daemons' folders."""
    controller_port, node_port = free_ports(2)
    slurm.configuration.write_text(
        SLURM_CONF.format(
            host=socket.gethostname().partition(".")[0], user=getpass.getuser(),
            folder=slurm.folder, controller_port=controller_port, node_port=node_port,
        )
    )  # fmt: skip
    # slurmd loads this plugin although nothing uses it. Before 23.02 there is none that does
    # nothing; the one for version 1 touches no cgroup until it is used.
    plugin = "disabled" if version(slurm) >= (23, 2) else "cgroup/v1"
    (slurm.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    (slurm.folder / "munge.key").write_bytes(os.urandom(128))
    (slurm.folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (slurm.folder / name).mkdir(mode=0o700)


def version(slurm: Slurm) -> tuple[int, int]:
    """Return year and month of SLURM's version."""
    text = slurm.run("slurmd", "-V")
    found = re.search(r"(\d+)\.(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the kernel gives to clients."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            port = random.randrange(20_000, 30_000)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


@contextmanager
def daemon(slurm: Slurm, name: str, *options: str, ready: Callable[[], bool]) -> Iterator[None]:
    """Start a daemon, wait until it answers, and end it."""
    log = slurm.folder / f"{name}.log"
    with log.open("wb") as output:
        # In a session of its own, so that Ctrl-C leaves it to us.
        process = subprocess.Popen(
            [name, *options], cwd=slurm.folder, env=slurm.environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip

    def answers() -> bool:
        if process.poll() is not None:
            raise NotStartedError(f"{name} ended with {process.returncode}: {tail(log)}")
        with suppress(ChildProcessError):  # it may not listen yet
            return ready()
        return False

    try:
        if not wait_until(answers, seconds=90):
            raise NotStartedError(f"{name} is not ready after 90 s: {tail(log)}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def munged(slurm: Slurm) -> AbstractContextManager[None]:
    """Run what vouches for users, with a key and a socket of its own."""
    folder = slurm.folder
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    paths = [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    return daemon(
        slurm, "munged", "--foreground", f"--log-file={folder}/munge.log", *paths,
        "--force",  # although other users cannot reach its socket in our folder
        ready=lambda: slurm.run("munge", "--no-input", f"--socket={folder}/munge.socket") != "",
    )  # fmt: skip


def controller(slurm: Slurm) -> AbstractContextManager[None]:
    """Run what takes jobs and tells the node to start them."""
    return daemon(slurm, "slurmctld", "-D", ready=lambda: node_state(slurm) != "")


def node(slurm: Slurm) -> AbstractContextManager[None]:
    """Run what starts jobs."""
    return daemon(slurm, "slurmd", "-D", "-N", "node", ready=lambda: node_state(slurm) == "idle")


def node_state(slurm: Slurm) -> str:
    """Return what the controller says of the node."""
    return slurm.run("sinfo", "--noheader", "--format=%T")


def tail(log: Path) -> str:
    """Return the last lines that a daemon wrote."""
    return " | ".join(log.read_text().splitlines()[-5:])


def end_jobs(slurm: Slurm) -> None:
    """Cancel all jobs and wait until their processes have ended."""
    with suppress(
        ChildProcessError, subprocess.TimeoutExpired
    ):  # what SLURM cannot end any more is killed afterwards
        slurm.run("scancel", f"--user={getpass.getuser()}")
        wait_until(lambda: not slurm.running(), seconds=30)


def kill_what_is_left(slurm: Slurm) -> None:
    """Kill processes that outlived their daemons."""

    def nothing_left() -> bool:
        for process in slurm.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not slurm.processes()

    assert wait_until(nothing_left, seconds=30), slurm.processes()
