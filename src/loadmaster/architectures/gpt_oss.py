"""gpt-oss: all experts of a layer in one tensor, gate and up interleaved row by row, with biases; attention sinks.

As published the experts are MXFP4 (``…_blocks`` and ``…_scales``, out × in); a plain copy lies (in, out). Gate and up stay
interleaved, as their kernels want them: one logical tensor, cut in pairs of rows.

Sources: the released configs and headers; ``modeling_gpt_oss.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    Family,
    Param,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    embedding,
    linear,
    packed,
)


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    inner, num_experts = c.size("intermediate_size"), c.size("num_local_experts")
    bias = c.flag("attention_bias", True)
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
        Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)),
        Tensor("moe.router", (num_experts, hidden), usual=("F32",)),
        Tensor("moe.router_bias", (num_experts,), usual=("F32",)),
        linear("moe.gate_up", 2 * inner, hidden, by_rows(2), experts=num_experts),
        Tensor("moe.gate_up_bias", (2 * inner,), by_rows(2), experts=num_experts),
        linear("moe.down", hidden, inner, by_columns(), experts=num_experts),
        Tensor("moe.down_bias", (hidden,), experts=num_experts),
    )
    return Schema(
        top=embedding(c),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


_EXPERTS = blocks.LAYER + "mlp.experts."

FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        "attn.sinks": blocks.LAYER + "self_attn.sinks",
        "moe.router": blocks.LAYER + "mlp.router.weight",
        "moe.router_bias": blocks.LAYER + "mlp.router.bias",
        **packed(_EXPERTS + "gate_up_proj", "moe.gate_up", stacked=True, transposed=True),
        **packed(_EXPERTS + "gate_up_proj_bias", "moe.gate_up_bias", stacked=True),
        **packed(_EXPERTS + "down_proj", "moe.down", stacked=True, transposed=True),
        **packed(_EXPERTS + "down_proj_bias", "moe.down_bias", stacked=True),
    },
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.self_attn.sinks", ("attn.sinks",)),
        Param("{block}.mlp.router.weight", ("moe.router",)),
        Param("{block}.mlp.router.bias", ("moe.router_bias",)),
        Param("{block}.mlp.experts.w13_weight", ("moe.gate_up",)),
        Param("{block}.mlp.experts.w13_bias", ("moe.gate_up_bias",)),
        Param("{block}.mlp.experts.w2_weight", ("moe.down",)),
        Param("{block}.mlp.experts.w2_bias", ("moe.down_bias",)),
    ),
    waived=(blocks.INV_FREQ,),
)
