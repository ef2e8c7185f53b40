"""Ctrl-C, for commands that start workers: the process ends at once, at any moment, with exit code 130.

``KeyboardInterrupt`` cannot do that: an import, a destructor or a callback may swallow it, and while an extension module is
initialised it can crash the process. A process that a shell starts in the background ignores SIGINT from the start. There is
nothing to clean up: workers end when this process does (`loadmaster.distributed.lifeline`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130  # as a shell reports a process that SIGINT has ended

SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Interruptible:
    """A context in which SIGINT ends the process. Does nothing outside the main thread; only that may handle signals.

    ``always`` is for a command that also handles SIGINT later: it applies even if the process was started with SIGINT
    ignored.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self._before: Any = None

    def __enter__(self) -> Interruptible:
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and (self._always or not is_ignored):
            self._before = signal.signal(signal.SIGINT, _end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Handle SIGINT as before; also called before the process becomes another program."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None


def _end(number: int, frame: FrameType | None) -> None:
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        os.write(sys.__stderr__.fileno(), SHOW_CURSOR)
    os._exit(INTERRUPTED)
