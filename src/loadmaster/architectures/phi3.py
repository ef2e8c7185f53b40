"""Phi-3 and Phi-4: dense, with q, k, v stored as one tensor, and gate and up as another.

Sources: the released configs; ``modeling_phi3.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, require
from loadmaster.architectures.rope import read_rope, rotary_dim
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.architectures.spelling import packed
from loadmaster.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Model(Model):
    """A dense model. ``window``: how many tokens each layer attends to at most; None: all."""

    attention: AttentionSpec
    window: int | None


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


def read_model(c: Config) -> Phi3Model:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps, rope = c.number("rms_norm_eps", 1e-5), read_rope(c)
    if rope.rope_type != "default":  # what Phi-3's first configs call yarn and su is longrope
        raise UnsupportedError(f"config.json: rotary embeddings of type {rope.rope_type!r} are not supported in Phi-3")
    return Phi3Model(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(heads, kv_heads, head, norm_eps, rope, rope_dim=rotary_dim(c, head)),
        window=c.optional_size("sliding_window"),
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
    runs=True,
)
