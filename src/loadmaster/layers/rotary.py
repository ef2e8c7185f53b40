"""Rotary position embeddings: frequencies from the config, applied interleaved or half-split.

Both spellings of the config are read: ``rope_parameters`` (transformers 5), and ``rope_theta`` with ``rope_scaling``
(before). Frequencies: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071) with DeepSeek's ``mscale``; Llama 3's bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loadmaster.errors import UnsupportedError


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's rotary parameters under transformers 5's names, whichever way they are spelled.

    Raises:
        UnsupportedError: a kind of scaling that is not implemented.
    """
    values = dict(config.get("rope_scaling") or {})
    values.update(config.get("rope_parameters") or {})
    values.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    values["rope_type"] = values.get("rope_type", values.get("type", "default"))
    if values["rope_type"] not in ("default", "linear", "llama3", "yarn"):
        raise UnsupportedError(
            f"config.json: rotary embeddings of type {values['rope_type']!r} are not supported",
            hint="supported: default, linear, llama3, yarn",
        )
    if "original_max_position_embeddings" not in values:
        values["original_max_position_embeddings"] = config.get("max_position_embeddings")
    return values


@dataclass(frozen=True)
class Rotary:
    """Frequencies of one head dim, and the factor on cosine and sine (YaRN's attention factor)."""

    frequencies: Tensor
    factor: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dim: int) -> Rotary:
        """Return the rotary embedding of ``dim`` elements a head."""
        p = rope_parameters(config)
        base = float(p["rope_theta"])
        powers = base ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim)
        frequencies = 1.0 / powers
        match p["rope_type"]:
            case "linear":
                return cls(frequencies / p["factor"])
            case "llama3":
                return cls(_llama3(frequencies, p))
            case "yarn":
                return cls(_yarn(powers, p, dim, base), _yarn_factor(p))
            case _:
                return cls(frequencies)

    def at(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``[T, dim / 2]``."""
        angles = positions_T.to(torch.float32)[:, None] * self.frequencies.to(positions_T.device)
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


def rotate(x_TND: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of elements of each head: neighbours (interleaved), or one of each half.

    The result has the first elements of all pairs, then the second, either way: queries and keys are laid out alike, so
    their products are those of the published order.
    """
    if interleaved:
        a, b = x_TND[..., 0::2], x_TND[..., 1::2]
    else:
        a, b = x_TND.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def softmax_scale(config: Mapping[str, Any], dim: int) -> float:
    """Return MLA's softmax scale: ``dim`` ** -0.5, times YaRN's squared ``mscale_all_dim`` where the config has one."""
    p = rope_parameters(config)
    scale = float(dim**-0.5)
    if p["rope_type"] != "default" and p.get("mscale_all_dim"):
        scale *= _mscale(p["factor"], p["mscale_all_dim"]) ** 2
    return scale


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_factor(p: Mapping[str, Any]) -> float:
    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return _mscale(p["factor"], p["mscale"]) / _mscale(p["factor"], p["mscale_all_dim"])
    return _mscale(p["factor"])


def _yarn(powers: Tensor, p: Mapping[str, Any], dim: int, base: float) -> Tensor:
    original = p["original_max_position_embeddings"]

    def turns_at(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = turns_at(p.get("beta_fast") or 32), turns_at(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    keep = 1 - ramp
    stretched, unchanged = 1.0 / (p["factor"] * powers), 1.0 / powers
    return torch.lerp(stretched, unchanged, keep)


def _llama3(frequencies: Tensor, p: Mapping[str, Any]) -> Tensor:
    factor, low, high = p["factor"], p["low_freq_factor"], p["high_freq_factor"]
    original = p["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    medium = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(medium, between, scaled)
