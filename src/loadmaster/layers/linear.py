"""Linear layers as the plan describes them: a weight in the form in which it was loaded, and a bias if there is one.

Where the plan has cut a weight along its in dim, each rank's product is a part of a sum, and the layer adds up the ranks'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.distributed.tensor import TensorGroup
from loadmaster.kernels.block_product import FEW_ROWS, product
from loadmaster.kernels.choice import uses_kernels
from loadmaster.kernels.vector_product import FEW_ROWS as VECTORS
from loadmaster.kernels.vector_product import vector_product
from loadmaster.layers.linear_forms import Forms
from loadmaster.layers.weight import Params, Weight


class Linear:
    """``x @ weight.T + bias`` in the dtype of ``x``: ``[…, in]`` → ``[…, out]``, summed over ``group`` if there is one."""

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None = None,
        forms: Forms | None = None,
        group: TensorGroup | None = None,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.group = group
        self._forms = forms

    @classmethod
    def of(cls, params: Params, prefix: str) -> Linear:
        """Return the layer whose parameters are ``prefix.weight`` and, where the model has one, ``prefix.bias``."""
        name = f"{prefix}.weight"
        weight = params.weight(name)
        forms = params.tuner.prepare(weight.values) if params.tuner is not None and params.may_tune(name) else None
        return cls(weight, params.optional(f"{prefix}.bias"), forms, params.adding(name))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product, with the bias added: once, whatever the number of ranks."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.group is None:
            return self._product(x, bias)
        product = self.group.all_reduce(self._product(x, None))
        return product if bias is None else product + bias

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._forms is not None and x.dtype == torch.float32:
            return self._forms.multiply(x, bias)
        if self.weight.scale is not None and len(x) <= FEW_ROWS and uses_kernels(x.device, x.dtype):
            factors = self.weight.factors
            if factors is not None and x.dim() == 2:
                multiply = vector_product if len(x) <= VECTORS else product
                out = multiply(x, self.weight.values, factors)
                return out if bias is None else out + bias
        return F.linear(x, self.weight.dense(x.dtype), bias)
