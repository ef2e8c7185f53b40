"""A worker must never outlive the process that started it, however that process ends.

There are two mechanisms, because each can fail: the kernel's parent-death signal (Linux only, and never sent if the
parent has ended before the call), and the end of the pipe to the parent, which `loadmaster.workers.worker` watches.
"""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends. Does nothing on systems other than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
