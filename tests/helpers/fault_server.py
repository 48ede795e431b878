"""Runs commands and scripts whose n-th system call on our paths fails or meets a signal.

A process of its own imports the package once and forks a child for each run; so a run takes some
hundredths of a second. The kernel hands the child's calls to the server before it does them
(seccomp's user notification); the server looks at the path, and lets the call go on, answers it
with an error, or kills the child. Nothing in the child knows of it, calls of all threads are
counted together, and other paths (libraries, the terminal) are left alone.

``python -m tests.helpers.fault_server`` reads a request a line, as JSON, and answers each with a
line.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Numbers of the calls, and which of their arguments are a path (after its folder's descriptor,
# if there is one) or a descriptor.
_X86, _ARM = "x86_64", "aarch64"
_NUMBERS: dict[str, dict[str, int]] = {
    _X86: {
        "read": 0, "write": 1, "open": 2, "pread64": 17, "pwrite64": 18, "sendfile": 40,
        "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
        "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90,
        "fchmod": 91, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
        "linkat": 265, "fchmodat": 268, "fallocate": 285, "preadv": 295, "pwritev": 296,
        "renameat2": 316, "copy_file_range": 326,
    },
    _ARM: {
        "read": 63, "write": 64, "pread64": 67, "pwrite64": 68, "sendfile": 71, "fsync": 82,
        "fdatasync": 83, "truncate": 45, "ftruncate": 46, "openat": 56, "mkdirat": 34,
        "unlinkat": 35, "renameat": 38, "linkat": 37, "fchmod": 52, "fchmodat": 53,
        "fallocate": 47, "preadv": 69, "pwritev": 70, "renameat2": 276, "copy_file_range": 285,
    },
}  # fmt: skip
_SECCOMP = {_X86: 317, _ARM: 277}
_FD = {"read", "write", "pread64", "pwrite64", "fsync", "fdatasync", "ftruncate", "fchmod",
       "fallocate", "preadv", "pwritev", "sendfile"}  # fmt: skip
_TWO_PATHS = {"rename", "link", "symlink"}
_TWO_AT = {"renameat", "renameat2", "linkat"}
_AT = {"openat", "mkdirat", "unlinkat", "fchmodat"}
READS = ("read", "pread64", "preadv")
_AT_FDCWD = -100
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls of the notification's descriptor
_SET_FLAGS, _SAME_CPU = 0x40082104, 1  # which is quicker, as one always waits for the other
_CONTINUE = 1
# With the second, a call that waits to be judged does not end because of a signal.
_LISTENER, _WAIT_KILLABLE = 8, 32
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_REMOVEDIR = 0x200
# What needs room on a disk; with a full one all of them fail from some point on.
TAKES_SPACE = ("write", "pwrite64", "pwritev", "mkdir", "mkdirat", "link", "linkat", "sendfile",
               "copy_file_range", "creat", "fallocate")  # fmt: skip


class Call(NamedTuple):
    """A system call on one of our paths.

    Attributes
    ----------
    name : str
        As the kernel calls it; "rmdir" also for unlinkat that removes a folder.
    path, other : str
        What it is done to; for renames and links, from and to.
    flags : int
        Of an open.
    content : bytes
        Of a file that is renamed: what is in it then.
    """

    name: str
    path: str
    other: str
    flags: int
    content: bytes = b""

    @property
    def creates(self) -> bool:
        """Whether it may make a new file."""
        return self.name in ("open", "openat") and bool(self.flags & os.O_CREAT)


def _install(channel: socket.socket) -> None:
    """Hand this process's calls over to the other end of `channel`."""
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = sorted(_NUMBERS[platform.machine()].values())
    program = [struct.pack("<HBBI", 0x20, 0, 0, 0)]  # load the number of the call
    program += [
        struct.pack("<HBBI", 0x15, len(numbers) - k, 0, number) for k, number in enumerate(numbers)
    ]
    program += [struct.pack("<HBBI", 0x06, 0, 0, what) for what in (_ALLOW, _NOTIFY)]

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))

    code = ctypes.create_string_buffer(b"".join(program))
    what = Filter(len(program), ctypes.addressof(code))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges
    for flags in (_LISTENER | _WAIT_KILLABLE, _LISTENER):  # Linux 5.19, and before
        listener = libc.syscall(_SECCOMP[platform.machine()], 1, flags, ctypes.byref(what))
        if listener >= 0:
            break
    else:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(channel, [b"x"], [listener])
    os.close(listener)
    channel.close()


