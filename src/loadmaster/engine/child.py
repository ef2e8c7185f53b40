"""A process that works for this one over a socket, on what strangers wrote: how it starts and ends, its limits, its messages.

Templates come from checkpoints, and grammars from clients. Such a process gets few variables of the environment, and forks a
child with limits for each piece of work. Messages are JSON, in both directions.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from loadmaster.distributed.receive import receive as receive_bytes
from loadmaster.errors import RunError

INHERITED: Final = frozenset(
    {"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHASHSEED", "TMPDIR", "HF_HOME", "VIRTUAL_ENV"}
)
"""The variables that the process gets. Secrets, such as LOADMASTER_KEY and HF_TOKEN, are not among them."""

LENGTH: Final = struct.Struct("!Q")


class Child:
    """Starts ``python -m MODULE FD``; ``pipe`` is this process's end of the socket. ``what`` it does is said in errors.

    Sending and receiving take at most ``timeout_s`` seconds. The process starts slowly if the machine is busy.

    Raises:
        RunError: it cannot be started.
    """

    def __init__(self, module: str, what: str, timeout_s: float, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self.pipe, theirs = socket_pair(kind, what)
        environment = {
            **{name: value for name, value in os.environ.items() if name in INHERITED},
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # a process that forks has no threads
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                self.pipe.close()
                raise RunError(f"cannot start the process that {what}: {error}") from error
        self.pipe.settimeout(timeout_s)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill the process, which ends the wait of a thread for its answer."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, and return when it is gone."""
        self.pipe.close()
        self._process.kill()
        self._process.wait()


def socket_pair(kind: socket.SocketKind, what: str) -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, for the process that does ``what``.

    Raises:
        RunError: there is none to be had.
    """
    try:
        return socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        raise RunError(f"cannot create a socket for the process that {what}: {error}") from error


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM, for a process that another one ends: terminals and service managers send them to all."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def confine(num_bytes: int) -> None:
    """Let this process take at most ``num_bytes`` more memory, and write no files. It cannot raise these limits.

    It writes nothing on standard error either: the other end of the socket sees how it ends.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    max_bytes = pages * resource.getpagesize() + num_bytes
    for limit, value in ((resource.RLIMIT_AS, max_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def receive(pipe: socket.socket, begun: Callable[[], object] = lambda: None) -> Any:
    """Return the next message: its length in 8 bytes, then JSON. ``begun`` is called when the length is there.

    Raises:
        OSError: the other side has closed the socket.
    """
    (num_bytes,) = LENGTH.unpack(receive_bytes(pipe, LENGTH.size))
    begun()
    return json.loads(receive_bytes(pipe, num_bytes))


def send(pipe: socket.socket, message: Mapping[str, Any]) -> None:
    """Send ``message``."""
    pipe.sendall(packed(message))


def packed(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``message``: its length in 8 bytes, then JSON."""
    data = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(data)) + data
