"""The gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.kernels import fused
from loadmaster.kernels.choice import uses_kernels
from loadmaster.layers.linear import Linear
from loadmaster.layers.weight import Params

Activation = Callable[[Tensor], Tensor]


def gated(x: Tensor, gate_up: Linear, down: Linear, activation: Activation = F.silu) -> Tensor:
    """Return ``down(activation(gate(x)) * up(x))``; ``gate_up`` has gate's rows, then up's."""
    gate_up_T2I = gate_up(x)
    if activation is F.silu and uses_kernels(x.device, x.dtype):
        return down(fused.silu_and_multiply(gate_up_T2I))
    gate, up = gate_up_T2I.chunk(2, dim=-1)
    return down(activation(gate) * up)


class FeedForward(Protocol):
    """The feed-forward part of a layer."""

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat it: it never waits for the device."""

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the output ``[T, H]``."""


class GatedMLP:
    """``down(activation(gate(x)) * up(x))``, with biases where the model has them."""

    is_capturable = True

    def __init__(self, params: Params, prefix: str, activation: Activation = F.silu) -> None:
        self.activation = activation
        self.gate_up = Linear.of(params, f"{prefix}.gate_up_proj")
        self.down = Linear.of(params, f"{prefix}.down_proj")

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the layer's output ``[T, H]``."""
        return gated(x_TH, self.gate_up, self.down, self.activation)
