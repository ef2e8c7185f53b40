"""An engine over the processes of a launcher: on one host by environment variables, and on two hosts by torchrun."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from loadmaster.cli.main import main
from tests.conftest import Tiny
from tests.engine.launched import Command, TwoHosts, can_make_hosts, commands, free_port, loadmaster, ranks, stream

WITHIN_S = 10.0
"""By when all processes must have noticed that one was lost."""

SLOW = 3.0
"""How many times longer that may take on a busy machine."""

OPTIONS = ("--prompt-token-ids", "3,17,5,9", "--max-tokens", "12", "--temperature", "0", "--dtype", "float32", "--json")
two_hosts = pytest.mark.skipif(not can_make_hosts(), reason="needs root, to make network namespaces")


def tokens(output: str) -> Any:
    return json.loads(output)["token_ids"]


@pytest.fixture(scope="module")
def expected(tiny: Tiny) -> Any:
    """What one process answers."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["generate", str(tiny("glm-5.1-fp8")), *OPTIONS]) == 0
    return tokens(output.getvalue())


def test_the_ranks_of_a_launcher_answer_as_one_process(tiny: Tiny, expected: Any) -> None:
    layout = ("-pp", "2", "-tp", "2", "--enable-expert-parallel")
    argv = loadmaster("generate", tiny("glm-5.1-fp8"), *OPTIONS, *layout)
    with commands([argv] * 4, ranks(4, free_port())) as started:
        assert [c.wait() for c in started] == [0] * 4, [c.errors for c in started]
        result = json.loads("".join(started[0].output))
        assert result["token_ids"] == expected
        assert [(s["rank"], s["stage"]) for s in result["statistics"]["stages"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
        assert [c.output for c in started[1:]] == [[]] * 3


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("-pp", "1", "-tp", "2"), "another plan"),
        ((), ("--dtype", "bfloat16"), "another plan"),
    ],
    ids=["layout", "dtype"],
)
def test_ranks_that_differ_are_told_apart_before_loading(
    first: tuple[str, ...], second: tuple[str, ...], message: str, tiny: Tiny
) -> None:
    argv = [loadmaster("generate", tiny("llama"), *OPTIONS[:-1], "-pp", "2", *more) for more in (first, second)]
    with commands(argv, ranks(2, free_port())) as started:
        assert [c.wait() for c in started] == [3, 3], [c.errors for c in started]
        assert all(message in "".join(c.errors) for c in started), [c.errors for c in started]


def test_a_rank_with_another_key_is_refused(tiny: Tiny) -> None:
    argv = loadmaster("generate", tiny("llama"), *OPTIONS[:-1], "-pp", "2")
    engine, member = ranks(2, free_port())
    with commands([argv] * 2, [engine, {**member, "LOADMASTER_KEY": "another key of 16 or more"}]) as started:
        assert started[1].wait() == 3
        assert "did not prove that it has this rank's key" in "".join(started[1].errors)
        assert started[0].process.poll() is None, "rank 0 goes on waiting for the right one"
    with commands([argv] * 2, [engine, {**member, "LOADMASTER_KEY": ""}]) as started:
        assert started[1].wait() == 1
        assert "LOADMASTER_KEY is not set" in "".join(started[1].errors)


@pytest.fixture
def served(tiny: Tiny) -> Iterator[list[Command]]:
    """A server of two stages, ready."""
    argv = loadmaster("serve", tiny("llama"), "-pp", "2", "--port", "0", "--shutdown-timeout", "60")
    with commands([argv] * 2, ranks(2, free_port())) as started:
        started[0].line("ready: ")
        yield started


def url(engine: Command) -> str:
    return engine.line("ready: ").split(" at ")[1].strip()


def workers_of(command: Command) -> list[psutil.Process]:
    children = psutil.Process(command.process.pid).children(recursive=True)
    return [c for c in children if "loadmaster.workers.worker" in c.cmdline()]


