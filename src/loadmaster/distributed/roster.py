"""Who is where: what all ranks of a launcher learn about each other when they have joined."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loadmaster.errors import ConfigError

LINK, PIPE = "link", "pipe"
"""The two connections of a rank to rank 0."""


@dataclass(frozen=True, slots=True)
class Member:
    """One rank: the name of its host, where it listens for neighbours, and its number on its host."""

    host: str
    address: str
    port: int
    local_rank: int


@dataclass(frozen=True, slots=True)
class Roster:
    """All ranks, in order. ``key`` is a secret of this run."""

    members: tuple[Member, ...]
    key: bytes

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        rows = [[m.host, m.address, m.port, m.local_rank] for m in self.members]
        return {"members": rows, "key": self.key.hex()}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Roster:
        """Return what `as_json` described."""
        return cls(tuple(Member(*row) for row in value["members"]), bytes.fromhex(value["key"]))


def draw_key() -> bytes:
    """Return a new key for one run."""
    return secrets.token_bytes(32)


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this host; port 0 chooses a free one.

    Raises:
        ConfigError: the address is none of this host, or the port is in use.
    """
    with _explained(address, port):
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    return listener


@contextmanager
def _explained(address: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"rank 0 cannot listen at {address}:{port}: {error.strerror or error}",
            hint="MASTER_ADDR must be an address of the host of rank 0, and the port free: LOADMASTER_PORT names another, the "
            "same on all hosts",
        ) from error
