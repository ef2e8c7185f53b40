"""``response_format`` and ``structured_outputs``, with the real client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from loadmaster.workers import StructuredOutputs
from tests.server.fake import FakeEngine, client_of, serving

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
CHAT: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "u"}]}
TEXT: dict[str, Any] = {"model": "toy", "prompt": "a"}


def seen(engine: FakeEngine) -> object:
    return engine.seen[-1][1].structured_outputs


@pytest.mark.parametrize(
    ("response_format", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, StructuredOutputs(json_object=True)),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            StructuredOutputs(json=json.dumps(SCHEMA)),
        ),
    ],
    ids=["text", "json_object", "json_schema"],
)
def test_response_format_says_what_the_answer_looks_like(
    response_format: Any, wanted: object, client: openai.OpenAI, engine: FakeEngine
) -> None:
    client.chat.completions.create(**CHAT, response_format=response_format)
    assert seen(engine) == wanted
    client.completions.create(**TEXT, extra_body={"response_format": response_format})
    assert seen(engine) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"json": SCHEMA, "disable_any_whitespace": True},
        {"json": json.dumps(SCHEMA), "whitespace_pattern": " ?", "disable_additional_properties": True},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_structured_outputs_has_vllms_fields(fields: Any, client: openai.OpenAI, engine: FakeEngine) -> None:
    for make, request in ((client.chat.completions.create, CHAT), (client.completions.create, TEXT)):
        make(**request, n=2, extra_body={"structured_outputs": fields})
        assert seen(engine) == StructuredOutputs(**fields)


def test_options_of_structured_outputs_go_with_response_format(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(
        **CHAT,
        response_format={"type": "json_object"},
        extra_body={"structured_outputs": {"disable_any_whitespace": True}},
    )
    assert seen(engine) == StructuredOutputs(json_object=True, disable_any_whitespace=True)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "structured_outputs is empty"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "has regex and choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs", "regex"),
        ({"response_format": {"type": "yaml"}}, "response_format", "type"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "has no json_schema.schema"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            "has regex and json_object",
        ),
        ({"guided_json": {"type": "object"}}, "guided_json", "guided_json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_valid_is_refused_by_name(fields: Any, param: str, message: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(**CHAT, extra_body=fields)
    assert str(refused.value.param).startswith(param)


def test_a_model_without_tokenizer_refuses_them(tmp_path: Path) -> None:
    with serving(FakeEngine(), tmp_path) as url, client_of(url) as client:
        with pytest.raises(openai.BadRequestError, match="need a tokenizer") as refused:
            client.completions.create(model="toy", prompt=[1], extra_body={"structured_outputs": {"regex": "a"}})
        assert refused.value.param == "structured_outputs"