class _Watch:
    """Answers a child's calls."""

    def __init__(self, root: str, names: Sequence[str], n: int, action: str, *, on: bool) -> None:
        self._root, self._names, self._n, self._action = root, set(names), n, action
        self._on = on
        self._by_number = {n: name for name, n in _NUMBERS[platform.machine()].items()}
        self.calls: list[Call] = []
        self.hit: list[Call] = []
        self._signals: list[str] = []  # to be sent now

    def serve(self, listener: int, child: int) -> None:
        with suppress(OSError):  # before Linux 6.6
            fcntl.ioctl(listener, _SET_FLAGS, _SAME_CPU)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            events = poll.poll(100_000)
            if not events:
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"the command hangs; its last calls: {self.calls[-5:]}")
            if not events[0][1] & select.POLLIN:
                return
            notice = bytearray(80)
            try:
                fcntl.ioctl(listener, _RECEIVE, notice)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # it died meanwhile
                    continue
                raise
            key, pid, _, number, _, _, *arguments = struct.unpack("<QIIiIQ6Q", notice)
            failure = self._judge(pid, self._by_number[number], arguments)
            if failure < 0:
                os.kill(child, signal.SIGKILL)
                continue
            while self._signals:
                os.kill(child, signal.Signals[self._signals.pop(0)])
            answer = struct.pack("<QqiI", key, 0, -failure, 0 if failure else _CONTINUE)
            with suppress(FileNotFoundError):
                fcntl.ioctl(listener, _SEND, bytearray(answer))

    def _judge(self, pid: int, name: str, arguments: list[int]) -> int:
        """Return the error to give, 0 for none, or -1 to kill."""
        if name in READS and name not in self._names:
            return 0
        try:
            call = _describe(pid, name, arguments)
        except OSError:
            return 0
        if not any(f"{path}/".startswith(f"{self._root}/") for path in (call.path, call.other)):
            return 0
        if call.name.startswith("rename"):
            with suppress(OSError):
                call = call._replace(content=Path(call.path).read_bytes())
        self.calls.append(call)
        full = self._on and self._n <= 0 and (call.name in TAKES_SPACE or call.creates)
        if call.name not in self._names and not full:
            return 0
        self._n -= call.name in self._names
        if self._n == 0 or full:
            self.hit.append(call)
            if self._action.startswith("SIG"):  # which the call does not feel
                self._signals = self._action.split()
                return 0
            return -1 if self._action == "KILL" else int(getattr(errno, self._action))
        return 0


def _describe(pid: int, name: str, arguments: list[int]) -> Call:
    def text(at: int) -> str:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        try:
            found = b""
            while b"\0" not in found:
                # Up to the end of the page: the next one may not be there.
                found += os.pread(memory, 4096 - (at + len(found)) % 4096, at + len(found))
        finally:
            os.close(memory)
        return os.fsdecode(found.split(b"\0")[0])

    def fd(number: int) -> str:
        number = ctypes.c_int(number & 0xFFFFFFFF).value
        link = "cwd" if number == _AT_FDCWD else f"fd/{number}"
        return os.readlink(f"/proc/{pid}/{link}")  # noqa: PTH115

    def at(folder: int, path: int) -> str:
        name = text(path)
        return os.path.normpath(name if name.startswith("/") else f"{fd(folder)}/{name}")

    here = _AT_FDCWD & 0xFFFFFFFF
    a = arguments
    if name in _FD:
        return Call(name, fd(a[0]), "", 0)
    if name == "copy_file_range":
        return Call(name, fd(a[2]), "", 0)
    if name in _TWO_PATHS:
        return Call(name, at(here, a[0]), at(here, a[1]), 0)
    if name in _TWO_AT:
        return Call(name, at(a[0], a[1]), at(a[2], a[3]), 0)
    if name in _AT:
        flags = a[2] & 0xFFFFFFFF
        kind = "rmdir" if name == "unlinkat" and flags & _REMOVEDIR else name
        return Call(kind, at(a[0], a[1]), "", flags if name == "openat" else 0)
    return Call(name, at(here, a[0]), "", a[1] if name == "open" else 0)


