"""Worker processes, as the operating system shows them."""

from __future__ import annotations

from contextlib import suppress

import psutil

from tests.workers import forked


def is_worker(process: psutil.Process) -> bool:
    """Whether a child runs the worker already: one stopped between fork and exec holds up the thread that starts it."""
    with suppress(psutil.Error):
        return process.pid in forked.PIDS or "loadmaster.workers.worker" in process.cmdline()
    return False


def newest_worker(pid: int | None = None) -> psutil.Process:
    """Return the worker that a process (this one, without ``pid``) started last.

    A process has other children too, such as those that render chat templates, and numbers of processes start again at 1.
    """
    return max(filter(is_worker, psutil.Process(pid).children()), key=psutil.Process.create_time)
