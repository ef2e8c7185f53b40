"""A worker as a process that this process has started: how it is started, watched, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from loadmaster.workers.encoding import dumps
from loadmaster.workers.messages import Job
from loadmaster.workers.pulse import Phase, Pulse, cpu_seconds

LOOK_EVERY_S = 1.0
"""How often to look for stopped workers."""

STOPPED_FOR_S = 5.0
"""How long a worker may be stopped while this process runs. Ctrl-Z in a terminal stops both."""

HUNG_FOR_S = 5.0
"""How long a worker may be in one step without using a CPU. A step that computes, or waits for a GPU, uses one."""

END_WITHIN_S = 2.0
"""The time from the end of a worker's pipe, with which it ends, to SIGKILL."""

JOB_LENGTH_BYTES = 8
"""The length precedes the job: a process that was forked meanwhile may hold the other end of the pipe open."""

SPIN_COUNT = "200000"
"""How long a thread of a product waits actively for the others (GOMP_SPINCOUNT), some 0.5 ms: longer than the gaps between
the products of a step, in which waking a thread takes 50 µs. The default, several milliseconds, makes a product many times slower
where another process needs the core."""

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variables that configure torch's allocator on a GPU; the second is the older name."""

GROWING = "expandable_segments:True"
"""Segments that grow. With fixed ones, prompts of many lengths leave gaps: 4 to 6 GiB in three layers of GLM-5.1 on an H200,
none with these (`benchmarks/memory_gpu.py`)."""


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: what is inherited, defaults where it says nothing, and this process's import path."""
    defaults = {"GOMP_SPINCOUNT": SPIN_COUNT}
    if not any(name in inherited for name in ALLOCATOR):
        defaults[ALLOCATOR[0]] = GROWING
    return {**defaults, **inherited, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


class WorkerProcess:
    """Starts ``python -m loadmaster.workers.worker`` for a job. ``pipe`` is the file descriptor of the worker's pipe.

    The worker inherits ``pipe`` and the descriptors that the job names, and reads the job from its standard input.
    """

    def __init__(self, job: Job, pipe: int, pulse: Pulse) -> None:
        self._place = job.place
        self._pulse = pulse
        self._stopped_s = self._hung_s = 0.0
        self._seen: tuple[object, ...] = ()
        inherited = (job.previous, job.following, job.pulse, *job.peers)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "loadmaster.workers.worker", str(pipe)],
            stdin=subprocess.PIPE,
            env=environment(os.environ),
            pass_fds=[pipe, *(fd for fd in inherited if fd is not None)],
        )
        # a thread, because writing blocks until the worker reads its plan
        threading.Thread(target=self._write, args=(dumps(job),), name="job", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def __str__(self) -> str:
        return f"{self._place} (process {self.pid})"

    def trouble(self, passed_s: float) -> tuple[str, str | None] | None:
        """Return what is wrong with a worker that runs, and a hint; or None. Called every `LOOK_EVERY_S` or so.

        A worker may be stopped by a signal, for example SIGSTOP, and not continued; or it may hang in a step. Its pipe stays
        open in both cases. ``passed_s``: the seconds since the last call.
        """
        if self._is_stopped():
            self._stopped_s += min(passed_s, 2 * LOOK_EVERY_S)
            self._hung_s = 0.0
        else:
            self._stopped_s = 0.0
            self._hung_s = self._hung_s + passed_s if self._stands_still() else 0.0
        if self._stopped_s > STOPPED_FOR_S:
            return (
                f"was stopped by a signal and not continued within {STOPPED_FOR_S:g} s",
                "find what sent it SIGSTOP, and start again",
            )
        return (f"has hung in a step for more than {HUNG_FOR_S:g} s", None) if self._hung_s > HUNG_FOR_S else None

    def end_cause(self) -> tuple[str, str | None]:
        """Return how the process has ended, and a hint."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        if status is not None and status < 0:
            hint = "the kernel may have run out of memory; check dmesg" if status == -signal.SIGKILL else None
            return f"was killed by {_signal_name(-status)}", hint
        return f"ended unexpectedly, with exit status {status}", None

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended the process, as far as `end_cause` or `wait` have seen."""
        return self._process.returncode is not None and self._process.returncode < 0

    def tell_end(self, error: str | None = None) -> None:
        """Do nothing: the worker ends with its pipe, and does not need to know why."""

    def wait(self, timeout_s: float) -> None:
        """Wait until the process has ended, or ``timeout_s`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process, if it still runs. Return when it is gone, not even a zombie."""
        self._process.kill()
        self._process.wait()

    def _write(self, job: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it may have ended before it has read all
            pipe.write(len(job).to_bytes(JOB_LENGTH_BYTES, "little") + job)

    def _is_stopped(self) -> bool:
        """Return whether the process is stopped now. Does not reap it (WNOWAIT)."""
        if not hasattr(os, "waitid"):
            return False
        with contextlib.suppress(ChildProcessError):  # it has ended, and was waited for
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def _stands_still(self) -> bool:
        """Return whether the worker is in the same step as at the last look, and has used no CPU since."""
        used_s = cpu_seconds(self.pid)
        before, self._seen = self._seen, (*self._pulse.get(self._place.rank), used_s)
        return used_s is not None and self._seen[0] == Phase.COMPUTING and self._seen == before


def _signal_name(number: int) -> str:
    """Return a signal's name.

    >>> _signal_name(9)
    'SIGKILL'
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
