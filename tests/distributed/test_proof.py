"""Both ends of a connection must prove that they have the key, whoever is at the other end."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from loadmaster.distributed.proof import (
    MOST_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    ProofError,
    proof,
    prove,
    receive_json,
    send_json,
)
from loadmaster.distributed.receive import receive

KEY = b"the key of this run"


def against(other: Callable[[socket.socket], object], *, listens: bool, key: bytes = KEY) -> None:
    """Prove to ``other``, which has the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        running = thread.submit(other, theirs)
        try:
            prove(ours, key, listens=listens)
        finally:
            ours.close()
            error = running.exception(30)
            assert error is None or isinstance(error, OSError | ProofError)


@pytest.mark.parametrize("listens", [True, False])
def test_two_ends_with_one_key_agree(listens: bool) -> None:
    against(lambda other: prove(other, KEY, listens=not listens), listens=listens)


@pytest.mark.parametrize("listens", [True, False])
def test_another_key_is_noticed_at_both_ends(listens: bool) -> None:
    errors = []

    def other(connection: socket.socket) -> None:
        try:
            prove(connection, b"another", listens=not listens)
        except (ProofError, OSError) as error:
            errors.append(error)
            connection.close()

    with pytest.raises((ProofError, OSError)):
        against(other, listens=listens)
    assert len(errors) == 1


@pytest.mark.parametrize("listens", [True, False])
def test_an_end_that_returns_what_it_is_sent_is_refused(listens: bool) -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(1000):
            connection.sendall(data)

    with pytest.raises(ProofError, match="returned what it was sent"):
        against(echo, listens=listens)


def test_a_proof_of_one_end_is_none_of_the_other() -> None:
    """A stranger between two honest ends cannot pass for one by sending its proof back."""

    def other(connection: socket.socket) -> None:
        own = secrets.token_bytes(NONCE_BYTES)
        theirs = receive(connection, NONCE_BYTES)
        connection.sendall(own)
        connection.sendall(proof(KEY, b"listens", own, theirs))  # right, but for the name

    with pytest.raises(ProofError, match="does not have the same key"):
        against(other, listens=True)


def test_a_recorded_proof_does_not_pass_again() -> None:
    recorded = []

    def honest(connection: socket.socket) -> None:
        own = secrets.token_bytes(NONCE_BYTES)
        connection.sendall(own)
        theirs = receive(connection, NONCE_BYTES)
        recorded.append((own, proof(KEY, b"connects", own, theirs)))
        connection.sendall(recorded[0][1])
        receive(connection, PROOF_BYTES)

    def replay(connection: socket.socket) -> None:
        connection.sendall(recorded[0][0])
        receive(connection, NONCE_BYTES)
        connection.sendall(recorded[0][1])

    against(honest, listens=True)
    with pytest.raises(ProofError, match="does not have the same key"):
        against(replay, listens=True)


def test_json_that_is_too_long_or_none_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_json(ours, {"a": [1, "b"]})
        assert receive_json(theirs) == {"a": [1, "b"]}
        for data in (b"\0\0\0\2[]", b"\0\0\0\2{]", (MOST_BYTES + 1).to_bytes(4, "big")):
            ours.sendall(data)
            with pytest.raises(ProofError):
                receive_json(theirs)
        ours.close()
        with pytest.raises(OSError, match="closed"):
            receive_json(theirs)
