"""Stages in a row, as threads over real sockets, and as processes beside a stranger."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil
import pytest
import torch

from loadmaster.distributed.agreement import agree as agree_on
from loadmaster.distributed.group import DTYPES, PeerLostError, PipelineGroup
from loadmaster.engine import Engine
from loadmaster.errors import LoadError
from loadmaster.workers import SamplingParams, process
from tests.distributed import stranger
from tests.workers.toy import BUILDER, ToyPlan, continuation

if TYPE_CHECKING:
    from loadmaster.plan import Plan

A, B = "a" * 64, "b" * 64


@contextlib.contextmanager
def row(num_stages: int) -> Iterator[list[PipelineGroup]]:
    pairs = [socket.socketpair() for _ in range(num_stages - 1)]
    previous = [None, *(pair[1] for pair in pairs)]
    following = [*(pair[0] for pair in pairs), None]
    try:
        yield [
            PipelineGroup(rank, num_stages, *ends) for rank, ends in enumerate(zip(previous, following, strict=True))
        ]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def agree(groups: list[PipelineGroup], hashes: list[str]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(groups)) as threads:
        work = [threads.submit(agree_on, h, group) for group, h in zip(groups, hashes, strict=True)]
        return [w.exception(30) for w in work]


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_stages_with_one_plan_agree(num_stages: int) -> None:
    with row(num_stages) as groups:
        assert agree(groups, [A] * num_stages) == [None] * num_stages


def test_every_stage_learns_which_ranks_planned_otherwise() -> None:
    with row(3) as groups:
        errors = agree(groups, [A, B, A])
    assert {type(error) for error in errors} == {LoadError}
    words = f"the ranks have different plans: {'a' * 16} on rank 0 2, {'b' * 16} on rank 1"
    assert all(words in str(error) for error in errors)


def test_agreeing_unpickles_nothing_and_takes_as_many_bytes_as_hashes_have() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        agreed = thread.submit(agree_on, A, PipelineGroup(0, 2, None, ours))
        assert theirs.recv(1000) == bytes.fromhex(A)
        theirs.sendall(bytes.fromhex(A + B) + b"and more that nobody reads")
        assert isinstance(agreed.exception(30), LoadError)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_arrive_as_they_were_sent(dtype: torch.dtype) -> None:
    sent = {
        "matrix": torch.arange(-6, 6).to(dtype).view(3, 4).t(),  # not contiguous
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 7, dtype=dtype),
    }
    names = tuple(sent)
    with row(2) as (first, second):
        first.send_next(sent, names)
        received = second.receive_previous(names)
    assert list(received) == list(names)
    for name in names:
        assert received[name].dtype == dtype
        assert torch.equal(received[name], sent[name])


def test_a_hand_over_larger_than_any_buffer_does_not_wait_for_the_next_stage() -> None:
    big = {"x": torch.arange(2**20)}
    with row(2) as (first, second):
        first.send_next(big, ("x",))  # returns, though nobody takes it yet
        with ThreadPoolExecutor(1) as thread:
            again = thread.submit(first.send_next, big, ("x",))
            for _ in range(2):
                assert torch.equal(second.receive_previous(("x",))["x"], big["x"])
            again.result(30)


def test_a_peer_that_ends_is_noticed_by_both_neighbours() -> None:
    with row(3) as (first, second, third):
        for end in (second._previous, second._following):
            assert end is not None
            end.close()
        with pytest.raises(PeerLostError, match="stage 1 of 3 has ended"):
            third.receive_previous(("x",))
        with pytest.raises(PeerLostError, match="stage 1 of 3 has ended"):
            for _ in range(2):
                first.send_next({"x": torch.zeros(3)}, ("x",))
        assert isinstance(agree([first], [A])[0], PeerLostError)


# A stranger ----------------------------------------------------------------------------------------------------------


def listening(pids: list[int]) -> set[int]:
    """Return the TCP ports where processes listen; check that their Unix sockets have no names."""
    ports = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("all"):
            if connection.family == socket.AF_UNIX:
                assert connection.laddr == "", "a socket with a name can be connected to"
            elif connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM:
                ports.add(connection.laddr.port)
    return ports


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_stranger_finds_no_way_into_a_starting_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage is held up, so that a stranger who comes first would be taken for it."""
    monkeypatch.setattr(process, "STOPPED_FOR_S", 600.0, raising=False)
    marker, arrivals = tmp_path / "marker", tmp_path / "arrivals"
    arrivals.mkdir()
    intruder = subprocess.Popen(
        [sys.executable, stranger.__file__, str(marker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert intruder.stdin is not None
    assert intruder.stdout is not None
    plan = cast("Plan", ToyPlan(2, arrivals=str(arrivals)))
    try:
        assert intruder.stdout.readline() == "here\n"
        with Engine(plan, builder=BUILDER) as engine:
            workers = engine._supervisor._workers
            until = time.monotonic() + 300
            while len(workers) < 2:
                assert time.monotonic() < until
                time.sleep(0.001)
            first, second = (worker.running.pid for worker in workers)
            os.kill(second, signal.SIGSTOP)
            seen: set[int] = set()
            while not (arrivals / str(first)).exists() and not (seen and marker.exists()):
                assert time.monotonic() < until
                for port in listening([first]) - seen:
                    seen.add(port)
                    intruder.stdin.write(f"port {port}\n")
                    intruder.stdin.flush()
                time.sleep(0.005)
            intruder.stdin.write(f"pid {first}\n")
            intruder.stdin.close()
            said = intruder.stdout.read().splitlines()
            assert (seen, said, marker.exists()) == (set(), ["gone"], False)
            os.kill(second, signal.SIGCONT)
            engine.wait_ready()
            assert listening([first, second]) == set()
            answer = list(engine.generate([3, 4, 5], SamplingParams(max_tokens=4, temperature=0)))
            assert answer == continuation([3, 4, 5], 2, 4)
    finally:
        intruder.kill()
        intruder.wait()
