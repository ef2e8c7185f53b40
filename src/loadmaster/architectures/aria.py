"""Aria's language model: a Llama whose MLPs are experts in two stacks, stored (in, out), with shared experts beside them.

Sources: ``modeling_aria.py`` of transformers 5.24; ``aria.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.architectures.spelling import packed


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    inner, bias, shared_bias = c.size("intermediate_size", 4096), c.flag("attention_bias"), c.flag("mlp_bias")
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
        *blocks.experts(hidden, inner, c.size("moe_num_experts", 8)),
        *blocks.gated_mlp(hidden, inner * c.size("moe_num_shared_experts", 2), logical="shared", bias=shared_bias),
    )
    return Schema(embedding(c), {"sparse": layer}, ("sparse",) * c.size("num_hidden_layers", 32))


_EXPERTS = blocks.LAYER + "mlp.experts."

FAMILY = Family(
    name="aria",
    architectures=("AriaTextForCausalLM",),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        "moe.router": blocks.LAYER + "mlp.router.weight",
        **packed(_EXPERTS + "fc1.weight", "moe.gate", "moe.up", stacked=True, transposed=True),
        **packed(_EXPERTS + "fc2.weight", "moe.down", stacked=True, transposed=True),
        **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
)
