"""FP8 in blocks, as GLM-5.1-FP8 stores it: E4M3 values, and for each block one F32 factor, ``weight_scale_inv``."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tools.trained.config import BLOCK

LARGEST = 448.0
"""The largest value of E4M3."""


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 values in the shape of ``weight`` ``[…, out, in]``, and the factors ``[…, blocks out, blocks in]``."""
    blocks, scale = _in_blocks(weight.float())
    values = (blocks / scale).to(torch.float8_e4m3fn)
    return _whole(values, weight), scale.squeeze(-1).squeeze(-2)


def rounded(weight: Tensor) -> Tensor:
    """Return ``weight`` as it will be after quantisation; its gradient is passed on unchanged (straight-through)."""
    with torch.no_grad():
        blocks, scale = _in_blocks(weight.detach())
        stored = _whole((blocks / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale, weight)
        error = stored - weight
    return weight + error


def _in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``[…, blocks out, BLOCK, blocks in, BLOCK]``, filled up with zeros, and each block's factor."""
    rows, columns = weight.shape[-2:]
    padded = F.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    scale = blocks.abs().amax(dim=(-3, -1), keepdim=True).clamp(min=1e-6) / LARGEST
    return blocks, scale


def _whole(blocks: Tensor, weight: Tensor) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : weight.shape[-2], : weight.shape[-1]]
