"""Grouped-query attention over a paged cache of keys and values."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import AttentionSpec
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.linear import Linear
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.rotary import Rotary, rotate
from loadmaster.layers.step import Context, Step
from loadmaster.layers.weight import Params


class Attention:
    """Attention over a cache of keys and values."""

    def __init__(self, spec: AttentionSpec, params: Params, prefix: str, layer: int, window: int | None) -> None:
        self.layer = layer
        self.window = window
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.eps = spec.norm_eps
        self.rotary = Rotary.of(spec.rope, self.head_dim)
        self.qkv = Linear.of(params, f"{prefix}.qkv_proj")
        self.o = Linear.of(params, f"{prefix}.o_proj")
        self.q_norm = params.optional(f"{prefix}.q_norm.weight")
        self.k_norm = params.optional(f"{prefix}.k_norm.weight")

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        keys = Remembered(self.num_kv_heads, self.head_dim)
        return {(self.layer, "key"): keys, (self.layer, "value"): keys}

    def __call__(self, x_TH: Tensor, step: Step, cache: KVCache) -> Tensor:
        """Return the attention's output ``[T, H]``."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        qkv_TND = self.qkv(x_TH).view(len(x_TH), sum(heads), self.head_dim)
        q_TND, k_TND, v_TND = qkv_TND.split(heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_TND, k_TND = rms_norm(q_TND, self.q_norm, self.eps), rms_norm(k_TND, self.k_norm, self.eps)
        cos, sin = step.angles(self.rotary, x_TH.dtype)
        q_TND = rotate(q_TND, cos, sin, interleaved=False)
        k_NSD = cache.write(self.layer, "key", step.slots_T, rotate(k_TND, cos, sin, interleaved=False))
        v_NSD = cache.write(self.layer, "value", step.slots_T, v_TND)
        return self.o(attend(q_TND, k_NSD, v_NSD, step, self.window).flatten(1))


def attend(q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, step: Step, window: int | None = None) -> Tensor:
    """Return ``[T, N, D]``: each token's attention to the cached tokens of its request, itself included.

    ``k_NSD`` and ``v_NSD`` are all rows of the cache; a group of consecutive query heads shares each of their heads.
    ``window``: only the last ``window`` tokens.
    """
    out_TND = q_TND.new_empty(q_TND.shape)
    for context in step.contexts:
        q = q_TND[context.start : context.stop]
        one = _decode if context.num_tokens == 1 else _prefill
        out_TND[context.start : context.stop] = one(q, k_NSD, v_NSD, step, context, window)
    return out_TND


def _decode(q_1ND: Tensor, k_NSD: Tensor, v_NSD: Tensor, step: Step, context: Context, window: int | None) -> Tensor:
    """One token: the query heads of a group are the rows of one product, so its keys are read once."""
    first = 0 if window is None else max(0, context.length - window)
    k, v = context.rows(k_NSD, first), context.rows(v_NSD, first)
    q = q_1ND.reshape(len(k_NSD), -1, q_1ND.shape[-1])
    return F.scaled_dot_product_attention(q[None], k[None], v[None]).view(q_1ND.shape)


def _prefill(q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, step: Step, context: Context, window: int | None) -> Tensor:
    k, v = context.rows(k_NSD), context.rows(v_NSD)
    is_whole = context.first == 0 and (window is None or context.length <= window)
    out = F.scaled_dot_product_attention(
        q_TND.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=None if is_whole else step.causal_mask(context, window),
        is_causal=is_whole,
        enable_gqa=len(k_NSD) != q_TND.shape[1],
    )
    return out[0].transpose(0, 1)
