"""What a hostile client can send: after each of it the server answers a good request, and nothing is logged as a bug."""

import contextlib
import json
import logging
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, eventually, serving

LIMIT_S = 200
GOOD = b'{"prompt": "hi", "max_tokens": 3}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
TIMEOUT_S = 1.0
"""The client timeout of the server that is slow clients' target."""


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine, model_path: Path) -> Iterator[str]:
    with serving(engine, model_path, Settings(client_timeout_s=TIMEOUT_S)) as url:
        yield url


@pytest.fixture(autouse=True)
def still_well(url: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    answer = httpx.post(
        f"{url}/v1/completions", content=GOOD, headers={"Content-Type": "application/json"}, timeout=LIMIT_S
    )
    assert answer.json()["choices"][0]["text"] == "Hel"
    eventually(lambda: engine.running == 0)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=LIMIT_S)


def received(connection: socket.socket) -> bytes:
    """Return all that arrives until the server closes the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def exchange(url: str, *parts: bytes) -> bytes:
    with connect(url) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        return received(connection)


def with_length(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return HEAD + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("declares", [True, False], ids=["declared", "chunked"])
def test_a_body_of_100_megabytes_is_refused_and_not_kept(declares: bool, url: str) -> None:
    part = b"x" * 2**20
    head = b"Content-Length: 104857600\r\n\r\n" if declares else b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = part if declares else b"%x\r\n%s\r\n" % (len(part), part)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = exchange(url, HEAD + b"Connection: close\r\n" + head, *[chunk] * 100, b"" if declares else b"0\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 * 1024, "KiB: it is not in memory"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "hi", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"",
        b"\xff\xfe{\x00}\x00",
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "hi", "user": "\\udfff"}',
        b'{"prompt": {"a": 1}}',
        b'{"prompt": [["a"]]}',
        b'{"prompt": [1.5]}',
        b'{"prompt": [1e400]}',
        b'{"prompt": [99999999999999999999999]}',
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "temperature": Infinity}',
        b'{"prompt": "hi", "temperature": 1e999}',
        b'{"prompt": "hi", "temperature": "hot"}',
        b'{"prompt": "hi", "max_tokens": 1e30}',
        b'{"prompt": "hi", "max_tokens": -5}',
        b'{"prompt": "hi", "n": 1000000000}',
        b'{"prompt": "hi", "seed": 1e400}',
        b'{"prompt": "hi", "logit_bias": {"a": 1}}',
        b'{"prompt": "hi", "logit_bias": {"1": 1e308}}',
        b'{"prompt": "hi", "stop": [[]]}',
        b'{"prompt": "hi", "stream": "yes"}',
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_a_body_that_makes_no_sense_is_refused(body: bytes, url: str) -> None:
    answer = exchange(url, with_length(body, b"Connection: close"))
    assert answer.startswith(b"HTTP/1.1 400"), answer[:300]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        with_length(GOOD, b"Transfer-Encoding: chunked"),
        with_length(GOOD, b"Content-Length: 5"),
        HEAD + b"Content-Length: 5, 6\r\n\r\nhello",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Content-Length: 0x5\r\n\r\nhello",
        HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n",
        HEAD + b"Content-Length : 5\r\n\r\nhello",
        HEAD + b"Bad Name: 5\r\n\r\n",
        HEAD + b"X: a\x00b\r\n\r\n",
        HEAD + b"Host: y\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
        b"GET " + b"/" + b"a" * 600_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"X-Bomb: " + b"a" * 200_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(20_000)) + b"\r\n",
    ],
    ids=lambda request: request.removeprefix(HEAD)[:36].decode(errors="replace"),
)
def test_what_is_no_sound_request_is_refused_and_its_connection_closed(request_bytes: bytes, url: str) -> None:
    """Behind each is a second request, as one who smuggles requests past a proxy would send it."""
    answer = exchange(url, request_bytes + b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408", b"HTTP/1.1 505")), answer[:300]
    assert answer.count(b"HTTP/1.1 ") <= 1, "the second request is not answered"


def test_many_headers_are_refused(url: str) -> None:
    headers = [b"X-%d: 1" % i for i in range(300)]
    answer = exchange(url, with_length(GOOD, b"Connection: close", *headers))
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "target",
    [b"/v1/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"//", b"/v1/models/%00", b"http://evil/v1/x", b"*"],
)
def test_odd_paths_lead_nowhere(target: bytes, url: str) -> None:
    answer = exchange(url, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.1 307")), answer[:300]
    assert b"root:" not in answer


def test_a_folded_header_does_not_hide_another(url: str) -> None:
    """RFC 9112, 5.2: a server refuses a header of several lines, or reads the line break as a space."""
    answer = exchange(
        url, HEAD + b"X: a\r\n Content-Length: 5\r\nConnection: close\r\nContent-Length: 33\r\n\r\n" + GOOD
    )
    assert b"Hel" in answer or answer.startswith(b"HTTP/1.1 400")


def test_requests_in_a_pipeline_are_answered_in_order(url: str) -> None:
    bodies = [b'{"prompt": "hi", "max_tokens": %d}' % n for n in (1, 2, 3)]
    answer = exchange(url, b"".join(map(with_length, bodies)) + b"GET /health HTTP/1.0\r\n\r\n")
    found = [answer.index(b'"text":"%s"' % text) for text in (b"H", b"He", b"Hel")]
    assert found == sorted(found)
    assert answer.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /v1/mod",
        HEAD + b"Content-Len",
        with_length(GOOD)[:-5],
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
    ],
    ids=["silent", "line", "headers", "body", "chunk"],
)
def test_a_client_that_stops_sending_is_disconnected(begin: bytes, url: str) -> None:
    answer = exchange(url, begin)
    assert answer == b"" if begin == b"" else answer.startswith(b"HTTP/1.1 408"), answer


def test_a_client_that_sends_a_byte_at_a_time_is_disconnected(url: str) -> None:
    """Each byte of the head arrives in time, and the head as a whole does not."""
    with connect(url) as connection:
        ended = threading.Event()
        sent = 0

        def drip() -> None:
            nonlocal sent
            with contextlib.suppress(OSError):
                for byte in HEAD + b"X-Long: " + b"a" * 2000:
                    connection.sendall(bytes([byte]))
                    sent += 1
                    if ended.wait(TIMEOUT_S / 10):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = received(connection)
        ended.set()
        thread.join()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_nothing_is_disconnected_and_its_request_cancelled(model_path: Path) -> None:
    engine = FakeEngine(b"x" * 2_000)
    engine.limits.__dict__["max_model_len"] = 10**6
    body = b'{"prompt": "hi", "stream": true, "n": 2, "max_tokens": 2000}'
    settings = Settings(client_timeout_s=TIMEOUT_S)
    with serving(engine, model_path, settings, send_buffer=4096) as url, connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(with_length(body))
        eventually(lambda: engine.most_running == 2)
        eventually(lambda: engine.running == 0)
        with pytest.raises(ConnectionError):
            while True:
                if not connection.recv(65536):
                    raise ConnectionError("closed")


@pytest.mark.parametrize("how", ["half closed", "reset", "half closed in the middle"])
def test_a_client_that_ends_its_connection_frees_its_request(how: str, model_path: Path) -> None:
    engine = FakeEngine(endless=True)
    request = with_length(b'{"prompt": "hi"}')
    with serving(engine, model_path) as url:
        with connect(url) as connection:
            connection.sendall(request[:-3] if how == "half closed in the middle" else request)
            if how == "reset":
                eventually(lambda: engine.running == 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.shutdown(socket.SHUT_WR)
        eventually(lambda: engine.running == 0)
        assert httpx.get(f"{url}/health", timeout=LIMIT_S).status_code == 200


def test_500_connections_at_once_do_not_keep_a_request_waiting(url: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2000 if hard == resource.RLIM_INFINITY else min(hard, 2000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with contextlib.ExitStack() as connections:
            for number in range(500 if wanted >= 1500 else wanted // 3):
                connection = connections.enter_context(connect(url))
                connection.sendall([b"", b"GET /v1/mod", HEAD, with_length(GOOD)[:-5]][number % 4])
            answer = httpx.post(f"{url}/v1/completions", json=json.loads(GOOD), timeout=LIMIT_S)
            assert answer.status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
