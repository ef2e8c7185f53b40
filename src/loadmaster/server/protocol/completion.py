"""``POST /v1/completions``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from loadmaster.server.protocol.fields import FieldError, Int64
from loadmaster.server.protocol.generation import GenerationRequest
from loadmaster.workers import SamplingParams

MAX_PROMPTS: Final = 1024
"""The most prompts in one request."""

MAX_CHOICES: Final = 1024
"""The most answers to one request: prompts times ``n``."""

NumLogprobs = Annotated[Int64 | None, BeforeValidator(lambda value: None if value is False else value)]
"""How many likeliest tokens; false asks for nothing, as null does."""


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``. The answer has ``n`` choices for each prompt."""

    prompt: (
        str
        | Annotated[list[Int64], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[Int64], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    best_of: Int64 | None = None
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
    def num_candidates(self) -> int:
        """How many answers to each prompt are computed; the best ``n`` of them are returned."""
        return max(self.num_choices, self.best_of or 1)

    @property
    def only_echo(self) -> bool:
        """Whether the answer is the prompt alone, which is how its log probabilities are asked for."""
        return bool(self.echo) and self.max_tokens == 0

    def check(self, max_num_seqs: int) -> None:
        """Refuse what `GenerationRequest.check` refuses, an empty prompt, too many prompts, and too many answers."""
        super().check(max_num_seqs)
        if self.best_of is not None and not self.num_choices <= self.best_of <= max_num_seqs:
            raise FieldError(
                f"best_of is {self.best_of}, expected n to {max_num_seqs} (--max-num-seqs), and n is {self.num_choices}",
                "best_of",
            )
        if self.stream and self.num_candidates > self.num_choices:
            raise FieldError("best_of above n is not supported with stream=true", "best_of")
        if self.prompt == []:
            raise FieldError("prompt is empty", "prompt")
        if len(self.prompts) > MAX_PROMPTS:
            raise FieldError(f"prompt has {len(self.prompts):,} prompts, expected at most {MAX_PROMPTS:,}", "prompt")
        if (count := len(self.prompts) * self.num_candidates) > MAX_CHOICES:
            name = "n" if self.num_candidates == self.num_choices else "best_of"
            raise FieldError(
                f"{name} is {self.num_candidates} for {len(self.prompts):,} prompts: {count:,} answers, expected at most "
                f"{MAX_CHOICES:,}",
                name,
            )

    def params(self, defaults: Mapping[str, float], default_max_tokens: int | None) -> SamplingParams:
        """Return the sampling parameters. With ``echo``, ``logprobs`` asks for those of the prompt too."""
        if self.only_echo:
            return self.model_copy(update={"max_tokens": 1}).params(defaults, default_max_tokens)
        params = super().params(defaults, default_max_tokens)
        if params.logprobs is None and self.num_candidates > self.num_choices:
            params = dataclasses.replace(params, logprobs=0)  # to compare the candidates
        if not self.echo or self.logprobs is None:
            return params
        return dataclasses.replace(params, prompt_logprobs=max(self.logprobs, self.prompt_logprobs or 0))
