"""OLMo-2 and OLMo-3: norms after attention and after the MLP, and norms over all query heads and over all key heads.

Sources: the released configs; ``modeling_olmo2.py`` and ``modeling_olmo3.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    layer = (
        Tensor("post_norm", (hidden,)),
        Tensor("post_mlp_norm", (hidden,)),
        *blocks.attention(
            hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=heads * head, k_norm=kv_heads * head
        ),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="olmo",
    architectures=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    schema=schema,
    spelling={**blocks.DECODER_SPELLING, "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight"},
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    ),
    waived=(blocks.INV_FREQ,),
)
