"""Granite-MoE (3.0, 3.1, 4.0 without state-space layers): all experts of a layer in one tensor, and sometimes a shared one.

With windows it has sinks, and is not run.

Sources: the released configs; ``modeling_granitemoe.py``, ``modeling_granitemoeshared.py`` and ``modeling_granitemoe_swa.py`` of
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, embedding
from loadmaster.architectures.spelling import Spelling, packed


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteMoeModel(Model):
    """Experts in every layer. What attention and experts add to the residual is multiplied by ``residual_scale``."""

    attention: AttentionSpec
    router: RouterSpec
    residual_scale: float


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    shared = c.size("shared_intermediate_size", 0, least=0)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias,
            out_bias=bias,
        ),
        *((Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)),) if c.values["architectures"][0] == _SWA else ()),
        *blocks.experts(hidden, c.size("intermediate_size"), c.size("num_local_experts")),
        *(blocks.gated_mlp(hidden, shared, logical="shared") if shared else ()),
    )
    return Schema(
        top=embedding(c),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


def read_model(c: Config) -> GraniteMoeModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps = c.number("rms_norm_eps", 1e-6)
    return GraniteMoeModel(
        schema=schema(c),
        norm_eps=norm_eps,
        embed_scale=c.number("embedding_multiplier", 1.0),
        logits_divisor=c.number("logits_scaling", 1.0, above=0),
        attention=AttentionSpec(
            heads, kv_heads, head, norm_eps, read_rope(c), scale=c.number("attention_multiplier", 1.0)
        ),
        router=RouterSpec(topk=c.size("num_experts_per_tok", 2), scoring="softmax", normalise=True),
        residual_scale=c.number("residual_multiplier", 1.0),
    )


_SWA = "GraniteMoeSWAForCausalLM"
_SHARED: Spelling = {
    **packed(blocks.LAYER + "shared_mlp.input_linear.weight", "shared.gate", "shared.up"),
    "shared.down": blocks.LAYER + "shared_mlp.output_linear.weight",
}
_EXPERTS = blocks.LAYER + "block_sparse_moe."

FAMILY = Family(
    name="granite_moe",
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **_SHARED,
        "moe.router": _EXPERTS + "router.layer.weight",
        **packed(_EXPERTS + "input_linear.weight", "moe.gate", "moe.up", stacked=True),
        **packed(_EXPERTS + "output_linear.weight", "moe.down", stacked=True),
    },
    variants=(
        {
            **blocks.DECODER_SPELLING,
            **_SHARED,
            **blocks.stacked_experts_spelling("block_sparse_moe"),
            "moe.router": _EXPERTS + "router.weight",
        },
    ),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_mlp", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
_SINKS = {"attn.sinks": blocks.LAYER + "self_attn.sinks"}
SWA = replace(
    FAMILY,
    name="granite_moe_swa",
    architectures=(_SWA,),
    spelling={**FAMILY.variants[0], **_SINKS},
    variants=({**FAMILY.spelling, **_SINKS},),
    native=(*FAMILY.native, Param("{block}.self_attn.sinks", ("attn.sinks",))),
    runs=False,
)
