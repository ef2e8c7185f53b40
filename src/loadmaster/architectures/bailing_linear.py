"""Ling-2.5 and Ring-2.5 (Bailing MoE 2.5): lightning attention, latent attention in the last layer of each group, experts.

Lightning attention holds q, k and v in one tensor, and its output has a gate and a norm of ``group_norm_size`` groups, which are
never divided. Both attentions call their last matrix ``dense``. MTP layers, stored after the others, have latent attention and
experts; they share the model's embedding and head.

Sources: ``bailing_moe_linear.py`` and ``bailing_moe_mtp.py`` in ``vllm/model_executor/models``; ``bailing_linear_attn.py`` in its
layers.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import bailing_moe, blocks, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import (
    OF_VLLM,
    Family,
    Param,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    embedding,
    linear,
)
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.errors import ConfigError

LINEAR, LATENT = "linear", "latent"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    for key in ("use_bias", "use_qkv_bias"):
        require(c, key, False)
    hidden, num_layers, group = c.size("hidden_size"), c.size("num_hidden_layers"), c.size("layer_group_size", 1)
    attentions = {LINEAR: _lightning(c), LATENT: mla.latent_attention(c)}
    mlps = bailing_moe.feed_forward(c, shared=0, corrected=False)
    kinds = {f"{m}/{a}": (*blocks.norms(hidden), *attentions[a], *mlps[m]) for m in mlps for a in attentions}
    types = (LATENT if (layer + 1) % group == 0 else LINEAR for layer in range(num_layers))
    layers = tuple(f"{mlp}/{attention}" for mlp, attention in zip(mlp_types(c), types, strict=True))
    unread = ((r"model\.mtp.*", "MTP modules under this name are not supported, in vLLM either"),)
    return bailing_moe.with_drafts(c, Schema(embedding(c), kinds, layers, unread=unread), f"sparse/{LATENT}")


def _lightning(c: Config) -> tuple[Tensor, ...]:
    hidden, heads, _, head = blocks.heads_of(c)
    size, groups, normed = heads * head, c.size("group_norm_size", 1), head if c.flag("use_qk_norm") else 0
    if size % groups:
        raise ConfigError(
            f"config.json: group_norm_size {groups} does not divide {size}, the output of linear attention"
        )
    norms = (Tensor(f"linear.{part}_norm", (normed,)) for part in ("q", "k") if normed)
    return (
        *(linear(f"linear.{part}", size, hidden, by_rows(head)) for part in ("q", "k", "v", "gate")),
        *norms,
        Tensor("linear.norm", (size,), by_rows(size // groups)),
        linear("linear.out", hidden, size, by_columns(head)),
    )


_ATTENTION: Final = blocks.LAYER + "attention."
_PARTS: Final = ("linear.q", "linear.k", "linear.v")
_ALONE: Final = {
    "linear.gate": "g_proj.weight",
    "linear.q_norm": "query_layernorm.weight",
    "linear.k_norm": "key_layernorm.weight",
    "linear.norm": "g_norm.weight",
    "linear.out": "dense.weight",
}
_OF_LIGHTNING: Final[Spelling] = {
    **packed(_ATTENTION + "query_key_value.weight", *_PARTS),
    **{name: _ATTENTION + stored for name, stored in _ALONE.items()},
}
_OF_LATENT: Final = {name: stored.replace(".self_attn.", ".attention.") for name, stored in mla.SPELLING.items()}
_NO_HEADS: Final = {name: s for name, s in bailing_moe.SPELLING.items() if not name.startswith("attn.")}

FAMILY = Family(
    name="bailing_linear",
    architectures=("BailingMoeV2_5ForCausalLM",),
    schema=schema,
    spelling={**_NO_HEADS, **_OF_LIGHTNING, **_OF_LATENT, "attn.o": _ATTENTION + "dense.weight"},
    native=(
        *(p for p in bailing_moe.NATIVE if ".self_attn." not in p.name),
        *mla.NATIVE,
        Param("{block}.self_attn.query_key_value.weight", _PARTS),
        *(Param(f"{{block}}.self_attn.{stored}", (name,)) for name, stored in _ALONE.items()),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={"BailingMoeV2_5ForCausalLM": OF_VLLM},
)
