"""Latent attention (MLA), over all cached tokens or over those that an indexer selects.

The cache has one row for each token, shared by all heads: its latent, and its rotary key. Attention runs in the latent (the
absorbed form): queries go through the key half of ``kv_b``, outputs through its value half, so no token is expanded.
A layer that *shares* attends to the tokens that the last selecting layer kept. Sources: DeepSeek-V3 (arXiv 2412.19437),
DeepSeek-V3.2's and GLM-5's reference implementations in transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loadmaster.architectures.model import IndexerSpec, LatentSpec
from loadmaster.kernels import latent_attention as kernels
from loadmaster.kernels.choice import uses_kernels
from loadmaster.layers.indexer import Indexer
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.linear import Linear
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.rotary import Rotary, rotate, softmax_scale
from loadmaster.layers.step import Context, Step
from loadmaster.layers.weight import Params

MAX_GATHERED = 1 << 24
"""The most cached elements that are gathered, or scores that are computed, at once; more queries are divided."""


class LatentAttention:
    """MLA over a latent cache: attends to all tokens, or to those that an indexer selects.

    The layer's own ``indexer`` selects them, or with ``shares`` the layer takes the tokens selected by an earlier layer.
    """

    def __init__(
        self, spec: LatentSpec, params: Params, prefix: str, layer: int, indexer: IndexerSpec | None, *, shares: bool
    ) -> None:
        self.layer = layer
        self.is_sparse = shares or indexer is not None
        (self.num_heads,) = params.heads(f"{prefix}.q_b_proj.weight", spec.nope_dim + spec.rope_dim)
        self.nope, self.rope, self.value = spec.nope_dim, spec.rope_dim, spec.value_dim
        self.q_rank, self.kv_rank = spec.q_rank, spec.kv_rank
        self.eps = spec.norm_eps
        self.interleaved = spec.interleaved
        self.scale = softmax_scale(spec.rope, self.nope + self.rope)
        self.rotary = Rotary.of(spec.rope, self.rope)
        self.qkv_a = Linear.of(params, f"{prefix}.fused_qkv_a_proj")
        self.q_norm = params.tensor(f"{prefix}.q_a_layernorm.weight")
        self.kv_norm = params.tensor(f"{prefix}.kv_a_layernorm.weight")
        self.q_b = Linear.of(params, f"{prefix}.q_b_proj")
        self.kv_b = params.weight(f"{prefix}.kv_b_proj.weight")
        self.o = Linear.of(params, f"{prefix}.o_proj")
        self.indexer = None if indexer is None else Indexer(indexer, params, f"{prefix}.indexer", layer)

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat it for single tokens: kernels can read ``kv_b`` as it is stored."""
        return self.kv_b.has_product

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        latent = {(self.layer, "latent"): Remembered(1, self.kv_rank + self.rope)}
        return latent if self.indexer is None else {**latent, **self.indexer.remembers()}

    def __call__(
        self, x_TH: Tensor, step: Step, cache: KVCache, topk_TK: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output ``[T, H]``, and the selected positions ``[T, K]`` for layers that share them."""
        if step.paged.only_single and self.is_capturable and uses_kernels(x_TH.device, x_TH.dtype):
            return self._of_single_tokens(x_TH, step, cache, topk_TK)
        cos, sin = step.angles(self.rotary, x_TH.dtype)
        q_TR, kv_TR, k_rope_TD = self.qkv_a(x_TH).split((self.q_rank, self.kv_rank, self.rope), dim=-1)
        q_TR = rms_norm(q_TR, self.q_norm, self.eps)
        k_rope_T1D = rotate(k_rope_TD[:, None], cos, sin, interleaved=self.interleaved)
        latent_T1R = rms_norm(kv_TR, self.kv_norm, self.eps)[:, None]
        rows_1SR = cache.write(self.layer, "latent", step.slots_T, torch.cat([latent_T1R, k_rope_T1D], dim=-1))
        if self.indexer is not None:
            topk_TK = self.indexer.select(x_TH, q_TR, cos, sin, step, cache)
        assert topk_TK is not None or not self.is_sparse, "a layer that shares a selection needs the selected tokens"

        kv_b_NDR = self.kv_b.dense(x_TH.dtype).view(self.num_heads, self.nope + self.value, self.kv_rank)
        k_b_NDR, v_b_NDR = kv_b_NDR.split((self.nope, self.value), dim=1)
        # Each call frees what it was given: a latent vector a head is the largest thing that a prompt has.
        out_TNR = self._attended(self._queries(q_TR, k_b_NDR, cos, sin), rows_1SR, step, topk_TK)
        out_NTD = torch.matmul(out_TNR.transpose(0, 1), v_b_NDR.transpose(1, 2))
        return self.o(out_NTD.transpose(0, 1).reshape(len(x_TH), -1)), topk_TK

    def _queries(self, q_TR: Tensor, k_b_NDR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the queries as they meet rows of the cache: a latent and a rotated part, ``[T, N, R]``."""
        q_TND = self.q_b(q_TR).view(len(q_TR), self.num_heads, self.nope + self.rope)
        q_nope_TND, q_rope_TND = q_TND.split((self.nope, self.rope), dim=-1)
        q_rope_TND = rotate(q_rope_TND, cos, sin, interleaved=self.interleaved)
        q_latent_NTR = torch.matmul(q_nope_TND.transpose(0, 1), k_b_NDR)
        return torch.cat([q_latent_NTR.transpose(0, 1), q_rope_TND], dim=-1)

    def _attended(self, q_TNR: Tensor, rows_1SR: Tensor, step: Step, topk_TK: Tensor | None) -> Tensor:
        """Return the latents ``[T, N, R]`` that all tokens of a step attend to."""
        out_TNR = q_TNR.new_empty(len(q_TNR), self.num_heads, self.kv_rank)
        for context in step.contexts:
            part = slice(context.start, context.stop)
            self._attend(q_TNR[part], rows_1SR, step, context, topk_TK, out_TNR[part])
        return out_TNR

    def _of_single_tokens(
        self, x_TH: Tensor, step: Step, cache: KVCache, topk_TK: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the layer returns for one token of each context, by kernels."""
        cos, sin = step.angles(self.rotary, x_TH.dtype)
        rows_SR = cache.rows(self.layer, "latent")[0]
        q_TR = kernels.norm_and_store(
            self.qkv_a(x_TH),
            self.q_norm,
            self.kv_norm,
            cos,
            sin,
            step.slots_T,
            rows_SR,
            self.eps,
            interleaved=self.interleaved,
        )
        if self.indexer is not None:
            topk_TK = self.indexer.select_for_single_tokens(x_TH, q_TR, cos, sin, step, cache)
        assert topk_TK is not None or not self.is_sparse, "a layer that shares a selection needs the selected tokens"
        weight = kernels.LatentWeight(self.kv_b.values, self.kv_b.factors, self.nope, self.value)
        q_TND = self.q_b(q_TR).view(len(x_TH), self.num_heads, self.nope + self.rope)
        q_TNR = kernels.absorb(q_TND, cos, sin, weight, interleaved=self.interleaved)
        selected_TK = topk_TK if self.is_sparse else None
        out_TNR = kernels.attend(q_TNR, rows_SR, selected_TK, step.paged, rank=self.kv_rank, scale=self.scale)
        return self.o(kernels.expand(out_TNR, weight).flatten(1)), topk_TK

    def _attend(
        self,
        q_TNR: Tensor,
        rows_1SR: Tensor,
        step: Step,
        context: Context,
        topk_TK: Tensor | None,
        out_TNR: Tensor,
    ) -> None:
        """Write the latents ``[T, N, R]`` that the tokens of one context attend to."""
        rows_SR = context.rows(rows_1SR)[0]
        is_sparse = self.is_sparse and topk_TK is not None and context.length > topk_TK.shape[1]
        per_token = (topk_TK.shape[1] if is_sparse and topk_TK is not None else 0) * rows_SR.shape[1]
        at_once = max(1, MAX_GATHERED // max(per_token, self.num_heads * context.length))
        for start in range(0, context.num_tokens, at_once):
            part = slice(start, min(start + at_once, context.num_tokens))
            if is_sparse and topk_TK is not None:
                chosen_TK = topk_TK[context.start + part.start : context.start + part.stop]
                out_TNR[part] = self._weigh(q_TNR[part], rows_SR[chosen_TK.clamp(min=0)], chosen_TK >= 0)
            else:
                mask_TS = step.causal_mask(context)[part] if context.num_tokens > 1 else None
                out_TNR[part] = self._weigh(q_TNR[part], rows_SR, mask_TS)

    def _weigh(self, q_TNR: Tensor, rows_SR: Tensor, mask_TS: Tensor | None) -> Tensor:
        """Return the mean of latents, weighted by softmax. ``rows_SR`` is shared by all tokens, or one set for each."""
        scores_TNS = torch.matmul(q_TNR, rows_SR.transpose(-1, -2)) * self.scale
        if mask_TS is not None:
            scores_TNS = scores_TNS.masked_fill(~mask_TS[:, None], float("-inf"))
        shares_TNS = scores_TNS.softmax(dim=-1, dtype=torch.float32).to(q_TNR.dtype)
        return torch.matmul(shares_TNS, rows_SR[..., : self.kv_rank])
