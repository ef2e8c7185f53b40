"""Rotary position embeddings, as a config describes them.

Both spellings of the config are read: ``rope_parameters`` (transformers 5), and ``rope_theta`` with ``rope_scaling``
(before). The frequencies are computed by `loadmaster.layers.rotary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadmaster.architectures.config import Config
from loadmaster.errors import UnsupportedError

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embeddings of one type. Only the fields that the type uses are read; the others keep their defaults.

    ``factor`` stretches positions (linear, llama3, yarn). ``original_length`` is the number of positions before that
    (llama3, yarn). ``low_freq_factor`` and ``high_freq_factor`` bound Llama 3's bands. The rest is YaRN's;
    ``mscale_all_dim``, 0 where the config has none, changes the softmax scale of latent attention too.
    """

    rope_type: RopeType
    theta: float
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0


def read_rope(c: Config) -> Rope:
    """Return the rotary embeddings that ``c`` describes.

    Raises:
        UnsupportedError: the type of scaling is not implemented.
        ConfigError: a value that the type needs is missing or impossible.
    """
    older, newer = c.section("rope_scaling"), c.section("rope_parameters")
    p = Config({**older.values, **newer.values}, newer.where if newer.values else older.where)
    theta = p.number("rope_theta", c.number("rope_theta", 10000.0, above=0), above=0)
    match p.values.get("rope_type", p.values.get("type", "default")):
        case "default":
            return Rope("default", theta)
        case "linear":
            return Rope("linear", theta, _factor(p), mscale_all_dim=p.number("mscale_all_dim", 0.0))
        case "llama3":
            return Rope(
                "llama3",
                theta,
                _factor(p),
                _original_length(c, p),
                low_freq_factor=p.number("low_freq_factor", above=0),
                high_freq_factor=p.number("high_freq_factor", above=0),
                mscale_all_dim=p.number("mscale_all_dim", 0.0),
            )
        case "yarn":
            return Rope(
                "yarn",
                theta,
                _factor(p),
                _original_length(c, p),
                beta_fast=p.number("beta_fast", 0.0) or 32.0,
                beta_slow=p.number("beta_slow", 0.0) or 1.0,
                truncate=p.flag("truncate", True),
                attention_factor=None if p.values.get("attention_factor") is None else p.number("attention_factor"),
                mscale=p.number("mscale", 0.0),
                mscale_all_dim=p.number("mscale_all_dim", 0.0),
            )
        case rope_type:
            raise UnsupportedError(
                f"config.json: rotary embeddings of type {rope_type!r} are not supported",
                hint="supported: default, linear, llama3, yarn",
            )


def _factor(p: Config) -> float:
    return p.number("factor", above=0)


def _original_length(c: Config, p: Config) -> int:
    stated = p.optional_size("original_max_position_embeddings")
    return c.size("max_position_embeddings") if stated is None else stated
