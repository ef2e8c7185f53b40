"""Latent attention with the indexer: dense, or over the tokens that the indexer selects; and the indexer's loss.

The indexer learns as DeepSeek-V3.2's does (arXiv 2512.02556): the softmax of its scores is drawn to the attention's own
distribution, summed over the heads and normalised, by their Kullback-Leibler divergence. Its inputs are detached, so nothing
else learns from that loss, and it learns from nothing else. While it *warms up*, attention is dense and the divergence covers
all earlier tokens; then attention is *sparse*, and it covers the selected ones.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.trained.blocks import Norm, Weight

Mode = Literal["dense", "warm-up", "sparse", "recent"]
"""Which tokens attention reads. ``recent`` is only measured: as many as in sparse attention, but the latest ones."""


class Indexer(nn.Module):
    """Scores every earlier token for every token."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
        self.wq_b = Weight(self.num_heads * self.head_dim, c["q_lora_rank"])
        self.wk = Weight(self.head_dim, c["hidden_size"])
        self.weights_proj = Weight(self.num_heads, c["hidden_size"], fp8=False)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6)

    def forward(self, x_BTH: Tensor, q_latent_BTR: Tensor, rotation: Tensor) -> Tensor:
        """Return the scores ``[B, T, S]``, not masked."""
        q_BTND = self.wq_b(q_latent_BTR).unflatten(-1, (self.num_heads, self.head_dim))
        k_norm = self.k_norm
        k_BSD = F.layer_norm(
            self.wk(x_BTH), k_norm.normalized_shape, k_norm.weight.to(x_BTH), k_norm.bias.to(x_BTH), k_norm.eps
        )
        q_BTND = torch.cat([rotate(q_BTND[..., : self.rope], rotation), q_BTND[..., self.rope :]], -1)
        k_BS1D = torch.cat([rotate(k_BSD[:, :, None, : self.rope], rotation), k_BSD[:, :, None, self.rope :]], -1)
        scores_BTNS = F.relu(q_BTND.flatten(1, 2) @ k_BS1D[:, :, 0].transpose(1, 2)).unflatten(1, q_BTND.shape[1:3])
        weights_BTN = self.weights_proj(x_BTH) * (self.num_heads * self.head_dim) ** -0.5
        scores_BTS: Tensor = (weights_BTN[:, :, None] @ scores_BTNS)[:, :, 0].float()
        return scores_BTS


class Attention(nn.Module):
    """Latent attention. All tokens begin at position 0."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.num_heads, self.topk = c["hidden_size"], c["num_attention_heads"], c["index_topk"]
        self.nope, self.rope, self.value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        q_rank, self.kv_rank, eps = c["q_lora_rank"], c["kv_lora_rank"], c["rms_norm_eps"]
        self.q_a_proj = Weight(q_rank, hidden)
        self.q_a_layernorm = Norm(q_rank, eps)
        self.q_b_proj = Weight(self.num_heads * (self.nope + self.rope), q_rank)
        self.kv_a_proj_with_mqa = Weight(self.kv_rank + self.rope, hidden)
        self.kv_a_layernorm = Norm(self.kv_rank, eps)
        self.kv_b_proj = Weight(self.num_heads * (self.nope + self.value), self.kv_rank)
        self.o_proj = Weight(hidden, self.num_heads * self.value)
        self.indexer = Indexer(c)

    def forward(self, x_BTH: Tensor, rotation: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
        """Return the output ``[B, T, H]`` and the indexer's loss, a mean over the tokens; 0 where it does not learn."""
        q_latent = self.q_a_layernorm(self.q_a_proj(x_BTH))
        q_BNTD = self.q_b_proj(q_latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv, k_rope = self.kv_a_proj_with_mqa(x_BTH).split((self.kv_rank, self.rope), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(kv)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope, v_BNTD = kv.split((self.nope, self.value), dim=-1)
        q_rope = rotate(q_BNTD[..., self.nope :].transpose(1, 2), rotation).transpose(1, 2)
        k_rope = rotate(k_rope[:, :, None], rotation).transpose(1, 2).expand(-1, self.num_heads, -1, -1)
        q_BNTD = torch.cat([q_BNTD[..., : self.nope], q_rope], dim=-1)
        k_BNTD = torch.cat([k_nope, k_rope], dim=-1)

        num_tokens = x_BTH.shape[1]
        loss = x_BTH.new_zeros((), dtype=torch.float32)
        mask_BTS = None
        if mode != "dense":
            mask_BTS = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x_BTH.device).tril()[None]
        if mode == "recent" and mask_BTS is not None:
            mask_BTS = mask_BTS & ~mask_BTS.tril(-self.topk)
        elif mask_BTS is not None:
            scores_BTS = self.indexer(x_BTH.detach(), q_latent.detach(), rotation)
            if mode == "sparse":
                best = _later_first(scores_BTS.detach()).masked_fill(~mask_BTS, -torch.inf)
                best = best.topk(min(self.topk, num_tokens)).indices
                mask_BTS = mask_BTS & torch.zeros_like(scores_BTS, dtype=torch.bool).scatter(-1, best, True)
            if torch.is_grad_enabled():
                loss = divergence(q_BNTD, k_BNTD, scores_BTS, mask_BTS)
        out_BNTD = F.scaled_dot_product_attention(
            q_BNTD,
            k_BNTD,
            v_BNTD,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            is_causal=mask_BTS is None,
            scale=(self.nope + self.rope) ** -0.5,
        )
        out: Tensor = self.o_proj(out_BNTD.transpose(1, 2).flatten(-2))
        return out, loss


def divergence(q_BNTD: Tensor, k_BNTD: Tensor, scores_BTS: Tensor, mask_BTS: Tensor) -> Tensor:
    """Return KL(attention's mean over the heads ‖ softmax of ``scores_BTS``) over the tokens in the mask, per token."""
    with torch.no_grad():
        p_BTS = torch.zeros_like(scores_BTS)
        for q_BTD, k_BTD in zip(q_BNTD.unbind(1), k_BNTD.unbind(1), strict=True):
            logits = (q_BTD @ k_BTD.transpose(1, 2)).float() * q_BTD.shape[-1] ** -0.5
            p_BTS += logits.masked_fill(~mask_BTS, -torch.inf).softmax(-1)
        p_BTS /= q_BNTD.shape[1]
        entropy: Tensor = torch.special.entr(p_BTS).sum(-1).mean()
    log_q_BTS = scores_BTS.masked_fill(~mask_BTS, -1e4).log_softmax(-1)
    divergence_: Tensor = -(p_BTS * log_q_BTS).sum(-1).mean() - entropy
    return divergence_


def rotation_of(num_tokens: int, dim: int, theta: float, device: torch.device) -> Tensor:
    """Return cosines and sines ``[2, T, 1, dim / 2]`` for the positions from 0."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, device=device).float() / dim)
    angles = torch.arange(num_tokens, device=device).float()[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]


def rotate(x_BTND: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of neighbours; the result has the first elements of all pairs, then the second ones."""
    cos, sin = rotation.to(x_BTND.dtype)
    a, b = x_BTND[..., 0::2], x_BTND[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _later_first(scores_BTS: Tensor) -> Tensor:
    """Return scores in which those that are exactly zero are ordered by position, as the package orders them."""
    positions_S = torch.arange(scores_BTS.shape[-1], device=scores_BTS.device)
    return torch.where(scores_BTS == 0, (positions_S + 2**23).to(torch.float32) * 2.0**-120, scores_BTS)
