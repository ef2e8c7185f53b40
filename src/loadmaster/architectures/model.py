"""What computing a model needs to know of its config: sizes and numbers, typed and checked.

A family that runs reads them from the same `Config` as its schema (``read_model`` in its file). `loadmaster.layers` and
`loadmaster.models` take these values and never see a config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loadmaster.architectures.config import Config
from loadmaster.architectures.rope import Rope
from loadmaster.architectures.schema import Schema
from loadmaster.errors import UnsupportedError

NormKind = Literal["rms", "rms_wide", "rms_offset"]
"""``rms``: the normed value is rounded to the model's dtype, then multiplied by the weight (Llama). ``rms_wide``: multiplied
in float32, then rounded (OLMo, gpt-oss). ``rms_offset``: as ``rms_wide``, by 1 + weight (Gemma)."""

QKNorm = Literal["head", "heads"]
"""What a norm of queries and keys covers: each head by itself, or all heads of a token together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What all families have: the schema (it says what crosses a stage cut), and the norms.

    ``embed_scale`` multiplies the embedding, and the logits are divided by ``logits_divisor``.
    """

    schema: Schema
    norm_eps: float
    norm: NormKind = "rms"
    embed_scale: float = 1.0
    logits_divisor: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention with heads; fewer heads of keys and values than of queries are shared by groups of them.

    Of a head's elements the first ``rope_dim`` are rotated (None: all). ``scale`` multiplies the scores before the
    softmax (None: ``head_dim`` ** -0.5). ``qk_norm``: queries and keys are normed before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    rope_dim: int | None = None
    scale: float | None = None
    qk_norm: QKNorm | None = None
    norm: NormKind = "rms"


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Latent attention (MLA). Of a query's or key's elements, ``nope_dim`` are not rotated and ``rope_dim`` are."""

    num_heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_rank: int
    kv_rank: int
    norm_eps: float
    rope: Rope
    interleaved: bool


@dataclass(frozen=True, slots=True)
class IndexerSpec:
    """The indexer of sparse attention: it selects ``topk`` tokens, and rotates ``rope_dim`` of a head's elements."""

    topk: int
    num_heads: int
    head_dim: int
    rope_dim: int
    interleaved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """How experts are chosen: ``topk`` of them, from the best ``topk_groups`` of ``num_groups`` groups.

    ``scoring`` makes scores of all experts from the router's output. The chosen scores are the experts' weights: divided
    by their sum with ``normalise``, and multiplied by ``scaling``. A softmax over the chosen experts only (gpt-oss,
    Granite) is one over all of them, normalised.
    """

    topk: int
    normalise: bool
    scoring: Literal["sigmoid", "softmax"]
    num_groups: int = 1
    topk_groups: int = 1
    scaling: float = 1.0


@dataclass(frozen=True, slots=True)
class SwigluSpec:
    """gpt-oss's activation: ``(up + 1) * gate * sigmoid(alpha * gate)``, gate and up clamped to ``limit``."""

    alpha: float
    limit: float


def require(c: Config, key: str, supported: str | bool | int | None) -> None:
    """Check that a key, where the config has it and it is not null, has the only value that the layers compute.

    Raises:
        UnsupportedError: it has another one.
    """
    value = c.values.get(key)
    if value is not None and value != supported:
        raise UnsupportedError(
            f"config.json: {key} {value!r} is not supported",
            hint=f"supported: {'null' if supported is None else supported}",
        )


SLIDING, FULL = "sliding_attention", "full_attention"
"""The types of layers in ``layer_types``."""


def windows_by_type(c: Config, window: int, default: Sequence[str]) -> tuple[int | None, ...]:
    """Return for each layer how many tokens it attends to at most; None for all.

    ``layer_types`` gives the type of each layer; ``default`` is used where the config does not have it.

    Raises:
        ConfigError: it does not give a known type for each layer.
    """
    types = c.types("layer_types", (SLIDING, FULL), c.size("num_hidden_layers", len(default)), default)
    return tuple(window if kind == SLIDING else None for kind in types)


def with_full_sizes(c: Config, is_full: Sequence[bool], names: Mapping[str, str]) -> Config:
    """Return the config with the sizes that ``per_layer_config`` gives to layers without a window, under other ``names``.

    transformers saves them so, for each layer, since 5.24.

    Raises:
        UnsupportedError: these layers have different sizes.
    """
    of_layers = c.section("per_layer_config")
    given = [of_layers.section(str(layer)).values for layer, full in enumerate(is_full) if full]
    if any(sizes != given[0] for sizes in given):
        raise UnsupportedError("config.json: per_layer_config gives other sizes to some of the full_attention layers")
    sizes = {names[key]: size for key, size in given[0].items() if key in names} if given else {}
    return Config({**c.values, **sizes})
