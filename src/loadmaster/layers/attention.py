"""Grouped-query attention over a paged cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import AttentionSpec
from loadmaster.kernels import fused
from loadmaster.kernels.choice import uses_kernels
from loadmaster.kernels.paged_attention import paged_attention
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.linear import Linear
from loadmaster.layers.norm import mean_square, rms_norm
from loadmaster.layers.rotary import Rotary, rotate
from loadmaster.layers.step import Context, Step
from loadmaster.layers.weight import Params
from loadmaster.plan import Rows


class Attention:
    """Attention over a cache of keys and values."""

    def __init__(self, spec: AttentionSpec, params: Params, prefix: str, layer: int, window: int | None) -> None:
        self.layer = layer
        self.head_dim = spec.head_dim
        self.num_heads, self.num_kv_heads, _ = params.heads(f"{prefix}.qkv_proj.weight", spec.head_dim)
        self.eps = spec.norm_eps
        self.norm, self.qk_norm = spec.norm, spec.qk_norm
        self.rotary = Rotary.of(spec.rope, spec.rope_dim or self.head_dim)
        self.qkv = Linear.of(params, f"{prefix}.qkv_proj")
        self.o = Linear.of(params, f"{prefix}.o_proj")
        self.q_norm = params.tensor(f"{prefix}.q_norm.weight") if spec.qk_norm else None
        self.k_norm = params.tensor(f"{prefix}.k_norm.weight") if spec.qk_norm else None
        self.across = params.group if spec.qk_norm not in (None, "head") else None  # a norm over the heads of all ranks
        self.q_rows, self.k_rows, _ = params.division(f"{prefix}.qkv_proj.weight").parts
        scale = self.head_dim**-0.5 if spec.scale is None else spec.scale
        self.scoring = Scoring(scale, window, params.optional(f"{prefix}.sinks"))

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
            q_TND, k_TND = self._normed(q_TND, self.q_norm, self.q_rows), self._normed(k_TND, self.k_norm, self.k_rows)
        cos, sin = step.angles(self.rotary, x_TH.dtype)
        k_NSD, v_NSD = cache.rows(self.layer, "key"), cache.rows(self.layer, "value")
        if uses_kernels(x_TH.device, x_TH.dtype):
            q_TND = fused.rotate_and_store(q_TND, k_TND, v_TND, cos, sin, step.slots_T, k_NSD, v_NSD)
        else:
            q_TND = rotate(q_TND, cos, sin, interleaved=False)
            cache.write(self.layer, "key", step.slots_T, rotate(k_TND, cos, sin, interleaved=False))
            cache.write(self.layer, "value", step.slots_T, v_TND)
        return self.o(attend(q_TND, k_NSD, v_NSD, step, self.scoring).flatten(1))

    def _normed(self, x_TND: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        x = x_TND if self.qk_norm == "head" else x_TND.flatten(1)
        square = None if self.across is None else mean_square(x, rows, self.across)
        return rms_norm(x, weight, self.eps, self.norm, square).view_as(x_TND)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What makes shares of scores: a ``scale`` before the softmax, a ``window`` of tokens that have scores, sinks.

    ``sinks_N``: the softmax of each query head has one more score, whose share goes to no value (gpt-oss).
    """

    scale: float
    window: int | None = None
    sinks_N: Tensor | None = None  # noqa: N815

    def first(self, context: Context) -> int:
        """Return the first position that a token of a context attends to."""
        return 0 if self.window is None else max(0, context.first + 1 - self.window)


def attend(q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, step: Step, scoring: Scoring) -> Tensor:
    """Return ``[T, N, D]``: each token's attention to the cached tokens of its request, itself included.

    ``k_NSD`` and ``v_NSD`` are all rows of the cache; a group of consecutive query heads shares each of their heads.
    """
    if uses_kernels(q_TND.device, q_TND.dtype):
        return paged_attention(
            q_TND,
            k_NSD,
            v_NSD,
            step.paged,
            scale=scoring.scale,
            window=scoring.window,
            sinks_N=scoring.sinks_N,
        )
    out_TND = q_TND.new_empty(q_TND.shape)
    single = [c for c in step.contexts if c.num_tokens == 1]
    if single and q_TND.dtype == torch.float32:
        _decode(q_TND, k_NSD, v_NSD, single, scoring, out_TND)
    for context in step.contexts:
        if context.num_tokens == 1 and q_TND.dtype == torch.float32:
            continue
        first = scoring.first(context)
        q, k, v = q_TND[context.start : context.stop], context.rows(k_NSD, first), context.rows(v_NSD, first)
        is_one = context.num_tokens == 1
        out = _decode_narrow(q, k, v, scoring) if is_one else _prefill(q, k, v, step, context, scoring)
        out_TND[context.start : context.stop] = out
    return out_TND


