"""Starts processes that run a checkpoint's template code within limits of time and memory.

One process (`loadmaster.engine.renderer_process`) imports what rendering needs. A renderer is a child that it forks,
within milliseconds.
"""

from __future__ import annotations

import socket
import threading
from typing import Final

from loadmaster.engine.child import Child, socket_pair
from loadmaster.errors import RunError

START_WITHIN_S = 60.0
"""How long the process may take to import what it needs. Long, because a machine can be busy."""

WHAT: Final = "renders chat templates"


class RendererPool:
    """Creates renderers. Starts its process for the first one, and again if it has ended. Usable from any thread."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def new(self) -> socket.socket:
        """Return the socket of a new renderer. It accepts messages at once, and answers when the process has started.

        Raises:
            RunError: the process cannot be started or reached, or `close` was called.
        """
        ours, theirs = socket_pair(socket.SOCK_STREAM, WHAT)
        with theirs:
            try:
                self._send_socket(theirs)
            except BaseException:
                ours.close()
                raise
        return ours

    def check(self) -> None:
        """Check that the process runs.

        Raises:
            RunError: it does not; says why.
        """
        with self._lock:
            if self._is_closed:
                raise RunError("the server is shutting down")
            if self._child is None or self._child.has_ended:
                raise RunError(f"the process that {WHAT} has ended")

    def close(self) -> None:
        """End the process; its renderers end within their time limits. May be called again."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _send_socket(self, theirs: socket.socket) -> None:
        with self._lock:
            if self._is_closed:
                raise RunError("the server is shutting down")
            if self._child is not None and self._child.has_ended:
                self._end()
            if self._child is None:
                # a send blocks only if many sockets wait and the process hangs
                self._child = Child("loadmaster.engine.renderer_process", WHAT, START_WITHIN_S, socket.SOCK_SEQPACKET)
            try:
                socket.send_fds(self._child.pipe, [b"new"], [theirs.fileno()])
            except OSError as error:
                raise RunError(f"cannot reach the process that {WHAT}: {error}") from error

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None
