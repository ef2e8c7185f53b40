"""Connections over a network: who connects proves that it has a key, and so does who listens. Then small messages pass.

Each end sends a number that it has drawn, and gets back an HMAC-SHA256 of both numbers under the key, with the name of the
end that computes it. So a recorded proof is of no use, and neither is one sent back. The key itself never passes.
docs/decisions/0006-several-hosts.md says what this protects.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import struct
from typing import Any

from loadmaster.distributed.receive import receive

NONCE_BYTES = 32
PROOF_BYTES = 32
MOST_BYTES = 1 << 20
"""The most bytes of a message."""

PROVE_WITHIN_S = 10.0

LOST_AFTER_S = 6
"""A connection fails when the other host has not answered for this long: Linux asks it (keep-alive, TCP_USER_TIMEOUT)."""


class ProofError(Exception):
    """The other end does not have the key, or does not speak this protocol."""


def prove(connection: socket.socket, key: bytes, *, listens: bool) -> None:
    """Prove to the other end that this one has ``key``, and check that the other has it. ``listens``: this end accepted.

    Raises:
        ProofError: the other end does not have the key.
        OSError: the connection ended, or did not answer within `PROVE_WITHIN_S`.
    """
    connection.settimeout(PROVE_WITHIN_S)
    names = (b"listens", b"connects")
    own_name, other_name = names if listens else names[::-1]
    own = secrets.token_bytes(NONCE_BYTES)
    connection.sendall(own)
    other = receive(connection, NONCE_BYTES)
    if own == other:
        raise ProofError("it returned what it was sent")
    if listens:  # who connects proves first: a stranger gets no proof to work on
        check_proof(receive(connection, PROOF_BYTES), key, other_name, other, own)
        connection.sendall(proof(key, own_name, own, other))
    else:
        connection.sendall(proof(key, own_name, own, other))
        check_proof(receive(connection, PROOF_BYTES), key, other_name, other, own)


def proof(key: bytes, name: bytes, own: bytes, other: bytes) -> bytes:
    """Return the proof of the end called ``name``, which has drawn ``own``."""
    return hmac.digest(key, b"loadmaster 1 " + name + own + other, "sha256")


def check_proof(received: bytes, key: bytes, name: bytes, own: bytes, other: bytes) -> None:
    """Check the proof that the end called ``name`` has sent.

    Raises:
        ProofError: it is wrong.
    """
    if not hmac.compare_digest(received, proof(key, name, own, other)):
        raise ProofError("it does not have the same key")


def send_json(connection: socket.socket, value: dict[str, Any]) -> None:
    """Send a JSON object."""
    data = json.dumps(value).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive_json(connection: socket.socket) -> dict[str, Any]:
    """Return the JSON object that the other end sends.

    Raises:
        ProofError: it sends something else.
        OSError: the connection ended.
    """
    [num_bytes] = struct.unpack("!I", receive(connection, 4))
    if num_bytes > MOST_BYTES:
        raise ProofError(f"it announced a message of {num_bytes:,} bytes")
    try:
        value = json.loads(receive(connection, num_bytes))
    except ValueError as error:
        raise ProofError(f"it sent no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProofError("it sent no JSON object")
    return value


def watch(connection: socket.socket) -> None:
    """Let small messages pass at once, and let the connection fail `LOST_AFTER_S` after the other host was lost."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": LOST_AFTER_S * 1000}
    for name, value in options.items():
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
