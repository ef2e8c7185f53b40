"""GLM-4.5, 4.6 and 4.7: attention with heads, the first layers dense, then routed and shared experts, and MTP layers.

Sources: the released configs and headers; ``modeling_glm4_moe.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, Spelling, embedding


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
)
