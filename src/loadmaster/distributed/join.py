"""A rank's way into a run: to rank 0 (`loadmaster.distributed.rendezvous`), and then to its neighbours."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from loadmaster.distributed.proof import PROVE_WITHIN_S, ProofError, prove, receive_json, send_json, watch
from loadmaster.distributed.roster import LINK, PIPE, Roster, listen
from loadmaster.errors import LoadError

RETRY_EVERY_S = 0.25
NEIGHBOURS_WITHIN_S = 60.0


@dataclass(slots=True)
class Membership:
    """A rank's connections to rank 0, at the rank; ``listener`` takes those of its neighbours."""

    link: socket.socket
    pipe: socket.socket
    listener: socket.socket
    roster: Roster


def join(
    address: str,
    port: int,
    key: bytes,
    rank: int,
    local_rank: int,
    agreed: dict[str, str],
    within_s: float,
) -> Membership:
    """Connect rank ``rank`` to rank 0, and wait for the other ranks.

    Raises:
        LoadError: rank 0 cannot be reached, has another key, refuses this rank, or ends before all ranks are there.
    """
    until = time.monotonic() + within_s
    where = f"rank 0 at {address}:{port}"
    link = _connect(address, port, key, until, where)
    try:
        listener = listen(link.getsockname()[0], 0)
        hello = {
            "rank": rank,
            "local_rank": local_rank,
            "host": socket.gethostname(),
            "port": listener.getsockname()[1],
            "agreed": agreed,
        }
        pipe = _connect(address, port, key, until, where)
        for connection, kind in ((link, LINK), (pipe, PIPE)):
            send_json(connection, {**hello, "kind": kind})
            watch(connection)
        answer = receive_json(link)
    except (OSError, ProofError) as error:
        raise LoadError(f"the connection to {where} ended before all ranks had joined: {error}") from error
    if "error" in answer:
        raise LoadError(f"{where} refused: {answer['error']}")
    return Membership(link, pipe, listener, Roster.of_json(answer))


def connect_neighbours(
    rank: int,
    neighbours: Collection[int],
    listener: socket.socket,
    roster: Roster,
    is_stopped: Callable[[], bool],
) -> dict[int, socket.socket]:
    """Return a connection to each neighbour: it is made to lower ranks, and taken from higher ones.

    Raises:
        LoadError: a neighbour did not connect within `NEIGHBOURS_WITHIN_S`, or ``is_stopped``, which is often asked.
    """
    until = time.monotonic() + NEIGHBOURS_WITHIN_S
    lower, higher = [r for r in neighbours if r < rank], {r for r in neighbours if r > rank}
    connections: dict[int, socket.socket] = {}
    failed: list[str] = []

    def connect() -> None:
        try:
            for other in lower:
                member = roster.members[other]
                where = f"rank {other} on {member.host} ({member.address}:{member.port})"
                connections[other] = _connect(member.address, member.port, roster.key, until, where)
                send_json(connections[other], {"rank": rank})
        except (LoadError, OSError) as error:
            failed.append(str(error))

    thread = threading.Thread(target=connect, name="connect", daemon=True)
    thread.start()
    listener.settimeout(RETRY_EVERY_S)
    while higher and time.monotonic() < until and not failed and not is_stopped():
        with suppress(TimeoutError, ProofError, OSError):
            connection, _ = listener.accept()
            prove(connection, roster.key, listens=True)
            other = receive_json(connection)["rank"]
            if other in higher:
                higher.remove(other)
                connections[other] = connection
    thread.join(NEIGHBOURS_WITHIN_S)
    listener.close()
    if failed or higher or len(connections) < len(neighbours):
        for connection in connections.values():
            connection.close()
        reason = failed[0] if failed else f"rank(s) {', '.join(map(str, sorted(higher)))} did not connect"
        raise LoadError(f"rank {rank} could not connect to its neighbours: {reason}")
    for connection in connections.values():
        watch(connection)
    return connections


def _connect(address: str, port: int, key: bytes, until: float, where: str) -> socket.socket:
    """Connect and prove; try again while nobody listens."""
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=PROVE_WITHIN_S)
        except OSError as error:
            if time.monotonic() > until:
                raise LoadError(
                    f"cannot reach {where}: {error}", hint="start rank 0, and check the address, the port and firewalls"
                ) from error
            time.sleep(RETRY_EVERY_S)
            continue
        try:
            prove(connection, key, listens=False)
        except (ProofError, OSError) as error:
            connection.close()
            raise LoadError(
                f"{where} did not prove that it has this rank's key: {error}",
                hint="set LOADMASTER_KEY to the same value on all hosts; another program may listen at this port: "
                "LOADMASTER_PORT names another",
            ) from error
        return connection
