"""``POST /v1/responses``, for text. A request is turned into a chat request, which the same code checks and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from loadmaster.errors import clip
from loadmaster.server.protocol.chat import ChatCompletionRequest
from loadmaster.server.protocol.fields import FieldError, Int64, Number, RequestModel
from loadmaster.server.protocol.inert import INERT, OF_STREAM_OPTIONS
from loadmaster.workers import StructuredOutputs

LOGPROBS: Final = "message.output_text.logprobs"
"""What ``include`` asks for log probabilities with."""

TEXT_PARTS: Final = ("input_text", "output_text", "reasoning_text", "text")
"""The types of content that are text."""

SHARED: Final = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "chat_template_kwargs",
    "request_id",
)
"""The fields that chat requests have with the same meaning."""


class TextFormat(BaseModel):
    """``text.format``: what the answer has to look like. A schema is always followed exactly, whether ``strict`` or not."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def values(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class TextConfig(RequestModel):
    """``text``: the form of the answer."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponsesStreamOptions(RequestModel):
    """``stream_options``."""

    inert = OF_STREAM_OPTIONS


class ResponseChatRequest(ChatCompletionRequest):
    """The chat request that a request for a response becomes."""

    def wanted_output(self) -> tuple[StructuredOutputs | None, str]:
        """Return what `ChatCompletionRequest.wanted_output` returns, with the field ``text``.

        Raises:
            FieldError: it is not valid.
        """
        try:
            return super().wanted_output()[0], "text"
        except FieldError as error:
            raise FieldError(error.message.replace("response_format", "text.format", 1), "text") from None


class ResponsesRequest(RequestModel):
    """``POST /v1/responses``."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "cache_salt": (),
        "context_management": (),
        "conversation": (),
        "ec_transfer_params": (),
        "enable_response_messages": (False,),
        "image": (),
        "include_reasoning": (True,),
        "kv_transfer_params": (),
        "max_tool_calls": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "moderation": (),
        "previous_input_messages": ([],),
        "previous_response_id": (),
        "priority": (0,),
        "prompt": (),
        "reasoning": ({},),
        "store": (False,),
        "structured_outputs": (),
        "tool_choice": ("auto", "none"),
        "tools": ([],),
        "vllm_xargs": ({},),
        "watermarking": (False,),
    }
    inert: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in INERT.items() if not name.startswith("return_token")},
        "parallel_tool_calls": "there are no tools",
    }

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True, min_length=1)]
    instructions: str | None = None
    include: list[str] | None = None
    max_output_tokens: Int64 | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    temperature: Number | None = None
    text: TextConfig | None = None
    top_logprobs: Int64 | None = None
    top_p: Number | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_k: Int64 | None = None
    min_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    seed: Int64 | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Int64], Field(fail_fast=True)] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    request_id: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are asked for."""
        return LOGPROBS in (self.include or ())

    def check(self) -> None:
        """Refuse what only this route knows. `chat` returns a request that is checked in its turn.

        Raises:
            FieldError: names the field.
        """
        if (self.model_extra or {}).get("store"):
            raise FieldError("store=true is not supported: responses are not stored", "store")
        if (self.model_extra or {}).get("previous_response_id") is not None:
            raise FieldError(
                "previous_response_id is not supported: responses are not stored; send the conversation as input",
                "previous_response_id",
            )
        self.refuse_unsupported()
        unknown = next((name for name in self.include or () if name != LOGPROBS), None)
        if unknown is not None:
            raise FieldError(f"include has {clip(repr(unknown))}, only {LOGPROBS} is supported", "include")
        if self.text is not None:
            self.text.refuse_unsupported()
            wanted = self.text.format
            if wanted is not None and wanted.type == "json_schema" and None in (wanted.name, wanted.schema_):
                raise FieldError("text.format of type json_schema has no name or no schema", "text")

    @property
    def format_values(self) -> dict[str, Any]:
        """``text.format`` as it was given, or the default."""
        return self.text.format.values() if self.text is not None and self.text.format is not None else {"type": "text"}

    def chat(self) -> ResponseChatRequest:
        """Return the chat request with the same meaning.

        Raises:
            FieldError: the input has something else than messages of text.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        if self.truncation == "auto":
            given["truncate_prompt_tokens"] = -1
        if self.wants_logprobs:
            given |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        wanted = self.format_values
        if wanted["type"] == "json_schema":
            named = {name: value for name, value in wanted.items() if name != "type"}
            given["response_format"] = {"type": "json_schema", "json_schema": named}
        elif wanted["type"] == "json_object":
            given["response_format"] = {"type": "json_object"}
        return ResponseChatRequest.model_validate(
            {"messages": list(self._messages()), "max_completion_tokens": self.max_output_tokens, **given}
        )

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        reasoning: str | None = None
        for i, item in enumerate(self.input):
            if item.get("type") == "reasoning":
                reasoning = _text(item.get("content"), i)
                continue
            if item.get("type", "message") != "message" or not isinstance(item.get("role"), str):
                raise FieldError(
                    f"input[{i}]: an item of type {clip(repr(item.get('type')))} is not supported, only messages with a role "
                    "and reasoning are",
                    "input",
                )
            thought = {"reasoning": reasoning} if reasoning is not None and item["role"] == "assistant" else {}
            reasoning = None
            yield {"role": item["role"], "content": _text(item.get("content"), i), **thought}


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise FieldError(
                f"input[{number}]: content of type {clip(repr(kind))} is not supported, only text is", "input"
            )
        texts.append(part["text"])
    return "\n".join(texts)
