"""Linear layers as the plan describes them: a weight in the form in which it was loaded, and a bias if there is one."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.layers.weight import Params, Weight


class Linear:
    """``x @ weight.T + bias`` in the dtype of ``x``: ``[…, in]`` → ``[…, out]``."""

    def __init__(self, weight: Weight, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    @classmethod
    def of(cls, params: Params, prefix: str) -> Linear:
        """Return the layer whose parameters are ``prefix.weight`` and, where the model has one, ``prefix.bias``."""
        return cls(params.weight(f"{prefix}.weight"), params.optional(f"{prefix}.bias"))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product, with the bias added."""
        return F.linear(x, self.weight.dense(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
