"""Fields that the server does not know: a header names them, or they are refused."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadmaster.server.ignored import header_value
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, serving

HEADER = "X-Loadmaster-Ignored-Fields"
COMPLETION = {"prompt": "a", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "u"}], "max_tokens": 2}


def ask(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=200)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT), ("/v1/responses", {"input": "u"})],
)
def test_a_header_names_unknown_fields(url: str, path: str, body: dict[str, Any], stream: bool) -> None:
    answer = ask(url, path, {**body, "foo": 1, "top-k": 3, "user": "known", "stream": stream})
    assert answer.status_code == 200
    assert answer.headers[HEADER] == "foo, top-k"
    assert HEADER not in ask(url, path, {**body, "stream": stream}).headers


def test_unknown_fields_inside_others_are_named_with_their_path(url: str) -> None:
    parts = [{"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}]
    body = {
        "messages": [{"role": "user", "content": parts, "anything": "is the template's"}],
        "stream": True,
        "stream_options": {"include_usage": True, "more": 1},
    }
    answer = ask(url, "/v1/chat/completions", body)
    assert answer.headers[HEADER] == "stream_options.more, messages[0].content[0].cache_control"


def test_other_routes_name_them_too(url: str) -> None:
    assert ask(url, "/tokenize", {"prompt": "a", "foo": 1}).headers[HEADER] == "foo"
    assert ask(url, "/detokenize", {"tokens": [97], "foo": 1}).headers[HEADER] == "foo"


def test_an_error_has_the_header_as_well(url: str) -> None:
    answer = ask(url, "/v1/completions", {**COMPLETION, "foo": 1, "temperature": -1})
    assert answer.status_code == 400
    assert answer.headers[HEADER] == "foo"


def test_no_name_can_end_the_header(url: str) -> None:
    hostile = {"a\r\nSet-Cookie: b=c": 1, "é\0": 2, "": 3, "x" * 5000: 4}
    answer = ask(url, "/v1/completions", {**COMPLETION, **hostile})
    assert answer.status_code == 200
    assert answer.headers[HEADER] == f"a%0D%0ASet-Cookie%3A%20b%3Dc, %C3%A9%00, , {'x' * 64}"
    assert "Set-Cookie" not in answer.headers


def test_the_header_is_bounded() -> None:
    value = header_value(["\n" * 64] * 1000)
    assert len(value) < 20 * 66 + 20
    assert value.endswith(", and 980 more")


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/v1/completions", {**COMPLETION, "foo": 1, "bar": None}, "foo, bar"),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
        ("/v1/responses", {"input": "u", "foo": 1, "stream": True}, "foo"),
        ("/tokenize", {"prompt": "a", "foo": 1}, "foo"),
    ],
)
def test_a_strict_server_refuses_them(model_path: Path, path: str, body: dict[str, Any], names: str) -> None:
    with serving(FakeEngine(b"hey"), model_path, Settings(strict=True)) as url:
        answer = ask(url, path, body)
        known = {name: value for name, value in body.items() if name not in ("foo", "bar", "stream_options")}
        assert ask(url, path, known).status_code == 200
    assert answer.status_code == 400
    error = json.loads(answer.text)["error"]
    assert error["message"] == f"unknown fields: {names} (the server runs with --strict)"
    assert error["param"] == names.partition(",")[0]
