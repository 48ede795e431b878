"""Running stages on a `distributed` cluster: the one module that knows it.

The scheduler sees small keys and small summaries only; everything large goes through the scratch
folder, which every worker must see. Tasks can be repeated, even twice at once, so a worker that
dies costs its tasks and nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._version import __version__
from ..errors import CellgraphError, ClusterError, MemoryLimitError
from ..machine import buffers
from ..machine.memory import format_bytes, peak_bytes, reset_peak, resident_bytes
from .progress import Progress
from .stage import Key, Stage, Summary, do_nothing
from .versions import difference, versions

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

# distributed pauses a worker at 80 % of its memory; we stay below that.
_USABLE = 0.75


class Workers(NamedTuple):
    """What a cluster has, as far as a plan needs it."""

    n_workers: int
    threads_per_worker: int  # of the worker that has most
    memory_limit: int  # most resident bytes of one worker, of the one that may hold least
    reserved: int  # resident bytes that a worker holds before it starts, at most


def connect(address: str | None, scheduler_file: str | None) -> Client:
    """Return a client of a running scheduler; a `ClusterError` if it cannot be reached."""
    from distributed import Client

    try:
        return Client(address=address, scheduler_file=scheduler_file, timeout="20s")
    except (OSError, ValueError) as error:
        where = address or scheduler_file
        raise ClusterError(
            f"no Dask scheduler answers at {where} ({error}). Start one with `dask scheduler`, or "
            "leave the option out to use the threads of this machine."
        ) from error


def client_for(given: Client | None) -> Client | None:
    """Return the client whose workers do the work; None for threads of this process.

    Without one that is given, it is the one that is active in this process, if that can be waited
    for here; nothing is imported for it. A ClusterError says why one that is given cannot be used.
    """
    if given is None:
        return _active_client()
    if not hasattr(given, "scheduler_info"):
        raise ValueError(f"client must be a distributed.Client, not {type(given).__name__}")
    if given.status != "running":
        raise ClusterError(f"the Dask client is {given.status}. Make a new one.")
    if given.asynchronous:
        raise ClusterError(
            "the Dask client is asynchronous, and waiting for it would stop its own event loop. "
            "Call this in another thread, as in `await asyncio.to_thread(…)`, or give a client "
            "that is not asynchronous."
        )
    if _in_task() and getattr(_thread_state(), "proceed", False):
        raise ClusterError(
            "this is called inside a task of the cluster, which could wait for itself. Give no "
            "client, to use the threads of this worker, or give one of `distributed.worker_client`."
        )
    return given


def _active_client() -> Client | None:
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        client = default_client()
    except ValueError:
        return None
    if _in_task():  # it waits for us
        log.info("inside a task of a cluster: the threads of this process do the work")
        return None
    if client.asynchronous:
        log.warning(
            "the active Dask client is asynchronous, so the threads of this process do the work; "
            "in another thread (`await asyncio.to_thread(…)`) its workers do"
        )
        return None
    return client


def _thread_state() -> Any:
    """Return what distributed's thread pool notes of this thread."""
    from distributed.threadpoolexecutor import thread_state

    return thread_state


def _in_task() -> bool:
    """Whether this thread runs a task of a worker."""
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return False
    return hasattr(_thread_state(), "proceed")


def inspect_workers(
    client: Client, warm_up: Callable[[], None], memory_limit: int | None
) -> Workers:
    """Look at all workers: versions, threads, memory.

    `warm_up`, which is picklable, is called on each worker before it is measured, to load what its
    tasks will use. `memory_limit` is what the user allows for each worker, in bytes; None for what
    the workers allow. Raises a ClusterError if there are no workers, or one has other code or other
    versions of libraries, and a MemoryLimitError if a worker has less memory than the user's limit.
    """
    info = client.scheduler_info(n_workers=-1)["workers"]
    if not info:
        raise ClusterError(
            "the cluster has no workers. Start some (`dask worker ADDRESS`), or wait until the "
            "queue has started them."
        )
    found = _ask(client, partial(_introduce, warm_up))
    here = versions()
    for worker, (version, there, _) in found.items():
        if version != __version__:
            raise ClusterError(
                f"worker {worker} has cellgraph_dask {version}, but this is {__version__}. Install "
                "the same version everywhere."
            )
        differs = difference(here, there)
        if differs is not None:
            raise ClusterError(
                f"worker {worker} has {differs}. Install the same everywhere, and start the "
                "workers again: they could write other bytes."
            )
    limits = [] if memory_limit is None else [memory_limit]
    for worker, state in info.items():
        allowed = int(state["memory_limit"] or 0)
        if not allowed:
            continue
        if memory_limit is not None and memory_limit > allowed:
            raise MemoryLimitError(
                f"worker {worker} may use {format_bytes(allowed)}, less than the memory limit of "
                f"{format_bytes(memory_limit)}. Start workers with more memory, or "
                f"name a limit of at most {allowed // 10**6}MB."
            )
        limits.append(int(allowed * _USABLE))
    if not limits:
        raise ClusterError(
            "the workers have no memory limit. Name what each may use with `memory_limit`."
        )
    return Workers(
        n_workers=len(info),
        threads_per_worker=max(state["nthreads"] for state in info.values()),
        memory_limit=min(limits),
        reserved=max(resident for *_, resident in found.values()),
    )


