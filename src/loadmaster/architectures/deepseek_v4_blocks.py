"""What DeepSeek-V4 and V4.1 have in common: the parts of a layer, and their names, which are DeepSeek's own.

There is no ``model.`` prefix, and a scale is ``X.scale`` beside ``X.weight``. Residual streams are
mixed before and after each part of a layer, by ``hc_*`` (`residual_streams`).
"""

from __future__ import annotations

from collections.abc import Iterable

from loadmaster.architectures import blocks, residual_streams
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import LANGUAGE_ONLY, Param, Tensor, by_columns, by_rows, linear
from loadmaster.architectures.spelling import Spelling

VISION = (r"(vision|aligner)\..*|image_(start|end|newline)", LANGUAGE_ONLY)


def f32(name: str, *shape: int, by_head: bool = False) -> Tensor:
    """Return a tensor whose parameter is F32."""
    return Tensor(name, shape, by_rows() if by_head else None, keep="F32")


def attention(c: Config) -> tuple[Tensor, ...]:
    """Return the norms and mixes of a layer, and its attention without compressor and indexer."""
    hidden, heads, head, rank = (c.size(k) for k in ("hidden_size", "num_attention_heads", "head_dim", "q_lora_rank"))
    groups, group, mixes = c.size("o_groups"), c.size("o_lora_rank"), residual_streams.mix_shapes(c)
    return (
        Tensor("attn_norm", (hidden,)),
        Tensor("ffn_norm", (hidden,)),
        linear("attn.wq_a", rank, hidden),
        linear("attn.wkv", head, hidden),
        Tensor("attn.q_norm", (rank,)),
        Tensor("attn.kv_norm", (head,)),
        linear("attn.wq_b", heads * head, rank, by_rows(head)),
        linear("attn.wo_a", groups * group, heads * head // groups, by_rows(group)),
        linear("attn.wo_b", hidden, groups * group, by_columns(group)),
        f32("attn.attn_sink", heads, by_head=True),
        *(f32(f"hc_{part}_{name}", *shape) for part in ("attn", "ffn") for name, shape in mixes.items()),
    )


def index_queries(c: Config) -> tuple[Tensor, ...]:
    """Return the queries of an indexer, on every rank."""
    heads, hidden = c.size("index_n_heads"), c.size("hidden_size")
    queries = linear("attn.indexer.wq_b", heads * c.size("index_head_dim"), c.size("q_lora_rank"))
    return (Tensor("attn.indexer.weights_proj", (heads, hidden)), queries)


def experts(c: Config, *, biases: Iterable[str] = ("moe.bias",), count: int | None = None) -> tuple[Tensor, ...]:
    """Return the router, ``count`` experts and the shared one; a bias for each way to choose experts."""
    hidden, inner, count = c.size("hidden_size"), c.size("moe_intermediate_size"), count or c.size("n_routed_experts")
    shared = blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared")
    return (*(f32(name, count) for name in biases), *blocks.experts(hidden, inner, count), *shared)


_WEIGHTS = (
    *("attn_norm", "ffn_norm"),
    *(f"attn.{name}" for name in ("wq_a", "wkv", "q_norm", "kv_norm", "wq_b", "wo_a", "wo_b")),
    *(f"attn.{of}compressor.{name}" for of in ("", "indexer.") for name in ("norm", "wkv", "wgate")),
    *(f"attn.indexer.{name}" for name in ("weights_proj", "wq_b")),
)
_VALUES = ("attn.attn_sink", *(f"hc_{part}_{name}" for part in ("attn", "ffn") for name in residual_streams.NAMES))
_MLPS = {"moe": "experts.{expert}", "shared": "shared_experts"}
_FUSED = {f"{mlp}.{part}" for mlp in _MLPS for part in ("gate", "up", "down")}
LAYER = "layers.{layer}."
TOP: Spelling = {"embed": "embed.weight", "norm": "norm.weight", "head": "head.weight"}


def spelling(weights: Iterable[str] = (), values: Iterable[str] = ()) -> dict[str, str]:
    """Return the stored names of a layer: those that both models have, and more ``weights`` and ``values``."""
    return {
        **{name: f"{LAYER}{name}.weight" for name in (*_WEIGHTS, *weights)},
        **{name: f"{LAYER}{name}" for name in (*_VALUES, *values)},
        "moe.router": LAYER + "ffn.gate.weight",
        "moe.bias": LAYER + "ffn.gate.bias",
        "moe.bias_vl": LAYER + "ffn.gate.bias_vl",
        **{
            f"{logical}.{part}": f"{LAYER}ffn.{stored}.{name}.weight"
            for logical, stored in _MLPS.items()
            for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        },
    }


def native(spelling: Spelling) -> tuple[Param, ...]:
    """Return the parameters of the model and of its blocks: each has its stored name, but gate and up are fused."""
    stored = {name: s if isinstance(s, str) else s.name for name, s in spelling.items() if name not in _FUSED}
    return (
        *blocks.TOP_NATIVE,
        *(Param("{block}." + within.partition("{layer}.")[2], (name,)) for name, within in stored.items()),
        Param("{block}.ffn.experts.w13_weight", ("moe.gate", "moe.up")),
        Param("{block}.ffn.experts.w2_weight", ("moe.down",)),
        *blocks.gated_mlp_native("ffn.shared_experts", logical="shared"),
    )
