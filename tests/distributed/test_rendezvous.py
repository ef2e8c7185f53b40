"""Ranks find each other, and strangers neither join nor hold them up."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from loadmaster.distributed.join import Membership, connect_neighbours, join
from loadmaster.distributed.proof import send_json
from loadmaster.distributed.rendezvous import MOST_PENDING, Joined, Rendezvous
from loadmaster.distributed.roster import Member, Roster, draw_key, listen
from loadmaster.errors import ConfigError, LoadError

KEY = b"k" * 20
HERE = "127.0.0.1"
AGREED = {"plan": "a"}


def port_of(rendezvous: Rendezvous) -> int:
    return int(rendezvous._listener.getsockname()[1])


def member(port: int, rank: int, agreed: dict[str, str] = AGREED, key: bytes = KEY) -> Membership:
    return join(HERE, port, key, rank, rank, agreed, within_s=30)


def close(joined: dict[int, Joined]) -> None:
    for one in joined.values():
        one.link.close()
        one.pipe.close()


def test_all_ranks_learn_who_is_where_and_neighbours_are_connected() -> None:
    rendezvous = Rendezvous(HERE, 0, 3, KEY, AGREED)
    with ThreadPoolExecutor(4) as threads, ExitStack() as closing:
        ranks = [threads.submit(member, port_of(rendezvous), rank) for rank in (2, 1)]
        joined = rendezvous.gather(30, lambda: False)
        closing.callback(close, joined)
        rendezvous.close()
        listener = listen(HERE, 0)
        own = Member("here", HERE, listener.getsockname()[1], 0)
        roster = Roster((own, joined[1].member, joined[2].member), draw_key())
        for one in joined.values():
            send_json(one.link, roster.as_json())
        second, first = (rank.result(30) for rank in ranks)
        assert first.roster == second.roster == roster
        assert [m.local_rank for m in roster.members] == [0, 1, 2]

        def connect(rank: int, others: set[int], by: socket.socket) -> dict[int, socket.socket]:
            return connect_neighbours(rank, others, by, roster, lambda: False)

        # a stranger comes first to a neighbour's port, and says nothing
        stranger = closing.enter_context(socket.create_connection((HERE, joined[1].member.port)))
        stranger.sendall(b"x" * 64)
        waiting = [
            threads.submit(connect, 0, {1}, listener),
            threads.submit(connect, 1, {0, 2}, first.listener),
            threads.submit(connect, 2, {1}, second.listener),
        ]
        sockets = [w.result(60) for w in waiting]
        for rank, other in ((0, 1), (1, 2), (2, 1)):
            sockets[rank][other].sendall(b"%d" % rank)
            assert sockets[other][rank].recv(1) == b"%d" % rank
        for s in (*sockets[0].values(), *sockets[1].values(), *sockets[2].values(), first.link, first.pipe):
            s.close()
        second.link.close()
        second.pipe.close()


def test_strangers_do_not_hold_up_who_has_the_key() -> None:
    rendezvous = Rendezvous(HERE, 0, 2, KEY, AGREED)
    port = port_of(rendezvous)
    with ThreadPoolExecutor(2) as threads, ExitStack() as closing:
        closing.callback(rendezvous.close)
        gathered = threads.submit(rendezvous.gather, 60, lambda: False)
        for _ in range(MOST_PENDING + 8):
            closing.enter_context(socket.create_connection((HERE, port)))  # silent ones
        with pytest.raises(LoadError, match="did not prove that it has this rank's key"):
            member(port, 1, key=b"wrong" * 4)
        rank = threads.submit(member, port, 1)
        joined = gathered.result(60)
        assert set(joined) == {1}
        send_json(joined[1].link, {"error": "enough"})
        with pytest.raises(LoadError, match="refused: enough"):
            rank.result(30)
        close(joined)


def test_ranks_that_do_not_come_are_named() -> None:
    rendezvous = Rendezvous(HERE, 0, 3, KEY, AGREED)
    with pytest.raises(LoadError, match=r"rank\(s\) 1, 2 of 3 have not joined at 127.0.0.1:0 within 0.3 s"):
        rendezvous.gather(0.3, lambda: False)
    began = time.monotonic()
    with pytest.raises(LoadError, match="closed before all ranks had joined"):
        rendezvous.gather(600, lambda: time.monotonic() - began > 0.3)
    rendezvous.close()


@pytest.mark.parametrize(
    ("rank", "agreed", "message"),
    [(1, {"plan": "b"}, "has another plan: b, and rank 0 has a"), (3, AGREED, "no such rank")],
)
def test_a_rank_that_does_not_fit_is_refused_at_both_ends(rank: int, agreed: dict[str, str], message: str) -> None:
    rendezvous = Rendezvous(HERE, 0, 2, KEY, AGREED)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(member, port_of(rendezvous), rank, agreed)
        with pytest.raises(LoadError, match=message):
            rendezvous.gather(30, lambda: False)
        rendezvous.close()
        with pytest.raises(LoadError, match=message):
            other.result(30)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank 0 cannot listen at 192.0.2.1:1: Cannot assign requested address"):
        listen("192.0.2.1", 1)
    with listen(HERE, 0) as taken, pytest.raises(ConfigError, match="Address already in use"):
        listen(HERE, taken.getsockname()[1])


def test_nobody_at_the_address_is_said_in_time() -> None:
    with listen(HERE, 0) as s:
        port = s.getsockname()[1]
    with pytest.raises(LoadError, match=rf"cannot reach rank 0 at 127.0.0.1:{port}"):
        join(HERE, port, KEY, 1, 1, AGREED, within_s=0.3)
