"""Rotary position embeddings, as a config describes them.

Both spellings of the config are read: ``rope_parameters`` (transformers 5), and ``rope_theta`` with ``rope_scaling``
(before). The frequencies are computed by `loadmaster.layers.rotary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadmaster.architectures.config import Config
from loadmaster.errors import ConfigError, UnsupportedError

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


def read_rope(c: Config, *, theta: float = 10000.0) -> Rope:
    """Return the rotary embeddings that ``c`` describes; ``theta`` is the family's default for ``rope_theta``.

    Raises:
        UnsupportedError: the type of scaling is not implemented.
        ConfigError: a value that the type needs is missing or impossible.
    """
    older, newer = c.section("rope_scaling"), c.section("rope_parameters")
    p = Config({**older.values, **newer.values}, newer.where if newer.values else older.where)
    return _rope(c, p, c.number("rope_theta", theta, above=0))


def read_ropes(c: Config, *, theta: float, sliding_theta: float) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of layers with full attention and of layers with a sliding window.

    ``rope_parameters`` has both by the type of the layer. In older configs ``rope_scaling`` holds for layers with full
    attention only. The keywords are the values of theta where these have none.

    Raises:
        UnsupportedError: ``rope_parameters`` is not by the type of the layer, or a type of scaling is not implemented.
        ConfigError: a value that the type needs is missing or impossible.
    """
    by_type = c.section("rope_parameters")
    if by_type.values.keys() - {"full_attention", "sliding_attention"}:
        raise UnsupportedError(
            f"{by_type.where}: parameters that hold for all layers are not supported",
            hint="supported: full_attention and sliding_attention, with parameters each",
        )
    full = by_type.section("full_attention") if by_type.values else c.section("rope_scaling")
    return _rope(c, full, theta), _rope(c, by_type.section("sliding_attention"), sliding_theta)


def rotary_dim(c: Config, head_dim: int, *, factor: float = 1.0) -> int:
    """Return how many elements of a head are rotated; ``factor`` is the family's default for ``partial_rotary_factor``.

    Raises:
        ConfigError: the result is not an even number within the head.
    """
    factor = c.section("rope_parameters").number("partial_rotary_factor", c.number("partial_rotary_factor", factor))
    dim = int(head_dim * factor)
    if not 0 < dim <= head_dim or dim % 2:
        raise ConfigError(
            f"config.json: partial_rotary_factor is {factor:g}: {dim} of {head_dim} elements of a head are rotated, "
            "expected an even number of them"
        )
    return dim


def _rope(c: Config, p: Config, theta: float) -> Rope:
    theta = p.number("rope_theta", theta, above=0)
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
