"""What crosses the pipe at each step: a `Batch` to every worker, the same bytes for all, and a `Done` from the last stage.

The scheduler (`loadmaster.engine.scheduler`) makes batches; the workers carry them out. A batch has parts of prompts and
single tokens side by side: there is no phase of prefill and none of decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Start:
    """What workers learn about a request with its first span, also when it starts again after a preemption.

    ``token_ids`` are all tokens that exist: the prompt, of ``num_prompt`` tokens, and what was generated so far.
    """

    params: SamplingParams
    token_ids: tuple[int, ...]
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Span:
    """One request's part of a batch: ``token_ids`` at consecutive positions from ``first``.

    ``new_pages`` are added to the request's page table, whose page ``i`` holds positions ``i * P`` to ``(i + 1) * P - 1``.
    ``num_logits`` is 0 where more of the prompt follows, 1 to sample a token, and ``1 + k`` where the last ``k`` tokens
    are drafts to verify. ``start`` is given with the first span of a request.
    """

    request: int
    first: int
    token_ids: tuple[int, ...]
    new_pages: tuple[int, ...] = ()
    num_logits: int = 0
    start: Start | None = None

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # what dataclasses give takes three times as long
        return Span, (self.request, self.first, self.token_ids, self.new_pages, self.num_logits, self.start)

    @property
    def drafts(self) -> tuple[int, ...]:
        """The tokens to verify."""
        return self.token_ids[len(self.token_ids) - self.num_logits + 1 :] if self.num_logits > 1 else ()

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.first + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Spans that are computed together. ``number`` counts batches. ``finished`` are requests that workers forget first."""

    number: int
    spans: tuple[Span, ...]
    finished: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's logarithm of its probability, natural, and its rank among all tokens: 1 for the likeliest."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token at a position, and the likeliest tokens there, best first, as many as were asked for."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a span produced: 1 token, or up to ``1 + k`` where drafts were verified.

    ``drafts`` are the draft model's proposals for the tokens after these. ``logprobs`` has one entry a token if the request
    asks for them. ``prompt_logprobs`` has one for each token of the prompt that this span predicts. ``error``: the request
    fails with this reason, for example NaN; it has no tokens.
    """

    request: int
    token_ids: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    error: str | None = None

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return Sampled, (self.request, self.token_ids, self.drafts, self.logprobs, self.prompt_logprobs, self.error)


@dataclass(frozen=True, slots=True)
class Done:
    """The last stage has computed batch ``number``. ``sampled`` has an entry for each span that produced something."""

    number: int
    sampled: tuple[Sampled, ...] = ()