@pytest.mark.parametrize("lost", ["worker", pytest.param("launched process", marks=pytest.mark.slow)])
def test_a_lost_process_ends_all_with_an_error_that_names_it(lost: str, served: list[Command]) -> None:
    engine, member = served
    events = stream(url(engine))
    next(events)
    processes = [*workers_of(engine), *workers_of(member)]
    assert len(processes) == 2
    victim = processes[1] if lost == "worker" else psutil.Process(member.process.pid)
    began = time.monotonic()
    victim.kill()
    last = list(events)[-1]
    assert time.monotonic() - began < WITHIN_S * SLOW
    assert "stage 1 of 2" in last["error"]["message"], last
    assert ("was killed by SIGKILL" if lost == "worker" else "was lost") in last["error"]["message"]
    assert engine.wait(WITHIN_S * SLOW) == 3
    assert member.wait(WITHIN_S * SLOW) == (3 if lost == "worker" else -9)
    assert psutil.wait_procs(processes, timeout=WITHIN_S)[1] == []


@pytest.mark.parametrize(
    "asked", ["all", *(pytest.param(who, marks=pytest.mark.slow) for who in ("member", "all, the engine last"))]
)
def test_running_requests_finish_whichever_processes_are_asked_to_end(asked: str, served: list[Command]) -> None:
    engine, member = served
    events = stream(url(engine), 400)
    next(events)
    for command in {"member": [member], "all": [engine, member]}.get(asked, [member, engine]):
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # in which a member reports it to the engine
    rest = list(events)
    assert "error" not in rest[-1]
    assert rest[-1]["choices"][0]["finish_reason"] == "length"
    assert (engine.wait(), member.wait()) == (0, 0), (engine.errors, member.errors)


@pytest.mark.slow
def test_members_end_when_the_engine_is_killed(served: list[Command]) -> None:
    engine, member = served
    processes = [*workers_of(engine), *workers_of(member)]
    engine.process.kill()
    assert member.wait(WITHIN_S * SLOW) == 3
    assert "rank 0 on" in "".join(member.errors)
    assert psutil.wait_procs(processes, timeout=WITHIN_S)[1] == []


@two_hosts
def test_two_hosts_answer_as_one_process(tiny: Tiny, expected: Any) -> None:
    args = ("generate", tiny("glm-5.1-fp8"), *OPTIONS, "-pp", "2")
    with TwoHosts() as hosts:
        argv = [hosts.torchrun(host, *args) for host in (0, 1)]
        with commands(argv, [{"LOADMASTER_KEY": "the key of these two hosts"}] * 2) as started:
            assert [c.wait() for c in started] == [0, 0], [c.errors for c in started]
            assert tokens("".join(started[0].output)) == expected
            member = "".join(started[1].errors)
            assert "rank 1 of 2, for rank 0 at 10.77.0.1:29501" in member


@two_hosts
@pytest.mark.slow
def test_a_lost_host_ends_the_run_on_both(tiny: Tiny) -> None:
    args = ("serve", tiny("llama"), "-pp", "2", "--port", "8000", "--host", "0.0.0.0")
    with TwoHosts() as hosts:
        argv = [hosts.torchrun(host, *args) for host in (0, 1)]
        with commands(argv, [{"LOADMASTER_KEY": "the key of these two hosts"}] * 2) as started:
            engine, member = started
            engine.line("ready: ")
            processes = [*workers_of(engine), *workers_of(member)]
            assert len(processes) == 2
            client = [sys.executable, "-m", "tests.engine.launched", "http://127.0.0.1:8000/v1"]
            with commands([hosts.on(0, client)], [{}]) as [requests]:
                requests.line("first token")
                hosts.unplug()
                began = time.monotonic()
                assert requests.wait(WITHIN_S * SLOW) == 0, requests.errors
                assert "stage 1 of 2" in json.loads(requests.output[-1])["error"]["message"]
                assert psutil.wait_procs(processes, timeout=WITHIN_S * SLOW)[1] == []
                assert time.monotonic() - began < WITHIN_S * SLOW
            assert engine.wait(60) != 0
            assert member.wait(60) != 0
            assert "the engine, rank 0 on host-a, was lost" in "".join(member.errors)
