"""Work in a process of its own, forked: what it answers, or that it crashed or did not end."""

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
    """No answer. ``hung``: it had to be ended; else ``signal`` names what ended it, or the exit code."""

    hung: bool
    signal: str = ""


class WorkError(Exception):
    """The work itself raised, which it was not to; the message is its traceback."""


class Running:
    """Work that was begun in a forked process, whose output goes nowhere. It returns JSON values."""

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
        made: dict[str, Any] = json.loads(answer)
        if "raised" in made:
            raise WorkError(made["raised"])
        return made["answer"]  # type: ignore[no-any-return]


def _child(work: Callable[[], dict[str, Any]], out: int, into: int) -> None:
    os.close(out)
    os.setsid()  # so that all it started can be ended with it
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        made: dict[str, Any] = {"answer": work()}
    except BaseException:
        made = {"raised": traceback.format_exc()}
    with os.fdopen(into, "w") as file:
        file.write(json.dumps(made))
    os._exit(0)


def _read(out: int, until: float) -> bytes | None:
    """Return all that is written until the other end is closed; None if that takes too long."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([out], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(out, 2**16)
        if not part:
            return b"".join(parts)
        parts.append(part)
