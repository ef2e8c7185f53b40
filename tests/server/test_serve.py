"""The server as a process, over the toy model of `tests.workers.toy` in worker processes of its own."""

import contextlib
import json
import os
import signal
import socket
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
from loadmaster.server.address import listen
from tests.workers.processes import newest_worker

LIMIT_S = 200

SCRIPT = """
import json, resource, sys
from pathlib import Path
from loadmaster.errors import LoadmasterError
from loadmaster.engine import Engine, Tokenizer
from loadmaster.server.address import listen
from loadmaster.server.serve import serve
from loadmaster.server.service import Service
from loadmaster.server.settings import Settings
from tests.workers.toy import ToyPlan

options = json.loads(sys.argv[2])
sys.modules["loadmaster.server.serve"].FAILED_FOR_S = options["FAILED_FOR_S"]
if num_files := options["num_files"]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
plan = ToyPlan(options["num_stages"], faults={int(k): v for k, v in json.loads(sys.argv[1]).items()})
bound = listen("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
try:
    with Engine(plan, builder="tests.workers.toy:ToyBuilder") as engine:
        serve(Service(engine, Tokenizer(plan.model_path), ["toy"], Settings(**options["settings"])), bound)
except LoadmasterError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextmanager
def server(
    faults: dict[int, str],
    *,
    num_stages: int = 1,
    num_files: int | None = None,
    failed_for_s: float = 0.1,
    **settings: float,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start one, with ``num_files`` descriptors at most; ``settings`` are those of `Settings`."""
    options = {"FAILED_FOR_S": failed_for_s, "num_stages": num_stages, "num_files": num_files, "settings": settings}
    command = [sys.executable, "-c", SCRIPT, json.dumps(faults), json.dumps(options)]
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


