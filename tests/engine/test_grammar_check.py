"""Structured outputs are compiled in a process with limits: what is valid, and what a stranger may send."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loadmaster.engine.grammar_check import GrammarCheck
from loadmaster.errors import RequestError, RunError
from loadmaster.workers import StructuredOutputs
from loadmaster.workers.structured_outputs import MAX_CHARACTERS


@pytest.fixture(scope="module")
def check() -> Iterator[GrammarCheck]:
    check = GrammarCheck()
    yield check
    check.close()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"json": {"type": "integer", "multipleOf": 999983}}, "needs more than 2 s or 512 MiB to be compiled"),
        ({"json": {"$ref": "#"}}, "no answer matches it"),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "no answer matches it"),
        ({"json": {"$ref": "#/nowhere"}}, "does not exist"),
        ({"json": {"$ref": "http://127.0.0.1:9/schema"}}, "does not fetch resources"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "does not fetch resources"),
        ({"json": {"type": "elephant"}}, "Invalid type: elephant"),
        ({"json": {"not": {}}}, r'Unimplemented keys: \["not"\]'),
        ({"json": {"enum": []}}, "Unsatisfiable schema"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": r"[^\s\S]"}, "no answer matches it"),
        ({"regex": "(" * 5000 + "a" + ")" * 5000}, "nest limit|invalid regex"),
        ({"grammar": "garbage (("}, "Expected token"),
        ({"grammar": "start: " + "(" * 2000 + '"a"' + ")" * 2000}, "too deeply nested"),
        ({"grammar": 'root ::= "a" other'}, "Rule 'other' not found"),
        ({"choice": [f"word {i}" for i in range(16_000)]}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_stranger_sends_is_refused_or_compiled(
    wanted: dict[str, Any], reason: str | None, check: GrammarCheck
) -> None:
    if reason is None:
        assert check.compiled(StructuredOutputs(**wanted)).text
        return
    with pytest.raises(RequestError, match=f"structured_outputs cannot be used: .*{reason}"):
        check.compiled(StructuredOutputs(**wanted))
    assert check.compiled(StructuredOutputs(regex="a")).text, "the next is checked as before"


def test_expressions_that_take_exponential_time_elsewhere_are_compiled(check: GrammarCheck) -> None:
    for regex in ("(a+)+b", "(.*)*x(.*)*y", ".*a.{200}", "((a{1,100}){1,100}){1,100}"):
        assert check.compiled(StructuredOutputs(regex=regex)).text


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "is empty, expected one of json, regex, choice, grammar, json_object"),
        ({"regex": "a", "choice": ["a"]}, "has regex and choice, expected one of"),
        ({"json": "[1"}, "has a schema that is not JSON"),
        ({"json": "[" * 100_000}, "has a schema that is nested too deep"),
        ({"json": '{"a": NaN}'}, "NaN is not a number of JSON"),
        ({"json": "[]"}, "expected a JSON object"),
        ({"json": '{"a": "\\ud800"}'}, "lone surrogate"),
        ({"json": '{"a":' * 70 + "{}" + "}" * 70}, "nested more than 64 deep"),
        ({"json": {"description": "x" * 2**20}}, f"at most {MAX_CHARACTERS:,}"),
        ({"regex": "x" * 2**20}, f"at most {MAX_CHARACTERS:,}"),
        ({"choice": ["x" * 1000] * 1000}, f"at most {MAX_CHARACTERS:,}"),
        ({"choice": []}, "has an empty list of choices"),
        ({"choice": ["a", 1]}, "expected a list of texts"),
        ({"grammar": " "}, "has an empty grammar"),
        ({"regex": "a\0"}, "has a NUL character"),
        ({"json_object": False}, "has json_object=False"),
        ({"regex": "a", "disable_any_whitespace": 1}, "expected true or false"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values_that_are_not_valid_are_refused_at_once(wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=f"^structured_outputs .*{reason}"):
        StructuredOutputs(**wanted)


def test_a_process_that_has_ended_is_started_again(check: GrammarCheck) -> None:
    check.compiled(StructuredOutputs(regex="b"))
    ended = check._child
    assert ended is not None
    ended.kill()
    while not ended.has_ended:
        time.sleep(0.01)
    assert check.compiled(StructuredOutputs(regex="c")).text


def test_a_signal_to_all_processes_does_not_end_the_check(check: GrammarCheck) -> None:
    check.compiled(StructuredOutputs(regex="d"))
    child = check._child
    assert child is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(child.pid, number)
    assert check.compiled(StructuredOutputs(regex="e")).text
    assert check._child is child


def test_nothing_is_checked_after_close() -> None:
    check = GrammarCheck()
    check.close()
    with pytest.raises(RunError, match="shutting down"):
        check.compiled(StructuredOutputs(regex="a"))
    check.close()
