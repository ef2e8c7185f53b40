"""Norms, computed in float32 as the published models do."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.architectures.model import Model, NormKind
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.kernels import fused
from loadmaster.kernels.choice import uses_kernels
from loadmaster.plan import Rows


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, kind: NormKind = "rms", mean_square: Tensor | None = None
) -> Tensor:
    """Return ``x / rms(x) * weight`` over the last dim, in ``x``'s dtype; ``kind`` says when it is rounded to that.

    ``mean_square`` is given where ``x`` is only a part of what is normed.
    """
    if mean_square is None and uses_kernels(x.device, x.dtype):
        return fused.rms_norm(x, weight, eps, kind)
    wide = x.to(torch.float32)
    if mean_square is None:
        mean_square = wide.pow(2).mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(mean_square + eps)
    match kind:
        case "rms":
            return weight.to(x.dtype) * wide.to(x.dtype)
        case "rms_wide":
            return (weight.float() * wide).to(x.dtype)
        case "rms_offset":
            return ((1 + weight.float()) * wide).to(x.dtype)


def mean_square(x: Tensor, rows: Rows, group: TensorGroup) -> Tensor:
    """Return the mean of the squares over a last dim that is divided over ranks as ``rows``: ``[…, 1]``, in float32.

    Several ranks may hold the same elements, which count once.
    """
    total = group.all_reduce(x.to(torch.float32).pow(2).sum(-1, keepdim=True))
    return total * (rows.num_shares / (group.size * rows.total))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the layer norm over the last dim, in ``x``'s dtype."""
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


class Norm:
    """An RMS norm of a model."""

    def __init__(self, model: Model, weight: Tensor) -> None:
        self.weight = weight
        self.eps, self.kind = model.norm_eps, model.norm

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` normed over its last dim."""
        return rms_norm(x, self.weight, self.eps, self.kind)
