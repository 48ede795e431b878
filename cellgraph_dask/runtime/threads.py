"""Running stages as Dask tasks: the one module that runs Dask.

A stage is a function of one key that writes to disk and returns a small summary. On threads each
task takes the next key when it starts, whichever task it is. So keys come in order, and a task may
wait for what earlier ones tell it (where its edges go) without ever blocking them; and a thread
that has long to write holds up no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral
from operator import itemgetter
from typing import Any

import dask
import dask.threaded
from dask.system import CPU_COUNT

from ..errors import MemoryLimitError
from ..machine import buffers
from ..machine.memory import format_bytes, peak_bytes, resident_bytes
from .progress import Progress
from .stage import Key, Stage, Summary, do_nothing


def default_threads() -> int:
    """Return the number of cores this process may use: its affinity and cgroup count."""
    return int(CPU_COUNT)


def check_threads(threads: Any) -> None:
    """Raise a ValueError if a number of threads is not one that can be."""
    if threads is None:
        return
    if not isinstance(threads, Integral):
        raise ValueError(f"threads must be a whole number, not {type(threads).__name__}")
    n = int(threads)
    if not 1 <= n < 2**31:
        told = n if abs(n) < 2**63 else "such a number"
        raise ValueError(f"threads must be from 1 to 2,147,483,647, not {told}")


class Threads:
    """Runs tasks on threads of this process, so many at once."""

    def __init__(self, n_threads: int, progress: Progress) -> None:
        self._n_threads = n_threads
        self._progress = progress

    def run(
        self, stage: Stage[Key, Summary], *,
        stop: Callable[[], None] = do_nothing, done: Callable[[Key, Summary], None] = do_nothing,
    ) -> list[Summary]:  # fmt: skip
        """Run a stage; see `Executor.run`."""
        keys, n = stage.keys, self._n_threads
        self._progress.start(stage.name, sum(stage.sizes), stage.unit)
        failures: list[BaseException] = []
        lock, order = threading.Lock(), iter(range(len(keys)))

        def task() -> tuple[int, Summary]:
            with lock:
                k = next(order)
            try:
                if k + n < len(keys):
                    stage.ahead(keys[k + n])
                summary = stage.function(keys[k])
                done(keys[k], summary)
            except BaseException as error:
                failures.append(error)
                stop()
                raise
            self._progress.advance(stage.sizes[k])
            return k, summary

        graph = {f"{stage.name}-{k:06d}": (task,) for k in range(len(keys))}
        try:
            if n == 1:  # in this very thread, as debuggers and profilers like it
                return _in_order(dask.get(graph, list(graph)))
            with ThreadPoolExecutor(n, thread_name_prefix=f"cellgraph-{stage.name}") as pool:
                try:
                    found = dask.threaded.get(graph, list(graph), num_workers=n, pool=pool)
                    return _in_order(found)
                except BaseException:
                    stop()
                    pool.shutdown(cancel_futures=True)
                    raise
        except Exception:
            # The first failure is the cause; tasks that it stopped may be heard of sooner.
            if failures:
                raise failures[0] from failures[0].__cause__
            raise
        finally:
            buffers.release()
            buffers.return_freed()  # the plan counts on it: stages have the same memory in turns


def _in_order(found: Iterable[tuple[int, Summary]]) -> list[Summary]:
    return [summary for _, summary in sorted(found, key=itemgetter(0))]


class _GatedPool(ThreadPoolExecutor):
    """Threads of which one works at a time until more are let in."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads, thread_name_prefix="cellgraph-spool")
        self._gate = threading.Semaphore(1)
        self._inside = 1

    def let_in(self, n: int) -> None:
        """Let `n` threads work at once, but no fewer than before."""
        if n > self._inside:
            self._gate.release(n - self._inside)
            self._inside = n

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a task to a thread; see `concurrent.futures.Executor.submit`."""

        def task() -> Any:
            with self._gate:
                return fn(*args, **kwargs)

        return super().submit(task)


def compute_on_threads(
    tasks: Sequence[Any], on_result: Callable[[Any], None], *, n_threads: int, limit: int,
    task_bytes: int = 0,
) -> list[Any]:  # fmt: skip
    """Compute delayed tasks of the user's graph on threads of this process.

    What such a task takes is known to nobody before. So one thread does the first alone, and as
    many follow as its memory allows. `on_result` is called with each result as it comes; `limit` is
    the most resident bytes of this process; a MemoryLimitError if the first task goes beyond it,
    or would by `task_bytes`, what one may take if that is known.
    """
    before = resident_bytes()
    if before + task_bytes > limit:
        least = (before + task_bytes) * 21 // 20
        raise MemoryLimitError(
            f"the memory limit of {format_bytes(limit)} is too small: reading a chunk of the "
            f"matrix takes up to {format_bytes(task_bytes)}, beside the {format_bytes(before)} of "
            f"Python and its libraries. Write it with smaller chunks, or allow "
            f"{-(-least // 10**6)}MB (`memory_limit`)."
        )
    if task_bytes:
        n_threads = max(1, min(n_threads, (limit - before) // task_bytes))
    lock = threading.Lock()
    is_first = [True]

    with _GatedPool(n_threads) as pool:

        def note(result: Any) -> Any:
            with lock:
                if is_first[0]:
                    is_first[0] = False
                    pool.let_in(_threads_that_fit(before, n_threads, limit))
            on_result(result)
            return result

        noted_tasks = [dask.delayed(note, pure=False)(task) for task in tasks]
        try:
            results = dask.compute(*noted_tasks, scheduler=dask.threaded.get, pool=pool)
        except BaseException:
            pool.let_in(n_threads)
            pool.shutdown(cancel_futures=True)
            raise
    return list(results)


def _threads_that_fit(before: int, n_threads: int, limit: int) -> int:
    peak = peak_bytes()
    if peak > limit:
        enough = -(-peak * 5 // 4 // 10**6) * 10**6
        raise MemoryLimitError(
            f"the memory limit of {format_bytes(limit)} is too small: computing one chunk of the "
            f"Dask array took this process to {format_bytes(peak)}. Make its chunks smaller, or "
            f"allow {enough // 10**6}MB (`memory_limit`).",
            needed_bytes=enough,
        )
    return max(1, min(n_threads, (limit - before) // max(peak - before, 1)))
