"""Starts the worker processes of all ranks, watches them, and ends them.

One thread does all three: it starts the workers, waits on their pipes, and ends them. When the thread ends, the kernel
kills the workers. The end of a pipe means that its worker has ended. Once a second the thread looks for workers that a
signal has stopped, and for those that hang in a step. Any failure ends all workers. It is kept as one error: the cause, not
the errors that it caused in other ranks.

The supervisor creates every connection of a worker: a pipe, and sockets to its neighbours (`loadmaster.workers.wiring`).
None of them has a name or listens: docs/decisions/0004-who-can-join.md.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from loadmaster.errors import LoadError, LoadmasterError, RunError
from loadmaster.workers.batch import Done
from loadmaster.workers.messages import Allocated, Failed, Job, Place, Progress, Ready, Report, Reported, Usage
from loadmaster.workers.pulse import Phase, Pulse, cpu_seconds
from loadmaster.workers.wiring import Wiring

DEFAULT_BUILDER = "loadmaster.workers.builder:PlanBuilder"

CAUSE_WITHIN_S = 2.0
"""When a rank reports that its neighbour has ended: how long to wait for the neighbour's own error."""

LOOK_EVERY_S = 1.0
"""How often to look for stopped workers."""

STOPPED_FOR_S = 5.0
"""How long a worker may be stopped while this process runs. Ctrl-Z in a terminal stops both."""

HUNG_FOR_S = 5.0
"""How long a worker may be in one step without using a CPU. A step that computes, or waits for a GPU, uses one."""

SPIN_COUNT = "20000"
"""How long a thread of a product waits actively for the others (GOMP_SPINCOUNT), some 50 µs. The default, several
milliseconds, makes a product many times slower where another process needs the core."""

TERMINATE_WITHIN_S = 2.0
"""The time from SIGTERM to SIGKILL."""

State = Literal["loading", "ready", "failed", "closed"]
Reply = Allocated | Done


@dataclass(slots=True)
class WorkerProcess:
    """The handle of one worker process, in the engine's process."""

    place: Place
    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: Ready | None = None
    usage: Usage | None = None
    has_failed: bool = False
    stopped_s: float = 0.0
    hung_s: float = 0.0
    seen: tuple[object, ...] = ()
    reported: threading.Event = field(default_factory=threading.Event)


