"""The OpenAPI schema, against what the server does."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from loadmaster.server.openapi import ANSWERS, operations
from loadmaster.server.page.reference import reference
from loadmaster.server.protocol.answers import ChatAnswer, CompletionAnswer, ErrorAnswer

HTTP = httpx.Client(timeout=200)


@pytest.fixture(scope="module")
def schema(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = HTTP.get(f"{url}/openapi.json").json()
    return answer


def test_every_reference_is_resolved(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert "$defs" not in text
    names = re.findall(r'"#/components/schemas/(\w+)"', text)
    assert "StreamOptions" in names
    assert set(names) <= set(schema["components"]["schemas"])


def test_routes_have_bodies_answers_and_errors(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        answers = operation["responses"]
        assert "422" not in answers
        if path.startswith("/v1"):
            assert {"401", "500", "503"} <= set(answers), path
        if path.startswith("/v1") and method == "post":
            assert operation["requestBody"]["content"]["application/json"]["schema"]["properties"], path
            assert {"400", "413", "415"} <= set(answers), path
        if path in ANSWERS or path == "/status":
            assert answers["200"]["content"]["application/json"]["schema"]
    assert {"/health", "/status", "/v1/models", "/v1/completions", "/v1/chat/completions"} <= set(schema["paths"])
    assert set(schema["paths"]) >= set(ANSWERS)
    assert "text/event-stream" in schema["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]


def test_routes_that_need_a_key_say_so(schema: dict[str, Any]) -> None:
    keyed = {path for path, _, operation in operations(schema) if "security" in operation}
    assert {"/v1/models", "/v1/responses", "/tokenize", "/detokenize"} <= keyed
    assert keyed.isdisjoint({"/", "/health", "/live", "/load", "/metrics", "/ping", "/status", "/version"})


def test_answers_are_as_described(url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    CompletionAnswer.model_validate(HTTP.post(f"{url}/v1/completions", json={"prompt": "hi"}).json())
    ChatAnswer.model_validate(HTTP.post(f"{url}/v1/chat/completions", json=chat).json())
    ErrorAnswer.model_validate(HTTP.post(f"{url}/v1/completions", json={"prompt": 7}).json())
    for path in ("/health", "/v1/models"):
        ANSWERS[path].model_validate(HTTP.get(url + path).json())


def test_the_reference_names_every_route_and_field_and_escapes_them(schema: dict[str, Any]) -> None:
    html = reference(schema)
    for path, _, operation in operations(schema):
        assert path in html
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        for name in body.get("properties", {}):
            assert f"<code>{name}</code>" in html
    hostile = "<script>alert(1)</script>"
    field = {"type": hostile, "description": hostile, "default": hostile}
    body = {"content": {"application/json": {"schema": {"properties": {hostile: field}}}}}
    paths = {f"/{hostile}": {"get": {"description": hostile, "requestBody": body}}}
    text = reference({"info": {"title": hostile, "version": hostile}, "paths": paths})
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    assert "script" not in tags
