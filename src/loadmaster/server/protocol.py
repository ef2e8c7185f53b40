"""The fields of requests: the OpenAI API's, and vLLM's additional ones.

A known field that is not supported is refused by name, unless its value is the one that has no effect. Unknown fields
are ignored, as in vLLM. Types are strict: neither true nor "5" is a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from loadmaster.errors import RequestError, clip
from loadmaster.workers import SamplingParams

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (),
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "use_beam_search": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_embeds": (),
    "audio": (),
}
"""Fields that are not supported, and the values, in addition to null, that have no effect and are accepted."""


MAX_PROMPTS: Final = 1024
"""The most prompts in one request. They are answered one after another."""

MAX_STOPS: Final = 64
"""The most stop strings in one request, and the most stop tokens. Each is checked after every token."""

MAX_STOP_CHARACTERS: Final = 1024
"""The longest stop string."""

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class FieldError(RequestError):
    """A request is refused because of one field, ``param``, if it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields that both kinds of requests share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    max_tokens: Int64 | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Int64 | None = None
    seed: Int64 | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Int64], Field(fail_fast=True)] = Field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Refuse fields that are not supported, and values that are out of range.

        Raises:
            FieldError: names the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and not any(_same(value, n) for n in NEUTRAL[name]):
                supported = f"; only {NEUTRAL[name][0]!r} is" if NEUTRAL[name] and name in ("n", "best_of") else ""
                raise FieldError(f"{name}={clip(repr(value))} is not supported{supported}", name)
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options is only allowed with stream=true", "stream_options")
        for name, values in (("stop", self.stop_strings), ("stop_token_ids", self.stop_token_ids)):
            if len(values) > MAX_STOPS:
                raise FieldError(f"{name} has {len(values):,} entries, expected at most {MAX_STOPS}", name)
        longest = max(map(len, self.stop_strings), default=0)
        if longest > MAX_STOP_CHARACTERS:
            raise FieldError(
                f"a stop string has {longest:,} characters, expected at most {MAX_STOP_CHARACTERS}", "stop"
            )

    def params(self, defaults: Mapping[str, float], default_max_tokens: int | None) -> SamplingParams:
        """Return the sampling parameters: the request's, else the model's ``defaults``, else the API's."""

        def value_of(name: str, api_default: float) -> float:
            value = getattr(self, name)
            return defaults.get(name, api_default) if value is None else value

        return SamplingParams(
            max_tokens=self.max_tokens if self.max_tokens is not None else default_max_tokens,
            temperature=value_of("temperature", 1.0),
            top_p=value_of("top_p", 1.0),
            top_k=int(value_of("top_k", 0)),
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
        )


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``. The answer has one choice for each prompt."""

    prompt: (
        str
        | Annotated[list[Int64], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[Int64], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    max_tokens: Int64 | None = 16
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each a string or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    def check(self) -> None:
        """Refuse what `GenerationRequest.check` refuses, an empty prompt, and too many prompts."""
        super().check()
        if self.prompt == []:
            raise FieldError("prompt is empty", "prompt")
        if len(self.prompts) > MAX_PROMPTS:
            raise FieldError(f"prompt has {len(self.prompts):,} prompts, expected at most {MAX_PROMPTS:,}", "prompt")


class ChatCompletionRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: Int64 | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages with their content as plain text, as chat templates expect it.

        Raises:
            FieldError: a message has no role, or content that is not text.
        """
        return [{**m, "role": _role(m, i), "content": _text(m.get("content"), i)} for i, m in enumerate(self.messages)]

    def params(self, defaults: Mapping[str, float], default_max_tokens: int | None) -> SamplingParams:
        """Return the sampling parameters. ``max_completion_tokens`` is the newer name of ``max_tokens``."""
        max_tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return super().params(defaults, max_tokens if max_tokens is not None else default_max_tokens)


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two values are equal. Unlike Python's ==, True and 1 are not.

    >>> _same(1, 1.0), _same(True, 1), _same(0, False)
    (True, False, False)
    """
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


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
