"""Stages on the threads of this process."""

from __future__ import annotations

import threading
import time

import pytest

from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.stage import Stage
from cellgraph_dask.runtime.threads import Threads

TASKS = 40


def stage(function):
    return Stage("test", function, list(range(TASKS)), [1] * TASKS, "tasks")


@pytest.mark.parametrize("threads", [1, 2, 5, 60])
def test_keys_come_in_order_and_summaries_too(threads):
    started, lock, n_running, most = [], threading.Lock(), 0, 0

    def function(key):
        nonlocal n_running, most
        with lock:
            n_running += 1
            most = max(most, n_running)
            started.append(key)
        if key % 3:
            time.sleep(0.001)
        with lock:
            n_running -= 1
        return 10 * key

    assert Threads(threads, Progress()).run(stage(function)) == [10 * k for k in range(TASKS)]
    assert most <= threads
    assert sorted(started) == list(range(TASKS))
    late = max(place - key for place, key in enumerate(started))
    assert late < max(threads, 1)  # only those that start at once change places


def test_a_long_task_holds_up_no_other():
    others = threading.Semaphore(0)

    def function(key):
        if key == 0:
            for _ in range(TASKS - 1):
                assert others.acquire(timeout=30)
        else:
            others.release()
        return key

    assert Threads(2, Progress()).run(stage(function)) == list(range(TASKS))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_failure_is_told(threads):
    stopped = threading.Event()

    def function(key):
        if key == 2:
            raise OSError("the cause")
        if key > 2:
            stopped.wait(30)
            raise ValueError("stopped by it")
        return key

    with pytest.raises(OSError, match="the cause"):
        Threads(threads, Progress()).run(stage(function), stop=stopped.set)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_comes_next_is_told_before_it_starts(threads):
    told, lock = [], threading.Lock()

    def function(key):
        with lock:
            assert key < threads or key in told
        return key

    def ahead(key):
        with lock:
            told.append(key)

    Threads(threads, Progress()).run(stage(function)._replace(ahead=ahead))
    assert sorted(told) == list(range(threads, TASKS))
