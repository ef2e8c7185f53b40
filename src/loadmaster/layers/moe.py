"""Routed experts: sigmoid scores with a correction bias, chosen in groups (DeepSeek-V3, arXiv 2412.19437)."""

from __future__ import annotations

import torch
from torch import Tensor

from loadmaster.architectures.model import RouterSpec
from loadmaster.layers.linear import Linear
from loadmaster.layers.mlp import GatedMLP, gated
from loadmaster.layers.weight import Params


class Router:
    """Chooses experts. The bias affects the choice, never the weights."""

    def __init__(self, spec: RouterSpec, params: Params, prefix: str) -> None:
        self.topk = spec.topk
        self.num_groups, self.topk_groups = spec.num_groups, spec.topk_groups
        self.normalise, self.scaling = spec.normalise, spec.scaling
        self.weight = params.tensor(f"{prefix}.weight")
        self.bias = params.tensor(f"{prefix}.e_score_correction_bias")

    def __call__(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's experts and their weights, both ``[T, K]``."""
        scores_TE = (x_TH.float() @ self.weight.float().t()).sigmoid()
        choice_TE = scores_TE + self.bias.float()
        if self.num_groups > 1:
            grouped = choice_TE.view(len(x_TH), self.num_groups, -1)
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.topk_groups, dim=-1, sorted=False).indices
            allowed = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=x_TH.device).scatter(1, best, True)
            choice_TE = grouped.masked_fill(~allowed[..., None], float("-inf")).view_as(choice_TE)
        experts_TK = choice_TE.topk(self.topk, dim=-1, sorted=False).indices
        weights_TK = scores_TE.gather(1, experts_TK)
        if self.normalise:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return experts_TK, weights_TK * self.scaling


class MixtureOfExperts:
    """Routed experts and the shared ones; only experts that a token chose are computed."""

    def __init__(self, spec: RouterSpec, params: Params, prefix: str) -> None:
        self.router = Router(spec, params, f"{prefix}.gate")
        self.w13 = params.weight(f"{prefix}.experts.w13_weight")
        self.w2 = params.weight(f"{prefix}.experts.w2_weight")
        self.shared = GatedMLP(params, f"{prefix}.shared_experts")

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the layer's output ``[T, H]``."""
        experts_TK, weights_TK = self.router(x_TH)
        out_TH = torch.zeros_like(x_TH)
        for expert in experts_TK.unique().tolist():
            token, choice = torch.where(experts_TK == expert)
            part = gated(x_TH[token], Linear(self.w13.expert(expert)), Linear(self.w2.expert(expert)))
            out_TH.index_add_(0, token, (part * weights_TK[token, choice, None]).to(x_TH.dtype))
        return out_TH + self.shared(x_TH)
