"""Linear layers as the plan describes them: a weight in the form in which it was loaded, and a bias if there is one."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.layers.linear_forms import Forms
from loadmaster.layers.weight import Params, Weight


class Linear:
    """``x @ weight.T + bias`` in the dtype of ``x``: ``[…, in]`` → ``[…, out]``."""

    def __init__(self, weight: Weight, bias: Tensor | None = None, forms: Forms | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._forms = forms

    @classmethod
    def of(cls, params: Params, prefix: str) -> Linear:
        """Return the layer whose parameters are ``prefix.weight`` and, where the model has one, ``prefix.bias``."""
        weight = params.weight(f"{prefix}.weight")
        forms = params.tuner.prepare(weight.values) if params.tuner is not None and weight.scale is None else None
        return cls(weight, params.optional(f"{prefix}.bias"), forms)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product, with the bias added."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self._forms is not None and x.dtype == torch.float32:
            return self._forms.multiply(x, bias)
        return F.linear(x, self.weight.dense(x.dtype), bias)
