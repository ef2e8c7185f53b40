"""Gemma-3: four norms in each layer, norms of queries and keys, a tied head; the vision tower is waived.

The published configs of the models with vision leave out values that are defaults of ``Gemma3TextConfig``.

Sources: the released configs and headers; ``modeling_gemma3.py`` and ``configuration_gemma3.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL, SLIDING, AttentionSpec, Model, require, windows_by_type
from loadmaster.architectures.rope import Rope, read_ropes
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import respelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Model(Model):
    """A dense model. ``windows`` gives for each layer how many tokens it attends to at most; None: all.

    ``sliding_attention`` is that of the layers with a window: they have other rotary embeddings.
    """

    attention: AttentionSpec
    sliding_attention: AttentionSpec
    windows: tuple[int | None, ...]


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


def read_model(c: Config) -> Gemma3Model:
    """Return what computing the model needs."""
    require(c, "hidden_activation", "gelu_pytorch_tanh")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        require(c, key, None)
    require(c, "use_bidirectional_attention", False)
    num_layers, norm_eps = c.size("num_hidden_layers", 26), c.number("rms_norm_eps", 1e-6)
    interval = c.size("sliding_window_pattern", 6)
    types = [FULL if (layer + 1) % interval == 0 else SLIDING for layer in range(num_layers)]
    rope, sliding = read_ropes(
        c,
        theta=c.number("rope_theta", 1e6, above=0),
        sliding_theta=c.number("rope_local_base_freq", 1e4, above=0),
    )
    return Gemma3Model(
        schema=schema(c),
        norm_eps=norm_eps,
        norm="rms_offset",
        embed_scale=c.size("hidden_size", 2304) ** 0.5,
        attention=_attention(c, norm_eps, rope),
        sliding_attention=_attention(c, norm_eps, sliding),
        windows=windows_by_type(c, c.size("sliding_window", 4096), types),
    )


def _attention(c: Config, norm_eps: float, rope: Rope) -> AttentionSpec:
    return AttentionSpec(
        c.size("num_attention_heads", 8),
        c.size("num_key_value_heads", 4),
        c.size("head_dim", 256),
        norm_eps,
        rope,
        scale=c.number("query_pre_attn_scalar", 256, above=0) ** -0.5,
        qk_norm="head",
        norm="rms_offset",
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
    runs=True,
)
