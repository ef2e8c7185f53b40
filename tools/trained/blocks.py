"""The parts of a layer besides attention. Parameters are float32; computation is in the dtype of the input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.trained import fp8


class Weight(nn.Module):
    """A matrix ``[out, in]``, or one for each expert ``[E, out, in]``, that will be stored in FP8 blocks unless ``fp8`` is False.

    With ``quantised`` set (`set_quantised`) it computes with the values that will be stored.
    """

    quantised = False

    def __init__(self, *shape: int, fp8: bool = True) -> None:
        super().__init__()
        self.fp8 = fp8
        self.weight = nn.Parameter(torch.empty(shape))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix to compute with."""
        if not self.quantised:
            return self.weight.to(dtype)
        return (fp8.rounded(self.weight) if self.fp8 else self.weight.to(torch.bfloat16)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T``."""
        return F.linear(x, self.matrix(x.dtype))


class Norm(nn.Module):
    """RMS norm, in float32 inside."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the norm of ``x`` in ``dtype`` (None: that of ``x``)."""
        dtype = dtype or x.dtype
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        out: Tensor = self.weight.to(dtype) * wide.to(dtype)
        return out


class Dense(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Weight(inner, hidden)
        self.up_proj = Weight(inner, hidden)
        self.down_proj = Weight(hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``down(silu(gate(x)) * up(x))``."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Sigmoid scores; a bias that no gradient trains takes part in the choice, and evens out the load of the experts."""

    e_score_correction_bias: Tensor

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.topk, self.scaling = c["num_experts_per_tok"], c["routed_scaling_factor"]
        self.weight = Weight(c["n_routed_experts"], c["hidden_size"], fp8=False).weight
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))
        self.register_buffer("load", torch.zeros(c["n_routed_experts"]), persistent=False)
        self.quantised = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight of each expert for each token ``[…, E]``, 0 for those that are not chosen."""
        weight = self.weight.to(torch.bfloat16).float() if self.quantised else self.weight
        scores = F.linear(x.float(), weight).sigmoid()
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.topk).indices
        weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        if self.training:
            self.load = (weights.detach() > 0).float().flatten(0, -2).mean(0)
        normalised: Tensor = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return normalised * float(self.scaling)

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Raise the bias of experts that were chosen too rarely in the last step, lower that of the others."""
        self.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)


class Stack(nn.Module):
    """The matrices of all routed experts: ``[E, inner, hidden]`` and back."""

    def __init__(self, count: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Weight(count, inner, hidden)
        self.up_proj = Weight(count, inner, hidden)
        self.down_proj = Weight(count, hidden, inner)


class Experts(nn.Module):
    """Routed experts and a shared one. All experts compute all tokens: at this size that is the fastest way to train."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner, count = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        self.gate = Router(c)
        self.experts = Stack(count, hidden, inner)
        self.shared_experts = Dense(hidden, inner * c["n_shared_experts"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: side by side, the experts are one wide layer whose parts the router weighs."""
        stack = self.experts
        gate, up, down = (w.matrix(x.dtype) for w in (stack.gate_proj, stack.up_proj, stack.down_proj))
        inner = F.silu(F.linear(x, gate.flatten(0, 1))) * F.linear(x, up.flatten(0, 1))
        weighed = inner.unflatten(-1, (len(gate), -1)) * self.gate(x)[..., None].to(x.dtype)
        shared: Tensor = self.shared_experts(x)
        return F.linear(weighed.flatten(-2), down.transpose(0, 1).flatten(1)) + shared
