"""Mixtral and MiniMax-M2: routed experts in every layer, stored one by one as w1 (gate), w2 (down) and w3 (up).

MiniMax-M2 adds norms over all query heads and over all key heads, and a correction bias for the router.

Sources: the released configs and headers; ``modeling_mixtral.py`` and ``modeling_minimax_m2.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    is_minimax = c.values["architectures"][0] == "MiniMaxM2ForCausalLM"
    normed = is_minimax and c.flag("use_qk_norm", True)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            q_norm=heads * head if normed else 0,
            k_norm=kv_heads * head if normed else 0,
        ),
        *blocks.experts(hidden, c.size("intermediate_size"), c.size("num_local_experts"), router_bias=is_minimax),
    )
    return Schema(
        top=embedding(c),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM", "MiniMaxM2ForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
        "moe.router_bias": blocks.LAYER + "block_sparse_moe.e_score_correction_bias",
    },
    variants=(
        {
            **blocks.DECODER_SPELLING,
            **blocks.stacked_experts_spelling(),
            "moe.router_bias": blocks.LAYER + "mlp.e_score_correction_bias",
        },
    ),
    native=(*blocks.DECODER_NATIVE, *blocks.EXPERTS_NATIVE),
    waived=(blocks.INV_FREQ,),
)
