"""Ctrl-C, for commands that start workers: the process ends at once, at any moment, with exit code 130.

``KeyboardInterrupt`` does not do that. It is lost where an import, a destructor or a callback swallows it; raised while an
extension module is initialised it can crash the process; and a process that a shell has put in the background ignores
SIGINT from the start. There is nothing to clean up: workers end when this process does (`loadmaster.distributed.lifeline`).
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
    """While it is entered, SIGINT ends the process. Does nothing outside the main thread, which alone may handle signals.

    ``always`` is for a command that handles SIGINT later on too: it is heard even if the process was started with it
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
        """Handle SIGINT as before: also for a process that becomes another program."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None


def _end(number: int, frame: FrameType | None) -> None:
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        os.write(sys.__stderr__.fileno(), SHOW_CURSOR)
    os._exit(INTERRUPTED)
