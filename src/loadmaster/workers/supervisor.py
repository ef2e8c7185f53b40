"""The worker processes of a pipeline, and the thread that watches over them.

One thread starts the workers, waits on their pipes, and ends them; it lives exactly as long as they may (the kernel
kills them with it). A pipe's end is a worker's end. A worker that a signal has stopped is looked for every second; one
that runs and makes no progress is not noticed. Whatever goes wrong ends all workers, and is kept as one error: the
cause, not what the neighbours noticed of it.

Workers get all they are connected by from here: a pipe, and sockets to their neighbours. Neither has a name, and nothing
listens: docs/decisions/0004-who-can-join.md.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from loadmaster.errors import LoadError, LoadmasterError, RunError
from loadmaster.workers.messages import Begun, Failed, Job, Progress, Ready, Refused, Stepped

DEFAULT_BUILDER = "loadmaster.workers.builder:PlanBuilder"

CAUSE_WITHIN_S = 2.0
"""How long a stage's report that its neighbour is lost waits for the neighbour's own."""

LOOK_EVERY_S = 1.0
"""How often the workers are looked at for one that is stopped."""

STOPPED_FOR_S = 5.0
"""How long a worker may be stopped while this process runs: a terminal's Ctrl-Z stops both."""

TERMINATE_WITHIN_S = 2.0
"""How long a worker has between SIGTERM and SIGKILL."""

State = Literal["loading", "ready", "failed", "closed"]
Reply = Begun | Refused | Stepped


@dataclass(slots=True)
class WorkerProcess:
    """One worker process, seen from the engine's."""

    stage: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_ready: bool = False
    has_failed: bool = False
    stopped_s: float = 0.0


