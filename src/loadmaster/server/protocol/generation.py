"""The fields that all requests for generated text share.

A known field that is not supported is refused by name, unless its value is the one that has no effect. Unknown fields
are ignored, as in vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from loadmaster.errors import RequestError, clip
from loadmaster.server.protocol.fields import FieldError, Int64, Number, with_field
from loadmaster.workers import SamplingParams

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

MAX_STOPS: Final = 64
"""The most stop strings in one request, and the most stop tokens. Each is checked after every token."""

MAX_STOP_CHARACTERS: Final = 1024
"""The longest stop string."""

MAX_BIASES: Final = 1024
"""The most entries of ``logit_bias`` in one request."""


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
