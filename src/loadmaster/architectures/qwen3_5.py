"""Qwen3.5, 3.6 and 3.8, dense and with experts: linear attention in three of four layers, gated attention in the fourth.

The linear attention is Qwen3-Next's in other tensors: ``in_proj_qkv`` holds q, k and v one after another, each divided by key
heads; z, b and a have tensors of their own. All experts of a layer are stored in one tensor; FP8 copies store them one by one.
The MTP layer is stored under ``mtp.``, and its experts one by one even where those of the body are stacked. It shares the
model's embedding and head.

Sources: header listings of Qwen3.8-27B and Qwen3.5-35B-A3B; ``modeling_qwen3_5.py`` and ``modeling_qwen3_5_moe.py`` of
transformers; ``qwen3_5_mtp.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.qwen3_next import FULL, LINEAR, gated_attention, key_head_share, layer_types
from loadmaster.architectures.qwen_moe import num_experts, shared_expert
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import UnsupportedError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden = c.size("hidden_size")
    if c.values["architectures"][0] == "Qwen3_5MoeForCausalLM":
        sparse = blocks.experts(hidden, c.size("moe_intermediate_size"), num_experts(c))
        mlp = (*sparse, *shared_expert(c))
    else:
        mlp = blocks.gated_mlp(hidden, c.size("intermediate_size"))
    num_drafts = c.size("mtp_num_hidden_layers", 0, least=0)
    if num_drafts > 1:
        raise UnsupportedError("config.json: mtp_num_hidden_layers other than 0 and 1 is not supported")
    full = (*blocks.norms(hidden), *gated_attention(c), *mlp)
    return Schema(
        top=embedding(c),
        kinds={
            LINEAR: (*blocks.norms(hidden), *linear_attention(c), *mlp),
            FULL: full,
            "mtp": (*full, *blocks.draft_apart(hidden)),
        },
        layers=layer_types(c),
        drafts=("mtp",) * num_drafts,
    )


def linear_attention(c: Config) -> tuple[Tensor, ...]:
    """Return the tensors of linear attention, which is divided by heads of keys."""
    hidden, share = c.size("hidden_size"), key_head_share(c)
    key_heads, value_heads = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    key, value = c.size("linear_key_head_dim"), c.size("linear_value_head_dim")
    width = c.size("linear_conv_kernel_dim", 4)
    by_key, by_value, by_head = by_rows(key), by_rows(share * value), by_rows(share)
    keys, values = key_heads * key, value_heads * value
    return (
        linear("linear.q", keys, hidden, by_key),
        linear("linear.k", keys, hidden, by_key),
        linear("linear.v", values, hidden, by_value),
        linear("linear.z", values, hidden, by_value),
        linear("linear.b", value_heads, hidden, by_head),
        linear("linear.a", value_heads, hidden, by_head),
        Tensor("linear.conv_q", (keys, 1, width), by_key),
        Tensor("linear.conv_k", (keys, 1, width), by_key),
        Tensor("linear.conv_v", (values, 1, width), by_value),
        Tensor("linear.dt_bias", (value_heads,), by_head, usual=("F32",)),
        Tensor("linear.a_log", (value_heads,), by_head, usual=("F32",)),
        Tensor("linear.norm", (value,), usual=("F32",)),
        linear("linear.out", hidden, values, by_columns(share * value)),
    )


_STORED = blocks.LAYER + "linear_attn."
LINEAR_SPELLING: Spelling = {
    **packed(_STORED + "in_proj_qkv.weight", "linear.q", "linear.k", "linear.v"),
    "linear.z": _STORED + "in_proj_z.weight",
    "linear.b": _STORED + "in_proj_b.weight",
    "linear.a": _STORED + "in_proj_a.weight",
    **packed(_STORED + "conv1d.weight", "linear.conv_q", "linear.conv_k", "linear.conv_v"),
    "linear.dt_bias": _STORED + "dt_bias",
    "linear.a_log": _STORED + "A_log",
    "linear.norm": _STORED + "norm.weight",
    "linear.out": _STORED + "out_proj.weight",
}
LINEAR_NATIVE = (
    Param("{block}.linear_attn.in_proj_qkvz.weight", ("linear.q", "linear.k", "linear.v", "linear.z")),
    Param("{block}.linear_attn.in_proj_ba.weight", ("linear.b", "linear.a")),
    Param("{block}.linear_attn.conv1d.weight", ("linear.conv_q", "linear.conv_k", "linear.conv_v")),
    Param("{block}.linear_attn.dt_bias", ("linear.dt_bias",)),
    Param("{block}.linear_attn.A_log", ("linear.a_log",)),
    Param("{block}.linear_attn.norm.weight", ("linear.norm",)),
    Param("{block}.linear_attn.out_proj.weight", ("linear.out",)),
)

_COMMON: Spelling = {**blocks.DECODER_SPELLING, **blocks.SHARED_EXPERT_SPELLING, **LINEAR_SPELLING}
_STACKED: Spelling = {**_COMMON, **blocks.stacked_experts_spelling()}
_ONE_BY_ONE: Spelling = {**_COMMON, **blocks.experts_spelling()}
_WITHIN = ("model.", "model.language_model.")


def _drafts(body: Spelling) -> Spelling:
    """Return the spelling of the MTP layer, whose full attention and experts are spelled as in ``body``."""
    return blocks.draft_apart_spelling({name: s for name, s in body.items() if not name.startswith("linear.")})


FAMILY = Family(
    name="qwen3_5",
    architectures=("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
    schema=schema,
    spelling=_STACKED,
    variants=(_ONE_BY_ONE, respelled(_STACKED, _WITHIN), respelled(_ONE_BY_ONE, _WITHIN)),
    drafts=(_drafts(_ONE_BY_ONE), _drafts(_STACKED)),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.SHARED_EXPERT_NATIVE,
        *LINEAR_NATIVE,
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
)
