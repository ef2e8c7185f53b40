"""GLM-4.5, 4.6 and 4.7: attention with heads, the first layers dense, then routed and shared experts, and MTP layers.

Sources: the released configs and headers; ``modeling_glm4_moe.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope, rotary_dim
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.architectures.spelling import Spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4MoeModel(Model):
    """Attention with heads; experts in all layers but the first ones."""

    attention: AttentionSpec
    router: RouterSpec


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    num_layers = c.size("num_hidden_layers")
    num_dense = min(c.size("first_k_dense_replace", 0, least=0), num_layers)
    norm = head if c.flag("use_qk_norm") else 0
    attention = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=c.flag("attention_bias"),
            q_norm=norm,
            k_norm=norm,
        ),
    )
    inner = c.size("moe_intermediate_size")
    sparse = (
        *attention,
        *blocks.experts(hidden, inner, c.size("n_routed_experts"), router_bias=True),
        *blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared"),
    )
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size"))),
            "sparse": sparse,
            "mtp": (*sparse, *blocks.draft(c)),
        },
        layers=("dense",) * num_dense + ("sparse",) * (num_layers - num_dense),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
    )


def read_model(c: Config) -> Glm4MoeModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    require(c, "scoring_func", "sigmoid")
    require(c, "topk_method", "noaux_tc")
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps = c.number("rms_norm_eps", 1e-5)
    return Glm4MoeModel(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(
            heads,
            kv_heads,
            head,
            norm_eps,
            read_rope(c),
            rope_dim=rotary_dim(c, head, factor=0.5),
            qk_norm="head" if c.flag("use_qk_norm") else None,
        ),
        router=RouterSpec(
            topk=c.size("num_experts_per_tok"),
            scoring="sigmoid",
            num_groups=c.size("n_group", 1),
            topk_groups=c.size("topk_group", 1),
            normalise=c.flag("norm_topk_prob", True),
            scaling=c.number("routed_scaling_factor", 1.0),
        ),
    )


SPELLING: Spelling = {
    **blocks.DECODER_SPELLING,
    **blocks.experts_spelling(),
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **blocks.DRAFT_SPELLING,
}

FAMILY = Family(
    name="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    schema=schema,
    spelling=SPELLING,
    variants=({**SPELLING, **blocks.stacked_experts_spelling()},),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
