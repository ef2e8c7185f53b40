"""Grouped-query attention of the dense families."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import AttentionSpec
from loadmaster.layers.cache import Cache
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.rotary import Rotary, rotate
from loadmaster.layers.weight import Params, linear


def causal_mask(positions_T: Tensor, num_cached: int, window: int | None = None) -> Tensor:
    """Return ``[T, S]``: which cached tokens each token may attend to (true), itself included.

    ``window``: only the last ``window`` tokens, itself included.
    """
    keys = torch.arange(num_cached, device=positions_T.device)
    mask = keys[None] <= positions_T[:, None]
    return mask if window is None else mask & (keys[None] > positions_T[:, None] - window)


class Attention:
    """Attention over a cache of keys and values."""

    def __init__(self, spec: AttentionSpec, params: Params, prefix: str, layer: int, window: int | None) -> None:
        self.layer = layer
        self.window = window
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.eps = spec.norm_eps
        self.rotary = Rotary.of(spec.rope, self.head_dim)
        self.qkv = params.weight(f"{prefix}.qkv_proj.weight")
        self.qkv_bias = params.optional(f"{prefix}.qkv_proj.bias")
        self.o = params.weight(f"{prefix}.o_proj.weight")
        self.o_bias = params.optional(f"{prefix}.o_proj.bias")
        self.q_norm = params.optional(f"{prefix}.q_norm.weight")
        self.k_norm = params.optional(f"{prefix}.k_norm.weight")

    def widths(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Return the shapes that the cache stores for each token, for `Cache`."""
        width = (self.num_kv_heads, self.head_dim)
        return {(self.layer, "key"): width, (self.layer, "value"): width}

    def __call__(self, x_TH: Tensor, positions_T: Tensor, cache: Cache) -> Tensor:
        """Return the attention's output ``[T, H]``."""
        start, num_cached = cache.begin(positions_T)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        qkv_TND = linear(x_TH, self.qkv, self.qkv_bias).view(len(x_TH), sum(heads), self.head_dim)
        q_TND, k_TND, v_TND = qkv_TND.split(heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_TND, k_TND = rms_norm(q_TND, self.q_norm, self.eps), rms_norm(k_TND, self.k_norm, self.eps)
        cos, sin = self.rotary.at(positions_T, x_TH.dtype)
        q_TND = rotate(q_TND, cos, sin, interleaved=False)
        k_SND = cache.update(self.layer, "key", start, rotate(k_TND, cos, sin, interleaved=False))
        v_SND = cache.update(self.layer, "value", start, v_TND)
        out_NTD = F.scaled_dot_product_attention(
            q_TND.transpose(0, 1)[None],
            k_SND.transpose(0, 1)[None],
            v_SND.transpose(0, 1)[None],
            attn_mask=causal_mask(positions_T, num_cached, self.window),
            enable_gqa=self.num_kv_heads != self.num_heads,
        )[0]
        return linear(out_NTD.transpose(0, 1).reshape(len(x_TH), -1), self.o, self.o_bias)
