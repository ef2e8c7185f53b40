"""Readers: threads that run a load's tasks in file order, and the check of the files before the first and after the last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from loadmaster.checkpoint import LocalStore, Store
from loadmaster.checkpoint.unchanged import check_unchanged
from loadmaster.errors import LoadError
from loadmaster.findings import gib
from loadmaster.plan import Plan, RankPlan

Task = Callable[[Any], None]


def default_readers() -> int:
    """Return how many threads read into host memory: twice the cores, because they also wait, at most 16."""
    return min(2 * (os.cpu_count() or 1), 16)


def check_files(plan: Plan, derived: RankPlan, store: Store, rank: int) -> None:
    """Compare size and time stamp of every file that the rank reads with the plan, and refuse what a partial copy lacks.

    Raises:
        LoadError: a file changed, or some of the rank's bytes are not on disk.
    """
    check_unchanged(
        store,
        (plan.checkpoint.files[number] for number in np.flatnonzero(np.bincount(derived.reads[0]))),
        since="it was planned",
        hint="plan again; no part of the model was loaded",
        where=f"rank {rank}: ",
    )
    coverage = store.coverage if isinstance(store, LocalStore) else None
    if coverage is None or coverage.is_whole:
        return
    files, names = plan.checkpoint.files, derived.reads[0].tolist()
    starts, ends = derived.reads[1].tolist(), derived.reads[2].tolist()
    reads = [(files[f].name, start, end) for f, start, end in zip(names, starts, ends, strict=True)]
    if missing := coverage.lacking(reads):
        stages = plan.layout.pipeline_parallel_size
        raise LoadError(
            f"rank {rank} (pp {derived.pp_rank} of {stages}): {gib(missing)} of the {gib(derived.fetched_bytes)} that it reads "
            f"are not on disk; the folder is a partial copy of {coverage.origin}",
            hint=f"pull them too, with the same layout and --local-dir: loadmaster pull … --rank {rank}",
        )


def run_tasks(every: Iterator[Task], num_readers: int, failures: list[BaseException] | None = None) -> None:
    """Let readers take tasks, in order, until none is left; the first failure stops them all.

    ``failures`` is shared with other threads of the same load: a failure here is added to it, and any entry stops the readers.
    The first entry is raised. Each reader passes its own namespace to every task; a long task checks ``failures`` in it now
    and then, and ends early.
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
