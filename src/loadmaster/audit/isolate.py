"""Work in a forked process: its result, or that it crashed or did not end."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lost:
    """No result. ``hung``: the process had to be killed; else ``signal`` names the signal that ended it, or the exit code."""

    hung: bool
    signal: str = ""


class WorkError(Exception):
    """The work raised an exception; the message is its traceback."""


class Running:
    """Work in a forked process, whose output is discarded. It returns JSON values."""

    def __init__(self, work: Callable[[], dict[str, Any]], limit_s: float) -> None:
        self._until = time.monotonic() + limit_s
        self._out, into = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _child(work, self._out, into)
        os.close(into)

    def result(self) -> dict[str, Any] | Lost:
        """Wait, and return what the work returned.

        Raises:
            WorkError: the work raised an exception.
        """
        answer = _read(self._out, self._until)
        os.close(self._out)
        if answer is None:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            return Lost(hung=True)
        _, status = os.waitpid(self._pid, 0)
        if not answer:
            code = os.waitstatus_to_exitcode(status)
            return Lost(hung=False, signal=signal.Signals(-code).name if code < 0 else f"exit code {code}")
        outcome: dict[str, Any] = json.loads(answer)
        if "raised" in outcome:
            raise WorkError(outcome["raised"])
        return outcome["answer"]  # type: ignore[no-any-return]


def _child(work: Callable[[], dict[str, Any]], out: int, into: int) -> None:
    os.close(out)
    os.setsid()  # so that its child processes can be killed with it
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        outcome: dict[str, Any] = {"answer": work()}
    except BaseException:
        outcome = {"raised": traceback.format_exc()}
    with os.fdopen(into, "w") as file:
        file.write(json.dumps(outcome))
    os._exit(0)


def _read(out: int, until: float) -> bytes | None:
    """Return everything written until the other end is closed; None on a timeout."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([out], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(out, 2**16)
        if not part:
            return b"".join(parts)
        parts.append(part)
