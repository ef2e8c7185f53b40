"""A process that a launcher started for a rank other than 0: it starts the rank's worker, watches it, and ends with the engine.

The engine's process, on rank 0, does the rest: the worker has its own connection to it. Over the link this process reports how
its worker ended or that it hangs, and that it was itself asked to end; and learns that the engine has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from loadmaster.distributed.join import join
from loadmaster.errors import LoadmasterError, RunError
from loadmaster.workers import process
from loadmaster.workers.crew import Run, start_member
from loadmaster.workers.encoding import dumps, loads
from loadmaster.workers.launch import Launch
from loadmaster.workers.messages import Ended, Failed, Leaving
from loadmaster.workers.process import WorkerProcess

ANSWER_WITHIN_S = 10.0
"""How long the engine may take to end after this process has reported that its worker has ended."""


def run_member(run: Run, launch: Launch) -> None:
    """Join the run of rank 0, start the worker of rank ``launch.rank``, and return when the engine was closed.

    Raises:
        LoadError: rank 0 cannot be reached, or refuses this rank.
        RunError: the engine has failed, or was lost.
    """
    membership = join(
        launch.address,
        launch.port,
        launch.key,
        launch.rank,
        launch.local_rank,
        dict(run.agreed),
        launch.join_within_s,
    )
    with ExitStack() as resources:
        link = resources.enter_context(Connection(membership.link.detach()))
        with membership.listener, membership.pipe:
            try:
                worker = start_member(
                    run, launch, membership.listener, membership.roster, membership.pipe.fileno(), resources
                )
            except LoadmasterError as error:
                with suppress(OSError):
                    link.send_bytes(dumps(Failed(error, is_cause=False)))
                raise
        try:
            _watch(worker, link, f"rank 0 on {membership.roster.members[0].host}")
        finally:
            worker.wait(process.END_WITHIN_S)
            worker.kill()


def _watch(worker: WorkerProcess, link: Connection, where: str) -> None:
    """Return when the engine was closed.

    Raises:
        RunError: the engine has failed, or was lost.
    """
    ended: str | None = None  # how the worker has ended
    last_look = time.monotonic()
    deadline: float | None = None
    with _signals() as asked, _end_of(worker) as exited:
        sources: list[Any] = [link, asked, exited]
        while True:
            ready = wait(sources, process.LOOK_EVERY_S)
            now = time.monotonic()
            if link in ready:
                _take(link, where, ended)
                return
            if asked in ready:
                asked.recv(64)
                _report(link, Leaving())
            if exited in ready:
                sources.remove(exited)
                what, hint = worker.end_cause()
                ended = f"{worker} on host {socket.gethostname()} {what}"
                # a worker that ends by itself tells the engine why
                _report(link, Failed(RunError(ended, hint=hint), is_cause=worker.was_killed))
                deadline = now + ANSWER_WITHIN_S
            if ended is None and now - last_look >= process.LOOK_EVERY_S:
                if (trouble := worker.trouble(now - last_look)) is not None:
                    what, hint = trouble
                    ended = f"{worker} on host {socket.gethostname()} {what}"
                    _report(link, Failed(RunError(ended, hint=hint), is_cause=True))
                    deadline = now + ANSWER_WITHIN_S
                last_look = now
            if deadline is not None and now > deadline:
                raise RunError(ended or "the worker has ended")


def _take(link: Connection, where: str, ended: str | None) -> None:
    """Take the one message that the engine sends: its end."""
    try:
        message = loads(link.recv_bytes())
    except (OSError, EOFError) as error:
        raise RunError(
            ended or f"the engine, {where}, was lost: {error or 'the connection has ended'}",
            hint=f"look at the output of {where}",
        ) from error
    assert isinstance(message, Ended), message
    if message.error is not None:
        raise RunError(f"the engine, {where}, has ended: {message.error}")


def _report(link: Connection, message: object) -> None:
    with suppress(OSError):  # the engine is gone: the end of the link says so
        link.send_bytes(dumps(message))


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable when this process gets SIGTERM or SIGINT, which do nothing else here."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def wake(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            theirs.send(b"!")

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, wake) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ours
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


@contextmanager
def _end_of(worker: WorkerProcess) -> Iterator[socket.socket]:
    """Yield a socket that becomes readable when the worker has ended."""
    ours, theirs = socket.socketpair()

    def watch() -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        theirs.close()

    threading.Thread(target=watch, name="worker", daemon=True).start()
    try:
        yield ours
    finally:
        ours.close()
