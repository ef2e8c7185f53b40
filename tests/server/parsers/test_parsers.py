"""Every parser against what vLLM's own made of the same outputs (tools/parser_goldens.py), cut at random places; then hostile
outputs, which vLLM was not asked about."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadmaster.server.parsers import (
    REASONING_FORMATS,
    TOOL_PARSERS,
    CallBegun,
    Content,
    Parsed,
    Parser,
    ReasoningParser,
)
from tests.server.parsers.outputs import REASONING_OUTPUTS, TOOL_OUTPUTS, TOOLS

VLLM = json.loads((Path(__file__).parent / "vllm.json").read_text(encoding="utf-8"))
PROPERTIES = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in TOOLS}
TOOL_CASES = [(p, n) for p, texts in TOOL_OUTPUTS.items() for n in texts]
REASONING_CASES = [(p, n) for p, texts in REASONING_OUTPUTS.items() for n in texts]


def tool_parser(name: str) -> Parser:
    return TOOL_PARSERS[name.partition(" ")[0]](PROPERTIES)


def reasoning_parser(name: str) -> Parser:
    begins = "reasoning" if REASONING_FORMATS[name].begins_with else "either"
    return ReasoningParser(REASONING_FORMATS[name], None, begins)  # type: ignore[arg-type]


def parse(parser: Parser, *parts: str) -> Parsed:
    events = [event for part in parts for event in parser.add(part)]
    return Parsed.of(events + parser.finish())


def cuts(text: str, seed: int, count: int = 10) -> Iterator[list[str]]:
    """Yield a text in single characters, and then cut at random places."""
    yield list(text)
    chance = random.Random(seed)
    for _ in range(count):
        at = sorted(chance.sample(range(len(text) + 1), chance.randrange(min(len(text), 40) + 1)))
        yield [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize(("name", "case"), TOOL_CASES)
def test_tool_calls_are_those_that_vllm_finds(name: str, case: str) -> None:
    ours, theirs = parse(tool_parser(name), TOOL_OUTPUTS[name][case]), VLLM["tools"][name][case]
    assert [(n, arguments(a)) for n, a in ours.calls] == [(n, arguments(a)) for n, a in theirs["calls"]]
    strip = str.strip if theirs["calls"] else str  # white space beside tool calls
    assert strip(ours.content) == strip(theirs["content"])


@pytest.mark.parametrize(("name", "case"), REASONING_CASES)
def test_reasoning_is_what_vllm_finds(name: str, case: str) -> None:
    ours, theirs = parse(reasoning_parser(name), REASONING_OUTPUTS[name][case]), VLLM["reasoning"][name][case]
    assert (ours.reasoning, ours.content) == (theirs["reasoning"], theirs["content"])


@pytest.mark.parametrize(("name", "case"), TOOL_CASES)
def test_tool_calls_do_not_depend_on_where_the_output_was_cut(name: str, case: str) -> None:
    text = TOOL_OUTPUTS[name][case]
    whole = parse(tool_parser(name), text)
    for seed, parts in enumerate(cuts(text, len(text))):
        assert parse(tool_parser(name), *parts) == whole, (seed, parts)


@pytest.mark.parametrize(("name", "case"), REASONING_CASES)
def test_reasoning_does_not_depend_on_where_the_output_was_cut(name: str, case: str) -> None:
    text = REASONING_OUTPUTS[name][case]
    whole = parse(reasoning_parser(name), text)
    for parts in cuts(text, len(text)):
        assert parse(reasoning_parser(name), *parts) == whole, parts


@pytest.mark.parametrize("name", TOOL_OUTPUTS)
def test_an_output_that_breaks_off_anywhere_or_is_mixed_up_is_parsed_alike_however_it_was_cut(name: str) -> None:
    chance = random.Random(name)
    texts = list(TOOL_OUTPUTS[name].values())
    for _ in range(60):
        pieces = []
        for _ in range(chance.randrange(1, 4)):
            text = chance.choice(texts)
            begin = chance.choice((0, chance.randrange(len(text))))
            pieces.append(text[begin : chance.randrange(begin, len(text) + 1)])
        mixed = "".join(pieces)
        whole = parse(tool_parser(name), mixed)
        for parts in cuts(mixed, 1, 3):
            assert parse(tool_parser(name), *parts) == whole, parts


@pytest.mark.parametrize("name", TOOL_OUTPUTS)
def test_text_without_markers_arrives_with_the_token_that_brings_it(name: str) -> None:
    parser = tool_parser(name)
    assert parser.add("Hello,") == [Content("Hello,")]
    assert parser.add(" world") == [Content(" world")]


@pytest.mark.parametrize("name", [n for n in TOOL_OUTPUTS if n != "mistral of version 11"])
def test_the_name_and_the_text_of_a_long_argument_arrive_before_the_call_ends(name: str) -> None:
    if (text := TOOL_OUTPUTS[name].get("code") or TOOL_OUTPUTS[name].get("tagged")) is None:
        text = TOOL_OUTPUTS[name]["array"]
    parser = tool_parser(name)
    seen: list[Any] = []
    num_parts_at = {}
    for i, character in enumerate(text):
        seen += parser.add(character)
        num_parts_at[i] = sum(not isinstance(e, Content) for e in seen)
    assert any(isinstance(e, CallBegun) for e in seen)
    assert num_parts_at[len(text) * 2 // 3] > 10


def test_a_call_reported_before_it_broke_off_has_the_arguments_so_far() -> None:
    for name, text, written in (
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1', '{"a": 1'),
        ("glm45", "<tool_call>write_file<arg_key>text</arg_key><arg_value>ab", '{"text": "ab'),
        ("qwen3_coder", "<tool_call><function=write_file><parameter=text>\nab", '{"text": "ab'),
        ("mistral", '[TOOL_CALLS]now[ARGS]{"a": [', '{"a": ['),
        ("deepseek_v31", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a', '{"a'),
    ):
        parsed = parse(tool_parser(name), text)
        assert ([a for _, a in parsed.calls], parsed.content) == ([written], ""), name


def test_a_marker_inside_an_argument_does_not_end_the_call() -> None:
    text = '<tool_call>{"name": "write_file", "arguments": {"text": "</tool_call>"}}</tool_call>'
    assert parse(tool_parser("hermes"), text).calls == [["write_file", '{"text": "</tool_call>"}']]


def test_arguments_that_are_a_string_of_json_are_that_json() -> None:
    text = '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parse(tool_parser("hermes"), text).calls == [["now", '{"a": 1}']]


def test_a_call_of_a_function_that_is_not_among_the_tools_is_reported() -> None:
    assert parse(
        tool_parser("glm45"), "<tool_call>other<arg_key>k</arg_key><arg_value>5</arg_value></tool_call>"
    ).calls == [["other", '{"k": "5"}']]


def test_output_begins_with_reasoning_only_where_that_is_certain() -> None:
    qwen = REASONING_FORMATS["qwen3"]
    assert parse(ReasoningParser(qwen, None, "either"), "Hi") == Parsed("Hi")
    assert parse(ReasoningParser(qwen, None, "either"), " \n<think>a</think>b") == Parsed("b", "a")
    assert parse(ReasoningParser(qwen, None, "content"), "<think>a") == Parsed("<think>a")
    assert parse(ReasoningParser(qwen, None, "reasoning"), "a") == Parsed("", "a")


def test_reasoning_and_tool_calls_are_parsed_together() -> None:
    text = f"<think>Hm.\n</think>\n\nOk.\n{TOOL_OUTPUTS['hermes']['two']}"
    for parts in cuts(text, 3):
        parsed = parse(ReasoningParser(REASONING_FORMATS["qwen3"], tool_parser("hermes"), "either"), *parts)
        assert (parsed.content, parsed.reasoning, [n for n, _ in parsed.calls]) == (
            "\n\nOk.", "Hm.\n", ["get_weather", "now"]
        )  # fmt: skip


@pytest.mark.parametrize("name", TOOL_OUTPUTS)
def test_long_hostile_output_is_parsed_to_its_end(name: str) -> None:
    """Markers, brackets, quotes, white space, half a marker, again and again: all of it arrives, and soon."""
    begin = list(TOOL_OUTPUTS[name].values())[1]
    begin = begin[: len(begin) // 2]
    for unit in ("<", "[", "{", '{"', "\\", " ", "<tool_cal", TOOL_PARSERS[name.partition(" ")[0]].markers[0]):
        parser, size = tool_parser(name), 20_000
        text = begin + unit * (size // len(unit))
        events = [e for at in range(0, len(text), 7) for e in parser.add(text[at : at + 7])] + parser.finish()
        assert sum(len(getattr(e, "text", "")) for e in events) <= 2 * len(text) + 100


@pytest.mark.parametrize("name", TOOL_OUTPUTS)
def test_deep_nesting_and_huge_numbers_do_no_harm(name: str) -> None:
    for value in ("[" * 100_000, "9" * 100_000, "1e999", "NaN", '{"a":' * 5000, "\ud800", "\x00"):
        for text in TOOL_OUTPUTS[name].values():
            parse(tool_parser(name), text.replace("3", value))


def test_a_schema_whose_alternatives_double_at_each_level_is_looked_at_in_part() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(60):
        schema = {"anyOf": [schema, schema]}
    text = "<tool_call>f<arg_key>a</arg_key><arg_value>5</arg_value></tool_call>"
    assert parse(TOOL_PARSERS["glm45"]({"f": {"a": schema}}), text).calls == [["f", '{"a": 5}']]
