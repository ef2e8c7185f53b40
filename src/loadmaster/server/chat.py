"""A request for a chat completion, ready for the engine: its conversation as a prompt, and how the answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from loadmaster.errors import RequestError
from loadmaster.server.message import Message, MessageOptions
from loadmaster.server.output_format import OutputFormat
from loadmaster.server.parsers import NamedCallParser, Parser, RequiredCallsParser
from loadmaster.server.protocol import ChatCompletionRequest, FieldError
from loadmaster.server.protocol.tools import calls_as_text, named_function
from loadmaster.server.service import Service
from loadmaster.workers import SamplingParams


@dataclass(frozen=True, slots=True)
class Chat:
    """The prompt of a chat. ``message`` makes an answer's message, None if its text is content.

    ``keep``: special tokens whose text the message must see. ``after``: the token that ends the reasoning that an answer
    begins with, if structured outputs wait for it.
    """

    prompt_token_ids: list[int]
    message: Callable[[], Message | None]
    keep: frozenset[int]
    after: tuple[int, ...] = ()

    def after_reasoning(self, params: SamplingParams) -> SamplingParams:
        """Return ``params`` with structured outputs that begin after the reasoning, as in vLLM."""
        wanted = params.structured_outputs
        if wanted is None or not self.after:
            return params
        return replace(params, structured_outputs=replace(wanted, after=self.after))


async def chat_of(service: Service, body: ChatCompletionRequest) -> Chat:
    """Return a checked request as a prompt, rendered with the model's chat template.

    Raises:
        RequestError: it is refused: the template or the model's output format does not have what it asks for, or the prompt
            is too long.
        CheckpointError: the chat template cannot be used.
    """
    output = service.output_format
    if body.may_call and not body.must_call and output.tools is None:
        raise FieldError(
            "tools are not supported with tool_choice=auto: the format of the model's tool calls is not known "
            "(--tool-call-parser); required, and the name of a function, are",
            "tools",
        )
    variables = await _variables(service, body)
    prompt = await _render(service, body, variables)
    wanted, field = body.wanted_output()
    may_think = all(variables.get(name) is not False for name in ("enable_thinking", "thinking"))
    options = MessageOptions(
        reasoning=body.include_reasoning,
        one_call=body.parallel_tool_calls is False,
        short_ids=output.tools == "mistral",
        calls_are_reason=not body.must_call or body.tool_choice == "required",
    )
    beginning = output.beginning(prompt, may_think)
    waits = wanted is not None and beginning == "reasoning"
    after = (await _end_of_reasoning(service, output, field),) if waits else ()

    def message() -> Message | None:
        make = output.parser if wanted is None else output.constrained_parser
        parser = make(_call_parser(body, output), beginning)
        return None if parser is None else Message(parser, options)

    keep = service.tokenizer.special_ids(output.markers) if body.may_call or output.reasoning else frozenset[int]()
    any_length = body.truncate_prompt_tokens is not None
    return Chat(await service.encode(prompt, body.add_special_tokens, any_length=any_length), message, keep, after)


def _call_parser(body: ChatCompletionRequest, output: OutputFormat) -> Parser | None:
    if not body.may_call or body.tools is None:
        return None
    if not body.must_call:
        return output.call_parser(body.tools)
    return (
        RequiredCallsParser() if body.tool_choice == "required" else NamedCallParser(named_function(body.tool_choice))
    )


async def _end_of_reasoning(service: Service, output: OutputFormat, field: str) -> int:
    end = output.end_of_reasoning
    assert end is not None
    token = await service.in_thread(lambda: service.tokenizer.token_id(end))
    if token is None:
        raise FieldError(
            f"{field} is not supported after reasoning: its end, {end}, is not one token of the model; turn reasoning off "
            "(chat_template_kwargs, --reasoning-parser)",
            field,
        )
    return token


async def chat_token_ids(service: Service, body: ChatCompletionRequest, *, any_length: bool) -> list[int]:
    """Return the token ids of a conversation; with ``any_length`` it may be longer than the model's length.

    Raises:
        RequestError, CheckpointError: as `chat_of` raises them.
    """
    prompt = await _render(service, body, await _variables(service, body))
    return await service.encode(prompt, body.add_special_tokens, any_length=any_length)


async def _render(service: Service, body: ChatCompletionRequest, variables: Mapping[str, Any]) -> str:
    if body.chat_template is not None:
        raise FieldError("chat_template is not supported: the model's own is used", "chat_template")
    if body.tools is not None and not await service.in_thread(service.tokenizer.takes_tools):
        raise FieldError("tools are not supported: the model's chat template does not use them", "tools")

    async def render(messages: list[dict[str, Any]]) -> str:
        return await service.render_chat(
            messages,
            add_generation_prompt=body.adds_generation_prompt,
            continue_final_message=body.continue_final_message,
            documents=body.documents,
            variables=variables,
            tools=body.tools,
        )

    messages = body.conversation()
    try:
        return await render(messages)
    except RequestError:
        if not any(m.get("tool_calls") for m in messages):
            raise
    return await render(calls_as_text(messages))  # most templates write arguments from an object, some expect JSON


async def _variables(service: Service, body: ChatCompletionRequest) -> Mapping[str, Any]:
    """Return the template's variables; ``reasoning_effort`` is one, and "none" turns ``enable_thinking`` off, as in vLLM."""
    variables = dict(body.chat_template_kwargs or {})
    if (effort := body.reasoning_effort) is None:
        return variables
    allowed = await service.in_thread(service.tokenizer.template_variables)
    wanted = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    if effort != "none" and not allowed & wanted.keys():
        raise FieldError(
            f"reasoning_effort={effort} is not supported: the model's chat template has no such setting",
            "reasoning_effort",
        )
    return {**{name: value for name, value in wanted.items() if name in allowed}, **variables}