def request(url: str, body: str, length: int | None = None) -> socket.socket:
    """Return a connection over which a request was sent, or the beginning of one."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=LIMIT_S)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}"
    connection.sendall(f"{head}\r\n\r\n{body}".encode())
    return connection


def until(url: str, status: str) -> list[dict[str, Any]]:
    """Return what ``/health`` said before its status was ``status``."""
    end, said = time.monotonic() + LIMIT_S, []
    while (response := health(url)).json()["status"] != status:
        said.append(response.json())
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (response.status_code == 200) == (status == "ready")
    return said


def ended(process: subprocess.Popen[str], workers: list[psutil.Process]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LIMIT_S)
    assert psutil.wait_procs(workers, timeout=LIMIT_S)[1] == []
    return process.returncode, errors


def test_a_server_loads_answers_and_stops_when_told_to() -> None:
    with server({}, num_stages=2) as (process, url):
        said = until(url, "ready")
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
    ("fault", "num_stages", "message"),
    [
        ("load_raises", 2, "OSError: the disk is on fire"),
        pytest.param("load_killed", 1, "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_cannot_load_says_so_once_and_ends(fault: str, num_stages: int, message: str) -> None:
    with server({num_stages - 1: fault}, num_stages=num_stages) as (process, _):
        code, errors = ended(process, psutil.Process(process.pid).children())
        assert (code, errors.count(message), errors.count("Traceback")) == (3, 1, 0), errors


@pytest.mark.slow
def test_a_server_whose_worker_is_lost_says_so_once_and_ends() -> None:
    with server({}, num_stages=2) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children()
        os.kill(workers[1].pid, signal.SIGKILL)
        code, errors = ended(process, workers)
        assert (code, errors.count("was killed by SIGKILL"), errors.count("Traceback")) == (3, 1, 0), errors


@pytest.mark.parametrize("fault", [pytest.param("load_raises", marks=pytest.mark.slow), "killed"])
def test_a_server_whose_engine_failed_says_so_to_whoever_asks(fault: str) -> None:
    with server({0: fault} if fault == "load_raises" else {}, failed_for_s=LIMIT_S) as (process, url):
        if fault == "killed":
            until(url, "ready")
            newest_worker(process.pid).kill()
        until(url, "failed")
        said = "the disk is on fire" if fault == "load_raises" else "was killed by SIGKILL"
        assert said in health(url).json()["error"]["message"]
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": [3]}, timeout=LIMIT_S)
        assert refused.status_code == 503


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_that_a_signal_ends_says_so_and_nothing_else_is_said(signals: int) -> None:
    """With two signals the grace is longer than the test waits: the second ends it."""
    with server({0: "step_hangs"}, shutdown_timeout_s=1 if signals == 1 else 10 * LIMIT_S) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children()
        body = {"prompt": [3], "max_tokens": 60, "ignore_eos": True, "temperature": 0}
        with (
            httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=LIMIT_S) as response,
            request(url, json.dumps(body)) as other,
        ):
            assert response.status_code == 200, "it runs, and its second token never comes"
            for _ in range(2):
                health(url)  # the other request was taken before
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                until(url, "shutting down")
                process.send_signal(signal.SIGTERM)
            *_, error, end = [line for line in response.iter_lines() if line]
            assert "the server is shutting down" in error
            assert end == "data: [DONE]"
            assert b" 503 " in other.recv(1000)
        assert ended(process, workers) == (0, f"ready: toy at {url}/v1\n")


def test_after_a_signal_new_requests_are_refused_and_running_ones_finish() -> None:
    """The running request is one whose body is not complete yet."""
    body = json.dumps({"prompt": [3, 4, 5], "max_tokens": 3, "temperature": 0})
    with server({}, shutdown_timeout_s=10 * LIMIT_S) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children()
        with request(url, body[:9], length=len(body)) as running:
            health(url)  # the request was taken before
            process.send_signal(signal.SIGTERM)
            until(url, "shutting down")
            for refused in (health(url), httpx.post(f"{url}/v1/completions", content=body, timeout=LIMIT_S)):
                assert refused.status_code == 503
                assert int(refused.headers["Retry-After"]) > 0
            running.sendall(body[9:].encode())
            answer = b""
            while part := running.recv(10_000):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"token_ids":[6,7,8]' in answer
        assert ended(process, workers) == (0, f"ready: toy at {url}/v1\n")


@pytest.mark.slow
def test_a_signal_to_all_processes_of_the_server_lets_running_requests_finish() -> None:
    """As a service manager sends it to a control group: workers first, which go on."""
    body = json.dumps({"prompt": [3, 4, 5], "max_tokens": 3, "temperature": 0})
    with server({}, num_stages=2, shutdown_timeout_s=10 * LIMIT_S) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children(recursive=True)
        with request(url, body[:9], length=len(body)) as running:
            health(url)  # the request was taken before
            for number in (signal.SIGTERM, signal.SIGINT):
                for worker in workers:
                    worker.send_signal(number)
            process.send_signal(signal.SIGTERM)
            until(url, "shutting down")
            running.sendall(body[9:].encode())
            answer = b""
            while part := running.recv(10_000):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert ended(process, workers) == (0, f"ready: toy at {url}/v1\n")


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_nothing_and_its_clients_are_disconnected() -> None:
    with server({0: "step_hangs"}, num_stages=2) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children(recursive=True)
        body = {"prompt": [3], "max_tokens": 60, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=LIMIT_S) as response:
            process.kill()
            with pytest.raises(httpx.TransportError):
                list(response.iter_lines())
        assert ended(process, workers)[0] == -signal.SIGKILL
        with pytest.raises(httpx.ConnectError):
            health(url)


@pytest.mark.slow
def test_a_server_that_is_stopped_and_continued_goes_on() -> None:
    with server({}) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGSTOP)
        with request(url, json.dumps({"prompt": [3, 4, 5], "max_tokens": 3, "temperature": 0})) as waiting:
            process.send_signal(signal.SIGCONT)
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert ended(process, workers)[0] == 0


@pytest.mark.slow
def test_a_request_that_does_not_come_to_its_end_does_not_keep_the_server_from_ending() -> None:
    with server({}) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children()
        with request(url, "{", length=9):
            health(url)
            process.send_signal(signal.SIGTERM)
            code, errors = ended(process, workers)
        assert (code, errors.count("Traceback")) == (0, 0), errors


@pytest.mark.slow
def test_without_file_descriptors_connections_wait_and_the_log_has_one_line() -> None:
    with server({}, num_files=48) as (process, url):
        until(url, "ready")
        workers = psutil.Process(process.pid).children()
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with contextlib.ExitStack() as connections:
            for _ in range(60):
                connections.enter_context(socket.create_connection(address, timeout=LIMIT_S))
            end = time.monotonic() + LIMIT_S
            while psutil.Process(process.pid).num_fds() < 48:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert process.stderr is not None
            lines = [process.stderr.readline(), process.stderr.readline()]
            time.sleep(2.5)  # asyncio tries again every second: the log stays as it is
        until(url, "ready")
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process, workers)
    assert lines == [
        f"ready: toy at {url}/v1\n",
        "warning: new connections wait: Too many open files (the limit is 48; `ulimit -n` raises it)\n",
    ]
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "a" * 70 + ".b", "a\0b", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_an_error(host: str) -> None:
    with pytest.raises(RunError, match=r"cannot listen on .*\n\nhint: .*--host"):
        listen(host, 0)


def test_an_address_in_use_is_an_error() -> None:
    with listen("127.0.0.1", 0) as bound, pytest.raises(RunError, match=r"cannot listen on 127\.0\.0\.1 port"):
        listen("127.0.0.1", bound.getsockname()[1])
