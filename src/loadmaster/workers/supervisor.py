"""Has the workers of all ranks started, watches them, and ends them.

One thread does all three: it starts the workers (`loadmaster.workers.crew`), waits on their pipes, and ends them. When the
thread ends, the kernel kills the workers of this host. The end of a pipe means that its worker has ended. Once a second the
thread looks for workers that a signal has stopped, and for those that hang in a step. Any failure ends all workers. It is
kept as one error: the cause, not the errors that it caused in other ranks.

Under a launcher, other processes start and watch the workers of the other ranks (`loadmaster.workers.member`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Literal

from loadmaster.errors import LoadError, LoadmasterError, RunError
from loadmaster.workers import process
from loadmaster.workers.batch import Done
from loadmaster.workers.crew import Run, Worker, start_here, start_launched
from loadmaster.workers.encoding import dumps, loads
from loadmaster.workers.launch import Launch
from loadmaster.workers.messages import (
    Allocated,
    Failed,
    Leaving,
    Prepared,
    Progress,
    Ready,
    Report,
    Reported,
    Usage,
)

CAUSE_WITHIN_S = 2.0
"""When a rank reports that its neighbour has ended: how long to wait for the neighbour's own error."""

State = Literal["loading", "ready", "failed", "closed"]
Reply = Allocated | Done | Prepared


class Supervisor:
    """Starts a worker for each rank of a run and returns; they load in the background.

    ``launch``: this process is rank 0 of several that a launcher has started, each of which has one rank's worker.
    ``on_progress`` is called with a rank and a number of bytes that it has loaded, and ``on_leave`` when another process of the
    launcher was asked to end (once), both from the supervisor's thread.
    """

    def __init__(
        self,
        run: Run,
        *,
        launch: Launch | None = None,
        on_progress: Callable[[int, int], None] = lambda _rank, _num_bytes: None,
        on_leave: Callable[[], object] = lambda: None,
    ) -> None:
        self.num_stages = run.num_stages
        self.num_ranks = run.num_ranks
        self._run, self._launch = run, launch
        self._resources = contextlib.ExitStack()
        self._on_leave = on_leave
        self._has_left = False
        self.error: LoadmasterError | None = None
        self._state: State = "loading"
        self._on_progress = on_progress
        self._workers: list[Worker] = []
        self._lock = threading.Lock()  # one sender at a time; held while a worker does not read
        self._ending = threading.Lock()  # guards the pipe through which `close` wakes the thread
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._loaded, self._ended = threading.Event(), threading.Event()
        self._stop, self._stopped = Pipe()
        self._last_look = time.monotonic()
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
        data = dumps(message)
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
                    error = RunError(f"the supervisor failed: {error!r}")
                self._fail(error)
        finally:
            if self.error is None:
                self._state = "closed"
            self._wake_waiting()
            self._end_workers()
            self._ended.set()

    def _start_workers(self) -> None:
        if self._launch is None:
            start_here(self._run, self._workers.append, self._resources)
        else:
            start_launched(self._run, self._launch, self._workers.append, self._resources, self._stopped.poll)
            self._workers.sort(key=lambda worker: worker.place.rank)
        self._run = replace(self._run, plan=b"")

    def _watch(self) -> None:
        """Process the workers' messages until one fails or `close` is called."""
        with selectors.DefaultSelector() as sources:
            sources.register(self._stopped, selectors.EVENT_READ)
            for worker in self._workers:
                for pipe in (worker.pipe, *(() if worker.link is None else (worker.link,))):
                    sources.register(pipe, selectors.EVENT_READ, worker)
            while self.error is None:
                timeout_s = process.LOOK_EVERY_S
                if self._suspect is not None:
                    timeout_s = min(timeout_s, self._suspect[1] - time.monotonic())
                    if timeout_s <= 0:
                        self._fail(self._suspect[0])
                        return
                self._look_for_stuck()
                for source, _ in sources.select(timeout_s):
                    if source.fileobj is self._stopped:
                        return
                    self._receive(source, sources)

    def _receive(self, source: selectors.SelectorKey, sources: selectors.BaseSelector) -> None:
        """Process one message of a worker, or the end of its pipe."""
        pipe, worker = source.fileobj, source.data
        assert isinstance(pipe, Connection)
        try:
            message = loads(pipe.recv_bytes())
        except (EOFError, OSError):
            sources.unregister(pipe)
            self._process_end(worker)
        else:
            self._process(worker, message)

    def _process(self, worker: Worker, message: object) -> None:
        if isinstance(message, Reply):
            self._replies.put(message)
        elif isinstance(message, Usage):
            worker.usage = message
        elif isinstance(message, Reported):
            worker.usage = message.usage
            worker.reported.set()
        elif isinstance(message, Progress):
            self._on_progress(worker.place.rank, message.num_bytes)
        elif isinstance(message, Ready):
            worker.ready = message
            if all(w.ready is not None for w in self._workers):
                self._state = "ready"
                self._loaded.set()
        elif isinstance(message, Leaving):
            self._leave()
        else:
            assert isinstance(message, Failed), message
            worker.has_failed = True
            if message.is_cause:
                self._fail(message.error)
            else:
                self._suspect_of(message.error)

    def _look_for_stuck(self) -> None:
        """Fail if a worker was stopped by a signal and not continued; or if it hangs in a step."""
        passed_s = time.monotonic() - self._last_look
        if passed_s < process.LOOK_EVERY_S:
            return
        self._last_look += passed_s
        for worker in self._workers:
            if (trouble := worker.running.trouble(passed_s)) is not None:
                self._fail(self._error(worker, *trouble))

    def _process_end(self, worker: Worker) -> None:
        """Fail because a worker has ended, unless it has already sent `Failed`."""
        if worker.has_failed:
            return
        error = self._error(worker, *worker.running.end_cause())
        if worker.link is None:
            self._fail(error)
        else:  # the process that has started it knows more
            self._suspect_of(error)

    def _error(self, worker: Worker, what: str, hint: str | None) -> LoadmasterError:
        kind = RunError if self._state == "ready" else LoadError
        return kind(f"{worker.running} {what}", hint=hint)

    def _suspect_of(self, error: LoadmasterError) -> None:
        """Fail with ``error`` in a moment, unless a better reason arrives."""
        if self._suspect is None:
            self._suspect = error, time.monotonic() + CAUSE_WITHIN_S

    def _leave(self) -> None:
        if not self._has_left:
            self._has_left = True
            self._on_leave()

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
        """End all workers, and kill those that are left after a moment. Return when none is left, not even as a zombie."""
        for worker in self._workers:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(worker.pipe.fileno())) as pipe:
                pipe.shutdown(socket.SHUT_RDWR)  # also wakes a thread that is blocked in sending to it
            worker.running.tell_end(None if self.error is None else self.error.message)
        deadline = time.monotonic() + process.END_WITHIN_S
        for worker in self._workers:
            worker.running.wait(max(0.01, deadline - time.monotonic()))
        for worker in self._workers:
            worker.running.kill()
        with self._lock:
            for worker in self._workers:
                worker.pipe.close()
        with self._ending:
            self._stop.close()
            self._stopped.close()
        self._resources.close()
