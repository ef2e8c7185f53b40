"""Gemma-3: four norms in each layer, norms of queries and keys, a tied head; the vision tower is waived.

The published configs of the models with vision leave out values that are defaults of ``Gemma3TextConfig``.

Sources: the released configs and headers; ``modeling_gemma3.py`` and ``configuration_gemma3.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding, respelled


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden = c.size("hidden_size", 2304)
    head = c.size("head_dim", 256)
    bias = c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        Tensor("pre_mlp_norm", (hidden,)),
        Tensor("post_mlp_norm", (hidden,)),
        *blocks.attention(
            hidden,
            c.size("num_attention_heads", 8),
            c.size("num_key_value_heads", 4),
            head,
            bias=bias,
            out_bias=bias,
            q_norm=head,
            k_norm=head,
        ),
        *blocks.gated_mlp(hidden, c.size("intermediate_size", 9216)),
    )
    return Schema(
        top=embedding(c, tied=True, hidden=2304, vocab=262_208),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers", 26),
    )


SPELLING = {
    **blocks.DECODER_SPELLING,
    "pre_mlp_norm": blocks.LAYER + "pre_feedforward_layernorm.weight",
    "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight",
}

FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
    schema=schema,
    spelling=SPELLING,
    variants=(
        respelled(SPELLING, ("model.", "language_model.model.")),
        respelled(SPELLING, ("model.", "model.language_model.")),
    ),
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.pre_feedforward_layernorm.weight", ("pre_mlp_norm",)),
        Param("{block}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    ),
    waived=(blocks.INV_FREQ, blocks.VISION),
    section="text_config",
)
