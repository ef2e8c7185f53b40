"""The indexer of sparse attention: scores every cached token for every query, and selects the best.

Sources: DeepSeek-V3.2's and GLM-5's reference implementations in transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import IndexerSpec
from loadmaster.kernels import index_selection as kernels
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.linear import Linear
from loadmaster.layers.norm import layer_norm
from loadmaster.layers.rotary import rotate
from loadmaster.layers.step import Context, Step
from loadmaster.layers.weight import Params

NORM_EPS = 1e-6

MAX_POSITIONS = 1 << 23
"""Sums of this and a smaller position are exact in float32."""

TINY = 2.0**-120

MAX_SCORES = 1 << 24
"""The most scores that are computed at once; more queries are divided."""


class Indexer:
    """Selects for each token the cached tokens that it attends to."""

    def __init__(self, spec: IndexerSpec, params: Params, prefix: str, layer: int) -> None:
        self.layer = layer
        self.topk = spec.topk
        self.num_heads, self.head_dim, self.rope_dim = spec.num_heads, spec.head_dim, spec.rope_dim
        self.interleaved = spec.interleaved
        self.wq_b = Linear.of(params, f"{prefix}.wq_b")
        self.wk_weights = Linear.of(params, f"{prefix}.wk_weights_proj")
        self.k_norm = params.tensor(f"{prefix}.k_norm.weight")
        self.k_norm_bias = params.tensor(f"{prefix}.k_norm.bias")

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return {(self.layer, "index_key"): Remembered(1, self.head_dim)}

    def select(self, x_TH: Tensor, q_latent_TR: Tensor, cos: Tensor, sin: Tensor, step: Step, cache: KVCache) -> Tensor:
        """Return the positions of the selected tokens ``[T, K]``, -1 where fewer than K are allowed.

        K is ``topk``, or the longest request of the step if that is shorter.
        """
        k_TD, weights_TN = self.wk_weights(x_TH).split((self.head_dim, self.num_heads), dim=-1)
        q_TND = self.wq_b(q_latent_TR).view(len(x_TH), self.num_heads, self.head_dim)
        k_T1D = layer_norm(k_TD, self.k_norm, self.k_norm_bias, NORM_EPS)[:, None]
        q_TND, k_T1D = self._rotated(q_TND, cos, sin), self._rotated(k_T1D, cos, sin)
        rows_1SD = cache.write(self.layer, "index_key", step.slots_T, k_T1D)
        topk_TK = torch.full((len(x_TH), min(self.topk, step.max_length)), -1, dtype=torch.int64, device=x_TH.device)
        for context in step.contexts:
            k_SD = context.rows(rows_1SD)[0]
            at_once = max(1, MAX_SCORES // (self.num_heads * context.length))
            for start in range(context.start, context.stop, at_once):
                part = slice(start, min(start + at_once, context.stop))
                self._select(q_TND[part], weights_TN[part], k_SD, step, context, part, topk_TK)
        return topk_TK

    def select_for_single_tokens(
        self, x_TH: Tensor, q_latent_TR: Tensor, cos: Tensor, sin: Tensor, step: Step, cache: KVCache
    ) -> Tensor:
        """Return what `select` returns for one token of each context, by kernels; K does not depend on the requests' lengths."""
        k_TD, weights_TN = self.wk_weights(x_TH).split((self.head_dim, self.num_heads), dim=-1)
        rows_SD = cache.rows(self.layer, "index_key")[0]
        q_TND = kernels.rotate_and_store(
            self.wq_b(q_latent_TR).view(len(x_TH), self.num_heads, self.head_dim),
            k_TD,
            self.k_norm,
            self.k_norm_bias,
            cos,
            sin,
            step.slots_T,
            rows_SD,
            NORM_EPS,
            interleaved=self.interleaved,
        )
        return kernels.select(q_TND, weights_TN, rows_SD, step.paged, self.topk)

    def _select(
        self,
        q_TND: Tensor,
        weights_TN: Tensor,
        k_SD: Tensor,
        step: Step,
        context: Context,
        part: slice,
        topk_TK: Tensor,
    ) -> None:
        scores_TNS = F.relu(torch.matmul(q_TND.float(), k_SD.float().t()) * self.head_dim**-0.5)
        weights_TN = weights_TN.float() * self.num_heads**-0.5
        scores_TS = _without_ties(torch.matmul(weights_TN[:, None], scores_TNS)[:, 0])
        if context.num_tokens > 1:
            allowed_TS = step.causal_mask(context)[part.start - context.start : part.stop - context.start]
            scores_TS = scores_TS.masked_fill(~allowed_TS, float("-inf"))
        best = scores_TS.topk(min(self.topk, context.length), dim=-1)
        chosen_TK = best.indices.masked_fill(best.values == float("-inf"), -1)
        topk_TK[part, : chosen_TK.shape[1]] = chosen_TK

    def _rotated(self, x_TND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary, rest = x_TND.split((self.rope_dim, self.head_dim - self.rope_dim), dim=-1)
        return torch.cat([rotate(rotary, cos, sin, interleaved=self.interleaved), rest], dim=-1)


def _without_ties(scores_TS: Tensor) -> Tensor:
    """Return scores in which those that are exactly zero have an order: later positions first.

    A score is zero where all products of the indexer are negative. That is common, and ``topk`` chooses among equal scores
    as it likes: differently for a chunk and for a whole prompt. The numbers that replace zeros are positive, and smaller
    than any score that arithmetic gives.
    """
    positions_S = torch.arange(scores_TS.shape[-1], device=scores_TS.device)
    order_S = (positions_S + MAX_POSITIONS).to(torch.float32) * TINY
    return torch.where(scores_TS == 0, order_S, scores_TS)
