"""One row sampled plainly: a loop in float64 that follows the definitions, to compare the sampler with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from loadmaster.workers.batch import Sampled, Span, Start
from loadmaster.workers.draws import uniform
from loadmaster.workers.sampler import Sampler
from loadmaster.workers.sampling_params import SamplingParams


def plain_logits(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    answer: Sequence[int],
    ends: Sequence[int] = (),
) -> list[float]:
    """Return the logits after masks, ``logit_bias`` and penalties."""
    result = []
    bad = {w[-1] for w in params.bad_words_token_ids if list(w[:-1]) == [*answer][max(0, len(answer) - len(w) + 1) :]}
    biases = dict(params.biases)
    for token, logit in enumerate(logits):
        x = logit + biases.get(token, 0)
        if len(answer) < params.min_tokens and token in (*ends, *params.stop_token_ids):
            x = -math.inf
        if token in bad or (params.allowed_token_ids is not None and token not in params.allowed_token_ids):
            x = -math.inf
        if token in prompt or token in answer:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        x -= params.frequency_penalty * answer.count(token) if token in answer else 0
        x -= params.presence_penalty if token in answer else 0
        result.append(x)
    return result


def plain_probabilities(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Return the kept tokens, in the order in which they are drawn, with their probabilities."""
    peak = max(logits)
    weights = {token: math.exp((x - peak) / params.temperature) for token, x in enumerate(logits)}
    weights = {token: w for token, w in weights.items() if w >= params.min_p}
    if params.top_k > 0 or params.top_p < 1:
        weights = dict(sorted(weights.items(), key=lambda item: (-logits[item[0]], item[0])))
    if params.top_k > 0:
        weights = dict([*weights.items()][: params.top_k])
    if params.top_p < 1:
        total, before, kept = sum(weights.values()), 0.0, {}
        for token, w in weights.items():
            if before < params.top_p * total:
                kept[token] = w
            before += w
        weights = kept
    total = sum(weights.values())
    return {token: w / total for token, w in weights.items()}


def plain_token(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    answer: Sequence[int],
    ends: Sequence[int] = (),
) -> int:
    """Return the token that follows ``prompt`` and ``answer``."""
    logits = plain_logits(logits, params, prompt, answer, ends)
    if params.is_greedy:
        return logits.index(max(logits))
    assert params.seed is not None
    u, below, token = uniform(params.seed, len(prompt) + len(answer)), 0.0, -1
    for token, probability in plain_probabilities(logits, params).items():  # noqa: B007
        below += probability
        if below > u:
            break
    return token


class Driver:
    """Samples the tokens of requests as the engine would, and keeps their answers."""

    def __init__(self, vocab_size: int, ends: Sequence[int] = (), kind: type[Sampler] = Sampler) -> None:
        self.sampler = kind(vocab_size, ends)
        self.tokens: dict[int, list[int]] = {}

    def begin(self, request: int, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int] = ()) -> None:
        self.tokens[request] = [*prompt, *answer]
        self.sampler.begin(request, Start(params, (*prompt, *answer), len(prompt)))

    def step(
        self, logits: torch.Tensor, requests: Sequence[int], drafts: dict[int, Sequence[int]] | None = None
    ) -> list[Sampled]:
        spans = []
        for request in requests:
            tokens, proposed = self.tokens[request], tuple((drafts or {}).get(request, ()))
            token_ids = (tokens[-1], *proposed)
            spans.append(Span(request, len(tokens) - 1, token_ids, num_logits=len(token_ids)))
        sampled = self.sampler.sample(logits, spans)
        for one in sampled:
            self.tokens[one.request] += one.token_ids
        return sampled
