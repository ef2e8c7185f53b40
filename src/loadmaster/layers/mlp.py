"""The gated feed-forward layer."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.layers.weight import Params, Weight, linear


def gated(x: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Return ``down(silu(gate(x)) * up(x))``; ``gate_up`` holds gate's rows, then up's."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, down)


class GatedMLP:
    """``down(silu(gate(x)) * up(x))``, with biases where the model has them."""

    def __init__(self, params: Params, prefix: str) -> None:
        self.gate_up = params.weight(f"{prefix}.gate_up_proj.weight")
        self.gate_up_bias = params.optional(f"{prefix}.gate_up_proj.bias")
        self.down = params.weight(f"{prefix}.down_proj.weight")
        self.down_bias = params.optional(f"{prefix}.down_proj.bias")

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Return the layer's output ``[T, H]``."""
        gate_TI, up_TI = linear(x_TH, self.gate_up, self.gate_up_bias).chunk(2, dim=-1)
        return linear(F.silu(gate_TI) * up_TI, self.down, self.down_bias)
