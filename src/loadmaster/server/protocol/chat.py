"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from loadmaster.errors import clip
from loadmaster.server.protocol.fields import FieldError, Int64
from loadmaster.server.protocol.generation import GenerationRequest
from loadmaster.server.protocol.structured import checked
from loadmaster.server.protocol.tools import calls_as_objects, check_tools, forced_calls
from loadmaster.workers import StructuredOutputs
from loadmaster.workers.sampling_params import MAX_LOGPROBS


class ChatCompletionRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    echo: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @property
    def num_top(self) -> int | None:
        """``top_logprobs``, if ``logprobs`` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def length_field(self) -> tuple[str, int | None]:
        """``max_completion_tokens``, the newer name, or ``max_tokens``."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().length_field

    @property
    def adds_generation_prompt(self) -> bool:
        """Whether the prompt ends with the beginning of the model's message; by default unless the last one is continued."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @property
    def answer_role(self) -> str:
        """The role of the answer's message: that of the last message if it is continued."""
        return "assistant" if self.adds_generation_prompt else str(self.messages[-1].get("role"))

    @property
    def echoed(self) -> str | None:
        """What ``echo`` puts before the answer: the last message's text if it has the answer's role."""
        last = self.messages[-1]
        if not self.echo or last.get("role") != self.answer_role:
            return None
        return _text(last.get("content"), len(self.messages) - 1)

    @property
    def may_call(self) -> bool:
        """Whether the answer may call tools."""
        return self.tools is not None and self.tool_choice != "none"

    @property
    def must_call(self) -> bool:
        """Whether the answer has to call tools."""
        return self.may_call and self.tool_choice not in (None, "auto")

    def wanted_output(self) -> tuple[StructuredOutputs | None, str]:
        """Return what the answer has to look like: tool calls if ``tool_choice`` forces them.

        Raises:
            FieldError: it is not valid, or both ``tool_choice`` and another field say it; names the field.
        """
        wanted, field = super().wanted_output()
        if not self.must_call:
            return wanted, field
        if wanted is not None:
            raise FieldError(f"{field} is not allowed with a tool_choice that forces tool calls", field)
        assert self.tools is not None and self.tool_choice is not None
        schema = forced_calls(self.tools, self.tool_choice, one_call=self.parallel_tool_calls is False)
        return checked({"json": schema}, "tools"), "tools"

    def check(self, max_num_seqs: int) -> None:
        """Refuse what `GenerationRequest.check` refuses, ``top_logprobs`` that is out of range or not allowed, and tools."""
        super().check(max_num_seqs)
        if self.tools is not None:
            check_tools(self.tools, self.tool_choice)
        elif self.tool_choice not in (None, "none"):
            raise FieldError("tool_choice is only allowed with tools", "tool_choice")
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs is only allowed with logprobs=true", "top_logprobs")
        if not 0 <= (self.top_logprobs or 0) <= MAX_LOGPROBS:
            raise FieldError(f"top_logprobs is {self.top_logprobs}, expected 0 to {MAX_LOGPROBS}", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise FieldError(
                "continue_final_message is not allowed with add_generation_prompt=true", "continue_final_message"
            )

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages as chat templates expect them: content is plain text, arguments of tool calls are objects.

        ``reasoning`` and its older name ``reasoning_content`` are accepted, and templates get both.

        Raises:
            FieldError: a message has no role, or content that is not text, or tool calls or reasoning of the wrong type.
        """
        return [_message(m, i) for i, m in enumerate(self.messages)]


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    found = {**message, "role": _role(message, number), "content": _text(message.get("content"), number)}
    if (calls := found.pop("tool_calls", None)) and found["role"] == "assistant":
        found["tool_calls"] = calls_as_objects(calls, number)
    names = ("reasoning", "reasoning_content")
    for name in names:
        if not isinstance(found.get(name), str | None):
            raise FieldError(f"messages[{number}].{name} is not a string", "messages")
    reasoning = next((found[name] for name in names if found.get(name) is not None), None)
    for name in names:
        found.pop(name, None)
    return found if reasoning is None else {**found, **dict.fromkeys(names, reasoning)}


def _role(message: Mapping[str, Any], number: int) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise FieldError(f"messages[{number}] has no role", "messages")
    return role


def _text(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise FieldError(
                f"messages[{number}]: content of type {clip(repr(kind))} is not supported, only text is", "messages"
            )
        parts.append(part["text"])
    return "\n".join(parts)
