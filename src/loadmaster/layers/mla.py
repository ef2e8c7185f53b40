"""Latent attention (MLA) with, where a model has one, the sparse-attention indexer.

The cache has one latent and one rotary key for each token, shared by all heads. Attention runs in the latent (the absorbed
form): queries go through the key half of ``kv_b``, outputs through its value half, so no token is expanded.
The indexer scores every cached token for every query and keeps the ``topk`` best; a layer that *shares* attends to the
tokens that the last selecting layer kept. Sources: DeepSeek-V3 (arXiv 2412.19437), DeepSeek-V3.2's and GLM-5's
reference implementations in transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import IndexerSpec, LatentSpec
from loadmaster.layers.attention import causal_mask
from loadmaster.layers.cache import Cache
from loadmaster.layers.norm import layer_norm, rms_norm
from loadmaster.layers.rotary import Rotary, rotate, softmax_scale
from loadmaster.layers.weight import Params, linear

INDEXER_NORM_EPS = 1e-6


class Indexer:
    """Selects for each token the cached tokens that it attends to."""

    def __init__(self, spec: IndexerSpec, params: Params, prefix: str, layer: int) -> None:
        self.layer = layer
        self.topk = spec.topk
        self.num_heads, self.head_dim, self.rope_dim = spec.num_heads, spec.head_dim, spec.rope_dim
        self.interleaved = spec.interleaved
        self.wq_b = params.weight(f"{prefix}.wq_b.weight")
        self.wk_weights = params.weight(f"{prefix}.wk_weights_proj.weight")
        self.k_norm = params.tensor(f"{prefix}.k_norm.weight")
        self.k_norm_bias = params.tensor(f"{prefix}.k_norm.bias")

    def select(
        self, x_TH: Tensor, q_latent_TR: Tensor, cos: Tensor, sin: Tensor, mask_TS: Tensor, cache: Cache, start: int
    ) -> Tensor:
        """Return the selected tokens ``[T, K]``; where fewer are allowed, the rest are tokens that the mask excludes."""
        k_TD, weights_TN = linear(x_TH, self.wk_weights).split((self.head_dim, self.num_heads), dim=-1)
        q_TND = linear(q_latent_TR, self.wq_b).view(len(x_TH), self.num_heads, self.head_dim)
        k_T1D = layer_norm(k_TD, self.k_norm, self.k_norm_bias, INDEXER_NORM_EPS)[:, None]
        q_TND, k_T1D = self._rotated(q_TND, cos, sin), self._rotated(k_T1D, cos, sin)
        k_SD = cache.update(self.layer, "index_key", start, k_T1D[:, 0])
        scores_TNS = F.relu(torch.matmul(q_TND.float(), k_SD.float().transpose(0, 1)) * self.head_dim**-0.5)
        weights_TN = weights_TN.float() * self.num_heads**-0.5
        scores_TS = torch.matmul(weights_TN[:, None], scores_TNS)[:, 0].masked_fill(~mask_TS, float("-inf"))
        return scores_TS.topk(min(self.topk, scores_TS.shape[-1]), dim=-1).indices

    def _rotated(self, x_TND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary, rest = x_TND.split((self.rope_dim, self.head_dim - self.rope_dim), dim=-1)
        return torch.cat([rotate(rotary, cos, sin, interleaved=self.interleaved), rest], dim=-1)


class LatentAttention:
    """MLA over a latent cache: attends to all tokens, or to those that an indexer selects.

    The layer's own ``indexer`` selects them, or with ``shares`` the layer takes the tokens selected by an earlier layer.
    """

    def __init__(
        self, spec: LatentSpec, params: Params, prefix: str, layer: int, indexer: IndexerSpec | None, *, shares: bool
    ) -> None:
        self.layer = layer
        self.is_sparse = shares or indexer is not None
        self.num_heads = spec.num_heads
        self.nope, self.rope, self.value = spec.nope_dim, spec.rope_dim, spec.value_dim
        self.q_rank, self.kv_rank = spec.q_rank, spec.kv_rank
        self.eps = spec.norm_eps
        self.interleaved = spec.interleaved
        self.scale = softmax_scale(spec.rope, self.nope + self.rope)
        self.rotary = Rotary.of(spec.rope, self.rope)
        self.qkv_a = params.weight(f"{prefix}.fused_qkv_a_proj.weight")
        self.q_norm = params.tensor(f"{prefix}.q_a_layernorm.weight")
        self.kv_norm = params.tensor(f"{prefix}.kv_a_layernorm.weight")
        self.q_b = params.weight(f"{prefix}.q_b_proj.weight")
        self.kv_b = params.weight(f"{prefix}.kv_b_proj.weight")
        self.o = params.weight(f"{prefix}.o_proj.weight")
        self.indexer = None if indexer is None else Indexer(indexer, params, f"{prefix}.indexer", layer)

    def widths(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Return the shapes that the cache stores for each token, for `Cache`."""
        widths: dict[tuple[int, str], tuple[int, ...]] = {
            (self.layer, "latent"): (self.kv_rank,),
            (self.layer, "rope_key"): (self.rope,),
        }
        if self.indexer:
            widths[self.layer, "index_key"] = (self.indexer.head_dim,)
        return widths

    def __call__(
        self, x_TH: Tensor, positions_T: Tensor, cache: Cache, topk_TK: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output ``[T, H]``, and the selected tokens ``[T, K]`` for layers that share them."""
        start, num_cached = cache.begin(positions_T)
        cos, sin = self.rotary.at(positions_T, x_TH.dtype)
        mask_TS = causal_mask(positions_T, num_cached)

        q_TR, kv_TR, k_rope_TD = linear(x_TH, self.qkv_a).split((self.q_rank, self.kv_rank, self.rope), dim=-1)
        q_TR = rms_norm(q_TR, self.q_norm, self.eps)
        q_TND = linear(q_TR, self.q_b).view(len(x_TH), self.num_heads, self.nope + self.rope)
        q_nope_TND, q_rope_TND = q_TND.split((self.nope, self.rope), dim=-1)
        q_rope_TND = rotate(q_rope_TND, cos, sin, interleaved=self.interleaved)
        k_rope_T1D = rotate(k_rope_TD[:, None], cos, sin, interleaved=self.interleaved)
        latent_SR = cache.update(self.layer, "latent", start, rms_norm(kv_TR, self.kv_norm, self.eps))
        k_rope_SD = cache.update(self.layer, "rope_key", start, k_rope_T1D[:, 0])

        if self.indexer is not None:
            topk_TK = self.indexer.select(x_TH, q_TR, cos, sin, mask_TS, cache, start)
        if self.is_sparse:
            assert topk_TK is not None, "a layer that shares a selection needs the selected tokens"
            mask_TS = mask_TS & torch.zeros_like(mask_TS).scatter(1, topk_TK, True)

        kv_b_NDR = self.kv_b.dense(x_TH.dtype).view(self.num_heads, self.nope + self.value, self.kv_rank)
        k_b_NDR, v_b_NDR = kv_b_NDR.split((self.nope, self.value), dim=1)
        q_latent_NTR = torch.matmul(q_nope_TND.transpose(0, 1), k_b_NDR)
        scores_NTS = torch.matmul(q_latent_NTR, latent_SR.transpose(0, 1))
        scores_NTS = scores_NTS + torch.matmul(q_rope_TND.transpose(0, 1), k_rope_SD.transpose(0, 1))
        scores_NTS = (scores_NTS * self.scale).masked_fill(~mask_TS, float("-inf"))
        shares_NTS = scores_NTS.softmax(dim=-1, dtype=torch.float32).to(x_TH.dtype)
        out_NTD = torch.matmul(torch.matmul(shares_NTS, latent_SR), v_b_NDR.transpose(1, 2))
        return linear(out_NTD.transpose(0, 1).reshape(len(x_TH), -1), self.o), topk_TK