class Supervisor:
    """Starts ``num_stages`` workers at once and returns; they load in the background.

    ``on_progress`` is told of bytes that are done, from the watching thread.
    """

    def __init__(
        self,
        plan: bytes,
        num_stages: int,
        *,
        builder: str = DEFAULT_BUILDER,
        device: str = "cpu",
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.num_stages = num_stages
        self.error: LoadmasterError | None = None
        self._state: State = "loading"
        self._plan = plan
        self._builder = builder
        self._device = device
        self._on_progress = on_progress
        self._workers: list[WorkerProcess] = []
        self._lock = threading.Lock()  # of what is sent to workers; held as long as one doesn't read
        self._ending = threading.Lock()  # of the pipe by which `close` is told to the watching thread
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._loaded, self._ended = threading.Event(), threading.Event()
        self._stop, self._stopped = Pipe()
        self._looked = time.monotonic()
        self._suspect: tuple[LoadmasterError, float] | None = None
        self._thread = threading.Thread(target=self._watch_over, name="supervisor", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    @property
    def state(self) -> State:
        """Where the workers are: loading, ready, failed (see ``error``) or closed."""
        return self._state

    def wait_ready(self) -> None:
        """Return when every stage is loaded.

        Raises:
            LoadError: loading failed. Any other error of this package that a worker met keeps its type.
        """
        self._loaded.wait()
        self.check()

    def wait_ended(self) -> LoadmasterError | None:
        """Return when the workers have failed or were closed; with the error, if there is one."""
        self._ended.wait()
        return self.error

    def check(self) -> None:
        """Raise what has gone wrong, if anything."""
        if self.error is not None:
            raise self.error
        if self._state == "closed":
            raise RunError("the engine is closed")

    def send(self, message: object, stages: Sequence[int] | None = None) -> None:
        """Send to ``stages``, or all. A worker that is gone is noticed by the thread that watches."""
        with self._lock:
            for worker in self._workers:
                if stages is None or worker.stage in stages:
                    with contextlib.suppress(OSError):
                        worker.pipe.send(message)

    def reply(self, request: int) -> Reply:
        """Return the next answer to ``request``; those to requests given up are dropped.

        Raises:
            RunError: a worker failed, or the engine was closed.
        """
        while True:
            reply = self._replies.get()
            if reply is None:
                self._replies.put(None)  # for the next who asks
                self.check()
            elif reply.request == request:
                return reply

    def close(self) -> None:
        """End the workers and return when they are gone. May be called again, from any thread."""
        with self._ending, contextlib.suppress(OSError):
            self._stop.send_bytes(b"close")
        self._thread.join()
        atexit.unregister(self.close)

    # What follows runs in the watching thread.

    def _watch_over(self) -> None:
        try:
            self._start_workers()
            self._watch()
        except BaseException as error:
            if self.error is None:
                self._fail(error if isinstance(error, LoadmasterError) else RunError(f"starting workers: {error!r}"))
        finally:
            if self.error is None:
                self._state = "closed"
            self._announce()
            self._end_workers()
            self._ended.set()

    def _start_workers(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        pairs = [socket.socketpair() for _ in range(self.num_stages - 1)]
        jobs = []
        try:
            for stage in range(self.num_stages):
                previous = pairs[stage - 1][1].fileno() if stage > 0 else None
                following = pairs[stage][0].fileno() if stage < self.num_stages - 1 else None
                ours, theirs = Pipe()
                try:
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "loadmaster.workers.worker", str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        env=environment,
                        pass_fds=[fd for fd in (theirs.fileno(), previous, following) if fd is not None],
                    )
                finally:
                    theirs.close()
                self._workers.append(WorkerProcess(stage, process, ours))
                threads = max(1, cores // self.num_stages)
                jobs.append(
                    Job(stage, self.num_stages, threads, self._builder, self._plan, self._device, previous, following)
                )
        finally:
            for pair in pairs:  # each worker has its own: when it ends, its neighbours see it
                for end in pair:
                    end.close()
        self._plan = b""
        threading.Thread(target=self._send_jobs, args=(jobs,), name="jobs", daemon=True).start()

    def _send_jobs(self, jobs: Sequence[Job]) -> None:
        """Send each worker its job, in a thread of its own: a plan waits in the pipe until the worker reads it."""
        for job in jobs:
            self.send(job, [job.stage])

    def _watch(self) -> None:
        """Take what the workers say until one fails or `close` is called."""
        by_pipe: dict[Any, WorkerProcess] = {worker.pipe: worker for worker in self._workers}
        while self.error is None:
            left = LOOK_EVERY_S
            if self._suspect is not None:
                left = min(left, self._suspect[1] - time.monotonic())
                if left <= 0:
                    self._fail(self._suspect[0])
                    return
            self._look_for_stopped()
            for source in wait([self._stopped, *by_pipe], left):
                if source is self._stopped:
                    return
                worker = by_pipe[source]
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    del by_pipe[source]
                    self._take_end(worker)
                else:
                    self._take(worker, message)

    def _take(self, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Reply):
            self._replies.put(message)
        elif isinstance(message, Progress):
            self._on_progress(message.num_bytes)
        elif isinstance(message, Ready):
            worker.is_ready = True
            if all(w.is_ready for w in self._workers):
                self._state = "ready"
                self._loaded.set()
        else:
            assert isinstance(message, Failed), message
            worker.has_failed = True
            if message.is_cause:
                self._fail(message.error)
            elif self._suspect is None:
                self._suspect = message.error, time.monotonic() + CAUSE_WITHIN_S

    def _look_for_stopped(self) -> None:
        """Fail if a worker was stopped, by SIGSTOP say, and is not continued: its pipe stays open, so nothing else tells.

        A worker that runs and makes no progress is not noticed here.
        """
        passed = time.monotonic() - self._looked
        if passed < LOOK_EVERY_S:
            return
        self._looked += passed
        for worker in self._workers:
            stopped = _is_stopped(worker.process.pid)
            worker.stopped_s = worker.stopped_s + min(passed, 2 * LOOK_EVERY_S) if stopped else 0.0
            if worker.stopped_s > STOPPED_FOR_S:
                kind = RunError if self._state == "ready" else LoadError
                self._fail(
                    kind(
                        f"stage {worker.stage} of {self.num_stages} (process {worker.process.pid}) was stopped by a signal "
                        f"and not continued within {STOPPED_FOR_S:g} s",
                        hint="something sent it SIGSTOP; start again",
                    )
                )

    def _take_end(self, worker: WorkerProcess) -> None:
        """Make an error of a worker that is gone without a word; one that sent `Failed` has said enough."""
        if worker.has_failed:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1)
        status = worker.process.returncode
        kind = RunError if self._state == "ready" else LoadError
        where = f"stage {worker.stage} of {self.num_stages} (process {worker.process.pid})"
        if status is not None and status < 0:
            self._fail(
                kind(
                    f"{where} was killed by {_signal_name(-status)}",
                    hint="the kernel may have run out of memory: see dmesg" if status == -signal.SIGKILL else None,
                )
            )
        else:
            self._fail(kind(f"{where} ended unexpectedly, with exit status {status}"))

    def _fail(self, error: LoadmasterError) -> None:
        """Keep the first error and tell all who wait."""
        if self.error is None:
            self.error = error
            self._state = "failed"
            self._announce()

    def _announce(self) -> None:
        self._loaded.set()
        self._replies.put(None)

    def _end_workers(self) -> None:
        """Terminate, then kill, all at once; return when none is left, not even as a zombie."""
        for worker in self._workers:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(worker.pipe.fileno())) as pipe:
                pipe.shutdown(socket.SHUT_RDWR)  # also wakes a thread that waits for the worker to read
            worker.process.terminate()
        until = time.monotonic() + TERMINATE_WITHIN_S
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.01, until - time.monotonic()))
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        with self._lock:
            for worker in self._workers:
                worker.pipe.close()
        with self._ending:
            self._stop.close()
            self._stopped.close()


def _is_stopped(pid: int) -> bool:
    """Return whether a child is stopped now, without taking the news of its end from whoever waits for it."""
    if not hasattr(os, "waitid"):
        return False
    with contextlib.suppress(ChildProcessError):  # it has ended, and was waited for
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _signal_name(number: int) -> str:
    """Return a signal's name.

    >>> _signal_name(9)
    'SIGKILL'
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