class Supervisor:
    """Starts a worker for each rank, ``num_slots`` in each of ``num_stages`` stages, and returns; they load in the background.

    ``on_progress`` is called with numbers of bytes loaded, from the supervisor's thread.
    """

    def __init__(
        self,
        plan: bytes,
        num_stages: int,
        num_slots: int = 1,
        *,
        builder: str = DEFAULT_BUILDER,
        device: str = "cpu",
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.num_stages = num_stages
        self.num_ranks = num_stages * num_slots
        self._num_slots = num_slots
        self._folder: Path | None = None  # where ranks that use NCCL meet
        self.error: LoadmasterError | None = None
        self._state: State = "loading"
        self._plan = plan
        self._builder = builder
        self._device = device
        self._on_progress = on_progress
        self._workers: list[WorkerProcess] = []
        self._lock = threading.Lock()  # one sender at a time; held while a worker does not read
        self._ending = threading.Lock()  # guards the pipe through which `close` wakes the thread
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._loaded, self._ended = threading.Event(), threading.Event()
        self._stop, self._stopped = Pipe()
        self._last_look = time.monotonic()
        self._pulse: Pulse | None = None
        self._suspect: tuple[LoadmasterError, float] | None = None
        self._thread = threading.Thread(target=self._watch_over, name="supervisor", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    @property
    def state(self) -> State:
        """``loading``, ``ready``, ``failed`` (see ``error``) or ``closed``."""
        return self._state

    def wait_ready(self) -> None:
        """Return when every rank is loaded.

        Raises:
            LoadError: loading failed. Any other LoadmasterError that a worker raised keeps its type.
        """
        self._loaded.wait()
        self.check()

    def wait_ended(self) -> LoadmasterError | None:
        """Wait until a worker has failed or `close` was called. Return the error, if there is one."""
        self._ended.wait()
        return self.error

    def check(self) -> None:
        """Raise the error that ended the workers, if there is one; or RunError after `close`."""
        if self.error is not None:
            raise self.error
        if self._state == "closed":
            raise RunError("the engine is closed")

    @property
    def ready(self) -> tuple[Ready, ...]:
        """What the workers reported when they were ready."""
        return tuple(worker.ready for worker in self._workers if worker.ready is not None)

    @property
    def usage(self) -> tuple[Usage, ...]:
        """How each rank has spent its time, as of its last report."""
        return tuple(worker.usage or Usage(worker.place.rank, worker.place.stage) for worker in self._workers)

    def refresh_usage(self, within_s: float) -> None:
        """Ask all workers, which must be ready, how they have spent their time up to now. Wait up to ``within_s`` seconds."""
        for worker in self._workers:
            worker.reported.clear()
        self.send(Report())
        until = time.monotonic() + within_s
        for worker in self._workers:
            worker.reported.wait(max(0.0, until - time.monotonic()))

    def send(self, message: object, ranks: Sequence[int] | None = None) -> None:
        """Send to ``ranks``, or to all. A worker that has ended is ignored here: the supervisor's thread notices it."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            for worker in self._workers:
                if ranks is None or worker.place.rank in ranks:
                    with contextlib.suppress(OSError):
                        worker.pipe.send_bytes(data)

    def wake(self) -> None:
        """Let the thread that waits in `next` return."""
        self._replies.put(None)

    def next(self) -> Reply | None:
        """Wait for the next reply of a worker and return it; or return None after `wake`.

        Raises:
            RunError: a worker failed, or the engine was closed.
        """
        reply = self._replies.get()
        if reply is None:
            self.check()
        return reply

    def fail(self, error: LoadmasterError) -> None:
        """End the workers because of ``error``, which is not one of theirs."""
        self._fail(error)
        with self._ending, contextlib.suppress(OSError):
            self._stop.send_bytes(b"fail")

    def close(self) -> None:
        """End the workers and wait for them. May be called again, from any thread."""
        with self._ending, contextlib.suppress(OSError):
            self._stop.send_bytes(b"close")
        self._thread.join()
        atexit.unregister(self.close)

    # All methods below run in the supervisor's thread.

    def _watch_over(self) -> None:
        try:
            self._start_workers()
            self._watch()
        except BaseException as error:
            if self.error is None:
                if not isinstance(error, LoadmasterError):
                    error = RunError(f"cannot start the workers: {error!r}")
                self._fail(error)
        finally:
            if self.error is None:
                self._state = "closed"
            self._wake_waiting()
            self._end_workers()
            self._ended.set()

    def _start_workers(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {
            "GOMP_SPINCOUNT": SPIN_COUNT,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        if self._device == "cuda" and self._num_slots > 1:
            self._folder = Path(tempfile.mkdtemp(prefix="loadmaster-"))  # for this user alone
        self._pulse = Pulse.create(self.num_ranks)
        jobs = []
        with Wiring(self.num_stages, self._num_slots) as wiring:
            for rank in range(self.num_ranks):
                place = Place.of(rank, self.num_stages, self._num_slots)
                ends = wiring.of(place)
                ours, theirs = Pipe()
                try:
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "loadmaster.workers.worker", str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        env=environment,
                        pass_fds=[theirs.fileno(), self._pulse.fd, *ends.all],
                    )
                finally:
                    theirs.close()
                self._workers.append(WorkerProcess(place, process, ours))
                jobs.append(
                    Job(
                        place,
                        max(1, cores // self.num_ranks),
                        self._builder,
                        self._plan,
                        self._device,
                        ends.previous,
                        ends.following,
                        ends.peers,
                        "" if self._folder is None else str(self._folder / f"stage-{place.stage}"),
                        self._pulse.fd,
                    )
                )
        self._plan = b""
        threading.Thread(target=self._send_jobs, args=(jobs,), name="jobs", daemon=True).start()

    def _send_jobs(self, jobs: Sequence[Job]) -> None:
        """Send each worker its job. A separate thread, because sending blocks until the worker reads its plan."""
        for job in jobs:
            self.send(job, [job.place.rank])

    def _watch(self) -> None:
        """Process the workers' messages until one fails or `close` is called."""
        by_pipe: dict[Any, WorkerProcess] = {worker.pipe: worker for worker in self._workers}
        while self.error is None:
            timeout_s = LOOK_EVERY_S
            if self._suspect is not None:
                timeout_s = min(timeout_s, self._suspect[1] - time.monotonic())
                if timeout_s <= 0:
                    self._fail(self._suspect[0])
                    return
            self._look_for_stuck()
            for source in wait([self._stopped, *by_pipe], timeout_s):
                if source is self._stopped:
                    return
                worker = by_pipe[source]
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    del by_pipe[source]
                    self._process_end(worker)
                else:
                    self._process(worker, message)

    def _process(self, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Reply):
            self._replies.put(message)
        elif isinstance(message, Usage):
            worker.usage = message
        elif isinstance(message, Reported):
            worker.usage = message.usage
            worker.reported.set()
        elif isinstance(message, Progress):
            self._on_progress(message.num_bytes)
        elif isinstance(message, Ready):
            worker.ready = message
            if all(w.ready is not None for w in self._workers):
                self._state = "ready"
                self._loaded.set()
        else:
            assert isinstance(message, Failed), message
            worker.has_failed = True
            if message.is_cause:
                self._fail(message.error)
            elif self._suspect is None:
                self._suspect = message.error, time.monotonic() + CAUSE_WITHIN_S

    def _look_for_stuck(self) -> None:
        """Fail if a worker was stopped, for example by SIGSTOP, and not continued; or if it hangs in a step.

        Its pipe stays open in both cases, so only this notices.
        """
        passed_s = time.monotonic() - self._last_look
        if passed_s < LOOK_EVERY_S:
            return
        self._last_look += passed_s
        for worker in self._workers:
            pid = worker.process.pid
            if _is_stopped(pid):
                worker.stopped_s += min(passed_s, 2 * LOOK_EVERY_S)
                worker.hung_s = 0.0
            else:
                worker.stopped_s = 0.0
                worker.hung_s = worker.hung_s + passed_s if self._stands_still(worker) else 0.0
            if worker.stopped_s > STOPPED_FOR_S:
                kind = RunError if self._state == "ready" else LoadError
                self._fail(
                    kind(
                        f"{worker.place} (process {pid}) was stopped by a signal "
                        f"and not continued within {STOPPED_FOR_S:g} s",
                        hint="find what sent it SIGSTOP, and start again",
                    )
                )
            elif worker.hung_s > HUNG_FOR_S:
                self._fail(
                    RunError(f"{worker.place} (process {pid}) has hung in a step for more than {HUNG_FOR_S:g} s")
                )

    def _stands_still(self, worker: WorkerProcess) -> bool:
        """Return whether a worker is in the same step as at the last look, and has used no CPU since."""
        used_s = cpu_seconds(worker.process.pid)
        assert self._pulse is not None
        before, worker.seen = worker.seen, (*self._pulse.get(worker.place.rank), used_s)
        return used_s is not None and worker.seen[0] == Phase.COMPUTING and worker.seen == before

    def _process_end(self, worker: WorkerProcess) -> None:
        """Fail because a worker has ended, unless it has already sent `Failed`."""
        if worker.has_failed:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1)
        status = worker.process.returncode
        kind = RunError if self._state == "ready" else LoadError
        where = f"{worker.place} (process {worker.process.pid})"
        if status is not None and status < 0:
            self._fail(
                kind(
                    f"{where} was killed by {_signal_name(-status)}",
                    hint="the kernel may have run out of memory; check dmesg" if status == -signal.SIGKILL else None,
                )
            )
        else:
            self._fail(kind(f"{where} ended unexpectedly, with exit status {status}"))

    def _fail(self, error: LoadmasterError) -> None:
        """Keep the first error and wake all threads that wait."""
        if self.error is None:
            self.error = error
            self._state = "failed"
            self._wake_waiting()

    def _wake_waiting(self) -> None:
        self._loaded.set()
        self._replies.put(None)

    def _end_workers(self) -> None:
        """Terminate all workers, then kill those that are left. Return when none is left, not even as a zombie."""
        for worker in self._workers:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(worker.pipe.fileno())) as pipe:
                pipe.shutdown(socket.SHUT_RDWR)  # also wakes a thread that is blocked in sending to it
            worker.process.terminate()
        deadline = time.monotonic() + TERMINATE_WITHIN_S
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.01, deadline - time.monotonic()))
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        with self._lock:
            for worker in self._workers:
                worker.pipe.close()
        if self._pulse is not None:
            self._pulse.close()
        with self._ending:
            self._stop.close()
            self._stopped.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_stopped(pid: int) -> bool:
    """Return whether a child process is stopped now. Does not reap it (WNOWAIT)."""
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
