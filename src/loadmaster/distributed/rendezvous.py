"""How the ranks of a launcher find each other: rank 0 listens, the others connect, and then each connects to its neighbours.

Every other rank makes two connections to rank 0: the *link* of the process that the launcher started, and the *pipe*, which
its worker inherits. When all are there, rank 0 sends each the `Roster`: who is where, and a key for this run that neighbours
prove to each other. Then nothing listens any more. `loadmaster.distributed.join` is the other side.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loadmaster.distributed.proof import PROVE_WITHIN_S, ProofError, prove, receive_json, send_json, watch
from loadmaster.distributed.roster import LINK, PIPE, Member, listen
from loadmaster.errors import LoadError

LOOK_EVERY_S = 0.125
TELL_WITHIN_S = 0.25
MOST_PENDING = 64
"""The most connections whose proof is awaited; the oldest gives way."""


@dataclass(slots=True)
class Joined:
    """A rank's connections to rank 0, at rank 0, and what it said of itself."""

    member: Member
    link: socket.socket
    pipe: socket.socket


class Rendezvous:
    """Listens at ``address`` and ``port`` for the ranks 1 to ``num_ranks - 1``, which must have ``key``.

    ``agreed`` are values that must be the same on all ranks, by the name that an error gives them.

    Raises:
        ConfigError: ``address`` is none of this host, or the port is in use.
    """

    def __init__(self, address: str, port: int, num_ranks: int, key: bytes, agreed: dict[str, str]) -> None:
        self._num_ranks, self._key, self._agreed = num_ranks, key, agreed
        self._where = f"{address}:{port}"
        self._listener = listen(address, port)
        self._arrived: queue.SimpleQueue[tuple[socket.socket, dict[str, Any]]] = queue.SimpleQueue()

    def gather(self, within_s: float, is_stopped: Callable[[], bool]) -> dict[int, Joined]:
        """Return all other ranks, when they have connected. Looks often whether ``is_stopped``.

        Raises:
            LoadError: a rank differs in what is to be agreed, some did not come within ``within_s`` seconds, or it was stopped.
        """
        found: dict[tuple[int, str], tuple[socket.socket, dict[str, Any]]] = {}
        pending: dict[socket.socket, float] = {}
        until = time.monotonic() + within_s
        try:
            while len(found) < 2 * (self._num_ranks - 1) and not is_stopped():
                now = time.monotonic()
                if now > until:
                    missing = sorted(
                        {r for r in range(1, self._num_ranks) for k in (LINK, PIPE) if (r, k) not in found}
                    )
                    raise LoadError(
                        f"rank(s) {', '.join(map(str, missing))} of {self._num_ranks} have not joined at {self._where} within "
                        f"{within_s:g} s",
                        hint="look at the output of these processes; start them with the same address, port and key",
                    )
                self._accept(pending, now)
                while not self._arrived.empty():
                    connection, hello = self._arrived.get()
                    pending.pop(connection, None)
                    self._add(found, connection, hello)
            if is_stopped():
                raise LoadError("the engine was closed before all ranks had joined")
        except LoadError as error:
            self._tell_all(error, [connection for connection, _ in found.values()])
            raise
        finally:
            for connection in pending:
                _shut(connection)
        return {
            rank: Joined(Member(hello["host"], link.getpeername()[0], hello["port"], hello["local_rank"]), link, pipe)
            for (rank, kind), (link, hello) in found.items()
            if kind == LINK and (pipe := found[rank, PIPE][0])
        }

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    @property
    def own_address(self) -> str:
        """The address at which this rank can be reached."""
        return str(self._listener.getsockname()[0])

    def _accept(self, pending: dict[socket.socket, float], now: float) -> None:
        for connection, since in list(pending.items()):
            if now - since > PROVE_WITHIN_S or len(pending) > MOST_PENDING:
                _shut(connection)
                del pending[connection]
        self._listener.settimeout(LOOK_EVERY_S)
        with suppress(TimeoutError):
            connection, _ = self._listener.accept()
            pending[connection] = now
            threading.Thread(target=self._receive, args=(connection,), name="proof", daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        """Let one connection prove that it is a rank. Others are closed without a word."""
        try:
            prove(connection, self._key, listens=True)
            self._arrived.put((connection, receive_json(connection)))
        except (ProofError, OSError):
            connection.close()

    def _tell_all(self, error: LoadError, connections: list[socket.socket]) -> None:
        """Tell all that are connected, and those that arrive in this moment, why the run does not start."""
        with suppress(queue.Empty):
            while True:
                connections.append(self._arrived.get(timeout=TELL_WITHIN_S)[0])
        for connection in connections:
            with suppress(OSError):
                send_json(connection, {"error": error.message})
            connection.close()

    def _add(
        self,
        found: dict[tuple[int, str], tuple[socket.socket, dict[str, Any]]],
        connection: socket.socket,
        hello: dict[str, Any],
    ) -> None:
        rank, kind = hello["rank"], hello["kind"]
        where = f"rank {rank} on {hello['host']}"
        error = None
        if (rank, kind) in found or not 0 < rank < self._num_ranks:
            error = (
                f"{where}: there is already a rank {rank}" if 0 <= rank < self._num_ranks else f"{where}: no such rank"
            )
        for name, value in self._agreed.items():
            if error is None and hello["agreed"].get(name) != value:
                error = f"{where} has another {name}: {hello['agreed'].get(name)}, and rank 0 has {value}"
        if error is not None:
            self._arrived.put((connection, hello))  # to be told
            raise LoadError(error, hint="start all ranks with the same command, files and version of loadmaster")
        watch(connection)
        found[rank, kind] = connection, hello


def _shut(connection: socket.socket) -> None:
    """End a connection in which another thread may be reading; that thread closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
