"""How the served model writes tool calls and reasoning: chosen by options or by its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from loadmaster.engine import Tokenizer
from loadmaster.server.parsers import (
    REASONING_FORMATS,
    TOOL_PARSERS,
    Beginning,
    Parser,
    Properties,
    ReasoningParser,
    beginning_of,
)
from loadmaster.server.settings import Settings

NONE: Final = "none"
"""The value of the options that turns parsing off."""

_TOOL_FORMATS: Final = (
    ("minimax_m2", ("<minimax:tool_call>", "<invoke")),
    ("glm45", ("<tool_call>", "<arg_key>")),
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("hermes", ("<tool_call>", "</tool_call>", "arguments")),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("llama3_json", ("<|python_tag|>", '"parameters"')),
)
"""Texts in a chat template that show the format of tool calls; the first format that has all of its texts is it."""

_REASONING_OF: Final = {"minimax_m2": "minimax_m2", "glm45": "glm45", "qwen3_coder": "qwen3", "hermes": "qwen3"}
"""The format of reasoning that goes with a format of tool calls, in templates with ``<think>``."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The names of the parsers, None for none. ``begins_with_reasoning``: an answer does, unless its prompt shows more."""

    tools: str | None = None
    reasoning: str | None = None
    begins_with_reasoning: bool = False

    def __str__(self) -> str:
        return f"tool calls {self.tools or NONE}, reasoning {self.reasoning or NONE}"

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that must reach a parser, in case they are special tokens."""
        tools = TOOL_PARSERS[self.tools].markers if self.tools else ()
        return (*tools, *(REASONING_FORMATS[self.reasoning].markers if self.reasoning else ()))

    def call_parser(self, tools: Sequence[Mapping[str, Any]]) -> Parser | None:
        """Return a parser for calls of ``tools`` in the model's own format; None if that is not known."""
        return TOOL_PARSERS[self.tools](_properties(tools)) if self.tools else None

    def beginning(self, prompt: str, may_think: bool = True) -> Beginning:
        """Return what an answer to the rendered ``prompt`` begins with. ``may_think``: reasoning was not turned off."""
        if self.reasoning is None:
            return "content"
        reasoning = REASONING_FORMATS[self.reasoning]
        otherwise: Beginning = "either"
        if self.begins_with_reasoning and reasoning.begins_with:
            otherwise = "reasoning" if may_think else "content"
        return beginning_of(prompt, reasoning, otherwise=otherwise)

    def parser(self, calls: Parser | None, beginning: Beginning) -> Parser | None:
        """Return a parser for one answer that begins so; None if its text is content. ``calls`` reads what is not reasoning."""
        if self.reasoning is None:
            return calls
        return ReasoningParser(REASONING_FORMATS[self.reasoning], calls, beginning)

    def constrained_parser(self, calls: Parser | None, beginning: Beginning) -> Parser | None:
        """Return a parser for one answer that a grammar constrains, from the end of the reasoning on if it begins with it.

        A marker of a tool call does not end reasoning here, since the grammar waits for `end_of_reasoning`.
        """
        if self.reasoning is None or beginning != "reasoning":
            return calls
        return ReasoningParser(replace(REASONING_FORMATS[self.reasoning], calls=()), calls, beginning)

    @property
    def end_of_reasoning(self) -> str | None:
        """The text that ends reasoning, None if there is none."""
        return REASONING_FORMATS[self.reasoning].end if self.reasoning else None


def output_format(tokenizer: Tokenizer, settings: Settings) -> OutputFormat:
    """Return the format by the settings; for what they leave open, by the tokenizer's chat template."""
    default = format_of(tokenizer.chat_template or "")
    given = settings.reasoning_parser
    return OutputFormat(
        _chosen(settings.tool_call_parser, default.tools),
        _chosen(given, default.reasoning),
        begins_with_reasoning=given not in (None, NONE),
    )


def format_of(template: str) -> OutputFormat:
    """Return the format that a chat template shows.

    >>> print(format_of("<tool_call>{{ arguments }}</tool_call> </think>"))
    tool calls hermes, reasoning qwen3
    """
    tools = next((name for name, texts in _TOOL_FORMATS if all(t in template for t in texts)), None)
    reasoning = None
    if "[THINK]" in template:
        reasoning = "mistral"
    elif "</think>" in template:
        reasoning = _REASONING_OF.get(tools or "", "deepseek_r1")
    return OutputFormat(tools, reasoning)


def _chosen(given: str | None, default: str | None) -> str | None:
    return default if given is None else None if given == NONE else given


def _properties(tools: Sequence[Mapping[str, Any]]) -> dict[str, Properties]:
    found = {}
    for tool in tools:
        properties = (tool["function"].get("parameters") or {}).get("properties")
        found[tool["function"]["name"]] = properties if isinstance(properties, Mapping) else {}
    return found
