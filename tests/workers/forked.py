"""Workers that are forked from the tests' process, which has imported torch: a new process would import it for two seconds."""

from __future__ import annotations

import faulthandler
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NoReturn

from loadmaster.workers import worker

PIDS: Final[set[int]] = set()
"""The processes that were forked and not waited for."""


class Forked:
    """Does for `loadmaster.workers.process` what `subprocess.Popen` does there: the same code runs, with the same descriptors."""

    def __init__(self, args: Sequence[str], *, stdin: int, env: Mapping[str, str], pass_fds: Iterable[int]) -> None:
        assert (args[:-1], stdin) == ([sys.executable, "-P", "-m", worker.__name__], subprocess.PIPE)
        self.returncode: int | None = None
        self._lock = threading.Lock()  # two threads may wait
        theirs, ours = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become_a_worker(theirs, int(args[-1]), env, {0, 1, 2, *pass_fds})
        PIDS.add(self.pid)
        os.close(theirs)
        self.stdin = os.fdopen(ours, "wb")

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, as `subprocess.Popen.wait`."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                if self.returncode is None:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                    self.returncode = os.waitstatus_to_exitcode(status) if pid else None
                if self.returncode is not None:
                    PIDS.discard(self.pid)
                    return self.returncode
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(0.005)

    def kill(self) -> None:
        """End the process, unless it was waited for."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, 9)


def _become_a_worker(stdin: int, pipe: int, env: Mapping[str, str], kept: set[int]) -> NoReturn:
    try:
        faulthandler.disable()  # its descriptor is closed
        gc.freeze()  # what the tests' process has is never looked at, nor closed, here
        os.dup2(stdin, 0)
        for before, after in pairwise([*sorted(kept), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(before + 1, after)
        os.environ.clear()
        os.environ.update(env)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
        worker.main(pipe)
    finally:
        os._exit(1)
