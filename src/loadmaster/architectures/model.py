"""What computing a model needs to know of its config: sizes and numbers, typed and checked.

A family that runs reads them from the same `Config` as its schema (``read_model`` in its file). `loadmaster.layers` and
`loadmaster.models` take these values and never see a config.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures.config import Config
from loadmaster.architectures.rope import Rope
from loadmaster.architectures.schema import Schema
from loadmaster.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What all families have: the schema (it says what crosses a stage cut), and the epsilon of the norms."""

    schema: Schema
    norm_eps: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention with heads; fewer heads of keys and values than of queries are shared by groups of them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope


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


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How experts are chosen: ``topk`` of them, from the best ``topk_groups`` of ``num_groups`` groups."""

    topk: int
    num_groups: int
    topk_groups: int
    normalise: bool
    scaling: float


def require(c: Config, key: str, supported: str) -> None:
    """Check that a key, where the config has it, has the only value that the layers compute.

    Raises:
        UnsupportedError: it has another one.
    """
    value = c.values.get(key, supported)
    if value != supported:
        raise UnsupportedError(f"config.json: {key} {value!r} is not supported", hint=f"supported: {supported}")
