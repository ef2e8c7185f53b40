"""The fields that all requests for generated text share.

A known field that is not supported is refused by name, unless its value is the one that has no effect. Unknown fields
are kept, and `loadmaster.server.ignored` reports or refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from loadmaster.engine import TextOptions
from loadmaster.errors import RequestError, clip
from loadmaster.server.protocol.fields import FieldError, Int64, Number, RequestModel, with_field
from loadmaster.server.protocol.inert import INERT, OF_STREAM_OPTIONS
from loadmaster.server.protocol.structured import ResponseFormat, StructuredOutputsFields, structured_outputs
from loadmaster.workers import SamplingParams, StructuredOutputs
from loadmaster.workers.sampling_params import MAX_BAD_WORDS

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "top_logprobs": (),
    "suffix": ("",),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_embeds": (),
    "audio": (),
    "cache_salt": (),
    "ec_transfer_params": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "logprob_token_ids": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"], []),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "priority": (0,),
    "reasoning_effort": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_weight_versions": (False,),
    "routed_experts_prompt_start": (0,),
    "store": (False,),
    "thinking_token_budget": (-1,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}
"""Fields that are not supported, and the values, in addition to null, that have no effect and are accepted."""

REQUEST_ID: Final = r"^[A-Za-z0-9._:-]{1,128}$"
"""What ``request_id`` may be. It is a part of the answer's id."""

MAX_STOPS: Final = 64
"""The most stop strings in one request, and the most stop tokens. Each is checked after every token."""

MAX_STOP_CHARACTERS: Final = 1024
"""The longest stop string."""

MAX_BIASES: Final = 1024
"""The most entries of ``logit_bias`` in one request."""


class StreamOptions(RequestModel):
    """Options of a streamed answer."""

    inert = OF_STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(RequestModel):
    """The fields that both kinds of requests share."""

    refused = NEUTRAL
    inert = INERT

    model: str | None = None
    n: Int64 | None = None
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
    stop_token_ids: Annotated[list[Int64], Field(fail_fast=True)] | None = None
    ignore_eos: bool = False
    allowed_token_ids: Annotated[list[Int64], Field(fail_fast=True)] | None = None
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Int64 | None = None
    truncation_side: Literal["left", "right"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[Int64, Field(ge=1)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: Annotated[str, Field(pattern=REQUEST_ID)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsFields | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def text_options(self) -> TextOptions:
        """How the answer becomes text."""
        return TextOptions(self.stop_strings, self.include_stop_str_in_output, self.skip_special_tokens)

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        """Whether each chunk of a streamed answer has the usage so far; only with ``include_usage``, as in vLLM."""
        return (
            self.include_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        )

    @property
    def length_field(self) -> tuple[str, int | None]:
        """The name and the value of the field that limits the answer's length."""
        return "max_tokens", self.max_tokens

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
        if self.prompt_logprobs is not None and self.stream:
            raise FieldError("prompt_logprobs is not supported with stream=true", "prompt_logprobs")
        if len(self.logit_bias or ()) > MAX_BIASES:
            raise FieldError(
                f"logit_bias has {len(self.logit_bias or ()):,} entries, expected at most {MAX_BIASES:,}", "logit_bias"
            )
        self.refuse_unsupported()
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options is only allowed with stream=true", "stream_options")
        for name, values, most in (
            ("stop", self.stop_strings, MAX_STOPS),
            ("stop_token_ids", self.stop_token_ids or (), MAX_STOPS),
            ("bad_words", self.bad_words or (), MAX_BAD_WORDS),
        ):
            if len(values) > most:
                raise FieldError(f"{name} has {len(values):,} entries, expected at most {most}", name)
        longest = max(map(len, self.stop_strings), default=0)
        if longest > MAX_STOP_CHARACTERS:
            raise FieldError(
                f"a stop string has {longest:,} characters, expected at most {MAX_STOP_CHARACTERS}", "stop"
            )

    def check_length(self, max_model_len: int) -> None:
        """Refuse an answer or a truncation that is longer than the model's length. vLLM has the same conditions.

        An answer that is too long together with its prompt is not refused: it ends where the model's length ends.

        Raises:
            FieldError: names the field.
        """
        name, length = self.length_field
        if length is not None and length > max_model_len:
            raise FieldError(f"{name} is {length}, expected at most {max_model_len}, the model's length", name)
        kept = self.truncate_prompt_tokens
        if kept is not None and not -1 <= kept <= max_model_len:
            raise FieldError(
                f"truncate_prompt_tokens is {kept}, expected -1 to {max_model_len}, the model's length",
                "truncate_prompt_tokens",
            )

    def truncated(self, prompt_token_ids: list[int], max_model_len: int) -> list[int]:
        """Return a prompt cut to ``truncate_prompt_tokens``, by default to its last tokens.

        -1 leaves room for one token of the answer.
        """
        kept = self.truncate_prompt_tokens
        if kept is None:
            return prompt_token_ids
        kept = max_model_len - 1 if kept == -1 else kept
        if self.truncation_side == "right":
            return prompt_token_ids[:kept]
        return prompt_token_ids[max(0, len(prompt_token_ids) - kept) :]

    def wanted_output(self) -> tuple[StructuredOutputs | None, str]:
        """Return what the answer has to look like, None for anything, and the field that says so.

        Raises:
            FieldError: it is not valid; names the field.
        """
        is_format = self.response_format is not None and self.response_format.type != "text"
        field = "response_format" if is_format else "structured_outputs"
        return structured_outputs(self.structured_outputs, self.response_format), field

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
                max_tokens=default_max_tokens if self.length_field[1] is None else self.length_field[1],
                min_tokens=self.min_tokens or 0,
                seed=self.seed,
                stop_token_ids=tuple(self.stop_token_ids or ()),
                allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
                ignore_eos=self.ignore_eos,
                logit_bias=_biases(self.logit_bias or {}),
                logprobs=self.num_top,
                prompt_logprobs=self.prompt_logprobs,
                structured_outputs=self.wanted_output()[0],
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