def _decode(
    q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, contexts: Sequence[Context], scoring: Scoring, out_TND: Tensor
) -> None:
    """Write the rows of contexts with one new token: two products each, of few operations, which for short ones take most time.

    The query heads of a group are rows of one product, so keys are read once. In float32, as scores are stored.
    """
    grouped = (len(q_TND), len(k_NSD), -1, q_TND.shape[-1])
    queries, outs = (q_TND * scoring.scale).view(grouped), out_TND.view(grouped)
    k_NDS = k_NSD.transpose(1, 2)
    sinks_NG1 = None if scoring.sinks_N is None else scoring.sinks_N.to(q_TND.dtype).view(len(k_NSD), -1, 1)
    for context in contexts:
        first = scoring.first(context)
        length = context.length - first
        if len(context.runs) == 1:
            start = context.runs[0][0] + first
            k, v = k_NDS.narrow(2, start, length), v_NSD.narrow(1, start, length)
        else:
            k, v = context.rows(k_NSD, first).transpose(1, 2), context.rows(v_NSD, first)
        scores = torch.bmm(queries[context.start], k)
        with_sinks = scores if sinks_NG1 is None else torch.cat([scores, sinks_NG1], dim=-1)
        torch.bmm(with_sinks.softmax(dim=-1)[..., :length], v, out=outs[context.start])


def _decode_narrow(q_1ND: Tensor, k_NSD: Tensor, v_NSD: Tensor, scoring: Scoring) -> Tensor:
    """Return one token's row, in a dtype in which scores are not to be stored."""
    shape = q_1ND.shape
    if scoring.sinks_N is not None:
        q_1ND, k_NSD, v_NSD = _with_sinks(q_1ND, k_NSD, v_NSD, scoring.sinks_N / scoring.scale)
    q = q_1ND.reshape(len(k_NSD), -1, q_1ND.shape[-1])
    out = F.scaled_dot_product_attention(q[None], k_NSD[None], v_NSD[None], scale=scoring.scale)
    return out.reshape(q_1ND.shape)[..., : shape[-1]]


def _prefill(q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, step: Step, context: Context, scoring: Scoring) -> Tensor:
    head_dim = q_TND.shape[-1]
    is_whole = context.first == 0 and (scoring.window is None or context.length <= scoring.window)
    is_causal = is_whole and scoring.sinks_N is None
    mask_TS = None if is_causal else step.causal_mask(context, scoring.window)[:, scoring.first(context) :]
    if scoring.sinks_N is not None:
        assert mask_TS is not None
        q_TND, k_NSD, v_NSD = _with_sinks(q_TND, k_NSD, v_NSD, scoring.sinks_N / scoring.scale)
        mask_TS = F.pad(mask_TS, (0, 1), value=True)
    out = F.scaled_dot_product_attention(
        q_TND.transpose(0, 1)[None],
        k_NSD[None],
        v_NSD[None],
        attn_mask=mask_TS,
        is_causal=is_causal,
        scale=scoring.scale,
        enable_gqa=len(k_NSD) != q_TND.shape[1],
    )
    return out[0].transpose(0, 1)[..., :head_dim]


def _with_sinks(q_TND: Tensor, k_NSD: Tensor, v_NSD: Tensor, scores_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with one more row, to which each query head gives its score, and which adds nothing.

    A head gets 8 more elements (kernels take multiples of 8): the score in the queries, a one in the key of the added row,
    zeros elsewhere. So no product of the size ``[T, S]`` is made outside the kernel, and no mask for each head.
    """
    head_dim = q_TND.shape[-1]
    q, k, v = F.pad(q_TND, (0, 8)), F.pad(k_NSD, (0, 8, 0, 1)), F.pad(v_NSD, (0, 8, 0, 1))
    q[..., head_dim] = scores_N.to(q.dtype)
    k[:, -1, head_dim] = 1
    return q, k, v
