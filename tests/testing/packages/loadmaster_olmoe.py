"""OLMoE: experts in every layer, norms over all query heads and over all key heads. Made by docs/guides/add-a-family.md.

Sources: the released config of OLMoE-1B-7B; ``modeling_olmoe.py`` and ``configuration_olmoe.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import Config, Family, Schema, blocks, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    kv_heads, head = c.size("num_key_value_heads", heads), hidden // heads
    bias = c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=heads * head, k_norm=kv_heads * head
        ),
        *blocks.experts(hidden, c.size("intermediate_size"), c.size("num_experts", 64)),
    )
    return Schema(top=embedding(c), kinds={"sparse": layer}, layers=("sparse",) * c.size("num_hidden_layers"))


FAMILY = Family(
    name="olmoe",
    architectures=("OlmoeForCausalLM",),
    schema=schema,
    spelling={**blocks.DECODER_SPELLING, **blocks.experts_spelling()},
    native=(*blocks.DECODER_NATIVE, *blocks.EXPERTS_NATIVE),
    waived=(blocks.INV_FREQ,),
)
