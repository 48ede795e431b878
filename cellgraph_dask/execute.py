"""Running stages as Dask tasks: the one module that runs Dask.

A stage is a function of one key that writes to disk and returns a small summary. On threads the
tasks of a stage form as many chains as there are threads, each task following the one that many
places before it. So no more tasks run than threads were planned for, and they start in order: a
task may wait for what earlier ones tell it (where its edges go) without ever blocking them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import dask
import dask.threaded
from dask.system import CPU_COUNT

from . import workspace
from .progress import Progress

Key = TypeVar("Key")
Summary = TypeVar("Summary")


def default_threads() -> int:
    """Return the number of cores this process may use: its affinity and cgroup count."""
    return int(CPU_COUNT)


class Executor(Protocol):
    """Runs the tasks of a stage."""

    def run(
        self,
        stage: str,
        function: Callable[[Key], Summary],
        keys: Sequence[Key],
        *,
        sizes: Sequence[int],
        unit: str,
        stop: Callable[[], None] = ...,
        done: Callable[[Key, Summary], None] = ...,
    ) -> list[Summary]:
        """Return what the function gives for each key; see `Threads.run`."""


class Threads:
    """Runs tasks on threads of this process.

    Parameters
    ----------
    n_threads
        How many tasks run at once.
    progress
        Told what is done.
    """

    def __init__(self, n_threads: int, progress: Progress) -> None:
        self._n_threads = n_threads
        self._progress = progress

    def run(
        self,
        stage: str,
        function: Callable[[Key], Summary],
        keys: Sequence[Key],
        *,
        sizes: Sequence[int],
        unit: str,
        stop: Callable[[], None] = lambda: None,
        done: Callable[[Key, Summary], None] = lambda _key, _summary: None,
    ) -> list[Summary]:
        """Run a function over all keys and return its summaries in their order.

        Parameters
        ----------
        stage
            Name of the stage, on the progress bar and in the names of the tasks.
        function
            What to do for a key.
        keys
            The keys.
        sizes
            What each key counts for in the progress.
        unit
            What is counted.
        stop
            Called when a task has failed, so that tasks which wait for it end too.
        done
            Called with each key and its summary when the task is finished.
        """
        self._progress.start(stage, sum(sizes), unit)
        failures: list[BaseException] = []

        def task(k: int, _after: object) -> Summary:
            try:
                summary = function(keys[k])
                done(keys[k], summary)
            except BaseException as error:
                failures.append(error)
                stop()
                raise
            self._progress.advance(sizes[k])
            return summary

        n = self._n_threads
        names = [f"{stage}-{k:06d}" for k in range(len(keys))]
        graph = {name: (task, k, names[k - n] if k >= n else None) for k, name in enumerate(names)}
        try:
            if n == 1:  # in this very thread, as debuggers and profilers like it
                return list(dask.get(graph, names))
            with ThreadPoolExecutor(n, thread_name_prefix=f"cellgraph-{stage}") as pool:
                try:
                    return list(dask.threaded.get(graph, names, num_workers=n, pool=pool))
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
            workspace.release()
