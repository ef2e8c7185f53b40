"""The server as a process, over the toy model of `tests.runtime.toy` in worker processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from loadmaster.errors import RunError
from loadmaster.server import listen

LIMIT_S = 200

SCRIPT = """
import json, sys
from pathlib import Path
from loadmaster.errors import LoadmasterError
from loadmaster.runtime import Engine, Tokenizer
from loadmaster.server import Service, listen, serve
from tests.runtime.toy import ToyPlan

sys.modules["loadmaster.server.serve"].FAILED_FOR_S = float(sys.argv[2])
plan = ToyPlan(2, faults={int(k): v for k, v in json.loads(sys.argv[1]).items()})
bound = listen("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
try:
    with Engine(plan, builder="tests.runtime.toy:ToyBuilder") as engine:
        serve(Service(engine, Tokenizer(plan.model_path), ["toy"]), bound)
except LoadmasterError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextmanager
def server(faults: dict[int, str], *, failed_for_s: float = 0.1) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start one; it answers for ``failed_for_s`` seconds after its engine failed."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(faults), str(failed_for_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.communicate()[1]
        yield process, f"http://127.0.0.1:{port}"
    finally:
        for child in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
            child.kill()


def health(url: str) -> httpx.Response:
    return httpx.get(f"{url}/health", timeout=LIMIT_S)


def until_status(url: str, status: int) -> list[dict[str, Any]]:
    """Return what ``/health`` said before it answered ``status``."""
    until, said = time.monotonic() + LIMIT_S, []
    while (response := health(url)).status_code != status:
        said.append(response.json())
        assert time.monotonic() < until
        time.sleep(0.05)
    return said


def ended(process: subprocess.Popen[str], workers: list[psutil.Process]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LIMIT_S)
    assert [w for w in workers if w.is_running()] == []
    return process.returncode, errors


def test_a_server_loads_answers_and_stops_when_told_to() -> None:
    with server({}) as (process, url):
        said = until_status(url, 200)
        assert {s["status"] for s in said} <= {"loading"}
        assert all(s["total_bytes"] == 2000 for s in said)
        answer = httpx.post(
            f"{url}/v1/completions", json={"prompt": [3, 4, 5], "max_tokens": 3, "temperature": 0}, timeout=LIMIT_S
        )
        assert answer.json()["choices"][0]["token_ids"] == [8, 11, 14]
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        assert ended(process, workers) == (0, f"ready: toy at {url}/v1\n")


def test_ctrl_c_while_loading_ends_everything() -> None:
    with server({0: "load_hangs"}) as (process, url):
        health(url)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert ended(process, workers) == (130, "")


@pytest.mark.parametrize(
    ("fault", "message"), [("load_raises", "OSError: the disk is on fire"), ("load_killed", "SIGKILL")]
)
def test_a_server_that_cannot_load_says_so_once_and_ends(fault: str, message: str) -> None:
    with server({1: fault}) as (process, _):
        code, errors = ended(process, psutil.Process(process.pid).children())
        assert (code, errors.count(message), errors.count("Traceback")) == (3, 1, 0), errors


def test_a_server_whose_worker_is_lost_says_so_once_and_ends() -> None:
    with server({}) as (process, url):
        until_status(url, 200)
        workers = psutil.Process(process.pid).children()
        os.kill(workers[1].pid, signal.SIGKILL)
        code, errors = ended(process, workers)
        assert (code, errors.count("was killed by SIGKILL"), errors.count("Traceback")) == (3, 1, 0), errors


@pytest.mark.parametrize("fault", ["load_raises", "killed"])
def test_a_server_whose_engine_failed_says_so_to_whoever_asks(fault: str) -> None:
    with server({1: fault} if fault == "load_raises" else {}, failed_for_s=LIMIT_S) as (process, url):
        if fault == "killed":
            until_status(url, 200)
            os.kill(psutil.Process(process.pid).children()[1].pid, signal.SIGKILL)
        until_status(url, 500)
        said = "the disk is on fire" if fault == "load_raises" else "was killed by SIGKILL"
        assert said in health(url).json()["error"]["message"]
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": [3]}, timeout=LIMIT_S)
        assert refused.status_code == 500


def test_an_address_in_use_is_an_error() -> None:
    with listen("127.0.0.1", 0) as bound, pytest.raises(RunError, match=r"cannot listen on 127\.0\.0\.1 port"):
        listen("127.0.0.1", bound.getsockname()[1])
