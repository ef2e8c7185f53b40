"""GLM-4 9B and GLM-4-0414, dense: gate and up in one tensor; the latter has two more norms in each layer.

Sources: ``modeling_glm.py`` and ``modeling_glm4.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import packed


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    kv_heads, head = c.size("num_key_value_heads", 2), c.size("head_dim", 128)
    after = ("post_attn_norm", "post_mlp_norm") if c.values["architectures"][0] == "Glm4ForCausalLM" else ()
    layer = (
        *blocks.norms(hidden),
        *(Tensor(name, (hidden,)) for name in after),
        *blocks.attention(hidden, heads, kv_heads, head, bias=c.flag("attention_bias")),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="glm",
    architectures=("GlmForCausalLM", "Glm4ForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **packed(blocks.LAYER + "mlp.gate_up_proj.weight", "mlp.gate", "mlp.up"),
        "post_attn_norm": blocks.LAYER + "post_self_attn_layernorm.weight",
        "post_mlp_norm": blocks.LAYER + "post_mlp_layernorm.weight",
    },
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.post_self_attn_layernorm.weight", ("post_attn_norm",)),
        Param("{block}.post_mlp_layernorm.weight", ("post_mlp_norm",)),
    ),
    waived=(blocks.INV_FREQ,),
)
