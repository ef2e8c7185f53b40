"""Readers: threads that take a load's tasks in file order, and what is checked before the first and after the last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from loadmaster.checkpoint import Store
from loadmaster.checkpoint.unchanged import change_of
from loadmaster.errors import LoadError
from loadmaster.plan import Plan, RankPlan

Task = Callable[[Any], None]


def default_readers() -> int:
    """Return how many threads read into host memory: twice the cores, for they wait as well, at most 16."""
    return min(2 * (os.cpu_count() or 1), 16)


def check_files(plan: Plan, derived: RankPlan, store: Store, rank: int) -> None:
    """Hold size and time stamp of every file that the rank reads against the plan."""
    for number in np.unique(derived.reads[0]):
        planned = plan.checkpoint.files[number]
        try:
            change = change_of(store, planned)
        except OSError as error:
            raise LoadError(f"rank {rank}: {planned.name}: {error.strerror or error}") from error
        if change is not None:
            raise LoadError(
                f"rank {rank}: {planned.name} changed since it was planned: {change}",
                hint="plan again; nothing of the model was handed out",
            )


def run_tasks(every: Iterator[Task], num_readers: int, failures: list[BaseException] | None = None) -> None:
    """Let readers take tasks, in order, until none is left; the first failure stops them all.

    ``failures`` is for whoever works beside them: what fails here is added to it, and anything in it stops the readers. The
    first of it is raised. Each reader has a namespace of its own, which it hands to every task; a task that takes long looks
    now and then whether anything is in its ``failures``, and ends then.
    """
    lock = threading.Lock()
    failures = [] if failures is None else failures
    local = threading.local()

    def reader() -> None:
        local.failures = failures
        while not failures:
            with lock:
                task = next(every, None)
            if task is None:
                return
            try:
                task(local)
            except BaseException as error:
                failures.append(error)
                return

    with ThreadPoolExecutor(num_readers, thread_name_prefix="reader") as pool:
        try:
            for future in [pool.submit(reader) for _ in range(num_readers)]:
                future.result()
        except BaseException as error:  # an interrupt while waiting
            failures.append(error)
            raise
    if failures:
        raise failures[0]
