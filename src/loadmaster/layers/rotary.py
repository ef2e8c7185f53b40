"""Rotary position embeddings: frequencies, applied to neighbouring elements (interleaved) or to the halves of a head.

Sources of the frequencies: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071) with DeepSeek's ``mscale``; Llama 3's bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from loadmaster.architectures.rope import Rope


@dataclass(frozen=True, eq=False)
class Rotary:
    """The frequencies of a head's pairs, and the factor on cosine and sine (YaRN's attention factor)."""

    frequencies: Tensor
    factor: float = 1.0
    _by_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    @cache
    def of(cls, rope: Rope, dim: int) -> Rotary:
        """Return the rotary embedding of ``dim`` elements of each head: the same object for all layers with the same values."""
        powers = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim)
        frequencies = 1.0 / powers
        match rope.rope_type:
            case "linear":
                return cls(frequencies / rope.factor)
            case "llama3":
                return cls(_llama3(frequencies, rope))
            case "yarn":
                return cls(_yarn(powers, rope, dim), _yarn_factor(rope))
            case "default":
                return cls(frequencies)

    def at(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``[T, dim / 2]``."""
        device = positions_T.device
        if device not in self._by_device:
            self._by_device[device] = self.frequencies.to(device)
        angles = positions_T.to(torch.float32)[:, None] * self._by_device[device]
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


def rotate(x_TND: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of elements of each head: neighbours (interleaved), or one of each half.

    Where there are fewer cosines than pairs, only the first elements of a head are rotated.

    In both cases the result has the first elements of all pairs, then the second ones. Queries and keys have the same
    order, so their products equal those of the published order.
    """
    if 2 * cos.shape[-1] < x_TND.shape[-1]:
        rotated, rest = x_TND.tensor_split([2 * cos.shape[-1]], dim=-1)
        return torch.cat([rotate(rotated, cos, sin, interleaved=interleaved), rest], dim=-1)
    if interleaved:
        a, b = x_TND[..., 0::2], x_TND[..., 1::2]
    else:
        a, b = x_TND.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def softmax_scale(rope: Rope, dim: int) -> float:
    """Return MLA's softmax scale: ``dim`` ** -0.5, times YaRN's squared ``mscale_all_dim`` where the model has one."""
    scale = float(dim**-0.5)
    if rope.rope_type != "default" and rope.mscale_all_dim:
        scale *= _mscale(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor)


def _yarn(powers: Tensor, rope: Rope, dim: int) -> Tensor:
    def turns_at(rotations: float) -> float:
        return dim * math.log(rope.original_length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = turns_at(rope.beta_fast), turns_at(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    keep = 1 - ramp
    stretched, unchanged = 1.0 / (rope.factor * powers), 1.0 / powers
    return torch.lerp(stretched, unchanged, keep)


def _llama3(frequencies: Tensor, rope: Rope) -> Tensor:
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    original = rope.original_length
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    medium = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(medium, between, scaled)
