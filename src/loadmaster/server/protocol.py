"""The fields of requests: the OpenAI API's, and vLLM's additional ones.

A known field that is not supported is refused by name, unless its value is the one that has no effect. Unknown fields
are ignored, as in vLLM. Types are strict: neither true nor "5" is a number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from loadmaster.errors import RequestError, clip
from loadmaster.workers import SamplingParams
from loadmaster.workers.sampling_params import MAX_LOGPROBS

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "top_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "length_penalty": (1,),
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
"""The most prompts in one request."""

MAX_CHOICES: Final = 1024
"""The most answers to one request: prompts times ``n``."""

MAX_STOPS: Final = 64
"""The most stop strings in one request, and the most stop tokens. Each is checked after every token."""

MAX_STOP_CHARACTERS: Final = 1024
"""The longest stop string."""

MAX_BIASES: Final = 1024
"""The most entries of ``logit_bias`` in one request."""

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NumLogprobs = Annotated[Int64 | None, BeforeValidator(lambda value: None if value is False else value)]
"""How many likeliest tokens; false asks for nothing, as null does."""


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
    n: Int64 | None = None
    best_of: Int64 | None = None
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Int64 | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    prompt_logprobs: Int64 | None = None
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

    @property
    def num_choices(self) -> int:
        """How many answers each prompt gets."""
        return 1 if self.n is None else self.n

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens are given with each token of the answer; None: no log probabilities."""
        raise NotImplementedError

    def check(self, max_num_seqs: int) -> None:
        """Refuse fields that are not supported, and values that are out of range. ``n`` is at most ``max_num_seqs``.

        Raises:
            FieldError: names the field.
        """
        if not 1 <= self.num_choices <= max_num_seqs:
            raise FieldError(f"n is {self.num_choices}, expected 1 to {max_num_seqs} (--max-num-seqs)", "n")
        if self.best_of not in (None, self.num_choices):
            raise FieldError(f"best_of={self.best_of} is not supported; only n, {self.num_choices}, is", "best_of")
        if self.prompt_logprobs is not None and self.stream:
            raise FieldError("prompt_logprobs is not supported with stream=true", "prompt_logprobs")
        if len(self.logit_bias or ()) > MAX_BIASES:
            raise FieldError(
                f"logit_bias has {len(self.logit_bias or ()):,} entries, expected at most {MAX_BIASES:,}", "logit_bias"
            )
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and not any(_same(value, n) for n in NEUTRAL[name]):
                raise FieldError(f"{name}={clip(repr(value))} is not supported", name)
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
        """Return the sampling parameters: the request's, else the model's ``defaults``, else the API's.

        Raises:
            FieldError: a value is out of range; names the field.
        """
        values: dict[str, Any] = {}
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "top_k",
        ):
            value = getattr(self, name)
            if (value := defaults.get(name) if value is None else value) is not None:
                values[name] = int(value) if name == "top_k" else value
        try:
            return SamplingParams(
                max_tokens=self.max_tokens if self.max_tokens is not None else default_max_tokens,
                min_tokens=self.min_tokens or 0,
                seed=self.seed,
                stop_token_ids=tuple(self.stop_token_ids),
                ignore_eos=self.ignore_eos,
                logit_bias=_biases(self.logit_bias or {}),
                logprobs=self.num_top,
                prompt_logprobs=self.prompt_logprobs,
                **values,
            )
        except FieldError:
            raise
        except RequestError as error:
            raise with_field(error) from None


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``. The answer has one choice for each prompt."""

    prompt: (
        str
        | Annotated[list[Int64], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[Int64], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    max_tokens: Int64 | None = 16
    logprobs: NumLogprobs = None
    echo: bool | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each a string or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    @property
    def num_top(self) -> int | None:
        """``logprobs``."""
        return self.logprobs

    @property
    def only_echo(self) -> bool:
        """Whether the answer is the prompt alone, which is how its log probabilities are asked for."""
        return bool(self.echo) and self.max_tokens == 0

    def check(self, max_num_seqs: int) -> None:
        """Refuse what `GenerationRequest.check` refuses, an empty prompt, too many prompts, and too many answers."""
        super().check(max_num_seqs)
        if self.prompt == []:
            raise FieldError("prompt is empty", "prompt")
        if len(self.prompts) > MAX_PROMPTS:
            raise FieldError(f"prompt has {len(self.prompts):,} prompts, expected at most {MAX_PROMPTS:,}", "prompt")
        if (count := len(self.prompts) * self.num_choices) > MAX_CHOICES:
            raise FieldError(
                f"n is {self.num_choices} for {len(self.prompts):,} prompts: {count:,} answers, expected at most {MAX_CHOICES:,}",
                "n",
            )

    def params(self, defaults: Mapping[str, float], default_max_tokens: int | None) -> SamplingParams:
        """Return the sampling parameters. With ``echo``, ``logprobs`` asks for those of the prompt too."""
        if self.only_echo:
            return self.model_copy(update={"max_tokens": 1}).params(defaults, default_max_tokens)
        params = super().params(defaults, default_max_tokens)
        if not self.echo or self.logprobs is None:
            return params
        return dataclasses.replace(params, prompt_logprobs=max(self.logprobs, self.prompt_logprobs or 0))


class ChatCompletionRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def num_top(self) -> int | None:
        """``top_logprobs``, if ``logprobs`` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self, max_num_seqs: int) -> None:
        """Refuse what `GenerationRequest.check` refuses, and ``top_logprobs`` that is out of range or not allowed."""
        super().check(max_num_seqs)
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs is only allowed with logprobs=true", "top_logprobs")
        if not 0 <= (self.top_logprobs or 0) <= MAX_LOGPROBS:
            raise FieldError(f"top_logprobs is {self.top_logprobs}, expected 0 to {MAX_LOGPROBS}", "top_logprobs")

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


def with_field(error: RequestError) -> FieldError:
    """Return an error in sampling parameters as one of a field. Such messages begin with the parameter's name."""
    name = error.message.partition(" ")[0]
    return FieldError(error.message, name if name in _PARAMETERS else None)


_PARAMETERS: Final = frozenset(f.name for f in dataclasses.fields(SamplingParams))


def _biases(logit_bias: Mapping[str, float]) -> dict[int, float]:
    for name in logit_bias:
        if not re.fullmatch(r"0|[1-9][0-9]{0,17}", name):
            raise FieldError(f"logit_bias has {clip(repr(name))}, expected token ids", "logit_bias")
    return {int(name): bias for name, bias in logit_bias.items()}


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
