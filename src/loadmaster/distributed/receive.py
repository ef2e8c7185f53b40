"""Reading a known number of bytes from a socket. Imports no torch."""

from __future__ import annotations

import socket


def receive(source: socket.socket, num_bytes: int) -> bytes:
    """Return the next ``num_bytes`` bytes.

    Raises:
        OSError: the peer closes its end first.
    """
    data = bytearray(num_bytes)
    receive_into(source, memoryview(data))
    return bytes(data)


def receive_into(source: socket.socket, view: memoryview) -> None:
    """Fill ``view``.

    Raises:
        OSError: the peer closes its end first.
    """
    while view:
        num_bytes = source.recv_into(view)
        if num_bytes == 0:
            raise ConnectionResetError("it closed its end of the socket")
        view = view[num_bytes:]
