"""Binds the address that a server listens on. Imports nothing of the server, so it can be called early."""

from __future__ import annotations

import socket

from loadmaster.errors import RunError, clip

BACKLOG = 128
"""The most connections that may wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address and accepts no connections yet; port 0 means any free port.

    Raises:
        RunError: the address is not available.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = addresses[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, ValueError) as error:  # UnicodeError: not a valid host name
        raise _unavailable(host, port, error) from error
    return bound


def start_listening(bound: socket.socket) -> None:
    """Accept connections on a socket from `bind`.

    Raises:
        RunError: another program listens on the address now.
    """
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise _unavailable(host, port, error) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 means any free port.

    Raises:
        RunError: the address is not available.
    """
    bound = bind(host, port)
    try:
        start_listening(bound)
    except BaseException:
        bound.close()
        raise
    return bound


def _unavailable(host: str, port: int, error: Exception) -> RunError:
    what = error.strerror if isinstance(error, OSError) else str(error)
    is_name = isinstance(error, (socket.gaierror, UnicodeError)) or "\0" in host
    return RunError(
        f"cannot listen on {clip(host)} port {port}: {what}",
        hint="pass an address of this machine as --host" if is_name else "pass another --port or --host",
    )