def check_folders(client: Client, source: str | None, folders: Sequence[Path]) -> None:
    """Make sure that every worker sees the source and can write where we write.

    `source` is the file or folder of the matrix, if it has one; `folders` are scratch and output.
    """
    token = os.urandom(8).hex()
    names = [folder / f"token-{token}" for folder in folders]
    try:
        for name in names:
            name.write_text(token)
        paths = [str(name) for name in names]
        for worker, problem in _ask(client, partial(_look_at, source, paths, token)).items():
            if problem is not None:
                raise ClusterError(
                    f"worker {worker} cannot use what this process uses: {problem}. Source, output "
                    "and scratch must be on storage that all workers share, under the same paths; "
                    "name another place with `scratch_dir`."
                )
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def _ask(client: Client, question: Callable[[], Any]) -> dict[str, Any]:
    """Return every worker's answer; a `ClusterError` if one cannot answer."""
    with _named_loss(client, "while asking the workers"):
        answers: dict[str, Any] = client.run(question, on_error="return")
    for worker, answer in answers.items():
        if isinstance(answer, CellgraphError):
            raise ClusterError(f"worker {worker} cannot work: {answer}") from answer
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"worker {worker} cannot work: {type(answer).__name__}: {answer}. Install "
                f"cellgraph_dask {__version__} and what it needs on all workers, and see its log."
            ) from answer
    return answers


@contextmanager
def _named_loss(client: Client, when: str) -> Iterator[None]:
    """Turn the many errors of a client whose scheduler is gone into one."""
    try:
        yield
    except CellgraphError:
        raise
    except Exception as error:
        # CommClosedError is an OSError without a number, unlike what a task on a worker meets.
        lost = isinstance(error, ConnectionError | CancelledError | TimeoutError) or (
            isinstance(error, OSError) and error.errno is None
        )
        if not lost and client.status == "running":
            raise
        reason = str(error).partition("\n")[0]
        raise ClusterError(
            f"the connection to the Dask scheduler was lost {when} ({type(error).__name__}: "
            f"{reason}). See the scheduler's log, and start it again."
        ) from error


def worker_peak_bytes(client: Client) -> int:
    """Return the most resident bytes that a worker has held since it was inspected."""
    return max(_ask(client, peak_bytes).values(), default=0)


def _introduce(warm_up: Callable[[], None]) -> tuple[str, dict[str, str | None], int]:
    """Load the compiled loops on a worker; return its version, all `versions`, resident bytes."""
    told = versions()
    warm_up()
    reset_peak()
    return __version__, told, resident_bytes()


def _look_at(source: str | None, paths: list[str], token: str) -> str | None:
    """Return what a worker cannot see or write, if anything."""
    if source is not None and not Path(source).exists():
        return f"{source} is not there"
    for path in map(Path, paths):
        try:
            if path.read_text() != token:
                return f"{path.parent} is another folder there"
            own = path.with_name(f"{path.name}-{os.getpid()}")
            own.write_text(token)
            own.unlink()
        except OSError as error:
            return f"{path.parent}: {error.strerror}"
    return None


def compute_on_workers(
    client: Client, tasks: Sequence[Any], on_result: Callable[[Any], None]
) -> list[Any]:
    """Compute delayed tasks of the user's graph on the workers; see `compute_on_threads`."""
    from distributed import KilledWorker, as_completed

    with _named_loss(client, "while computing the array"):
        futures = client.compute(list(tasks))
        try:
            for _, result in as_completed(futures, with_results=True):
                on_result(result)
            return list(client.gather(futures))
        except KilledWorker as error:
            raise ClusterError(
                "while computing the array, a chunk was tried on several workers, and all of them "
                "died, probably out of memory. Make the chunks smaller, or give workers more "
                "memory."
            ) from error
        finally:
            with suppress(Exception):
                client.cancel(futures, force=True)


class Cluster:
    """Runs tasks on the workers of a cluster.

    The scheduler queues tasks and hands each worker few more than it has threads for.
    """

    def __init__(self, client: Client, progress: Progress) -> None:
        self._client = client
        self._progress = progress

    def run(
        self, stage: Stage[Key, Summary], *,
        stop: Callable[[], None] = do_nothing, done: Callable[[Key, Summary], None] = do_nothing,
    ) -> list[Summary]:  # fmt: skip
        """Run a stage; see `Executor.run`. No task waits for another, so `stop` is not called."""
        from distributed import KilledWorker, as_completed

        keys, token = stage.keys, os.urandom(4).hex()  # two stages may have the same name
        self._progress.start(stage.name, sum(stage.sizes), stage.unit)
        names = [f"cellgraph-{stage.name}-{token}-{k:06d}" for k in range(len(keys))]
        numbers = {name: k for k, name in enumerate(names)}
        summaries: dict[int, Summary] = {}
        futures: list[Any] = []
        try:
            with _named_loss(self._client, f"in stage {stage.name}"):
                task = partial(_task, stage.function)
                futures = self._client.map(task, keys, key=names, pure=False)
                for future in as_completed(futures):
                    k = numbers[future.key]
                    try:
                        summaries[k] = future.result()
                    except KilledWorker as error:
                        raise ClusterError(
                            f"in stage {stage.name}, {keys[k]!r} was tried on several workers, and "
                            "all of them died, probably out of memory or ended by the queue. See "
                            "their logs; give workers more memory, or name a smaller "
                            "`memory_limit`."
                        ) from error
                    done(keys[k], summaries[k])
                    self._progress.advance(stage.sizes[k])
        except BaseException:
            with suppress(Exception):  # if the scheduler is gone, so are the tasks
                self._client.cancel(futures, force=True)
            raise
        return [summaries[k] for k in range(len(keys))]


def _task(function: Callable[[Key], Summary], key: Key) -> Summary:
    """Run a task on a worker, and give its buffers back."""
    try:
        return function(key)
    finally:
        buffers.release()
        buffers.return_freed()
