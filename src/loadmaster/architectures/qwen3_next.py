"""Qwen3-Next: three layers of gated delta-rule linear attention, then one of gated attention; experts everywhere.

The linear attention's ``in_proj_qkvz`` and ``in_proj_ba`` are grouped by key head, so that a key head and the value heads
that share it are one run of rows; the convolution's channels are in the order q, k, v. The MTP module (``mtp.…``) is waived.

Sources: the released configs; ``modeling_qwen3_next.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.qwen_moe import shared_expert, sparse_layers
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.errors import ConfigError

LINEAR, FULL = "linear_attention", "full_attention"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden = c.size("hidden_size")
    attentions = {LINEAR: _linear_attention(c), FULL: gated_attention(c)}
    mlps = {
        "dense": blocks.gated_mlp(hidden, c.size("intermediate_size")),
        "sparse": (*blocks.experts(hidden, c.size("moe_intermediate_size"), c.size("num_experts")), *shared_expert(c)),
    }
    return Schema(
        top=embedding(c),
        kinds={
            f"{mlp}/{attention}": (*blocks.norms(hidden), *attentions[attention], *mlps[mlp])
            for mlp in mlps
            for attention in attentions
        },
        layers=tuple(f"{mlp}/{kind}" for mlp, kind in zip(sparse_layers(c), layer_types(c), strict=True)),
    )


def layer_types(c: Config) -> tuple[str, ...]:
    """Return the attention of each layer: from the list if there is one, else full every ``full_attention_interval``."""
    num_layers, interval = c.size("num_hidden_layers"), c.size("full_attention_interval", 4)
    default = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(num_layers)]
    return c.types("layer_types", (LINEAR, FULL), num_layers, default)


def gated_attention(c: Config) -> tuple[Tensor, ...]:
    """Attention whose query projection also makes a gate for each head: 2 × ``head_dim`` rows per head."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    plain = blocks.attention(
        hidden,
        heads,
        kv_heads,
        head,
        bias=c.flag("attention_bias"),
        out_bias=c.flag("attention_bias"),
        q_norm=head,
        k_norm=head,
    )
    gated = {
        "attn.q": linear("attn.q", 2 * heads * head, hidden, by_rows(2 * head)),
        "attn.q_bias": Tensor("attn.q_bias", (2 * heads * head,), by_rows(2 * head)),
    }
    return tuple(gated.get(t.name, t) for t in plain)


def key_head_share(c: Config) -> int:
    """Return how many heads of values share each head of keys."""
    key_heads, value_heads = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    if value_heads % key_heads:
        raise ConfigError(
            f"config.json: linear_num_value_heads is {value_heads}, expected a multiple of linear_num_key_heads, {key_heads}"
        )
    return value_heads // key_heads


def _linear_attention(c: Config) -> tuple[Tensor, ...]:
    hidden = c.size("hidden_size")
    key_heads, value_heads = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    key, value = c.size("linear_key_head_dim"), c.size("linear_value_head_dim")
    width = c.size("linear_conv_kernel_dim", 4)
    share = key_head_share(c)
    group = 2 * key + 2 * share * value  # rows of q, k, v, z of one key head
    return (
        linear("linear.qkvz", key_heads * group, hidden, by_rows(group)),
        linear("linear.ba", key_heads * 2 * share, hidden, by_rows(2 * share)),
        Tensor("linear.conv_q", (key_heads * key, 1, width), by_rows(key)),
        Tensor("linear.conv_k", (key_heads * key, 1, width), by_rows(key)),
        Tensor("linear.conv_v", (value_heads * value, 1, width), by_rows(share * value)),
        Tensor("linear.dt_bias", (value_heads,), by_rows(share), usual=("F32",)),
        Tensor("linear.a_log", (value_heads,), by_rows(share), usual=("F32",)),
        Tensor("linear.norm", (value,), usual=("F32",)),
        linear("linear.out", hidden, value_heads * value, by_columns(share * value)),
    )


_STORED = blocks.LAYER + "linear_attn."

SPELLING: Spelling = {
    **blocks.DECODER_SPELLING,
    **blocks.SHARED_EXPERT_SPELLING,
    "linear.qkvz": _STORED + "in_proj_qkvz.weight",
    "linear.ba": _STORED + "in_proj_ba.weight",
    **packed(_STORED + "conv1d.weight", "linear.conv_q", "linear.conv_k", "linear.conv_v"),
    "linear.dt_bias": _STORED + "dt_bias",
    "linear.a_log": _STORED + "A_log",
    "linear.norm": _STORED + "norm.weight",
    "linear.out": _STORED + "out_proj.weight",
}

FAMILY = Family(
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    schema=schema,
    spelling={**SPELLING, **blocks.experts_spelling()},
    variants=({**SPELLING, **blocks.stacked_experts_spelling()},),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.SHARED_EXPERT_NATIVE,
        Param("{block}.linear_attn.in_proj_qkvz.weight", ("linear.qkvz",)),
        Param("{block}.linear_attn.in_proj_ba.weight", ("linear.ba",)),
        Param("{block}.linear_attn.conv1d.weight", ("linear.conv_q", "linear.conv_k", "linear.conv_v")),
        Param("{block}.linear_attn.dt_bias", ("linear.dt_bias",)),
        Param("{block}.linear_attn.A_log", ("linear.a_log",)),
        Param("{block}.linear_attn.norm.weight", ("linear.norm",)),
        Param("{block}.linear_attn.out_proj.weight", ("linear.out",)),
    ),
    waived=(blocks.INV_FREQ, (r"mtp\..*", "the MTP module of Qwen3-Next is not supported")),
)
