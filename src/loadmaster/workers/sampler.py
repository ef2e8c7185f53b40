"""Samples the next token from the last stage's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loadmaster.workers.batch import Sampled, Span, Start
from loadmaster.workers.sampling_params import SamplingParams

GREEDY_BELOW = 1e-5
"""Below this temperature sampling is greedy, as in vLLM: the division would overflow."""


class Sampler:
    """Samples the tokens of all requests."""

    def __init__(self) -> None:
        self._params: dict[int, SamplingParams] = {}
        self._generators: dict[int, torch.Generator] = {}

    def begin(self, request: int, start: Start) -> None:
        """Begin a request."""
        self._params[request] = start.params
        generator = torch.Generator()
        if start.params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(start.params.seed)
        self._generators[request] = generator

    def forget(self, request: int) -> None:
        """Forget a request."""
        self._params.pop(request, None)

    def sample(self, logits_RV: torch.Tensor, spans: Sequence[Span]) -> list[Sampled]:
        """Return the next token of each span that has logits."""
        out = []
        row = 0
        for span in spans:
            if not span.num_logits:
                continue
            logits_V = logits_RV[row].to("cpu", torch.float32)
            row += span.num_logits
            if torch.isnan(logits_V).any():
                out.append(Sampled(span.request, error="the model's logits contain NaN"))
                continue
            params = self._params[span.request]
            if params.temperature < GREEDY_BELOW:
                token = int(torch.argmax(logits_V))
            else:
                token = int(
                    torch.multinomial(kept_probabilities(logits_V, params), 1, generator=self._generators[span.request])
                )
            out.append(Sampled(span.request, (token,)))
        return out


def kept_probabilities(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the distribution to sample from: temperature first, then ``top_k``, then ``top_p``.

    ``top_p`` keeps the smallest set of the most likely tokens whose probabilities add up to it; at least one token.
    """
    scaled_V = logits_V / params.temperature
    if params.top_k <= 0 and params.top_p >= 1:
        return torch.softmax(scaled_V, dim=-1)
    order = torch.sort(scaled_V, descending=True, stable=True)
    values_K, tokens_K = order.values, order.indices
    if params.top_k > 0:
        values_K, tokens_K = values_K[: params.top_k], tokens_K[: params.top_k]
    probs_K = torch.softmax(values_K, dim=-1)
    if params.top_p < 1:
        before_K = torch.cumsum(probs_K, dim=-1) - probs_K
        keep_K = before_K < params.top_p
        keep_K[0] = True
        probs_K = probs_K * keep_K
        probs_K = probs_K / probs_K.sum()
    return torch.zeros_like(logits_V).scatter_(0, tokens_K, probs_K)
