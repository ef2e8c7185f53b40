"""Tool calls that ``tool_choice`` forces: how outputs are read, with a fake engine, and what a tiny model answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.server.settings import Settings
from loadmaster.workers import StructuredOutputs
from tests.conftest import Tiny
from tests.server.fake import FakeEngine, client_of, serving
from tests.server.test_tools import USER, engine_of, joined, with_template

TEMPLATE = "{{ 'T' if tools else '' }}{% for m in messages %}{{ m.content }}{% endfor %}"
THINKING = f"{TEMPLATE}{{% if enable_thinking is not false %}}<think>{{% endif %}}{{# </think> #}}"
PLACE = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/where"}, "hours": {"type": "integer", "minimum": 0, "maximum": 23}},
    "required": ["where", "hours"],
    "additionalProperties": False,
    "$defs": {"where": {"enum": ["Bern", "Rome"]}},
}
ROUTE = {**PLACE, "properties": {"where": {"$ref": "#/$defs/where"}}, "required": ["where"]}
ROUTE["$defs"] = {"where": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}}
SCHEMAS: dict[str, Any] = {"weather": PLACE, "route": ROUTE}
TOOLS: Any = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in SCHEMAS.items()]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CALLS = '[{"name": "weather", "parameters": {"where": "Bern", "hours": 3}}, {"name": "route", "parameters": {"where": [true]}}]'


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return engine_of(CALLS)


@pytest.fixture(scope="module")
def client(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = with_template(tmp_path_factory.mktemp("forced"), TEMPLATE)
    with serving(engine, path) as url, client_of(url) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "toy", "messages": USER, "tools": TOOLS, "tool_choice": "required", **fields}
    return client.chat.completions.create(**given)


def seen(engine: FakeEngine) -> StructuredOutputs:
    wanted = engine.seen[-1][1].structured_outputs
    assert isinstance(wanted, StructuredOutputs)
    return wanted


def both(client: openai.OpenAI, **fields: Any) -> tuple[str, list[tuple[str, str]], str | None]:
    """Return content, calls and finish reason, which have to be the same whole and streamed."""
    [choice] = ask(client, **fields).choices
    content, _, calls, reason = joined(list(ask(client, **fields, stream=True)))
    whole = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
    assert (choice.message.content or "", whole) == (content, [(c[1], c[2]) for c in calls])
    assert choice.finish_reason == reason
    return content, whole, reason


def test_required_calls_are_an_array_that_becomes_calls(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = CALLS.encode()
    content, calls, reason = both(client)
    assert (content, reason) == ("", "tool_calls")
    assert [(name, json.loads(text)) for name, text in calls] == [
        ("weather", {"where": "Bern", "hours": 3}), ("route", {"where": [True]})
    ]  # fmt: skip
    schema = json.loads(str(seen(engine).json))
    jsonschema.validate(json.loads(CALLS), schema)
    for wrong in ([], [{"name": "x", "parameters": {}}], [{"name": "route", "parameters": {"where": "Bern"}}]):
        assert list(jsonschema.Draft202012Validator(schema).iter_errors(wrong))


def test_a_named_function_gets_the_whole_output_as_arguments(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = b'{"where": "Rome", "hours": 1}'
    assert both(client, tool_choice=NAMED) == ("", [("weather", engine.answer.decode())], "stop")
    assert json.loads(str(seen(engine).json)) == PLACE


def test_without_parallel_tool_calls_the_array_has_one_call(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = CALLS.encode()
    assert len(both(client, parallel_tool_calls=False)[1]) == 1
    assert json.loads(str(seen(engine).json))["maxItems"] == 1


def test_a_function_without_parameters_gets_an_object(client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(client, tools=[{"type": "function", "function": {"name": "weather"}}], tool_choice=NAMED)
    assert json.loads(str(seen(engine).json)) == {"type": "object"}


@pytest.mark.parametrize("length", [0, 20, 50, 90], ids=str)
def test_calls_that_are_cut_off_say_so(client: openai.OpenAI, engine: FakeEngine, length: int) -> None:
    engine.answer = CALLS.encode()
    content, calls, reason = both(client, max_tokens=length + 1)
    assert reason == "length"
    assert (content if not calls else calls[0][0]) in (CALLS[: length + 1], "weather")


def test_output_that_is_no_array_of_calls_is_content(client: openai.OpenAI, engine: FakeEngine) -> None:
    for text in ("hello", "[5]", '[{"x": 1}] y', " [ "):
        engine.answer = text.encode()
        content, calls, reason = both(client)
        assert (content.strip(), calls, reason) == (text.strip(), [], "stop")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"tool_choice": {"type": "function", "function": {"name": "sing"}}},
            "tool_choice",
            "'sing', .* weather, route",
        ),
        ({"tools": openai.NOT_GIVEN}, "tool_choice", "only allowed with tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not allowed with a tool_choice"),
        (
            {"extra_body": {"structured_outputs": {"regex": "a"}}},
            "structured_outputs",
            "not allowed with a tool_choice",
        ),
    ],
    ids=["unknown function", "no tools", "response_format", "structured_outputs"],
)
def test_what_cannot_be_forced_is_refused(client: openai.OpenAI, fields: Any, param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        ask(client, **fields)
    assert refused.value.param == param


def thinking(path: Path, template: str = THINKING) -> Path:
    """Write a tokenizer with a token ``</think>``, number 261, and a template that opens the reasoning."""
    with_template(path, template)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (path / name).read_text(encoding="utf-8")
        (path / name).write_text(text.replace('"<|system|>"', '"</think>"'), encoding="utf-8")
    return path


def test_the_grammar_begins_after_the_reasoning(tmp_path: Path) -> None:
    engine = engine_of(f"hm <tool_call></think>{CALLS}")
    with serving(engine, thinking(tmp_path)) as url, client_of(url) as client:
        message = ask(client).choices[0].message
        assert (message.reasoning, [c.function.name for c in message.tool_calls]) == (
            "hm <tool_call>", ["weather", "route"]
        )  # fmt: skip
        assert seen(engine).after == (261,)
        ask(client, tools=openai.NOT_GIVEN, tool_choice=openai.NOT_GIVEN, response_format={"type": "json_object"})
        assert seen(engine) == StructuredOutputs(json_object=True, after=(261,))
        engine.answer = CALLS.encode()
        message = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
        assert (len(message.tool_calls), seen(engine).after) == (2, ())


def test_reasoning_whose_end_is_no_token_is_refused(tmp_path: Path) -> None:
    with serving(engine_of("x"), with_template(tmp_path, THINKING)) as url, client_of(url) as client:
        with pytest.raises(openai.BadRequestError, match="</think>, is not one token of the model") as refused:
            ask(client)
        assert refused.value.param == "tools"


@pytest.fixture(scope="module")
def random_model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A model with random weights that reasons unless it is told not to."""
    import shutil

    path = thinking(Path(shutil.copytree(tiny("llama"), tmp_path_factory.mktemp("random") / "model")))
    plan = prove(build_plan(open_checkpoint(path), ParallelLayout(), dtype="F32")).require_proven()
    capacity = Capacity(block_size=4)
    with (
        Engine(plan, max_model_len=512, capacity=capacity) as engine,
        serving(engine, path, Settings(tool_call_parser="hermes")) as url,
        client_of(url) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("reasons", [False, True], ids=["at once", "after reasoning"])
def test_a_model_with_random_weights_calls_with_valid_arguments(
    random_model: openai.OpenAI, choice: Any, reasons: bool
) -> None:
    # white space is improbable, and so is the end before the end of the reasoning (261)
    bias = {"9": -100, "10": -100, "13": -100, "32": -100, "257": -50, "261": 3, "93": 4}
    fields: dict[str, Any] = {"tool_choice": choice, "temperature": 1, "max_tokens": 450, "logit_bias": bias}
    if not reasons:
        fields["extra_body"] = {"chat_template_kwargs": {"enable_thinking": False}}
    reasoned = []
    for seed in range(3):
        [one] = ask(random_model, seed=seed, parallel_tool_calls=False, **fields).choices
        content, reasoning, calls, reason = joined(
            list(ask(random_model, seed=seed, parallel_tool_calls=False, **fields, stream=True))
        )
        assert reason == one.finish_reason == ("tool_calls" if choice == "required" else "stop")
        [call] = one.message.tool_calls
        assert [c[1:] for c in calls] == [[call.function.name, call.function.arguments]]
        assert (content, reasoning) == ("", getattr(one.message, "reasoning", ""))
        reasoned.append(bool(reasoning))
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        assert choice == "required" or call.function.name == "weather"
    assert any(reasoned) == reasons
