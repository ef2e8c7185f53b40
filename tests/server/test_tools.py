"""Tool calls and reasoning through the real client. The engine answers with given bytes; the template writes what it gets."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loadmaster.engine import Limits
from loadmaster.server.settings import Settings
from loadmaster.synth.tokenizer import write_tokenizer
from tests.server.fake import EOS, FakeEngine, serving
from tests.server.parsers.outputs import CODE, JSON_CODE, TOOLS

TEMPLATE = (
    "{% if tools %}T{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}R{{ m.reasoning_content }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}C{{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{# <tool_call> arguments </tool_call> <think> </think> #}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
USER: Any = [{"role": "user", "content": "u"}]
CALL = f'<tool_call>\n{{"name": "write_file", "arguments": {{"path": "a.py", "text": "{JSON_CODE}"}}}}\n</tool_call>'
ANSWER = f'<think>\nHm.\n</think>\n\nI write.\n{CALL}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'


def with_template(path: Path, template: str) -> Path:
    path.mkdir(exist_ok=True)
    write_tokenizer(path, {"eos_token_id": EOS})
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return path


def engine_of(answer: str) -> FakeEngine:
    return FakeEngine(answer.encode(), limits=Limits(2_000_000, 262, (EOS,), {}))


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return engine_of(ANSWER)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tmp_path_factory.mktemp("tools"), TEMPLATE)


@pytest.fixture(scope="module")
def url(engine: FakeEngine, path: Path) -> Iterator[str]:
    with serving(engine, path) as url:
        yield url


@pytest.fixture(autouse=True)
def answer(engine: FakeEngine) -> None:
    engine.answer = ANSWER.encode()


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "toy", "messages": USER, "tools": TOOLS, **fields})


def post(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": USER, **fields}, timeout=200)


def prompt_of(engine: FakeEngine) -> str:
    return bytes(t for t in engine.seen[-1][0] if t < 256).decode()


def test_an_answer_has_content_reasoning_and_calls(client: openai.OpenAI) -> None:
    [choice] = ask(client).choices
    message = choice.message
    assert (choice.finish_reason, message.content, message.reasoning) == ("tool_calls", "\n\nI write.", "\nHm.\n")
    assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls] == [
        ("function", "write_file", {"path": "a.py", "text": CODE}),
        ("function", "now", {}),
    ]
    assert len({c.id for c in message.tool_calls}) == 2


def joined(parts: list[Any]) -> tuple[str, str, list[list[str]], str | None]:
    content, reasoning, calls, reason = "", "", list[list[str]](), None
    for part in parts:
        [choice] = part.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning", None) or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            if call.function.name is not None:
                assert (call.index, call.type) == (len(calls), "function")
                calls.append([call.id, call.function.name, ""])
            calls[call.index][2] += call.function.arguments
    return content, reasoning, calls, reason


def test_a_streamed_answer_has_the_same_in_deltas(client: openai.OpenAI) -> None:
    parts = list(ask(client, stream=True))
    content, reasoning, calls, reason = joined(parts)
    assert (content, reasoning, reason) == ("\n\nI write.", "\nHm.\n", "tool_calls")
    assert [(name, json.loads(text)) for _, name, text in calls] == [
        ("write_file", {"path": "a.py", "text": CODE}), ("now", {})
    ]  # fmt: skip
    assert len({i for i, _, _ in calls}) == 2 and all(i for i, _, _ in calls)
    assert sum(bool(p.choices[0].delta.tool_calls) for p in parts) > len(JSON_CODE) // 2, "arguments come in pieces"


def test_the_asynchronous_client_gets_the_same(url: str) -> None:
    async def both() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=200) as client:
            fields: Any = {"model": "toy", "messages": USER, "tools": TOOLS}
            whole = await client.chat.completions.create(**fields)
            return whole, [p async for p in await client.chat.completions.create(**fields, stream=True)]

    whole, parts = asyncio.run(both())
    [message] = [c.message for c in whole.choices]
    content, reasoning, calls, _ = joined(parts)
    assert (content, reasoning) == (message.content, message.reasoning)
    assert [c[1:] for c in calls] == [[c.function.name, c.function.arguments] for c in message.tool_calls]


def test_the_clients_helper_that_joins_a_stream_understands_it(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="toy", messages=USER, tools=TOOLS) as stream:  # type: ignore[arg-type]
        [choice] = stream.get_final_completion().choices
    assert [c.function.name for c in choice.message.tool_calls or []] == ["write_file", "now"]
    assert choice.finish_reason == "tool_calls"


def test_each_of_several_answers_is_parsed_for_itself(client: openai.OpenAI) -> None:
    done = ask(client, n=2, logprobs=True, extra_body={"return_token_ids": True})
    assert [len(c.message.tool_calls) for c in done.choices] == [2, 2]
    for choice in done.choices:
        assert bytes(choice.token_ids[:-1]) == ANSWER.encode(), "token ids are those of the whole output"
        assert len(choice.logprobs.content) == len(ANSWER.encode()) + 1


def test_one_call_at_most_without_parallel_tool_calls(client: openai.OpenAI) -> None:
    assert [c.function.name for c in ask(client, parallel_tool_calls=False).choices[0].message.tool_calls] == [
        "write_file"
    ]
    assert len(joined(list(ask(client, parallel_tool_calls=False, stream=True)))[2]) == 1


def test_without_tools_or_with_none_to_be_called_the_text_is_content(client: openai.OpenAI, engine: FakeEngine) -> None:
    for fields in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
        [choice] = ask(client, **fields).choices
        assert choice.message.content.endswith(
            f"I write.\n{CALL}\n<tool_call>\n" + '{"name": "now", "arguments": {}}\n</tool_call>'
        )
        assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert prompt_of(engine).startswith("T"), "the template gets the tools, as in vLLM"


def test_reasoning_is_left_out_on_request(client: openai.OpenAI) -> None:
    fields = {"extra_body": {"include_reasoning": False}}
    assert not hasattr(ask(client, **fields).choices[0].message, "reasoning")
    assert joined(list(ask(client, **fields, stream=True)))[:2] == ("\n\nI write.", "")


def test_an_answer_cut_off_by_its_length_says_so(client: openai.OpenAI) -> None:
    [choice] = ask(client, max_tokens=ANSWER.index("path")).choices
    assert (choice.finish_reason, choice.message.tool_calls[0].function.name) == ("length", "write_file")


def test_a_call_that_cannot_be_parsed_is_content(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.answer = b"a <tool_call>{oops}</tool_call> b"
    [choice] = ask(client).choices
    assert (choice.message.content, choice.finish_reason) == (engine.answer.decode(), "stop")


def test_the_template_gets_tools_calls_as_objects_and_reasoning(client: openai.OpenAI, engine: FakeEngine) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"a": [1]}'}}
    broken = {"id": "2", "type": "function", "function": {"name": "now", "arguments": "{oops"}}
    for name in ("reasoning", "reasoning_content"):
        messages = [
            *USER,
            {"role": "assistant", "content": None, name: "why", "tool_calls": [call, broken]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "noon"}]},
        ]
        ask(client, messages=messages)
        prompt = prompt_of(engine)
        assert json.loads(prompt[1 : prompt.rindex("]u") + 1]) == TOOLS
        assert prompt.endswith('uRwhyC{"a": [1]}C{}<|tool|>noon')


def test_a_template_that_expects_arguments_as_text_gets_text(tmp_path: Path) -> None:
    template = (
        "{{ tools }}{% for m in messages %}{% for c in m.tool_calls or [] %}{{ 'C' + c.function.arguments }}"
        "{% endfor %}{% endfor %}"
    )
    engine = engine_of("x")
    call = {"type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    with serving(engine, with_template(tmp_path, template)) as url:
        assert post(url, messages=[*USER, {"role": "assistant", "tool_calls": [call]}]).status_code == 200
    assert prompt_of(engine) == 'NoneC{"a": 1}'


@pytest.mark.parametrize(
    ("fields", "prompt_end", "content", "reasoning"),
    [
        ({}, "u", "b", "a"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<think></think>", "<think>a</think>b", None),
        ({"reasoning_effort": "none"}, "<think></think>", "<think>a</think>b", None),
        ({"reasoning_effort": "low"}, "u", "b", "a"),
    ],
)
def test_thinking_is_turned_off_in_the_prompt(
    url: str, engine: FakeEngine, fields: dict[str, Any], prompt_end: str, content: str, reasoning: str | None
) -> None:
    engine.answer = b"<think>a</think>b"
    message = post(url, **fields).json()["choices"][0]["message"]
    assert prompt_of(engine).endswith(prompt_end)
    assert (message["content"], message.get("reasoning")) == (content, reasoning)


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"tools": []}, "tools", "empty"),
        ({"tools": {}}, "tools", "list"),
        ({"tools": [1]}, "tools", "tools[0].type"),
        ({"tools": [FUNCTION, {"type": "custom"}]}, "tools", "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools", "tools[0].function is missing"),
        ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools", "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 257}}]}, "tools", "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools", ".parameters is not"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": 1}}]},
            "tools",
            ".description is not",
        ),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed with tools"),
        ({"tools": [FUNCTION], "tool_choice": "maybe"}, "tool_choice", "expected"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice", "expected"),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "function 'g', and the tools are f",
        ),
        ({"tools": [FUNCTION], "tool_choice": 5}, "tool_choice", "valid"),
        ({"tools": [FUNCTION], "parallel_tool_calls": "yes"}, "parallel_tool_calls", "boolean"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "low"),
        ({"include_reasoning": "no"}, "include_reasoning", "boolean"),
        ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "messages", "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]}, "messages", "tool_calls[0]"),
        ({"messages": [{"role": "assistant", "reasoning": 5}]}, "messages", "messages[0].reasoning"),
    ],
)
def test_malformed_input_is_refused_by_name(url: str, fields: dict[str, Any], param: str, part: str) -> None:
    response = post(url, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert part in error["message"]


def test_a_template_without_tools_refuses_them(model_path: Path) -> None:
    with serving(engine_of("x"), model_path, Settings(tool_call_parser="hermes")) as url:
        error = post(url, tools=TOOLS).json()["error"]
        assert (error["param"], error["message"]) == (
            "tools", "tools are not supported: the model's chat template does not use them"
        )  # fmt: skip
        refused = post(url, reasoning_effort="high").json()["error"]
        assert (refused["param"], "no such setting" in refused["message"]) == ("reasoning_effort", True)


def test_tools_without_a_parser_are_refused_unless_none_may_be_called(path: Path) -> None:
    with serving(engine_of("x"), path, Settings(tool_call_parser="none", reasoning_parser="none")) as url:
        error = post(url, tools=TOOLS).json()["error"]
        assert error["param"] == "tools" and "--tool-call-parser" in error["message"]
        assert post(url, tools=TOOLS, tool_choice="none").json()["choices"][0]["message"]["content"] == "x"


def test_an_answer_begins_with_reasoning_if_a_parser_is_named_that_says_so(path: Path) -> None:
    with serving(engine_of("a</think>b"), path, Settings(reasoning_parser="deepseek_r1")) as url:
        message = post(url).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("a", "b")


def test_ten_thousand_tools_with_senseless_schemas_are_answered(url: str, engine: FakeEngine) -> None:
    engine.answer = b'<tool_call>{"name": "f9", "arguments": {}}</tool_call>'
    many = [{"type": "function", "function": {"name": f"f{i}", "parameters": {"properties": 5}}} for i in range(10_000)]
    assert post(url, tools=many).json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f9"


def test_a_conversation_is_tokenized_with_its_tools(url: str, client: openai.OpenAI, engine: FakeEngine) -> None:
    ask(client)
    body = {"messages": USER, "tools": TOOLS}
    assert httpx.post(f"{url}/tokenize", json=body, timeout=200).json()["tokens"] == engine.seen[-1][0]
    refused = httpx.post(f"{url}/tokenize", json={**body, "tools": [5]}, timeout=200)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
