"""The address that a server listens on. It can be had early and cheaply: nothing here needs the server itself."""

from __future__ import annotations

import socket

from loadmaster.errors import RunError, clip

BACKLOG = 128
"""Connections that may wait to be taken."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has an address and takes no connection yet; port 0 takes a free one.

    Raises:
        RunError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, ValueError) as error:  # UnicodeError: a name that is no host's
        raise _unavailable(host, port, error) from error
    return bound


def start_listening(bound: socket.socket) -> None:
    """Let a socket from `bind` take connections.

    Raises:
        RunError: another program listens on the address by now.
    """
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise _unavailable(host, port, error) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes a free one.

    Raises:
        RunError: the address cannot be had.
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
        hint="give an address of this machine as --host" if is_name else "choose another --port or --host",
    )
