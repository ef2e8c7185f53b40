"""Starts processes that run a checkpoint's template code within limits of time and memory.

One process (`loadmaster.engine.renderer_process`) imports what rendering needs. A renderer is a child that it forks,
within milliseconds. Messages are JSON, in both directions.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadmaster.errors import RunError

START_WITHIN_S = 60.0
"""How long the process may take to import what it needs. Long, because a machine can be busy."""

INHERITED = frozenset(
    {"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHASHSEED", "TMPDIR", "HF_HOME", "VIRTUAL_ENV"}
)
"""The variables that the process gets. Secrets, such as LOADMASTER_KEY and HF_TOKEN, are not among them."""

LENGTH = struct.Struct("!Q")


class RendererPool:
    """Creates renderers. Starts its process for the first one, and again if it has ended. Usable from any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def new(self) -> socket.socket:
        """Return the socket of a new renderer. It accepts messages at once, and answers when the process has started.

        Raises:
            RunError: the process cannot be started or reached, or `close` was called.
        """
        ours, theirs = _pair(socket.SOCK_STREAM)
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
            if self._process is None or self._process.poll() is not None:
                raise RunError("the process that renders chat templates has ended")

    def close(self) -> None:
        """End the process; its renderers end within their time limits. May be called again."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _send_socket(self, theirs: socket.socket) -> None:
        with self._lock:
            if self._is_closed:
                raise RunError("the server is shutting down")
            if self._process is not None and self._process.poll() is not None:
                self._end()
            if self._process is None:
                self._start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [b"new"], [theirs.fileno()])
            except OSError as error:
                raise RunError(f"cannot reach the process that renders chat templates: {error}") from error

    def _start(self) -> None:
        ours, theirs = _pair(socket.SOCK_SEQPACKET)
        environment = {
            **{name: value for name, value in os.environ.items() if name in INHERITED},
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # a process that forks has no threads
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "loadmaster.engine.renderer_process", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                raise RunError(f"cannot start the process that renders chat templates: {error}") from error
        ours.settimeout(START_WITHIN_S)  # a send blocks only if many sockets wait and the process hangs
        self._control = ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _pair(kind: int) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        raise RunError(f"cannot create a socket for the process that renders chat templates: {error}") from error


def receive(pipe: socket.socket) -> Any:
    """Return the next message: its length in 8 bytes, then JSON.

    Raises:
        EOFError: the other side has closed the socket.
    """
    return json.loads(receive_bytes(pipe, LENGTH.unpack(receive_bytes(pipe, LENGTH.size))[0]))


def receive_bytes(pipe: socket.socket, num_bytes: int) -> bytearray:
    """Return the next ``num_bytes`` bytes.

    Raises:
        EOFError: the other side has closed the socket.
    """
    data = bytearray(num_bytes)
    view, done = memoryview(data), 0
    while done < num_bytes:
        if not (num_received := pipe.recv_into(view[done:])):
            raise EOFError
        done += num_received
    return data


def send(pipe: socket.socket, message: Mapping[str, Any]) -> None:
    """Send ``message``."""
    pipe.sendall(packed(message))


def packed(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``message``: its length in 8 bytes, then JSON."""
    data = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(data)) + data
