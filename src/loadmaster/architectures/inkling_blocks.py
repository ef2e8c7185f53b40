"""The parts that Inkling and Inkling-2 share, as their three tables: attention with relative positions, interleaved experts.

Layers with a window have their own numbers of heads. The rows of gate and up alternate (g0, u0, g1, u1 …): they are one logical
tensor, cut in whole pairs. The router also scores the shared experts: it has a row for each of them, and no bias.
Keys and values pass short convolutions, which are divided like their heads.

Sources: ``inkling`` and ``inkling2`` of transformers 5.24, and its ``conversion_mapping.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.inkling_config import conv_width, sizes_of
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    Param,
    Placement,
    Tensor,
    by_columns,
    by_rows,
    by_vocabulary,
    linear,
)
from loadmaster.architectures.spelling import Packed, packed


def top(c: Config) -> tuple[Tensor, ...]:
    """Return embedding, norm and head, which is never tied, with the rows of the padded vocabulary."""
    hidden, rows = c.size("hidden_size"), c.size("vocab_size")
    return (*(Tensor(name, (rows, hidden), by_vocabulary()) for name in ("embed", "head")), Tensor("norm", (hidden,)))


def attention(c: Config, *, is_local: bool) -> tuple[Tensor, ...]:
    """Return q, k, v, o, relative positions, and the convolutions of keys, of values, after the attention and the MLP."""
    heads, kv_heads, head, extent = sizes_of(c, is_local=is_local)
    hidden, rel, width = c.size("hidden_size"), c.size("d_rel"), conv_width(c)
    kv = by_rows(head, repeat=True)
    return (
        Tensor("attn.q", (heads * head, hidden), by_rows(head)),
        *(Tensor(f"attn.{name}", (kv_heads * head, hidden), kv) for name in ("k", "v")),
        Tensor("attn.r", (heads * rel, hidden), by_rows(rel)),
        Tensor("attn.o", (hidden, heads * head), by_columns(head)),
        Tensor("attn.rel", (rel, extent), usual=("F32",)),
        *(Tensor(f"attn.{name}_conv", (kv_heads * head, 1, width), kv, usual=("F32",)) for name in ("k", "v")),
        *(Tensor(f"{name}_conv", (hidden, 1, width), usual=("F32",)) for name in ("attn", "mlp")),
    )


def experts(c: Config, *, shared: int) -> tuple[Tensor, ...]:
    """Return router, routed experts and ``shared`` ones, which the router scores too."""
    hidden, inner, count = c.size("hidden_size"), c.size("moe_intermediate_size"), c.size("n_routed_experts")
    tensors = (
        Tensor("moe.router", (count + shared, hidden), usual=("F32",)),
        Tensor("moe.router_bias", (count,), keep="F32"),
        linear("moe.gate_up", 2 * inner, hidden, by_rows(2), experts=count),
        linear("moe.down", hidden, inner, by_columns(), experts=count),
    )
    if not shared:
        return tensors
    return (
        *tensors,
        Tensor("moe.scale", (1,), usual=("F32",)),
        Tensor("shared.gate_up", (shared, 2 * inner, hidden), Placement(1, 2)),
        Tensor("shared.down", (shared, hidden, inner), Placement(2)),
    )


_NAMES: Final = {
    **{"attn.q": "attn.wq_du.weight", "attn.k": "attn.wk_dv.weight", "attn.v": "attn.wv_dv.weight"},
    **{"attn.r": "attn.wr_du.weight", "attn.o": "attn.wo_ud.weight", "attn.rel": "attn.rel_logits_proj.proj"},
    **{f"attn.{name}_conv": f"attn.{name}_sconv.weight" for name in ("k", "v")},
    **{f"{name}_conv": f"{name}_sconv.weight" for name in ("attn", "mlp")},
    **{"input_norm": "attn_norm.weight", "post_norm": "mlp_norm.weight"},
    **{"moe.router": "mlp.gate.weight", "moe.router_bias": "mlp.gate.bias", "moe.scale": "mlp.gate.global_scale"},
    **{"moe.gate_up": "mlp.experts.w13_weight", "moe.down": "mlp.experts.w2_weight"},
    **{f"shared.{n}": f"mlp.shared_experts.shared_{w}_weight" for n, w in (("gate_up", "w13"), ("down", "w2"))},
}
_TOP: Final = {
    "embed": "embed.weight",
    "norm": "norm.weight",
    "head": "unembed.weight",
    "embed_norm": "embed_norm.weight",
}
TOWERS: Final = ((r"model\.(visual|audio)\..*", LANGUAGE_ONLY),)
_FUSED: Final = ("attn.q", "attn.k", "attn.v", "attn.r")


def spelling(more: Mapping[str, str]) -> dict[str, str | Packed]:
    """Return the spelling of a model whose layers also have ``more``, by their names within a layer."""
    top = {name: f"model.llm.{stored}" for name, stored in _TOP.items()}
    return {**top, **of_layer(more, "model.llm.layers.{layer}.")}


def of_layer(more: Mapping[str, str], layer: str) -> dict[str, str | Packed]:
    """Return the spelling of the layers alone, under ``layer``."""
    return {
        **{name: layer + stored for name, stored in {**_NAMES, **more}.items()},
        **packed(layer + _NAMES["moe.gate_up"], "moe.gate_up", stacked=True),
        **packed(layer + _NAMES["moe.down"], "moe.down", stacked=True),
    }


def native(more: Mapping[str, str]) -> tuple[Param, ...]:
    """Return the parameters of the same; queries, keys, values and relative positions are computed together."""
    alone = {**_NAMES, **more}.items()
    return (
        Param("embed.weight", ("embed",), stage="first"),
        Param("embed_norm.weight", ("embed_norm",), stage="first"),
        Param("norm.weight", ("norm",), stage="last"),
        Param("unembed.weight", ("head",), stage="last"),
        Param("{block}.attn.qkvr.weight", _FUSED),
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in alone if name not in _FUSED),
    )