def _child(script: str, argv: list[str], channel: socket.socket, outputs: list[int]) -> None:
    from cellgraph_dask.cli import commands

    status = 70
    try:
        for k, fd in enumerate(outputs):
            os.dup2(fd, k + 1)
        sys.argv = ["-c" if script else "cellgraph-dask", *argv]
        _install(channel)
        if script:
            status = _exit_code(script)
        else:
            commands.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _exit_code(script: str) -> int:
    try:
        exec(script, {"__name__": "__main__"})
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _run(request: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ours:
        child = os.fork()
        if not child:
            ours.close()
            _child(request["script"], request["argv"], theirs, [out.fileno(), err.fileno()])
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        watch = _Watch(
            request["root"], request["names"], request["n"], request["action"], on=request["on"]
        )
        problem = ""
        try:
            if fds:
                watch.serve(fds[0], child)
        except TimeoutError as error:
            problem = str(error)
        finally:
            for fd in fds:
                os.close(fd)
            _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "stdout": texts[0],
        "stderr": texts[1] + problem,
        "calls": [_sendable(call) for call in watch.calls],
        "hit": [_sendable(call) for call in watch.hit],
    }


def _sendable(call: Call) -> list[Any]:
    return [*call[:-1], call.content.hex()]


def _warm_up() -> None:
    """Import and load whatever an export needs, without starting a thread."""
    from scipy.sparse import csr_matrix

    from cellgraph_dask.cli import commands  # noqa: F401
    from cellgraph_dask.export import api  # noqa: F401
    from cellgraph_dask.publish import element  # noqa: F401
    from cellgraph_dask.source import zarr_dense, zarr_store  # noqa: F401
    from cellgraph_dask.source.opening import open_source
    from cellgraph_dask.stages.job import Job
    from cellgraph_dask.stages.pipeline import warm_up
    from cellgraph_dask.stages.runs import Scratch
    from cellgraph_dask.stages.wishes import Thinning
    from cellgraph_dask.verify import api as verification  # noqa: F401

    for weights in ("float32", "float64"):
        source = open_source(csr_matrix((1, 1), dtype=weights))
        for method in ("symmetric", "general", "signed"):
            warm_up(Job(source, Scratch(""), 8, method))
        for method in ("symmetric", "general"):
            warm_up(Job(source, Scratch(""), 8, method, "max", thinning=Thinning(top_k=1)))
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # children shall not touch, and so copy, what they share with us


class Run(NamedTuple):
    """What a command came to.

    Attributes
    ----------
    exit_code : int
        Negative if a signal ended it.
    stdout, stderr : str
        What it printed.
    calls, hit : list of Call
        Its calls on paths below the root, in order; those that failed or were its last.
    """

    exit_code: int
    stdout: str
    stderr: str
    calls: list[Call]
    hit: list[Call]


class FaultServer:
    """The server, from outside; a context manager."""

    def __enter__(self) -> FaultServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fault_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(
        self,
        *argv: object,
        root: Path,
        script: str = "",
        names: Sequence[str] = (),
        n: int = 0,
        action: str = "KILL",
        on: bool = False,
    ) -> Run:
        """Run a command whose `n`-th call of these names on a path below `root` meets `action`.

        Parameters
        ----------
        argv
            Arguments of ``cellgraph-dask``, or of `script`, which runs instead of it.
        root
            The folder whose paths count.
        names
            Which calls count.
        n
            Which of them is met; 0 for none.
        action
            "KILL", the name of an error, or of signals that come with it.
        on
            Whether all later calls that need room on the disk meet it too.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "script": script, "argv": [str(a) for a in argv], "root": str(root),
            "names": list(names), "n": n if n else -1 if not on else 0, "action": action,
            "on": on and n > 0,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        for name in ("calls", "hit"):
            answer[name] = [Call(*call[:-1], bytes.fromhex(call[-1])) for call in answer[name]]
        return Run(**answer)


class Attempts(NamedTuple):
    """A script that is run again and again, its system calls on paths below `root` meeting faults.

    `restore` puts everything back as it was, before each run.
    """

    server: FaultServer
    script: str
    argv: tuple[object, ...]
    root: Path
    restore: Callable[[], None]

    def run(self, names: Sequence[str], n: int = 0, action: str = "KILL") -> Run:
        """Run it, its `n`-th call of these names meeting `action`; see `FaultServer.run`."""
        self.restore()
        return self.server.run(
            *self.argv, root=self.root, script=self.script, names=names, n=n, action=action
        )

    def steps(self, names: Sequence[str]) -> list[str]:
        """Return the names of these calls, in order, if nothing happens to them."""
        run = self.run(names)
        assert run.exit_code == 0, run.stderr
        return [call.name for call in run.calls if call.name in names]


def supported() -> bool:
    """Tell whether this kernel lets us watch a process's calls."""
    if platform.machine() not in _NUMBERS:
        return False
    try:
        available = Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        return False
    return "user_notif" in available.split()


needs_watching = pytest.mark.skipif(
    not supported() and "CI" not in os.environ, reason="the kernel does not let us watch calls"
)


if __name__ == "__main__":
    _warm_up()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)
