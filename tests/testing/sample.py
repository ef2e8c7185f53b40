"""A right family that is registered nowhere: every other layer has experts, one variant packs and stacks."""

from __future__ import annotations

from typing import Any

from loadmaster.architectures import Config, Family, Param, Schema, Tensor, blocks, embedding, packed

LAYER = blocks.LAYER


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads = c.size("hidden_size"), c.size("num_attention_heads"), c.size("num_key_value_heads")
    attention = (
        *blocks.norms(hidden),
        Tensor("gain", (hidden,)),
        *blocks.attention(hidden, heads, kv_heads, c.size("head_dim"), bias=c.flag("attention_bias")),
    )
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size"))),
            "sparse": (*attention, *blocks.experts(hidden, c.size("moe_intermediate_size"), c.size("num_experts"))),
        },
        layers=tuple("sparse" if i % 2 else "dense" for i in range(c.size("num_hidden_layers"))),
    )


SPELLING = {**blocks.DECODER_SPELLING, **blocks.experts_spelling(), "gain": LAYER + "gain"}

FAMILY = Family(
    name="sample",
    architectures=("SampleForCausalLM",),
    schema=schema,
    spelling=SPELLING,
    variants=(
        {
            **SPELLING,
            **blocks.stacked_experts_spelling(),
            **packed(LAYER + "self_attn.qkv.weight", "attn.q", "attn.k", "attn.v"),
        },
    ),
    native=(*blocks.DECODER_NATIVE, *blocks.EXPERTS_NATIVE, Param("{block}.gain", ("gain",))),
    waived=(blocks.INV_FREQ,),
)

CONFIG: dict[str, Any] = {
    "architectures": ["SampleForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_hidden_layers": 4,
    "vocab_size": 262,
    "torch_dtype": "bfloat16",
}
