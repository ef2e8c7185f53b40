"""Samples the next token from the last stage's logits."""

from __future__ import annotations

import torch

from loadmaster.errors import RunError
from loadmaster.workers.sampling_params import SamplingParams

GREEDY_BELOW = 1e-5
"""Below this temperature sampling is greedy, as in vLLM: the division would overflow."""


class Sampler:
    """Samples the tokens of one request. The same seed and the same logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def sample(self, logits_1V: torch.Tensor) -> int:
        """Return the next token.

        Raises:
            RunError: the logits contain NaN.
        """
        logits_V = logits_1V.reshape(-1).to("cpu", torch.float32)
        if torch.isnan(logits_V).any():
            raise RunError(
                "the model's logits contain NaN",
                hint="check the weights with `loadmaster verify`, or try another --dtype",
            )
        if self._params.temperature < GREEDY_BELOW:
            return int(torch.argmax(logits_V))
        probs_V = kept_probabilities(logits_V, self._params)
        return int(torch.multinomial(probs_V, 1, generator=self._generator))


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
