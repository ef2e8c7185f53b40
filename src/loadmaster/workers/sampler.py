"""Samples the next tokens from the last stage's logits, for all requests of a batch at once.

The steps and their order are vLLM's (the docstring of ``Sampler`` in ``vllm/v1/sample/sampler.py``): -inf for tokens that a
request's grammar does not allow (`loadmaster.workers.grammars`); log probabilities of these logits; ``allowed_token_ids``,
bad words, ``min_tokens``, ``logit_bias``, penalties; the likeliest token of greedy rows; for the others temperature,
``min_p``, ``top_k``, ``top_p`` and a draw.

**What decides a token.** Its row of logits, the request's parameters, its seed and the token's position; nothing else in
the batch. See `loadmaster.workers.draws`.

**Drafts.** A span with k drafts has 1 + k rows: row i is the model's distribution p_i after the first i drafts. Each row is
sampled as if there were no drafts, with the draw of that position: x_i. Draft i is accepted while it equals x_i; the
first x_i that differs replaces it, and x_k follows if all are accepted. All emitted tokens are x_0, x_1 …: those of a run
without drafts with the same seed, so drafts leave the distribution unchanged. A draft d is accepted with probability
p_i(d), which is that of rejection sampling (Leviathan et al., "Fast inference from transformers via speculative
decoding", 2023) where the draft model proposes one token with probability 1, as ours does.

Shapes: R rows of logits, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from loadmaster.workers.batch import PositionLogprobs, Sampled, Span, Start
from loadmaster.workers.draws import Draw, draw, likeliest, to_device, uniform
from loadmaster.workers.grammars import Answer, GrammarError, Grammars, Words, masked
from loadmaster.workers.logprobs import logprob_figures, position_logprobs
from loadmaster.workers.masks import Ints, TokenMask
from loadmaster.workers.penalties import Change, TokenCounts, changed, has_penalties
from loadmaster.workers.sampling_params import SamplingParams
from loadmaster.workers.structured_outputs import Grammar

HINT = "check the weights with `loadmaster verify`, or try another --dtype"


class _Request:
    """What the sampler knows about a request. It is up to date at each sample: a request whose last token is not known
    yet is never scheduled."""

    def __init__(self, start: Start, end_token_ids: frozenset[int], grammars: Grammars) -> None:
        params = start.params
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.prompt = start.token_ids[: start.num_prompt]
        self.num_generated = len(start.token_ids) - start.num_prompt
        ends: Ints = np.array(sorted(end_token_ids.union(params.stop_token_ids)), np.int64)
        self.mask = TokenMask(params, ends, start.token_ids[start.num_prompt :])
        self.allowed: Ints | None = None
        if params.allowed_token_ids is not None:
            self.allowed = np.array(params.allowed_token_ids, np.int64)
        self.counts: TokenCounts | None = None
        if has_penalties(params):
            seen_prompt = self.prompt if params.repetition_penalty != 1 else ()
            self.counts = TokenCounts(seen_prompt, start.token_ids[start.num_prompt :])
        self.answer: Answer | None = None
        self.unread: tuple[int, ...] = ()  # tokens of the answer that its grammar has not seen
        if params.structured_outputs is not None:
            assert isinstance(params.structured_outputs, Grammar)
            self.answer = grammars.begin(params.structured_outputs, ends.tolist())
            self.unread = start.token_ids[start.num_prompt :]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + self.num_generated

    def change(self, row: int, drafts: Sequence[int]) -> Change | None:
        """Return what changes the logits of the row that follows ``drafts``."""
        masked = self.mask.after(drafts)
        if masked is None and self.allowed is None and not self.params.biases and self.counts is None:
            return None
        seen = self.counts.after(drafts) if self.counts is not None else None
        return Change(row, self.params, masked, seen, self.allowed)

    def masks(self, drafts: Sequence[int]) -> Sequence[Words | None]:
        """Return which tokens may follow each prefix of ``drafts``; nothing if all tokens may.

        Raises:
            GrammarError: the answer cannot go on.
        """
        if self.answer is None:
            return ()
        self._read()
        return self.answer.masks(drafts)

    def matching(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``drafts`` up to the first that does not match the request's grammar."""
        if self.answer is None:
            return drafts
        try:
            self._read()
            return drafts[: self.answer.num_allowed(drafts)]
        except GrammarError:  # `masks` reports it
            return ()

    def _read(self) -> None:
        """Let the grammar see all tokens of the answer."""
        assert self.answer is not None
        self.answer.accept(self.unread)
        self.unread = ()

    def draw(self, row: int, position: int) -> Draw | None:
        """Return how the token at ``position`` is drawn; None for the likeliest."""
        params = self.params
        if params.is_greedy:
            return None
        decides = uniform(self.seed, position)
        return Draw(row, decides, params.temperature, params.top_k, params.top_p, params.min_p)

    def accept(self, token_ids: Sequence[int]) -> None:
        self.num_generated += len(token_ids)
        self.mask.accept(token_ids)
        if self.answer is not None:
            self.unread += tuple(token_ids)
        if self.counts is not None:
            self.counts.add(token_ids)


