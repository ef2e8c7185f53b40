"""OLMo-Hybrid: gated delta networks in three of four layers, and OLMo-3's attention in the others.

Queries, keys, values and the gate of linear attention are separate matrices, each divided by heads, with separate short
convolutions. Its layers have norms before attention and MLP; layers with full attention have them after. Norms are stored in
OLMo's own names, or in those inside transformers.

Sources: ``olmo_hybrid`` of transformers 5.24 and its ``conversion_mapping.py``; ``olmo_hybrid.py`` in
``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.errors import ConfigError

LINEAR, FULL = "linear_attention", "full_attention"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "attention_bias", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    num_layers, mlp = c.size("num_hidden_layers"), blocks.gated_mlp(hidden, c.size("intermediate_size"))
    attention = blocks.attention(hidden, heads, kv_heads, head, q_norm=heads * head, k_norm=kv_heads * head)
    default = [FULL if layer % 4 == 3 else LINEAR for layer in range(num_layers)]
    return Schema(
        top=embedding(c),
        kinds={
            LINEAR: (*blocks.norms(hidden), *_linear_attention(c, hidden, heads), *mlp),
            FULL: (*attention, *(Tensor(name, (hidden,)) for name in ("attn_norm", "post_mlp_norm")), *mlp),
        },
        layers=c.types("layer_types", (LINEAR, FULL), num_layers, default),
    )


def _linear_attention(c: Config, hidden: int, heads: int) -> tuple[Tensor, ...]:
    key_heads, value_heads = (c.size(f"linear_num_{part}_heads", heads) for part in ("key", "value"))
    key = c.size("linear_key_head_dim", int(0.75 * hidden / key_heads))
    value, width = c.size("linear_value_head_dim", 2 * key), c.size("linear_conv_kernel_dim", 4)
    if value_heads % key_heads:
        raise ConfigError(
            f"config.json: {key_heads} key heads do not divide {value_heads} value heads of linear attention"
        )
    share = value_heads // key_heads
    keys, values = (key_heads * key, by_rows(key)), (value_heads * value, by_rows(share * value))
    sizes = {"q": keys, "k": keys, "v": values}
    return (
        *(linear(f"linear.{part}", rows, hidden, cut) for part, (rows, cut) in {**sizes, "g": values}.items()),
        *(linear(f"linear.{part}", value_heads, hidden, by_rows(share)) for part in ("b", "a")),
        *(Tensor(f"linear.conv_{part}", (rows, 1, width), cut) for part, (rows, cut) in sizes.items()),
        *(Tensor(f"linear.{name}", (value_heads,), by_rows(share), usual=("F32",)) for name in ("dt_bias", "a_log")),
        Tensor("linear.norm", (value,), usual=("F32",)),
        linear("linear.out", hidden, values[0], by_columns(share * value)),
    )


_STORED: Final = blocks.LAYER + "linear_attn."
_ALONE: Final = {
    **{f"linear.{part}": f"{part}_proj.weight" for part in ("b", "a")},
    **{
        "linear.dt_bias": "dt_bias",
        "linear.a_log": "A_log",
        "linear.norm": "o_norm.weight",
        "linear.out": "o_proj.weight",
    },
}
_FUSED: Final = {f"linear.{part}": f"{part}_proj.weight" for part in ("q", "k", "v", "g")}
_CONVS: Final = {f"linear.conv_{part}": f"{part}_conv1d.weight" for part in ("q", "k", "v")}
_INSIDE: Final = {
    **blocks.DECODER_SPELLING,
    "attn_norm": blocks.LAYER + "post_attention_layernorm.weight",
    "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight",
    **{name: _STORED + stored for name, stored in {**_ALONE, **_FUSED, **_CONVS}.items()},
}

FAMILY = Family(
    name="olmo_hybrid",
    architectures=("OlmoHybridForCausalLM",),
    schema=schema,
    spelling={
        **_INSIDE,
        "input_norm": blocks.LAYER + "attention_layer_norm.weight",
        **dict.fromkeys(("post_norm", "attn_norm"), blocks.LAYER + "feedforward_layer_norm.weight"),
    },
    variants=(_INSIDE,),
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.self_attn_norm.weight", ("attn_norm",)),
        Param("{block}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
        Param("{block}.linear_attn.in_proj_qkvg.weight", tuple(_FUSED)),
        Param("{block}.linear_attn.conv1d.weight", tuple(_CONVS)),
        *(Param(f"{{block}}.linear_attn.{stored}", (name,)) for name, stored in _ALONE.items()),
    ),
    waived=(blocks.INV_FREQ,),
)
