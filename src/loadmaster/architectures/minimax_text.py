"""MiniMax-Text-01 and M1: lightning attention in most layers, attention with heads in the others, routed experts in all.

Lightning attention has q, k and v of each head in turn, a gate of its output, and a norm over all heads, of which each rank has
those of its heads. The decay follows from the number of the layer and is not stored; transformers stores tables of it.

Sources: ``modeling_minimax.py`` of transformers; configs of MiniMax-Text-01 and M1.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear

FULL, LINEAR = "full_attention", "linear_attention"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "shared_intermediate_size", 0)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    size = heads * head
    attentions = {
        FULL: blocks.attention(hidden, heads, kv_heads, head),
        LINEAR: (
            linear("linear.qkv", 3 * size, hidden, by_rows(3 * head)),
            linear("linear.gate", size, hidden, by_rows(head)),
            Tensor("linear.norm", (size,), by_rows(head)),
            linear("linear.out", hidden, size, by_columns(head)),
        ),
    }
    experts = blocks.experts(hidden, c.size("intermediate_size"), c.size("num_local_experts"))
    return Schema(
        top=embedding(c),
        kinds={kind: (*blocks.norms(hidden), *tensors, *experts) for kind, tensors in attentions.items()},
        layers=_layer_types(c),
    )


def _layer_types(c: Config) -> tuple[str, ...]:
    """Return the attention of each layer: from a list of names, or one of 0 (linear) and 1, else each second is linear."""
    num_layers = c.size("num_hidden_layers")
    if marks := c.marks("attn_type_list", num_layers):
        return tuple(FULL if is_full else LINEAR for is_full in marks)
    default = [FULL if layer % 2 == 0 else LINEAR for layer in range(num_layers)]
    return c.types("layer_types", (FULL, LINEAR), num_layers, default)


_STORED: Final = {
    "linear.qkv": "self_attn.qkv_proj.weight",
    "linear.gate": "self_attn.output_gate.weight",
    "linear.norm": "self_attn.norm.weight",
    "linear.out": "self_attn.out_proj.weight",
}

FAMILY = Family(
    name="minimax_text",
    architectures=("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM", "MiniMaxForCausalLM"),
    schema=schema,
    spelling={
        **{n: s for n, s in blocks.DECODER_SPELLING.items() if not n.startswith("mlp.")},
        **{name: blocks.LAYER + stored for name, stored in _STORED.items()},
        **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
    },
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        *blocks.ATTENTION_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _STORED.items()),
    ),
    waived=(
        blocks.INV_FREQ,
        (r".*\.self_attn\.(slope_rate|(query|key|diagonal)_decay)", "the decay is computed"),
    ),
    unchecked=dict.fromkeys(
        ("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"),
        "its names are those of transformers' class of the converted model",
    ),
)