@dataclass(slots=True)
class _Work:
    """What to do with the rows of a batch. Rows without a draw are greedy; ``num_top`` counts the likeliest tokens.

    ``errors`` are the reasons why requests cannot go on."""

    errors: dict[int, str] = field(default_factory=dict)
    masks: list[tuple[int, Words]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    logprob_rows: list[int] = field(default_factory=list)
    num_top: int = 0


@dataclass(frozen=True, slots=True)
class _Rows:
    """The results of rows on the host: tokens, the largest logit before and after masks and changes, figures of log
    probabilities."""

    tokens: Sequence[int]
    raw_peaks: Sequence[float]
    peaks: Sequence[float]
    figures: dict[int, Sequence[float]]

    def error(self, row: int, params: SamplingParams) -> str | None:
        """Return why a row cannot be sampled."""
        if reason := _unusable(self.raw_peaks[row]):
            return reason
        if not math.isfinite(self.peaks[row]):
            first = (
                "allowed_token_ids" if params.structured_outputs is None else "structured_outputs, allowed_token_ids"
            )
            return f"{first}, bad_words, min_tokens, logit_bias and penalties leave no token that can be sampled"
        return None


class Sampler:
    """Samples the tokens of all requests. ``end_token_ids`` are the model's end tokens, which ``min_tokens`` holds back.

    ``grammars`` compiles the requests' structured outputs."""

    def __init__(self, vocab_size: int, end_token_ids: Iterable[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._ends = frozenset(token for token in end_token_ids if token < vocab_size)
        self._requests: dict[int, _Request] = {}
        self.grammars = Grammars(vocab_size, self._ends)

    def begin(self, request: int, start: Start) -> None:
        """Learn about a request, also when it starts again after a preemption."""
        self._requests[request] = _Request(start, self._ends, self.grammars)

    def forget(self, request: int) -> None:
        """Forget a request that has ended; nothing happens if it is not known."""
        self._requests.pop(request, None)

    @torch.inference_mode()
    def sample(self, logits_RV: Tensor, spans: Sequence[Span]) -> list[Sampled]:
        """Return the new tokens of each span with ``num_logits`` > 0.

        ``logits_RV`` has ``span.num_logits`` rows for each of them, in order. Results are copied from the device once. A
        request whose logits contain NaN gets an error instead of tokens; the others are not affected.
        """
        spans = [span for span in spans if span.num_logits]
        if not spans:
            return []
        num_rows = sum(span.num_logits for span in spans)
        assert logits_RV.shape == (num_rows, self._vocab_size), (logits_RV.shape, num_rows, self._vocab_size)
        work = self._work(spans)
        rows = _sampled_rows(logits_RV.to(torch.float32), work)
        sampled, first = [], 0
        for span in spans:
            reason = work.errors.get(span.request)
            sampled.append(Sampled(span.request, error=reason) if reason else self._verified(span, rows, first))
            first += span.num_logits
        return sampled

    def without_wrong_drafts(self, sampled: Sequence[Sampled]) -> list[Sampled]:
        """Return ``sampled``, with the drafts of requests that have a grammar cut where they do not match it."""
        return [replace(s, drafts=self._requests[s.request].matching(s.drafts)) if s.drafts else s for s in sampled]

    @torch.inference_mode()
    def prompt_logprobs(self, logits_TV: Tensor, span: Span) -> Sampled:
        """Return the log probabilities of the prompt's tokens that a span predicts; ``logits_TV`` has a row for each of its T
        tokens. The prompt's first token has none: nothing predicts it. NaN is an error of the request.
        """
        request = self._requests[span.request]
        assert request.params.prompt_logprobs is not None and len(logits_TV) == len(span.token_ids)
        num_top = min(request.params.prompt_logprobs, self._vocab_size)
        token_ids = request.prompt[span.first + 1 : span.stop + 1]
        if not token_ids:
            return Sampled(span.request)
        token_ids_T = to_device(token_ids, torch.int64, logits_TV.device)
        figures = logprob_figures(logits_TV[: len(token_ids)], token_ids_T, num_top).tolist()
        if any(math.isnan(row[0]) for row in figures):
            return Sampled(span.request, error=_unusable(math.nan))
        logprobs = (position_logprobs(token, row, num_top) for token, row in zip(token_ids, figures, strict=True))
        return Sampled(span.request, prompt_logprobs=tuple(logprobs))

    def _work(self, spans: Sequence[Span]) -> _Work:
        """Return what to do with each row, whether its drafts will be accepted or not."""
        work, row = _Work(), 0
        for span in spans:
            request = self._requests[span.request]
            position = span.stop - len(span.drafts)  # of the first new token
            assert position == request.num_tokens, (span, request.num_tokens)
            try:
                masks = enumerate(request.masks(span.drafts), row)
                work.masks += [(masked_row, mask) for masked_row, mask in masks if mask is not None]
            except GrammarError as error:
                work.errors[span.request] = str(error)
            for i in range(span.num_logits):
                if (change := request.change(row, span.drafts[:i])) is not None:
                    work.changes.append(change)
                if (one := request.draw(row, position + i)) is not None:
                    work.draws.append(one)
                if request.params.logprobs is not None:
                    work.logprob_rows.append(row)
                    work.num_top = max(work.num_top, min(request.params.logprobs, self._vocab_size))
                row += 1
        return work

    def _verified(self, span: Span, rows: _Rows, first: int) -> Sampled:
        """Return the tokens of a span whose first row is ``first``: up to the first that differs from its draft."""
        request = self._requests[span.request]
        emitted: list[int] = []
        logprobs: list[PositionLogprobs] = []
        for i, draft in enumerate((*span.drafts, None)):
            row = first + i
            if reason := rows.error(row, request.params):
                return Sampled(span.request, error=reason)
            token = rows.tokens[row]
            emitted.append(token)
            if request.params.logprobs is not None:
                logprobs.append(position_logprobs(token, rows.figures[row], request.params.logprobs))
            if token != draft:
                break
        request.accept(emitted)
        return Sampled(span.request, tuple(emitted), logprobs=tuple(logprobs))


def _sampled_rows(logits_RV: Tensor, work: _Work) -> _Rows:
    """Sample each row, and wait for the device once: for the results."""
    num_rows, device = len(logits_RV), logits_RV.device
    tokens_R, raw_peak_R = likeliest(logits_RV)
    peak_R = raw_peak_R
    if work.masks:
        logits_RV = masked(logits_RV, work.masks)
        tokens_R, peak_R = likeliest(logits_RV)
    changed_RV = logits_RV
    if work.changes:
        changed_RV = changed(logits_RV, work.changes)
        tokens_R, peak_R = likeliest(changed_RV)
    if work.draws:
        drawn_rows = to_device([one.row for one in work.draws], torch.int64, device)
        tokens_R.index_copy_(0, drawn_rows, draw(changed_RV, peak_R, work.draws))
    results = [tokens_R, raw_peak_R, peak_R]
    if work.logprob_rows:
        rows_L = to_device(work.logprob_rows, torch.int64, device)
        chosen_L = tokens_R.index_select(0, rows_L)
        results.append(logprob_figures(logits_RV.index_select(0, rows_L), chosen_L, work.num_top).flatten())

    values = torch.cat([result.to(torch.float64) for result in results]).tolist()
    width = 2 + 2 * work.num_top
    starts = range(3 * num_rows, len(values), width)
    return _Rows(
        tokens=[int(token) for token in values[:num_rows]],
        raw_peaks=values[num_rows : 2 * num_rows],
        peaks=values[2 * num_rows : 3 * num_rows],
        figures={r: values[start : start + width] for r, start in zip(work.logprob_rows, starts, strict=True)},
    )


def _unusable(peak: float) -> str | None:
    """Return why a row of logits with this largest value is no distribution. NaN counts as the largest."""
    if math.isfinite(peak):
        return None
    what = "NaN" if math.isnan(peak) else "infinity" if peak > 0 else "no finite value"
    return f"the model's logits contain {what}; {HINT}"
