"""Every request leaves exactly one record, however it ends, and every answer has its request's id."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest

from loadmaster.engine import Engine, Tokenizer
from loadmaster.errors import RunError
from loadmaster.server.app import build_app
from loadmaster.server.records import NUM_RECENT, Record, Records
from loadmaster.server.service import Service
from tests.server.fake import FakeEngine, eventually, serving_app

BODY = {"prompt": "ab", "max_tokens": 3}


def service_over(engine: FakeEngine, model_path: Path, *, ready: bool = True) -> Service:
    service = Service(cast(Engine, engine), Tokenizer(model_path), ["toy", "alias"])
    if ready:
        engine.ready.set()
        service.load()
    return service


@contextmanager
def recorded(engine: FakeEngine, model_path: Path, *, ready: bool = True) -> Iterator[tuple[str, Service]]:
    service = service_over(engine, model_path, ready=ready)
    with serving_app(service) as url:
        yield url, service


def only(service: Service) -> Record:
    """Return the record of the only request so far, when it has ended."""
    eventually(lambda: len(service.records.recent) == 1)
    assert service.records.running == []
    return service.records.recent[0]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answered_request_is_recorded_with_its_tokens_and_times(model_path: Path, stream: bool) -> None:
    with recorded(FakeEngine(delay_s=0.01), model_path) as (url, service):
        httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream}, headers={"X-Request-Id": "mine"})
        record = only(service)
    assert (record.id, record.client, record.method, record.route) == ("mine", "127.0.0.1", "POST", "/v1/completions")
    assert (record.status, record.outcome, record.finish_reasons, record.model) == (200, "finished", ["length"], "toy")
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (2, 0, 3)
    assert record.first_token_s and record.per_token_s and record.total_s
    assert record.first_token_s + 2 * record.per_token_s <= record.total_s
    json.dumps(record.as_json())


def test_a_prompt_with_several_choices_is_counted_once(model_path: Path) -> None:
    with recorded(FakeEngine(), model_path) as (url, service):
        answer = httpx.post(f"{url}/v1/completions", json={**BODY, "prompt": ["ab", "abc"], "n": 2}).json()
        record = only(service)
    assert record.prompt_tokens == answer["usage"]["prompt_tokens"] == 5
    assert record.output_tokens == answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("path", "body", "status", "route"),
    [
        ("/v1/completions", {"prompt": "ab", "max_tokens": -1}, 400, "/v1/completions"),
        ("/v1/completions", {"prompt": "ab", "model": "other"}, 404, "/v1/completions"),
        ("/nothing", {}, 404, None),
        ("/health", {}, 405, "/health"),
    ],
)
def test_a_refused_request_is_recorded(model_path: Path, path: str, body: object, status: int, route: str) -> None:
    with recorded(FakeEngine(), model_path) as (url, service):
        response = httpx.post(url + path, json=body)
        record = only(service)
    assert (record.outcome, record.status, record.output_tokens) == ("refused", status, 0)
    assert (response.status_code, response.headers["X-Request-Id"]) == (status, record.id)
    assert record.route in (route, None)  # a method that is not allowed may leave no route


def test_a_request_before_the_model_is_loaded_is_recorded(model_path: Path) -> None:
    with recorded(FakeEngine(state="loading"), model_path, ready=False) as (url, service):
        response = httpx.post(f"{url}/v1/completions", json=BODY)
        record = only(service)
    assert (record.outcome, record.status, response.headers["X-Request-Id"]) == ("refused", 503, record.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_is_recorded(model_path: Path, stream: bool) -> None:
    engine = FakeEngine(fails_after=1, error=RunError("rank 0 is gone"))
    with recorded(engine, model_path) as (url, service):
        response = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream})
        record = only(service)
    assert (record.outcome, record.status) == ("failed", 200 if stream else 500)
    assert response.headers["X-Request-Id"] == record.id


def test_a_bug_is_recorded_and_its_answer_has_an_id(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    with recorded(engine, model_path) as (url, service):
        monkeypatch.setattr(engine, "check", lambda *_: 1 / 0)
        response = httpx.post(f"{url}/v1/completions", json=BODY)
        record = only(service)
    assert (record.outcome, response.status_code) == ("failed", 500)
    assert response.headers["X-Request-Id"] == record.id


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_recorded(model_path: Path, stream: bool) -> None:
    with recorded(FakeEngine(endless=True), model_path) as (url, service):
        body = json.dumps({"prompt": "ab", "max_tokens": 50, "ignore_eos": True, "stream": stream})
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            eventually(lambda: any(r.output_tokens for r in service.records.running))
        record = only(service)
    assert (record.outcome, record.finish_reasons) == ("cancelled", [])


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_a_shutdown_ends_is_recorded(model_path: Path, stream: bool) -> None:
    service = service_over(FakeEngine(endless=True), model_path)

    async def shut_down_while_answering() -> None:
        transport = httpx.ASGITransport(build_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"prompt": "ab", "max_tokens": 50, "ignore_eos": True, "stream": stream}
            request = asyncio.create_task(client.post("/v1/completions", json=body))
            while not any(r.output_tokens for r in service.records.running):
                await asyncio.sleep(0.01)
            service.stopping.set()
            await request

    asyncio.run(shut_down_while_answering())
    record = only(service)
    assert (record.outcome, record.status) == ("shut down", 200 if stream else 503)


@pytest.mark.parametrize("proposed", ["", "two words", "x" * 129, "caf\u00e9", "tab\there"])
def test_an_unusable_id_is_replaced(model_path: Path, proposed: str) -> None:
    with recorded(FakeEngine(), model_path) as (url, service):
        response = httpx.get(f"{url}/health", headers={"X-Request-Id": proposed.encode()})
        assert len(only(service).id) == 32
    assert response.headers.get_list("X-Request-Id") == [service.records.recent[0].id]


@pytest.mark.parametrize(("header", "expected"), [({"X-Request-Id": "header"}, "header"), ({}, "body")])
def test_the_id_of_the_body_counts_unless_the_header_has_one(
    model_path: Path, header: dict[str, str], expected: str
) -> None:
    with recorded(FakeEngine(), model_path) as (url, service):
        response = httpx.post(f"{url}/v1/completions", json={**BODY, "request_id": "body"}, headers=header)
        assert only(service).id == response.headers["X-Request-Id"] == expected
    assert response.json()["id"] == f"cmpl-{expected}"


def test_only_the_last_requests_are_kept() -> None:
    records = Records()
    for i in range(NUM_RECENT + 2):
        record = Record(str(i), "", "GET", "/")
        records.begin(record)
        assert records.running == [record]
        records.end(record, "finished")
    assert [r.id for r in records.recent] == [str(i) for i in range(2, NUM_RECENT + 2)]
