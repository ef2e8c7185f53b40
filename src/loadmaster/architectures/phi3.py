"""Phi-3 and Phi-4: dense, with q, k, v stored as one tensor, and gate and up as another.

Sources: the released configs; ``modeling_phi3.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding, packed


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **packed(blocks.LAYER + "self_attn.qkv_proj.weight", "attn.q", "attn.k", "attn.v"),
        **packed(blocks.LAYER + "mlp.gate_up_proj.weight", "mlp.gate", "mlp.up"),
    },
    native=blocks.DECODER_NATIVE,
    waived=(blocks.INV_FREQ,),
)
