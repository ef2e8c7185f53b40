"""Routed experts: a router's scores, the experts that it chooses, and the shared ones.

A rank holds a slice of each expert, or some of the experts: the plan says which. Either way the ranks' outputs are added up.

Sources: DeepSeek-V3 (arXiv 2412.19437) for sigmoid scores with a correction bias, chosen in groups; Mixtral (arXiv 2401.04088)
for a softmax; ``modeling_gpt_oss.py`` of transformers for a router with a bias and the clamped activation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from loadmaster.architectures.model import RouterSpec, SwigluSpec
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.kernels import fused
from loadmaster.kernels.block_product import group_choices, grouped_product
from loadmaster.kernels.choice import uses_kernels
from loadmaster.kernels.vector_product import FEW_TOKENS, gated_experts, route
from loadmaster.layers.linear import Linear
from loadmaster.layers.mlp import GatedMLP, gated
from loadmaster.layers.weight import Params


class Router:
    """Chooses experts. A correction bias affects the choice, never the weights; the linear layer's bias affects both."""

    def __init__(self, spec: RouterSpec, params: Params, prefix: str) -> None:
        self.topk = spec.topk
        self.scoring = spec.scoring
        self.num_groups, self.topk_groups = spec.num_groups, spec.topk_groups
        self.normalise, self.scaling = spec.normalise, spec.scaling
        self.weight = params.tensor(f"{prefix}.weight")
        self.bias = params.optional(f"{prefix}.bias")
        self.correction = params.optional(f"{prefix}.e_score_correction_bias")

    def __call__(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's experts and their weights, both ``[T, K]``."""
        if len(x_TH) <= FEW_TOKENS and self.num_groups == 1 and uses_kernels(x_TH.device, x_TH.dtype):
            return route(
                x_TH,
                self.weight,
                self.bias,
                self.correction,
                choices=self.topk,
                is_sigmoid=self.scoring == "sigmoid",
                normalises=self.normalise,
                scaling=self.scaling,
            )
        logits_TE = x_TH.float() @ self.weight.float().t()
        if self.bias is not None:
            logits_TE = logits_TE + self.bias.float()
        scores_TE = logits_TE.sigmoid() if self.scoring == "sigmoid" else logits_TE.softmax(dim=-1)
        choice_TE = scores_TE if self.correction is None else scores_TE + self.correction.float()
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


class GatedExperts:
    """A stack of experts, each a gated MLP."""

    def __init__(self, params: Params, prefix: str) -> None:
        self.w13 = params.weight(f"{prefix}.w13_weight")
        self.w2 = params.weight(f"{prefix}.w2_weight")
        self.slots, self.group = _held(params, prefix)

    def __call__(self, x_TH: Tensor, slot: int) -> Tensor:
        """Return the output of the expert in a slot ``[T, H]``, or this rank's part of it."""
        return gated(x_TH, Linear(self.w13.expert(slot)), Linear(self.w2.expert(slot)))

    @property
    def has_product(self) -> bool:
        """Whether kernels can multiply with all experts at once."""
        return self.w13.has_product and self.w2.has_product

    def chosen(self, x_TH: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return for each token the sum of its experts' outputs, weighted, ``[T, H]``; by kernels, without waiting."""
        w13, w2 = self.w13, self.w2
        if len(x_TH) <= FEW_TOKENS:
            return gated_experts(x_TH, w13.values, w13.factors, w2.values, w2.factors, experts_TK, weights_TK)
        choices = experts_TK.shape[1]
        groups = group_choices(experts_TK.flatten(), len(w13.values))
        gate_up_C2I = grouped_product(x_TH, w13.values, w13.factors, groups, choices_per_row=choices)
        inner_CI = fused.silu_and_multiply(gate_up_C2I)
        out_CH = grouped_product(inner_CI, w2.values, w2.factors, groups, shares_C=weights_TK.flatten())
        return out_CH.view(*experts_TK.shape, -1).sum(dim=1)


class ClampedExperts:
    """gpt-oss's experts: gate and up interleaved row by row, with biases and a clamped activation."""

    def __init__(self, spec: SwigluSpec, params: Params, prefix: str) -> None:
        self.spec = spec
        self.w13 = params.weight(f"{prefix}.w13_weight")
        self.b13 = params.tensor(f"{prefix}.w13_bias")
        self.w2 = params.weight(f"{prefix}.w2_weight")
        self.b2 = params.tensor(f"{prefix}.w2_bias")
        self.slots, self.group = _held(params, prefix)
        is_repeated = self.group is not None and not params.division(f"{prefix}.w2_bias").is_partial
        self.adds_bias = not is_repeated or (self.group is not None and self.group.slot == 0)

    def __call__(self, x_TH: Tensor, slot: int) -> Tensor:
        """Return the output of the expert in a slot ``[T, H]``, or this rank's part of it: the first rank adds the bias."""
        pairs_TI2 = Linear(self.w13.expert(slot), self.b13[slot])(x_TH).unflatten(-1, (-1, 2))
        gate_TI = pairs_TI2[..., 0].clamp(max=self.spec.limit)
        up_TI = pairs_TI2[..., 1].clamp(-self.spec.limit, self.spec.limit)
        inner_TI = (up_TI + 1) * gate_TI * torch.sigmoid(gate_TI * self.spec.alpha)
        return Linear(self.w2.expert(slot), self.b2[slot] if self.adds_bias else None)(inner_TI)


def _held(params: Params, prefix: str) -> tuple[dict[int, int], TensorGroup | None]:
    """Return the slots of the experts that this rank computes, and the group that adds up their outputs."""
    division, group = params.division(f"{prefix}.w2_weight"), params.adding(f"{prefix}.w2_weight")
    return {expert: slot for slot, expert in enumerate(division.experts) if expert >= 0}, group


class SharedExpert:
    """Qwen2-MoE's shared expert, weighed by its own gate."""

    def __init__(self, params: Params, prefix: str) -> None:
        self.mlp = GatedMLP(params, prefix)
        self.gate = Linear.of(params, f"{prefix}_gate")

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the layer's output ``[T, H]``."""
        return self.gate(x_TH).sigmoid() * self.mlp(x_TH)


class MixtureOfExperts:
    """Routed experts and, where the model has some, shared ones; only experts that a token chose are computed."""

    def __init__(
        self,
        router: Router,
        experts: GatedExperts | ClampedExperts,
        shared: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.router, self.experts, self.shared = router, experts, shared

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat it: kernels compute all chosen experts at once."""
        return self.has_product and self.experts.group is None

    @cached_property
    def has_product(self) -> bool:
        """Whether kernels can compute all chosen experts at once: the rank has them all, each in the slot of its number."""
        slots, num_experts = self.experts.slots, len(self.router.weight)
        is_whole = len(slots) == num_experts and all(expert == slot for expert, slot in slots.items())
        return is_whole and isinstance(self.experts, GatedExperts) and self.experts.has_product

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the layer's output ``[T, H]``."""
        experts_TK, weights_TK = self.router(x_TH)
        if uses_kernels(x_TH.device, x_TH.dtype) and self.has_product:
            assert isinstance(self.experts, GatedExperts)
            out_TH = self.experts.chosen(x_TH, experts_TK, weights_TK)
        else:
            out_TH = self._one_by_one(x_TH, experts_TK, weights_TK)
        if self.experts.group is not None:
            out_TH = self.experts.group.all_reduce(out_TH)
        return out_TH if self.shared is None else out_TH + self.shared(x_TH)

    def _one_by_one(self, x_TH: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        for expert in experts_TK.unique().tolist():
            slot = self.experts.slots.get(expert)
            if slot is None:
                continue
            token, choice = torch.where(experts_TK == expert)
            part = self.experts(x_TH[token], slot)
            out_TH.index_add_(0, token, (part * weights_TK[token, choice, None]).to(x_TH.dtype))
        return out_TH
