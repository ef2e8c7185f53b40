"""``POST /v1/responses``, for text. A request is turned into a chat request, which the same code checks and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from loadmaster.errors import clip
from loadmaster.server.protocol.chat import ChatCompletionRequest
from loadmaster.server.protocol.fields import FieldError, Int64, Number, RequestModel
from loadmaster.server.protocol.inert import INERT, OF_STREAM_OPTIONS

LOGPROBS: Final = "message.output_text.logprobs"
"""What ``include`` asks for log probabilities with."""

TEXT_PARTS: Final = ("input_text", "output_text", "text")
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


class TextConfig(RequestModel):
    """``text``: the form of the answer."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: dict[str, Any] | None = None


class ResponsesStreamOptions(RequestModel):
    """``stream_options``."""

    inert = OF_STREAM_OPTIONS


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
        **{name: reason for name, reason in INERT.items() if not name.startswith(("spaces", "return_token"))},
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
            kind = (self.text.format or {"type": "text"}).get("type")
            if kind != "text":
                raise FieldError(f"text.format of type {clip(repr(kind))} is not supported, only text is", "text")

    def chat(self) -> ChatCompletionRequest:
        """Return the chat request with the same meaning.

        Raises:
            FieldError: the input has something else than messages of text.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        if self.truncation == "auto":
            given["truncate_prompt_tokens"] = -1
        if self.wants_logprobs:
            given |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return ChatCompletionRequest.model_validate(
            {"messages": list(self._messages()), "max_completion_tokens": self.max_output_tokens, **given}
        )

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        for i, item in enumerate(self.input):
            if item.get("type", "message") != "message" or not isinstance(item.get("role"), str):
                raise FieldError(
                    f"input[{i}]: an item of type {clip(repr(item.get('type')))} is not supported, only messages with a role "
                    "are",
                    "input",
                )
            yield {"role": item["role"], "content": _text(item.get("content"), i)}


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
